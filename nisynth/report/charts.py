"""Charts for a page: SVG that takes the page's colours, light or dark, and the same bytes every time."""

import io
import re
from collections.abc import Mapping, Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from nisynth.report.curves import COLORS, TERM_NAMES, scale_by_decades
from nisynth.report.losses import Band

INK, RULE = "#010203", "#040506"
FIRST = COLORS[0].lower()
"""These stand in the drawing for the page's own colours, which CSS puts in."""
STYLES = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))
PANEL_INCHES = (3.4, 2.5)


def loss_charts(bands: Mapping[str, Band]) -> dict[str, str]:
    """Returns an SVG element per loss term: its median over tasks and the 10-90 % band, by iteration."""
    charts = {}
    for term, band in bands.items():
        figure = _figure(*PANEL_INCHES)
        axes = figure.add_subplot()
        draw_bands(axes, {"": band})
        _dress(axes, TERM_NAMES.get(term, term), "iteration", whole=True)
        charts[term] = _svg(figure, f"loss-{term}")
    return charts


def draw_bands(axes: Axes, bands: Mapping[str, Band]) -> None:
    """Draws a line and a band per run; runs differ by colour and by stroke. Logarithmic where it can be."""
    for number, (name, band) in enumerate(bands.items()):
        color, style = COLORS[number % len(COLORS)], STYLES[number % len(STYLES)]
        axes.fill_between(band.iterations, band.low, band.high, color=color, alpha=0.25, linewidth=0)
        axes.plot(band.iterations, band.median, linestyle=style, color=color, linewidth=1.6, label=name)
    lows = [float(band.low.min()) for band in bands.values()]
    highs = [float(band.high.max()) for band in bands.values()]
    if lows and min(lows) > 0 and max(highs) > 3.0 * min(lows):
        scale_by_decades(axes, min(lows), max(highs))


def line_chart(
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]], x_label: str, y_label: str, salt: str
) -> str:
    """Returns one panel of lines, named below it where there are several."""
    figure = _figure(1.3 * PANEL_INCHES[0], 1.3 * PANEL_INCHES[1])
    axes = figure.add_subplot()
    for number, (name, (x, y)) in enumerate(lines.items()):
        style, marker = STYLES[number % len(STYLES)], "o" if len(x) <= 12 else ""
        axes.plot(x, y, linestyle=style, marker=marker, markersize=4, color=COLORS[number], label=name)
    if y_label == "accuracy":
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    _dress(axes, y_label, x_label, whole=x_label == "epoch")
    if len(lines) > 1:
        axes.legend(frameon=False, fontsize=8, labelcolor=INK)
    return _svg(figure, salt)


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure


def _dress(axes: Axes, title: str, x_label: str, whole: bool) -> None:
    axes.set_title(title, fontsize=10, color=INK, loc="left")
    axes.set_xlabel(x_label, fontsize=8, color=INK)
    axes.set_facecolor("none")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=whole))
    axes.grid(True, color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=INK, labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)


def _svg(figure: Figure, salt: str) -> str:
    """Returns the element alone, sized by its box, in the page's colours. salt: makes its ids its own."""
    sink = io.StringIO()
    figure.patch.set_visible(False)
    with mpl.rc_context({"svg.hashsalt": salt, "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(sink, format="svg", metadata={"Date": None, "Creator": None})
    text = sink.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' (?:width|height)="[\d.]+pt"', "", text, count=2)
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font: \1 system-ui, sans-serif", text)
    text = text.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1)
    return text.replace(INK, "currentColor").replace(RULE, "var(--rule)").replace(FIRST, "var(--bar)")
