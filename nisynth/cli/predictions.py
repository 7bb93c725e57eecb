"""`plan --simulate`: what a run would take on clusters of several sizes, as a table, JSON and a picture."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from nisynth.errors import ConfigError, counted
from nisynth.execution.simulate import Costs, Prediction, costs_of, simulate
from nisynth.progress import format_seconds
from nisynth.series.run import open_run


def costs(task_s: float | None, from_url: str, start_s: float | None) -> Costs:
    """Returns what a task takes: so many seconds, or what it took in the run at a URL.

    Raises ConfigError unless one of the two is given, and as `costs_of` does.
    """
    if (task_s is None) == (not from_url):
        raise ConfigError("--simulate: say what a task takes, either by --task-s S or --from URL of a run")
    if from_url:
        return costs_of(open_run(from_url), start_s)
    found = Costs(compute_s=[task_s or 0.0])
    return found if start_s is None else dataclasses.replace(found, start_s=start_s)


def predictions(num_tasks: int, gpus: Sequence[int], costs: Costs, loss_per_hour: float) -> list[Prediction]:
    """Returns a prediction for each number of GPUs; of a single number, also for its parts and its double.

    Raises ConfigError where no number is given, and as `simulate` does.
    """
    if not gpus:
        raise ConfigError("--simulate: say how many GPUs with --gpus N; may be repeated")
    sizes = [gpus[0] // 4, gpus[0] // 2, gpus[0], 2 * gpus[0]] if len(gpus) == 1 else gpus
    return [
        simulate(num_tasks, size, costs, loss_per_hour=loss_per_hour)
        for size in sorted({min(size, num_tasks) for size in sizes if size > 0})
    ]


def as_table(found: Sequence[Prediction], num_bytes: int, price: float | None, num_tasks: int) -> Table:
    """Returns the predictions, a row each. num_bytes: of the whole set. price: of a GPU-hour."""
    caption = "a row is one simulated run on that many GPUs, each a worker"
    if found[-1].gpus == num_tasks:
        caption += f"; more than {counted(num_tasks, 'task')} keep no more GPUs busy"
    table = Table(box=None, caption=caption, caption_justify="left")
    names = ["GPUs", "makespan", "GPU-hours", "wasted", "used", "after canary", "requests", "MB"]
    for name in [*names, *(["cost"] if price is not None else [])]:
        table.add_column(name, justify="right", no_wrap=True)
    for one in found:
        cells = [
            f"{one.gpus:,}",
            format_seconds(one.makespan_s),
            f"{one.held_hours:,.2f}",
            f"{one.wasted_hours:,.2f}",
            f"{one.utilisation:.1%}",
            f"{one.after_canary:.1%}",
            f"{one.requests:,}",
            f"{num_bytes / 1e6:,.0f}",
        ]
        table.add_row(*cells, *([f"{one.held_hours * price:,.2f}"] if price is not None else []))
    return table


def as_documents(found: Sequence[Prediction], price: float | None) -> list[dict[str, Any]]:
    """Returns the predictions as JSON types, without the bars of the picture."""
    documents = []
    for one in found:
        document = dataclasses.asdict(one) | {"utilisation": one.utilisation}
        del document["bars"]
        documents.append(document | ({} if price is None else {"cost": one.held_hours * price}))
    return documents


def draw(one: Prediction, path: str) -> None:
    """Draws the workers over time into a PNG. Raises ConfigError for a file that cannot be written."""
    from nisynth.report.gantt import gantt
    from nisynth.report.pictures import write_file

    write_file(path, gantt(one.bars, f"{one.gpus} GPUs: {format_seconds(one.makespan_s)}"))
