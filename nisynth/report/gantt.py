"""The workers of a run over time, as a picture: one row per worker, one bar per task."""

import io
from collections.abc import Sequence
from typing import Protocol

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

COLOURS = {"committed": "#0072B2", "done twice": "#E69F00", "lost": "#D55E00"}
"""Of Okabe and Ito, which people with any colour vision tell apart."""


class Stretch(Protocol):
    """A stretch of time in a slot, in seconds, and what came of it."""

    @property
    def slot(self) -> int: ...
    @property
    def begin_s(self) -> float: ...
    @property
    def end_s(self) -> float: ...
    @property
    def kind(self) -> str: ...


def gantt(bars: Sequence[Stretch], title: str) -> bytes:
    """Returns a PNG of the bars, coloured by kind."""
    slots = max((bar.slot for bar in bars), default=0) + 1
    # Straight on the Agg canvas: no display, no pyplot.
    figure = Figure(figsize=(10, min(2 + 0.15 * slots, 12)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for kind, colour in COLOURS.items():
        of_kind = [bar for bar in bars if bar.kind == kind]
        if not of_kind:
            continue
        axes.barh(
            [bar.slot for bar in of_kind],
            [bar.end_s - bar.begin_s for bar in of_kind],
            left=[bar.begin_s for bar in of_kind],
            height=0.8,
            color=colour,
            label=kind,
            linewidth=0,
        )
    axes.set(xlabel="seconds since the start", ylabel="worker", title=title, ylim=(slots - 0.5, -0.5))
    axes.set_xlim(left=0.0)
    axes.yaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
    axes.spines[["top", "right"]].set_visible(False)
    if bars:
        figure.legend(loc="outside lower center", ncols=len(COLOURS), frameon=False, fontsize=9)
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=150)
    return sink.getvalue()
