"""The verbs of a run: plan, run, status, verify, retry, redo, gc, preview, teachers."""

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.console import Console
from rich.table import Table

from nisynth.cli.options import (
    ActorsOption,
    ClusterOption,
    ConfigArgument,
    JsonOption,
    QuietOption,
    SetOption,
    UrlArgument,
    executor_of,
    with_workers,
)
from nisynth.cli.output import out, shards_shown, show_training
from nisynth.cli.watch import describe, follow
from nisynth.commits import Run, audit
from nisynth.commits.status import status as read_status
from nisynth.errors import ConfigError, DataError, PlanMismatch, counted
from nisynth.execution import COMPLETE, PARTIAL
from nisynth.progress import format_seconds, printable
from nisynth.series.by_url import verify as judge
from nisynth.series.run import Series, open_run
from nisynth.storage import open_store

if TYPE_CHECKING:
    from nisynth.config import RunConfig
    from nisynth.synthesis.inversion.config import InversionConfig

SHOWN_PROBLEMS = 20


def plan(
    config: ConfigArgument,
    store: Annotated[str, typer.Option(help="A run's URL: also say what is committed there already.")] = "",
    set_: SetOption = [],  # noqa: B006  typer copies it
    as_json: JsonOption = False,
    simulated: Annotated[
        bool, typer.Option("--simulate", help="Predict time, GPU-hours and requests by a simulated run.")
    ] = False,
    gpus: Annotated[
        list[int], typer.Option(min=1, help="With --simulate: workers of one GPU each; may be repeated.")
    ] = [],  # noqa: B006
    task_s: Annotated[float | None, typer.Option(min=1e-3, help="Seconds of compute of one task.")] = None,
    from_url: Annotated[str, typer.Option("--from", help="A run whose commits say what a task takes.")] = "",
    start_s: Annotated[
        float | None, typer.Option(min=0.0, help="Seconds until a worker is ready; default 60, or --from's.")
    ] = None,
    loss_per_hour: Annotated[
        float, typer.Option(min=0.0, help="Share of the nodes that is lost in an hour.")
    ] = 0.0,
    gpu_hour_price: Annotated[float | None, typer.Option(min=0.0, help="Adds what the GPUs cost.")] = None,
    gantt: Annotated[str, typer.Option(metavar="PNG", help="Draw the workers over time there.")] = "",
) -> None:
    """Say what a run would do, and what was understood of its teacher. Reads the weights; needs no GPU."""
    from nisynth.cli import predictions
    from nisynth.config import load_config
    from nisynth.plan import make_plan
    from nisynth.synthesis import METHODS, load_artefacts
    from nisynth.synthesis.diagnosis import balance
    from nisynth.teachers import load_teacher

    resolved = load_config(config, set_)
    teacher = load_teacher(resolved.teacher)
    planned = make_plan(resolved, teacher.identity, load_artefacts(resolved.method, teacher))
    facts: dict[str, Any] = {
        "tasks": planned.num_tasks,
        "images": planned.num_images,
        "estimated_bytes": planned.num_images * _bytes_per_image(planned.format, planned.input_px),
        "fingerprint": planned.fingerprint,
    }
    if store:
        begun = Run.find(open_store(store), planned)
        facts["committed"] = len(begun.committed()) if begun is not None else 0
    found = []
    if simulated:
        costs = predictions.costs(task_s, from_url, start_s)
        found = predictions.predictions(planned.num_tasks, gpus, costs, loss_per_hour)
        facts["predictions"] = predictions.as_documents(found, gpu_hour_price)
    if gantt and found:
        predictions.draw(found[-1], gantt)
    inverts = METHODS[resolved.method.name].uses_engine
    losses = balance(teacher, cast("InversionConfig", resolved.method), planned.batch_size) if inverts else {}
    if as_json:
        understood = {**teacher.describe(), **losses, "notes": list(teacher.notes)}
        out.print_json(json.dumps({**facts, "teacher": understood, "identity": planned.identity}))
        return
    _note_last_batch(resolved)
    for note in teacher.notes:
        Console(stderr=True, soft_wrap=True).print(f"note: {note}", highlight=False, markup=False)
    for name, value in {**teacher.describe(), **losses, **facts}.items():
        if name != "predictions":
            out.print(f"{name:16} {value:,}" if isinstance(value, int) else f"{name:16} {value}")
    if found:
        out.print(predictions.as_table(found, facts["estimated_bytes"], gpu_hour_price, planned.num_tasks))


def run(
    config: ConfigArgument,
    store: Annotated[str, typer.Option(help="Where the run lives: a folder or s3://bucket/prefix.")],
    executor: Annotated[
        str, typer.Option(help="`local`: one worker in this process; `ray`: actors.")
    ] = "local",
    workers: ActorsOption = None,
    address: ClusterOption = None,
    set_: SetOption = [],  # noqa: B006
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> int:
    """Synthesize what is missing at the URL. Run it again to resume: what is committed never runs twice."""
    from nisynth.config import load_config
    from nisynth.execution.run import run as carry_out

    chosen = executor_of(executor)
    resolved = load_config(config, with_workers(set_, workers))
    if not as_json:
        _note_last_batch(resolved)
    report = carry_out(
        resolved,
        store,
        executor=chosen,
        address=address,
        progress=not quiet,
    )
    if as_json:
        out.print_json(json.dumps(dataclasses.asdict(report)))
        return report.exit_code
    out.print(
        f"{report.message}: {report.committed:,} of {counted(report.planned, 'task')},"
        f" {counted(report.images, 'image')} at {report.url};"
        f" {counted(report.executed, 'task')} run now in {format_seconds(report.seconds)}"
    )
    if report.teacher_accuracy is not None:
        out.print(f"the teacher recognises {report.teacher_accuracy:.1%} of the decoded images")
    return report.exit_code


def status(
    url: UrlArgument,
    watch: Annotated[bool, typer.Option("--watch", help="Follow the run until it is complete.")] = False,
    every: Annotated[float, typer.Option(min=0.5, help="Seconds between two looks of --watch.")] = 5.0,
    as_json: JsonOption = False,
) -> int:
    """Say how far a run is, from its storage alone; ends with 1 where it knows of damage.

    It compares sizes and reads no image: `nisynth verify --deep` does.
    --watch ends with 0 when the run is complete, with 3 when only quarantined tasks are left.
    Of the folder of a student, a pruning sweep or a generator it says what that is.
    """
    try:
        opened = open_run(url)
    except PlanMismatch:
        if show_training(url, as_json):
            return COMPLETE
        raise
    if watch:
        last = follow(opened, Console(highlight=False), every, as_json)
        return DataError.exit_code if last.damaged else COMPLETE if last.complete else PARTIAL
    found = read_status(opened)
    if as_json:
        out.print_json(json.dumps(dataclasses.asdict(found)))
    else:
        for line in describe(found):
            out.out(printable(line), highlight=False)
    return DataError.exit_code if found.damaged else COMPLETE


def verify(
    url: UrlArgument,
    deep: Annotated[bool, typer.Option("--deep", help="Also fetch, hash and decode every shard.")] = False,
    complete: Annotated[
        bool, typer.Option("--complete", help="End with 3 unless every task is committed and the run sealed.")
    ] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> int:
    """Judge what is committed: records, shards, sizes; --deep also sha256, every image, every label.

    A run may be incomplete, unless you say --complete.
    """
    run = open_run(url)
    with shards_shown(quiet) as show:
        verdict = judge(run, deep, show)
    if as_json:
        problems = [dataclasses.asdict(problem) for problem in verdict.problems]
        document = {"planned": run.plan.num_tasks, "checked": verdict.checked, "complete": verdict.complete}
        out.print_json(json.dumps({"ok": not verdict.problems, **document, "problems": problems}))
    else:
        _print_verdict(verdict, run.plan.num_tasks, url, deep)
    if verdict.problems:
        return DataError.exit_code
    return PARTIAL if complete and not verdict.complete else COMPLETE


def retry(url: UrlArgument) -> None:
    """Lift every quarantine, so that the next run tries those tasks again."""
    tasks = open_run(url).retry()
    if not tasks:
        out.print("no task is quarantined; nothing was changed")
        return
    out.print(f"{counted(len(tasks), 'quarantine')} lifted{_list(tasks)}; run again to try {_them(tasks)}")


def redo(
    url: UrlArgument,
    task: Annotated[list[int], typer.Option("--task", help="A task to make again; may be repeated.")] = [],  # noqa: B006
    bad: Annotated[bool, typer.Option("--bad", help="Every task that `verify --deep` finds bad.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Remove the commits of bad shards, so that the next run makes them again."""
    if bool(task) == bad:
        raise ConfigError("redo: name the tasks with --task N, or say --bad")
    opened = open_run(url)
    if not bad:
        removed = audit.redo(opened, task)
    else:
        with shards_shown(quiet) as show:
            verdict, removed = audit.redo_bad(opened, show)
        if not verdict.problems:
            out.print(f"nothing is bad in {counted(verdict.checked, 'committed task')}; nothing was changed")
            return
        for problem in verdict.problems[:SHOWN_PROBLEMS]:
            out.out(printable(problem.text), highlight=False)
    if not removed:
        out.print("no commit was there to remove; run again to make what is missing")
        return
    out.print(f"{counted(len(removed), 'commit')} removed{_list(removed)}; run again to make what is missing")


def gc(url: UrlArgument) -> None:
    """Delete shards that lost to another attempt's commit, and what killed writers left; nothing else.

    Of a series also the copies of rivals that its rounds do not compete with.
    """
    opened = open_run(url)
    deleted = audit.gc(opened)
    swept = sum(
        store.sweep() for store in {part.store.url: part.store for part in (opened, *opened.rounds)}.values()
    )
    out.print(
        f"{counted(len(deleted), 'losing shard')} deleted,"
        f" and {counted(swept, 'file')} that killed writers left"
    )
    if isinstance(opened, Series):
        from nisynth.series.rivals import delete_losing_rivals

        out.print(f"{counted(len(delete_losing_rivals(opened)), 'losing rival')} deleted")


def preview(
    urls: Annotated[
        list[str], typer.Argument(metavar="URL...", help="The run; with --rows-by, one or several.")
    ],
    output: Annotated[str, typer.Option("--output", "-o", help="The PNG to write.")] = "preview.png",
    rows: Annotated[int, typer.Option(help="Images per class.")] = 10,
    task: Annotated[int | None, typer.Option("--task", help="The images of one task (Figure 3).")] = None,
    rows_by: Annotated[
        str | None,
        typer.Option(
            "--rows-by", metavar="method", help="A row per run, under its method's name (Figure 2)."
        ),
    ] = None,
) -> None:
    """Draw a contact sheet, one class per column, at any time of a run."""
    from nisynth.report.preview import draw_methods, draw_preview, draw_task

    if rows_by not in (None, "method"):
        raise ConfigError(f"--rows-by {rows_by}: rows are by `method`, or left out")
    if rows_by is not None and task is not None:
        raise ConfigError("preview: give --rows-by or --task, not both")
    if len(urls) > 1 and rows_by is None:
        raise ConfigError("preview: several runs need --rows-by method")
    runs = [open_run(url) for url in urls]
    if rows_by is not None:
        count = draw_methods(runs, output)
    elif task is not None:
        count = draw_task(runs[0], output, task, rows)
    else:
        count = draw_preview(runs[0], output, rows)
    out.print(f"{output}: {counted(count, 'image')}")


def teachers() -> None:
    """List the networks that the registry knows; any other by `arch: package.module:factory`."""
    from nisynth.teachers import architectures

    table = Table("arch", "parameters", "taps at 32 px", "source", box=None)
    for info in architectures():
        taps = " ".join(f"{tap.channels}x{tap.side_px}²" for tap in info.taps)
        table.add_row(info.name, f"{info.parameters:,}", taps, info.source)
    out.print(table)


def _note_last_batch(config: "RunConfig") -> None:
    left = config.run.num_images % config.run.batch_size
    if left:
        Console(stderr=True, soft_wrap=True).print(
            f"note: run.num_images {config.run.num_images} is not a multiple of run.batch_size"
            f" {config.run.batch_size}: the last task synthesizes a full batch and keeps {left}",
            highlight=False,
        )


def _bytes_per_image(format_: str, side_px: int) -> int:
    """Float32 is exact; a PNG of a synthesized image takes about what its raw pixels do."""
    raw = 3 * side_px * side_px
    return 4 * raw + 8 if format_ == "npz" else raw


def _print_verdict(verdict: audit.Verdict, planned: int, url: str, deep: bool) -> None:
    for problem in verdict.problems[:SHOWN_PROBLEMS]:
        out.out(printable(problem.text), highlight=False)
    if len(verdict.problems) > SHOWN_PROBLEMS:
        more = counted(len(verdict.problems) - SHOWN_PROBLEMS, "problem")
        out.print(f"... and {more} more; --json lists all")
    if verdict.problems:
        end = f"{counted(len(verdict.problems), 'problem')}; `nisynth redo {url} --bad`, then run again"
    elif not verdict.checked:
        end = "nothing to judge; run it first"
    else:
        sound = "every image is sound" if deep else "their sizes are right, their contents were not read"
        state = (
            "the run is complete" if verdict.complete else "the run is not complete, run it again to resume"
        )
        end = f"{sound}; {state}" if deep else f"{sound}: `nisynth verify {url} --deep` reads them; {state}"
    committed = (
        f"{verdict.checked:,} of {counted(planned, 'task')} {'is' if planned == 1 else 'are'} committed"
    )
    out.print(f"{committed}: {end}")


def _them(tasks: list[int]) -> str:
    return "it" if len(tasks) == 1 else "them"


def _list(tasks: list[int]) -> str:
    shown = ", ".join(str(task) for task in tasks[:10])
    return f" ({shown}{', ...' if len(tasks) > 10 else ''})" if tasks else ""
