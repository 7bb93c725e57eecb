"""The verb that tries a config on one small batch: probe."""

import json
from typing import Annotated

import typer

from nisynth.cli.options import ConfigArgument, JsonOption, QuietOption, SetOption
from nisynth.cli.output import narrator, out

NOT_ON_ITS_WAY = 4


def probe(
    config: ConfigArgument,
    output: Annotated[
        str, typer.Option("--output", "-o", help="The contact sheet, a PNG; the loss curve goes beside it.")
    ] = "probe.png",
    seconds: Annotated[float, typer.Option(min=1.0, help="How long to iterate, about.")] = 60.0,
    set_: SetOption = [],  # noqa: B006  typer copies it
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> int:
    """Make one batch of 32 images in a minute, and say whether a run of this config is on its way.

    Stores nothing but the two pictures. Ends with 4 when it is not on its way, and says what to change.
    """
    from pathlib import Path

    from nisynth.batch import REAL_R_BN_IN_Y
    from nisynth.config import load_config
    from nisynth.in_memory import probe as carry_out
    from nisynth.report.contact_sheet import contact_sheet
    from nisynth.report.curves import loss_terms
    from nisynth.report.pictures import write_file, write_png

    resolved = load_config(config, set_)
    found = carry_out(resolved, seconds, say=narrator(quiet))
    write_png(output, contact_sheet(found.pixels, found.labels, found.classes))
    written = [output]
    if found.curve:
        path = Path(output)
        written.append(str(path.with_name(f"{path.stem}-curve.png")))
        title = f"{found.iterations:,} iterations of {resolved.method.name}"
        write_file(written[1], loss_terms(found.curve, title))
    if as_json:
        facts = {
            "on_its_way": found.on_its_way,
            "verdict": found.verdict,
            "iterations": found.iterations,
            "planned_iterations": found.planned,
            **found.judgement._asdict(),
            "pictures": written,
        }
        out.print_json(json.dumps(facts))
    else:
        out.print(found.verdict)
        r_bn = f"R_BN {found.judgement.r_bn_in_y:.2f} Y (real images: {REAL_R_BN_IN_Y})"
        out.print(f"{r_bn}; pictures: {' and '.join(written)}")
    return 0 if found.on_its_way else NOT_ON_ITS_WAY
