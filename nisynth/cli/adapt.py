"""The verb of a series: adapt."""

import dataclasses
import json
from typing import Annotated

import typer

from nisynth.cli.options import (
    ActorsOption,
    ClusterOption,
    JsonOption,
    QuietOption,
    SetOption,
    executor_of,
    with_workers,
)
from nisynth.cli.output import narrator, out
from nisynth.errors import counted
from nisynth.progress import format_seconds


def adapt(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file, or a shipped config's name.")],
    store: Annotated[str, typer.Option(help="Where the series lives: a folder or s3://bucket/prefix.")],
    executor: Annotated[
        str,
        typer.Option(help="`local`: all in this process; `ray`: actors, and Ray Train for rivals."),
    ] = "local",
    workers: ActorsOption = None,
    address: ClusterOption = None,
    set_: SetOption = [],  # noqa: B006  typer copies it
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Synthesize in rounds, each against a rival distilled from those before it. Run it again to resume."""
    from nisynth.series.conductor import adapt as carry_out
    from nisynth.series.config import load_adapt_config

    chosen = executor_of(executor)
    report = carry_out(
        load_adapt_config(config, with_workers(set_, workers)),
        store,
        executor=chosen,
        address=address,
        progress=not quiet,
        say=narrator(quiet),
    )
    if as_json:
        out.print_json(json.dumps(dataclasses.asdict(report)))
        return
    out.print(
        f"complete: {counted(report.rounds, 'round')}, {counted(report.tasks, 'task')},"
        f" {counted(report.images, 'image')} at {report.url};"
        f" {counted(report.executed, 'task')} run now in {format_seconds(report.seconds)}"
    )
    out.print(f"the teacher recognises {report.teacher_accuracy:.1%} of the decoded images")
