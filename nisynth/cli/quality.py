"""The verbs that measure images: quality, tsne, compare."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from nisynth.cli.options import JsonOption, QuietOption, UrlArgument
from nisynth.cli.output import narrator, out, show_training
from nisynth.errors import counted
from nisynth.progress import printable
from nisynth.series.run import open_run

if TYPE_CHECKING:  # measuring imports torch's and numpy's heavy parts, which other verbs need not wait for
    from nisynth.evaluation.measure import Yardstick
    from nisynth.evaluation.quality import Quality

MOST_CLASSES = 20
CLASS_CHARS = 18
"""Of a class's name: with them, a table fits 80 columns."""
EVERY_S = 10.0

RealOption = Annotated[
    str | None,
    typer.Option(
        "--real",
        metavar="SET",
        help="Real images of the same classes: a Parquet file, a folder with one folder per class, hf:NAME.",
    ),
]
SplitOption = Annotated[str, typer.Option(help="Which split of a real set that has several.")]
EmbeddingOption = Annotated[
    str,
    typer.Option(
        "--embedding",
        help="The network whose features count: an arch of `nisynth teachers`, package.module:factory,"
        " efficientnet-lite0, inception-v3, dinov2-vit-l-14, clip-vit-l-14-336px, torchvision-vgg11,"
        " -resnet18, -resnet34 or -resnet50.",
    ),
]
EmbeddingWeightsOption = Annotated[
    str | None,
    typer.Option(
        "--embedding-weights", metavar="PATH|URL", help="Its weights; never downloaded, never unpickled."
    ),
]
TeacherWeightsOption = Annotated[
    str | None,
    typer.Option("--teacher-weights", metavar="PATH|URL", help="The teacher's, for its accuracy by class."),
]
AllowPartialOption = Annotated[
    bool, typer.Option("--allow-partial", help="Take a run that is not complete yet.")
]


def quality(
    url: UrlArgument,
    real: RealOption = None,
    split: SplitOption = "test",
    embedding: EmbeddingOption = "resnet20",
    embedding_weights: EmbeddingWeightsOption = None,
    teacher_weights: TeacherWeightsOption = None,
    allow_partial: AllowPartialOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Measure a run's images: labels, copies, and, beside real ones, FD, precision, coverage, KID.

    Every figure stands beside its floor: the same figure with as many other real images in their place.

    Of a student's folder, it says the accuracies.
    """
    from nisynth.evaluation.measure import Yardstick

    if show_training(url, as_json):  # a student, whose quality is its accuracy
        return
    by = Yardstick(
        real=real,
        split=split,
        embedding=embedding,
        embedding_weights=embedding_weights,
        teacher_weights=teacher_weights,
        allow_partial=allow_partial,
    )
    found = measured(url, by, narrator(quiet))
    if as_json:
        out.print_json(json.dumps(asdict(found)))
    else:
        _show(found)


def tsne(
    url: UrlArgument,
    real: Annotated[
        str, typer.Option(metavar="SET", help="Real images of the same classes, as for quality.")
    ],
    output: Annotated[str, typer.Option("--output", "-o", help="The PNG to write.")] = "tsne.png",
    points: Annotated[int, typer.Option(min=10, help="Images of each set; the paper has 10000.")] = 2000,
    split: SplitOption = "test",
    embedding: EmbeddingOption = "resnet20",
    embedding_weights: EmbeddingWeightsOption = None,
    allow_partial: AllowPartialOption = False,
    quiet: QuietOption = False,
) -> None:
    """Draw maps of every tap and the embedding, synthetic and real (Figures 4, 7); points go beside, as CSV.

    Under each panel: how well a 10-NN tells the two sets apart in the features, 0.5 where they are alike.
    """
    from nisynth.evaluation.embedding import embed
    from nisynth.evaluation.measure import Yardstick, open_for_measuring
    from nisynth.evaluation.networks import POOL
    from nisynth.evaluation.tsne import map_layers
    from nisynth.report.maps import draw_maps, points_csv
    from nisynth.report.pictures import write_file

    opened = open_for_measuring(
        url,
        Yardstick(
            real=real,
            split=split,
            embedding=embedding,
            embedding_weights=embedding_weights,
            allow_partial=allow_partial,
        ),
    )
    assert opened.real is not None
    say = narrator(quiet)
    passes = Passes(say)
    features = [embed(images, opened.network, on_images=passes) for images in (opened.synthetic, opened.real)]
    layers = [*(layer for layer in opened.network.layers if layer.startswith("tap")), POOL]
    say(f"drawing {counted(len(layers), 'map')}")
    maps = map_layers(features[0], features[1], layers, points)
    title = (
        f"{opened.network.name}: {maps[0].num_each:,} images of {opened.synthetic.split} and as many of"
        f" {opened.real.split}"
    )
    write_file(output, draw_maps(maps, opened.synthetic.classes, title))
    beside = str(Path(output).with_suffix(".csv"))
    write_file(beside, points_csv(maps))
    _print(f"{output}, {beside}: " + ", ".join(f"{found.layer} {found.accuracy:.3f}" for found in maps))


def compare(
    urls: Annotated[list[str], typer.Argument(metavar="URL...", help="The runs.")],
    output: Annotated[str, typer.Option("--output", "-o", help="The PNG to write.")] = "compare.png",
    real: RealOption = None,
    split: SplitOption = "test",
    embedding: EmbeddingOption = "resnet20",
    embedding_weights: EmbeddingWeightsOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Draw the losses of several runs in one picture (Figure 5), and set their quality side by side."""
    from nisynth.evaluation.measure import Yardstick
    from nisynth.report.compare import curves_of, loss_by_run, names_of, quality_rows
    from nisynth.report.pictures import write_file

    runs = [open_run(url) for url in urls]
    names = names_of(runs)
    write_file(output, loss_by_run({name: curves_of(run) for name, run in zip(names, runs, strict=True)}))
    by = Yardstick(
        real=real,
        split=split,
        embedding=embedding,
        embedding_weights=embedding_weights,
        allow_partial=True,
    )
    found = {name: measured(url, by, narrator(quiet)) for name, url in zip(names, urls, strict=True)}
    if as_json:
        out.print_json(json.dumps({name: asdict(quality) for name, quality in found.items()}))
        return
    table = Table("figure (floor)", box=None)
    for name in names:
        table.add_column(Text(printable(name)), justify="right")
    for label, cells in quality_rows(found):
        table.add_row(label, *cells)
    out.print(table)
    _print(f"losses: {output}")


def measured(url: str, by: "Yardstick", say: Callable[[str], None]) -> "Quality":
    """Returns a run's quality; says how far it is."""
    from nisynth.evaluation.measure import open_for_measuring

    opened = open_for_measuring(url, by)
    return opened.measure(Passes(say))


class Passes:
    """Says how far each pass over a set is: every ten seconds, and at its end."""

    def __init__(self, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._say, self._clock, self._said_s = say, clock, clock()

    def __call__(self, done: int, total: int) -> None:
        now_s = self._clock()
        if done == total or now_s - self._said_s > EVERY_S:
            self._say(f"embedded {done:,} of {counted(total, 'image')}")
            self._said_s = now_s


def _show(found: "Quality") -> None:
    _print(f"{counted(found.num_images, 'image')}, {found.synthetic_split} ({found.synthetic})")
    if found.real is not None:
        _print(f"{counted(found.num_real, 'real image')}, split {found.real_split} ({found.real})")
    teacher = (
        "" if found.independent else ", which is the teacher itself: give another for an independent view"
    )
    _print(f"features of {found.embedding}{teacher}; resize: {found.resize}")
    for role, judge in found.recognition.items():
        synthetic, real = judge.synthetic, judge.real
        beside = "" if real is None else f" (real {real.accuracy:.1%}, ECE {real.ece:.3f})"
        _print(
            f"{role} {judge.network}: accuracy {synthetic.accuracy:.1%}, confidence"
            f" {synthetic.confidence:.1%}, ECE {synthetic.ece:.3f}{beside}"
        )
    if found.agreement is not None:
        _print(f"both choose the same class for {found.agreement:.1%} of the images")
    if found.figures:
        out.print(_figures(found))
    out.print(_classes(found))
    copies = found.copies
    beside = "" if copies.real_near_share is None else f" (real {copies.real_near_share:.1%})"
    _print(
        f"copies: {counted(copies.exact, 'image')} equal to an earlier one; of {copies.n:,},"
        f" {copies.near_share:.1%} have a near duplicate{beside}, {counted(copies.clusters, 'cluster')} left"
    )
    _print(f"pixels: {_pixels(found)}")
    for note in found.notes:
        _print(f"note: {note}")


def _figures(found: "Quality") -> Table:
    table = Table("figure", "layer", "value", "floor", "x floor", "images", "real", box=None)
    for figure in found.figures:
        name = f"{figure.name} k={figure.k}" if figure.k else figure.name
        floor = "" if figure.floor is None else f"{figure.floor:.4g}"
        if figure.floor_std is not None:
            floor += f" +- {figure.floor_std:.2g}"
        times = f"{figure.value / figure.floor:.3g}" if figure.floor and figure.floor > 0 else ""
        counts = (f"{figure.n_generated:,}", f"{figure.n_real:,}")
        table.add_row(name, figure.layer, f"{figure.value:.4g}", floor, times, *counts)
    return table


def _classes(found: "Quality") -> Table:
    compared = ("FD", "floor", "coverage", "floor") if found.real is not None else ()
    rows = found.classes
    judged = any(row.independent_accuracy is not None for row in rows)
    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column("class", max_width=CLASS_CHARS, no_wrap=True, overflow="ellipsis")
    for heading in ("images", "teacher", *(["independent"] if judged else []), *compared):
        table.add_column(heading)
    if len(rows) > MOST_CLASSES:
        rows = tuple(sorted(rows, key=lambda row: -(row.fd_diagonal or 0.0))[: MOST_CLASSES // 2])
    for row in rows:
        rates = [_number(row.teacher_accuracy, ".1%")]
        if judged:
            rates.append(_number(row.independent_accuracy, ".1%"))
        pair = (row.fd_diagonal, row.fd_diagonal_floor, row.coverage, row.coverage_floor)
        figures = [_number(value, ".3g") for value in pair[: len(compared)]]
        table.add_row(Text(printable(row.name)), f"{row.n:,}", *rates, *figures)
    return table


def _pixels(found: "Quality") -> str:
    parts = []
    for name, pixels in (("synthetic", found.pixels), ("real", found.real_pixels)):
        if pixels is not None:
            means, stds = (
                "/".join(f"{value:.0f}" for value in values) for values in (pixels.mean, pixels.std)
            )
            parts.append(
                f"{name} mean {means}, std {stds}, total variation {pixels.total_variation:.1f},"
                f" saturated {sum(pixels.saturated) / 3:.1%}"
            )
    return "; ".join(parts)


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _print(line: str) -> None:
    out.out(printable(line), highlight=False)
