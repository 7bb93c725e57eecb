"""The verbs that show a run: report."""

from typing import Annotated

import typer

from nisynth.cli import app
from nisynth.cli.quality import (
    EmbeddingOption,
    EmbeddingWeightsOption,
    Passes,
    RealOption,
    SplitOption,
    TeacherWeightsOption,
)
from nisynth.cli.runs import out

AnyUrlArgument = Annotated[
    str, typer.Argument(metavar="URL", help="A run or a student: a folder or s3://bucket/prefix.")
]


@app.command()
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
) -> None:
    """Write one self-contained page of a run, at any time of it, or of a student; it opens offline."""
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
    page = build_page(
        url,
        by,
        student=student,
        hour_price=gpu_hour_price,
        say=lambda line: typer.echo(line, err=True),
        on_images=Passes(),
    )
    write_file(output, page)
    out.print(f"{output}: {len(page):,} bytes")
