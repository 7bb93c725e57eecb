"""The verb that fits a generator: fit."""

import dataclasses
import json
from typing import Annotated

import typer

from nisynth.cli.options import JsonOption, QuietOption, SetOption
from nisynth.cli.output import narrator, out
from nisynth.errors import counted


def fit(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file, or a shipped config's name.")],
    output: Annotated[
        str | None, typer.Option(metavar="URL", help="Where the generator goes: a folder or s3:// (output).")
    ] = None,
    set_: SetOption = [],  # noqa: B006  typer copies it
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Fit a generator (one_to_many, dafl, dfad, wgan_gp); run again to resume. `sampling` takes it."""
    from nisynth.fitting import fit as carry_out
    from nisynth.fitting import load_fit_config

    resolved = load_fit_config(config, set_, {"output": output})
    report = carry_out(resolved, say=narrator(quiet))
    if as_json:
        out.print_json(json.dumps(dataclasses.asdict(report)))
        return
    out.print(
        f"generator {report.sha256[:12]} after {counted(report.iterations, 'iteration')} at {resolved.output}"
    )
    if report.test_accuracy is not None:
        out.print(f"student: {report.test_accuracy:.2%} on {report.test_set}")
