"""The verb that lists how images can be synthesized: methods."""

from rich.table import Table

from nisynth.cli.output import out


def methods() -> None:
    """List what `method.name` takes: presets, cost of an iteration, place in the paper.

    The cost is that of an iteration for a ResNet-34 teacher in multiplications; NaturalInversion is 1.
    """
    from nisynth.fitting import FITS
    from nisynth.synthesis import METHODS

    table = Table("method", "cost", "tables", "presets", "what it does", box=None)
    for name, row in METHODS.items():
        table.add_row(name, f"{row.cost:.2f}", row.tables, " ".join(row.presets), row.summary)
    out.print(table)
    fits = Table("nisynth fit", "tables", "presets", "what it does", box=None)
    for name, fit in FITS.items():
        fits.add_row(name, fit.tables, " ".join(fit.presets), fit.summary)
    out.print()
    out.print(fits)
