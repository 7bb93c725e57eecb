"""The verb that fits a generator: fit."""

import dataclasses
import json
from typing import Annotated

import typer

from nisynth.cli.options import JsonOption, QuietOption, SetOption
from nisynth.cli.output import narrator, out


def fit(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file, or a shipped config's name.")],
    output: Annotated[
        str | None, typer.Option(metavar="URL", help="Where the generator goes: a folder or s3:// (output).")
    ] = None,
    set_: SetOption = [],  # noqa: B006  typer copies it
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Fit one generator for all images (one-to-many); run it again to resume. `method: sampling` takes it."""
    from nisynth.config import load_consumer_config
    from nisynth.fitting import FitConfig
    from nisynth.fitting import fit as carry_out
    from nisynth.training.device import default_device

    resolved = load_consumer_config(FitConfig, config, set_, kind="fit", given={"output": output})
    total, say = resolved.method.iterations, narrator(quiet)

    def tell(iteration: int, terms: dict[str, float]) -> None:
        shown = ", ".join(f"{name} {value:.4g}" for name, value in terms.items())
        say(f"iteration {iteration:,} of {total:,}: {shown}")

    report = carry_out(resolved, device=default_device(), on_step=tell)
    if as_json:
        out.print_json(json.dumps(dataclasses.asdict(report)))
        return
    out.print(f"generator {report.sha256[:12]} after {report.iterations:,} iterations at {resolved.output}")
