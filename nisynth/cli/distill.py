"""The verbs that train a student: distill and scratch."""

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated

import typer

from nisynth.cli.options import JsonOption, PartialOption, QuietOption, SetOption
from nisynth.cli.output import narrator, out
from nisynth.errors import counted

if TYPE_CHECKING:
    from nisynth.consumers.student_report import StudentReport

ConfigArgument = Annotated[
    str, typer.Argument(metavar="CONFIG", help="A YAML file, or the name of a shipped config.")
]
DataOption = Annotated[str | None, typer.Option(metavar="URL", help="The run to train on (data).")]
OutputOption = Annotated[
    str | None, typer.Option(metavar="URL", help="Where the student goes: a folder or s3:// (output).")
]
FollowOption = Annotated[
    bool | None, typer.Option("--follow", help="Begin while the run still grows; end on all of it (follow).")
]
WorkersOption = Annotated[
    int | None, typer.Option(help="Processes, one GPU each (workers); above 1 through Ray Train.")
]
AddressOption = Annotated[
    str | None, typer.Option(help="The Ray cluster for several workers; none: one on this machine.")
]


def distill(
    config: ConfigArgument,
    data: DataOption = None,
    output: OutputOption = None,
    workers: WorkersOption = None,
    allow_partial: PartialOption = None,
    follow: FollowOption = None,
    address: AddressOption = None,
    set_: SetOption = [],  # noqa: B006  typer copies it
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Train a student on a teacher's answers to a run's images. Run it again to resume."""
    from nisynth.config_loader import load_as
    from nisynth.consumers.distill import DistillConfig, distill

    given = {
        "data": data,
        "output": output,
        "workers": workers,
        "allow_partial": allow_partial,
        "follow": follow,
    }
    resolved = load_as(DistillConfig, config, set_, kind="distill", given=given)
    _show(distill(resolved, address=address, say=narrator(quiet)), as_json)


def scratch(
    config: ConfigArgument,
    data: DataOption = None,
    output: OutputOption = None,
    workers: WorkersOption = None,
    allow_partial: PartialOption = None,
    follow: FollowOption = None,
    address: AddressOption = None,
    set_: SetOption = [],  # noqa: B006
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Train a network from scratch on a run's images and labels. Run it again to resume."""
    from nisynth.config_loader import load_as
    from nisynth.consumers.scratch import ScratchConfig, train_from_scratch

    given = {
        "data": data,
        "output": output,
        "workers": workers,
        "allow_partial": allow_partial,
        "follow": follow,
    }
    resolved = load_as(ScratchConfig, config, set_, kind="scratch", given=given)
    _show(train_from_scratch(resolved, address=address, say=narrator(quiet)), as_json)


def _show(report: "StudentReport", as_json: bool) -> None:
    if as_json:
        out.print_json(json.dumps(dataclasses.asdict(report)))
        return
    out.print(
        f"{report.student}, {report.num_parameters:,} parameters, trained on"
        f" {counted(report.num_images, 'image')} of run {report.fingerprint[:12]}"
        f"{'' if report.complete else ' (incomplete)'}"
    )
    if report.test_accuracy is not None:
        against = ""
        if report.teacher_accuracy:
            ratio = report.test_accuracy / report.teacher_accuracy
            against = f"; the teacher {report.teacher_accuracy:.2%}, student over teacher {ratio:.3f}"
        out.print(
            f"accuracy {report.test_accuracy:.2%} on {counted(report.num_test_images, 'real image')}"
            f" ({report.test_set}){against}"
        )
    out.print(f"{report.output}: student.safetensors, result.json, curve.png")
