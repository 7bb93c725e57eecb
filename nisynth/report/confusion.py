"""A confusion matrix as a picture: rows are labels, columns what the network chose, shares of each row."""

import io
import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

MOST_NUMBERS = 20
"""Classes up to which the share stands in each cell; beyond, only the colour does."""


def draw_confusion(confusion: Sequence[Sequence[int]], classes: Sequence[str], title: str) -> bytes:
    """Returns the matrix `(C, C)` of counts as a PNG; every class is named up to a hundred classes."""
    counts = np.asarray(confusion, dtype=np.float64)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1.0)
    num_classes = len(classes)
    side_inches = min(16.0, max(4.5, 2.2 + 0.42 * num_classes))
    figure = Figure(figsize=(side_inches + 0.8, side_inches), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    figure.colorbar(image, ax=axes, shrink=0.7, label="share of the label's images")
    font = 9.0 if num_classes <= MOST_NUMBERS else max(4.0, 560.0 / num_classes)
    if num_classes <= 100:
        axes.set_xticks(range(num_classes), classes, rotation=90, fontsize=font)
        axes.set_yticks(range(num_classes), classes, fontsize=font)
    if num_classes <= MOST_NUMBERS:
        for row, column in zip(*np.nonzero(counts), strict=True):
            share = shares[row, column]
            color = "white" if share > 0.5 else "black"
            axes.text(column, row, f"{share:.0%}" if share >= 0.005 else "", ha="center", va="center",
                      color=color, fontsize=8)  # fmt: skip
    axes.set_xlabel("chosen class")
    axes.set_ylabel("label")
    axes.set_title(textwrap.fill(title, int(11 * side_inches)), fontsize=10)
    sink = io.BytesIO()
    figure.savefig(sink, format="png")
    return sink.getvalue()
