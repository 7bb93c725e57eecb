"""Curves as PNG: training by epoch, pruning by ratio (Figure 6), loss terms by iteration (Figure 5).

Drawn straight on the Agg canvas: no display, no pyplot and none of its global state. Panels stand side
by side, one quantity each, so that no curve hides another's scale; the colours are Okabe and Ito's, told
apart by colour-blind readers too.
"""

import io
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, PercentFormatter

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
PANEL_WIDTH_INCHES = 5.4
HEIGHT_INCHES = 4.0
DPI = 150
MOST_MARKERS = 12
TERM_NAMES = {
    "total": "total loss",
    "ce": "cross-entropy (CE)",
    "r_bn": "R_BN",
    "competition": "competition with the rival",
    "tv": "total variation",
    "l2": "l2 norm",
}
"""Loss terms as pictures and tables name them, in the order in which they show them; others come last."""


@dataclass(frozen=True)
class Curve:
    """One line of a panel: y over x, of equal length. level: drawn dashed, for a value to compare with."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    level: bool = False


@dataclass(frozen=True)
class Panel:
    """One quantity. percent: y is a fraction, 0..1. log: y is positive and spans decades."""

    y_label: str
    curves: Sequence[Curve]
    percent: bool = False
    log: bool = False


def draw(title: str, x_label: str, panels: Sequence[Panel], *, x_percent: bool = False) -> bytes:
    """Returns the panels, side by side, as a PNG of 810 x 600 px each."""
    figure = Figure(figsize=(PANEL_WIDTH_INCHES * len(panels), HEIGHT_INCHES), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    for place, panel in enumerate(panels, 1):
        axes = figure.add_subplot(1, len(panels), place)
        _draw_panel(axes, panel)
        axes.set_xlabel(x_label)
        if x_percent:
            axes.xaxis.set_major_formatter(lambda x, _: f"{100 * x:g}%")
            axes.set_xticks(sorted({x for curve in panel.curves for x in curve.x}))
    figure.suptitle(textwrap.fill(title, 58 * len(panels)), fontsize=11)
    sink = io.BytesIO()
    figure.savefig(sink, format="png")
    return sink.getvalue()


def training_curves(history: Sequence[Mapping[str, float]], title: str) -> bytes:
    """Returns accuracy and loss by epoch as a PNG.

    history: one record an epoch, `epoch` and any of `loss`, `train_accuracy`, `test_accuracy`, each drawn
    at the epochs that have it.
    """
    accuracies = [
        _column(history, "test_accuracy", "real test set"),
        _column(history, "train_accuracy", "images trained on (augmented)"),
    ]
    panels = [
        Panel("accuracy", [curve for curve in accuracies if curve.x], percent=True),
        Panel("training loss", [_column(history, "loss", "loss")], log=True),
    ]
    return draw(title, "epoch", [panel for panel in panels if any(curve.x for curve in panel.curves)])


def pruning_curves(
    ratios: Sequence[float], accuracies: Mapping[str, Sequence[float]], unpruned: float, title: str
) -> bytes:
    """Returns Figure 6 as a PNG: accuracy by pruning ratio, a curve per name, the unpruned one dashed."""
    order = sorted(range(len(ratios)), key=lambda i: ratios[i])
    x = [ratios[i] for i in order]
    curves = [Curve(name, x, [values[i] for i in order]) for name, values in accuracies.items()]
    level = Curve("not pruned", x, [unpruned] * len(x), level=True)
    return draw(title, "pruning ratio", [Panel("accuracy", [*curves, level], percent=True)], x_percent=True)


def loss_terms(curve: Sequence[Mapping[str, float]], title: str) -> bytes:
    """Returns Figure 5 as a PNG: a commit's loss terms by iteration, on a logarithmic scale.

    curve: what a commit holds, one record per logged iteration, `iteration` and any number of terms.
    """
    names = in_order(name for record in curve for name in record if name != "iteration")
    curves = [_column(curve, name, TERM_NAMES.get(name, name), x="iteration") for name in names]
    return draw(title, "iteration", [Panel("loss term", curves, log=True)])


def _column(records: Sequence[Mapping[str, float]], name: str, label: str, x: str = "epoch") -> Curve:
    found = [record for record in records if name in record]
    return Curve(label, [record[x] for record in found], [record[name] for record in found])


def _draw_panel(axes: Axes, panel: Panel) -> None:
    values = [y for curve in panel.curves for y in curve.y]
    for curve, color in zip(panel.curves, COLORS * len(panel.curves), strict=False):
        style = "--" if curve.level else "-"
        marker = "o" if len(curve.x) <= MOST_MARKERS and not curve.level else ""
        axes.plot(curve.x, curve.y, style, color="#666666" if curve.level else color, marker=marker,
                  markersize=4, linewidth=1.6, label=curve.label)  # fmt: skip
    axes.set_ylabel(panel.y_label)
    axes.grid(True, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if panel.percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    if panel.log and values and min(values) > 0 and math.log10(max(values) / min(values)) > 0.5:
        scale_by_decades(axes, min(values), max(values))
    if len(panel.curves) > 1:
        # Below the axes, where it can cover no curve; a legend wider than they are would shrink them.
        columns = 3 if max(len(curve.label) for curve in panel.curves) <= 14 else 2
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=columns, frameon=False, fontsize=9)


def in_order(terms: Iterable[str]) -> list[str]:
    """Returns each loss term once, in the order of `TERM_NAMES`."""
    found = list(dict.fromkeys(terms))
    return sorted(found, key=[*TERM_NAMES, *found].index)


def scale_by_decades(axes: Axes, low: float, high: float) -> None:
    """Makes the y axis logarithmic, in plain numbers: 1, 2, 5, 10, ... below two decades, else decades."""
    axes.set_yscale("log")
    subs = (1.0, 2.0, 5.0) if math.log10(high / low) < 2.0 else (1.0,)
    axes.yaxis.set_major_locator(LogLocator(subs=subs))
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
