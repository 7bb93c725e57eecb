"""The verbs that show a run to others: report and card."""

from pathlib import Path
from typing import Annotated

import typer

from nisynth.cli.options import QuietOption, UrlArgument
from nisynth.cli.output import narrator, out
from nisynth.cli.quality import (
    EmbeddingOption,
    EmbeddingWeightsOption,
    Passes,
    RealOption,
    SplitOption,
    TeacherWeightsOption,
    measured,
)
from nisynth.errors import ConfigError, DataError, counted
from nisynth.progress import printable

AnyUrlArgument = Annotated[
    str, typer.Argument(metavar="URL", help="A run or a student: a folder or s3://bucket/prefix.")
]


def report(
    url: AnyUrlArgument,
    output: Annotated[str, typer.Option("--output", "-o", help="The HTML to write.")] = "report.html",
    real: RealOption = None,
    split: SplitOption = "test",
    embedding: EmbeddingOption = "resnet20",
    embedding_weights: EmbeddingWeightsOption = None,
    teacher_weights: TeacherWeightsOption = None,
    student: Annotated[
        str | None, typer.Option(metavar="URL", help="A student trained on the run, to show beside it.")
    ] = None,
    gpu_hour_price: Annotated[
        float | None, typer.Option(min=0.0, help="The price of one GPU for an hour, in any currency.")
    ] = None,
    quiet: QuietOption = False,
) -> int:
    """Write one self-contained page of a run, at any time of it, or of a student; it opens offline.

    Ends with 1 where the run is damaged, which the page says.
    """
    from nisynth.evaluation.measure import Yardstick
    from nisynth.report.build import build_page
    from nisynth.report.pictures import write_file

    by = Yardstick(
        real=real,
        split=split,
        embedding=embedding,
        embedding_weights=embedding_weights,
        teacher_weights=teacher_weights,
    )
    say = narrator(quiet)
    page = build_page(
        url,
        by,
        student=student,
        hour_price=gpu_hour_price,
        say=say,
        on_images=Passes(say),
    )
    write_file(output, page.html)
    damaged = f"; the run is damaged: {page.damage[0]}" if page.damage else ""
    out.out(printable(f"{output}: {counted(len(page.html), 'byte')}{damaged}"), highlight=False)
    return DataError.exit_code if page.damage else 0


def card(
    url: UrlArgument,
    output: Annotated[
        str,
        typer.Option("--output", "-o", metavar="DIR", help="The folder, such as a pulled copy of the run."),
    ] = ".",
    real: RealOption = None,
    split: SplitOption = "test",
    embedding: EmbeddingOption = "resnet20",
    embedding_weights: EmbeddingWeightsOption = None,
    teacher_weights: TeacherWeightsOption = None,
    quiet: QuietOption = False,
) -> None:
    """Write a complete run's card for a hub: README.md with what was measured, and a contact sheet."""
    from nisynth.commits.card import SHEET
    from nisynth.commits.seal import CARD_KEY
    from nisynth.evaluation.measure import Yardstick
    from nisynth.report.cards import measured_card
    from nisynth.report.pictures import write_file
    from nisynth.report.preview import draw_preview
    from nisynth.series.run import open_run

    run, folder = open_run(url), Path(output)
    _refuse_another_readme(folder / CARD_KEY, run.plan.fingerprint)
    found = measured(
        url,
        Yardstick(
            real=real,
            split=split,
            embedding=embedding,
            embedding_weights=embedding_weights,
            teacher_weights=teacher_weights,
        ),
        narrator(quiet),
    )
    draw_preview(run, str(folder / SHEET), rows=8)
    write_file(str(folder / CARD_KEY), measured_card(run, found).encode())
    out.print(f"{folder / CARD_KEY}, {folder / SHEET}")


def _refuse_another_readme(path: Path, fingerprint: str) -> None:
    """Raises ConfigError where a file that is not this run's card would be lost."""
    if path.is_file() and fingerprint not in path.read_text(encoding="utf-8", errors="replace"):
        raise ConfigError(f"output {path}: is not this run's card; name another folder with --output")
