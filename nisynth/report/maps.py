"""Maps of features as pictures (Figures 4 and 7): by set above, by class below, and their points as CSV."""

import csv
import io
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from nisynth.evaluation.tsne import FeatureMap

SYNTHETIC, REAL = "#E69F00", "#009E73"
PANEL_INCHES = 2.7
DPI = 300
MOST_WEBP_BYTES = 150_000
MOST_NAMED = 10


def draw_maps(maps: Sequence[FeatureMap], classes: Sequence[str], title: str) -> bytes:
    """Returns a PNG of 300 dpi: a column per layer, its two-sample accuracy under it."""
    figure = _figure(maps, classes)
    figure.suptitle(title, fontsize=9)
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=DPI, metadata={"Software": None})
    return sink.getvalue()


def draw_small_map(found: FeatureMap, classes: Sequence[str]) -> bytes:
    """Returns both pictures of one layer, side by side, as a WebP of at most 150 kB."""
    figure = _figure([found], classes, side_by_side=True)
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=150, metadata={"Software": None})
    with Image.open(sink) as opened:
        picture = opened.convert("RGB")
    for quality in (90, 75, 60, 40, 20):
        sink = io.BytesIO()
        picture.save(sink, "WEBP", quality=quality, method=4)
        if sink.tell() <= MOST_WEBP_BYTES:
            break
    return sink.getvalue()


def points_csv(maps: Sequence[FeatureMap]) -> bytes:
    """Returns every point: set, label, x, y, layer."""
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(("set", "label", "x", "y", "layer"))
    for found in maps:
        for place, (x, y) in enumerate(found.positions):
            name = "synthetic" if place < found.num_each else "real"
            writer.writerow((name, int(found.labels[place]), f"{x:.5g}", f"{y:.5g}", found.layer))
    return sink.getvalue().encode()


def _figure(maps: Sequence[FeatureMap], classes: Sequence[str], side_by_side: bool = False) -> Figure:
    columns, rows = (2, 1) if side_by_side else (len(maps), 2)
    legend = 1.1 if len(classes) <= MOST_NAMED else 0.0
    size = (PANEL_INCHES * columns + legend, (PANEL_INCHES + 0.25) * rows + 0.3)
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    for column, found in enumerate(maps):
        above = figure.add_subplot(rows, columns, column + 1)
        below = figure.add_subplot(rows, columns, 2 if side_by_side else columns + column + 1)
        _by_set(above, found)
        _by_class(below, found, classes)
        if column == len(maps) - 1:
            if side_by_side:
                above.legend(markerscale=2, loc="best", fontsize=7)
            else:
                _legend_beside(above)
            if len(classes) <= MOST_NAMED:
                _legend_beside(below)
    return figure


def _by_set(axes: Axes, found: FeatureMap) -> None:
    n = found.num_each
    # Alternating, so that neither set lies on top of the other.
    order = np.arange(2 * n).reshape(2, n).T.ravel()
    colors = np.where(order < n, SYNTHETIC, REAL)
    x, y = found.positions[order].T
    axes.scatter(x, y, s=_dot(found), c=colors, linewidths=0)
    for color, name in ((SYNTHETIC, "synthetic"), (REAL, "real")):
        axes.scatter([], [], s=8.0, c=color, label=name)
    axes.set_title(found.layer, fontsize=9)
    _dress(axes, f"10-NN tells the sets apart: {found.accuracy:.3f}")


def _by_class(axes: Axes, found: FeatureMap, classes: Sequence[str]) -> None:
    palette = mpl.colormaps["tab10" if len(classes) <= MOST_NAMED else "hsv"]
    for label, name in enumerate(classes):
        color = palette(label if len(classes) <= MOST_NAMED else label / len(classes))
        x, y = found.positions[found.labels == label].T
        axes.scatter(x, y, s=_dot(found), color=color, linewidths=0)
        axes.scatter([], [], s=8.0, color=color, label=name)
    _dress(axes, "by class")


def _dot(found: FeatureMap) -> float:
    """Returns the area of a point: few are drawn larger."""
    return min(max(3000.0 / len(found.labels), 1.5), 9.0)


def _legend_beside(axes: Axes) -> None:
    axes.legend(markerscale=2, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=7)


def _dress(axes: Axes, label: str) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlabel(label, fontsize=8)
