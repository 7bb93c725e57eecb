"""A look at a run at any time: images of shards spread over what is committed, on one contact sheet."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from nisynth.commits import Run
from nisynth.commits.rejected import read_rejected
from nisynth.errors import ConfigError, DataError, IncompleteRun
from nisynth.report.contact_sheet import contact_sheet
from nisynth.report.facts import public_name
from nisynth.report.pictures import write_png

MAX_SHARDS = 16
READERS = 4


def draw_preview(run: Run, output: str, rows: int) -> int:
    """Draws up to `rows` images of every class into the PNG file `output`; returns how many it drew.

    At most 16 shards are read, evenly spread over the committed tasks, and every class takes its images
    from as many of them as it can, since images of one shard share a generator. While nothing is committed,
    they are those of a canary that failed the quality gate. Raises IncompleteRun when there is none either,
    DataError for a damaged shard, ConfigError when the file cannot be written.
    """
    if rows < 1:
        raise ConfigError(f"--rows {rows}: must be at least 1, the number of images of each class")
    pixels, labels = sample_images(run, rows)
    write_png(output, contact_sheet(pixels, labels, run.plan.classes, rows=rows))
    return len(labels)


def draw_task(run: Run, output: str, task: int, rows: int) -> int:
    """Draws one batch (Figure 3), up to `rows` images of every class; returns how many it drew.

    Raises IncompleteRun when the task is not committed, and as `draw_preview` does.
    """
    run.require_task(task)
    found = _read(run, task)
    if found is None:
        raise IncompleteRun(f"{run.store.url}: task {task} is not committed, so it has no images to draw")
    chosen = _choose([found[1]], rows)
    pixels, labels = found[0][chosen], found[1][chosen]
    write_png(output, contact_sheet(pixels, labels, run.plan.classes, rows=rows))
    return len(labels)


def draw_methods(runs: Sequence[Run], output: str) -> int:
    """Draws an image of every class for each run, a run a row under its method's name (Figure 2).

    Runs of one method have the last part of their URL beside it.

    Returns how many images it drew. Raises ConfigError for runs of other classes or image sizes, and as
    `draw_preview` does.
    """
    first = runs[0].plan
    for run in runs[1:]:
        if (run.plan.classes, run.plan.input_px) != (first.classes, first.input_px):
            raise ConfigError(
                f"{run.store.url}: its classes or image size are not those of {runs[0].store.url};"
                " rows of one sheet need the same"
            )
    blank = torch.full((3, first.input_px, first.input_px), 255, dtype=torch.uint8)
    pixels: list[Tensor] = []
    labels: list[int] = []
    for run in runs:
        found, found_labels = sample_images(run, 1)
        by_class = dict(zip(found_labels.tolist(), found, strict=True))
        pixels += [by_class.get(label, blank) for label in range(first.num_classes)]
        labels += range(first.num_classes)
    methods = [str(run.plan.identity["method"]["name"]) for run in runs]
    names = [
        method if methods.count(method) == 1 else f"{method}, {public_name(run.store.url).rpartition('/')[2]}"
        for method, run in zip(methods, runs, strict=True)
    ]
    sheet = contact_sheet(
        torch.stack(pixels), torch.tensor(labels), first.classes, rows=len(runs), row_names=names
    )
    write_png(output, sheet)
    return len(labels)


def sample_images(run: Run, rows: int, damage: list[str] | None = None) -> tuple[Tensor, Tensor]:
    """Returns up to `rows` images of every class, uint8 `(N, 3, H, W)`, and their labels, class by class.

    damage: takes a line for each damaged shard, which is left out. Chosen, and raising, as `draw_preview`
    does; with `damage`, DataError only where no shard is sound.
    """

    def read(task: int) -> tuple[Tensor, Tensor] | None:
        try:
            return _read(run, task)
        except DataError as error:
            if damage is None:
                raise
            damage.append(str(error))
            return None

    tasks = sorted(run.committed())
    rejected = None if tasks else read_rejected(run)
    if rejected is not None:
        images = run.rounds[-1].read_shard(rejected.batch).images
        parts = [(images.pixels, images.labels)]
    elif tasks:
        with ThreadPoolExecutor(READERS) as pool:
            parts = [part for part in pool.map(read, _spread(run, tasks, rows)) if part]
    else:
        raise IncompleteRun(
            f"{run.store.url}: no task is committed yet, so there is no image to draw; wait for one"
        )
    if not parts and damage:
        raise DataError(damage[0])
    if not parts:
        raise IncompleteRun(
            f"{run.store.url}: its commits were removed meanwhile; run it again, then preview"
        )
    pixels, labels = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
    chosen = _choose([part[1] for part in parts], rows)
    return pixels[chosen], labels[chosen]


def _spread(run: Run, tasks: list[int], rows: int) -> list[int]:
    """Returns the tasks to read: a shard for each of the `rows`, or as many as fill them."""
    needed = max(rows, -(-rows * run.plan.num_classes // run.plan.batch_size))
    count = min(MAX_SHARDS, needed, len(tasks))
    return [tasks[i * len(tasks) // count] for i in range(count)]


def _read(run: Run, task: int) -> tuple[Tensor, Tensor] | None:
    commit = run.read(task)
    if commit is None:  # listed, then gone: redo was quicker
        return None
    images = run.read_shard(commit).images
    return images.pixels, images.labels


def _choose(labels: list[Tensor], rows: int) -> list[int]:
    """Returns positions in the joined shards: of every class the first of each shard, then the seconds."""
    seen: dict[tuple[int, int], int] = {}
    order: list[tuple[int, int, int, int]] = []
    for shard, part in enumerate(labels):
        for label in part.tolist():
            turn = seen[shard, label] = seen.get((shard, label), -1) + 1
            order.append((label, turn, shard, len(order)))
    chosen: list[int] = []
    taken: dict[int, int] = {}
    for label, _, _, position in sorted(order):
        taken[label] = taken.get(label, 0) + 1
        if taken[label] <= rows:
            chosen.append(position)
    return chosen
