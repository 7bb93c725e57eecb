"""The verb that lists how images can be synthesized: methods."""

from rich.table import Table

from nisynth.cli.output import out


def methods() -> None:
    """List what `method.name` takes: presets, cost, tables of the paper.

    The cost is that of 256 images for a ResNet-34 teacher, in multiplications; NaturalInversion's is 1. A fit
    is made once for all images: its cost is spread over 256,000 of them.
    """
    from nisynth.fitting import FITS
    from nisynth.synthesis import METHODS

    table = Table("method", "cost", "tables", "presets", "what it does", box=None)
    for name, row in METHODS.items():
        table.add_row(name, f"{row.cost:.2g}", row.tables, " ".join(row.presets), row.summary)
    out.print(table)
    fits = Table("nisynth fit", "cost", "tables", "presets", "what it does", box=None)
    for name, fit in FITS.items():
        fits.add_row(name, f"{fit.cost:.2g}", fit.tables, " ".join(fit.presets), fit.summary)
    out.print()
    out.print(fits)
