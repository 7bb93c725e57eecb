"""Curves and confusion matrices: every curve is on the picture, nothing covers another, no warning."""

import io

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from nisynth.report.confusion import draw_confusion
from nisynth.report.curves import COLORS, Curve, Panel, draw, loss_terms, pruning_curves, training_curves


def pixels(png: bytes) -> npt.NDArray[np.int16]:
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"), dtype=np.int16)


def places(picture: npt.NDArray[np.int16], color: str) -> npt.NDArray[np.intp]:
    """Returns (rows, columns) of the pixels of one colour."""
    rgb = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return np.stack(np.nonzero((np.abs(picture - rgb) < 12).all(axis=2)))


def axes_bottom(picture: npt.NDArray[np.int16]) -> int:
    """Returns the row of the horizontal axis: the longest black line."""
    return int((picture < 40).all(axis=2).sum(axis=1).argmax())


HISTORY = [{"epoch": e, "loss": 20 / e, "train_accuracy": 1 - 0.8 / e} for e in range(1, 31)]
for record in HISTORY[::2]:
    record["test_accuracy"] = 0.9 - 0.5 / record["epoch"]


def test_training_curves_show_accuracies_beside_the_loss() -> None:
    picture = pixels(training_curves(HISTORY, "a student on 1,000 images"))
    assert picture.shape == (600, 1620, 3)
    left, right = picture[:, :810], picture[:, 810:]
    for color in COLORS[:2]:
        assert places(left[: axes_bottom(left)], color).shape[1] > 300
    assert places(right[: axes_bottom(right)], COLORS[0]).shape[1] > 300


def test_training_curves_without_a_test_set_or_with_one_epoch() -> None:
    plain = [{"epoch": r["epoch"], "loss": r["loss"], "train_accuracy": r["train_accuracy"]} for r in HISTORY]
    picture = pixels(training_curves(plain, "no test set"))
    assert places(picture, COLORS[1]).shape[1] == 0
    one = pixels(training_curves(plain[:1], "one epoch"))
    assert places(one, COLORS[0]).shape[1] > 10
    assert pixels(training_curves([{"epoch": 1.0, "loss": 0.0}], "zero loss")).shape == (600, 810, 3)


def test_figure_6_puts_points_in_order_and_the_legend_below() -> None:
    accuracies = {"fine-tuned": [0.80, 0.93, 0.90], "pruned only": [0.1, 0.6, 0.3]}
    shuffled = pixels(pruning_curves([0.9, 0.5, 0.7], accuracies, 0.94, "resnet34"))
    ordered = {name: [values[1], values[2], values[0]] for name, values in accuracies.items()}
    assert np.array_equal(shuffled, pixels(pruning_curves([0.5, 0.7, 0.9], ordered, 0.94, "resnet34")))
    bottom = axes_bottom(shuffled)
    for color in COLORS[:2]:
        rows, columns = places(shuffled, color)
        assert (rows < bottom).sum() > 200
        assert (rows > bottom).sum() > 20
        left, right = columns[rows < bottom].min(), columns[rows < bottom].max()
        first, last = (rows[(rows < bottom) & (columns == c)].mean() for c in (left + 2, right - 2))
        assert first < last  # accuracy falls with the ratio
    assert places(shuffled[:bottom], "#666666").shape[1] > 100


def test_figure_6_of_one_ratio() -> None:
    assert places(pixels(pruning_curves([0.5], {"fine-tuned": [0.9]}, 0.94, "one")), COLORS[0]).shape[1] > 10


def test_loss_terms_of_a_commit() -> None:
    curve = [
        {"iteration": i, "total": 100 / i, "ce": 2 / i, "r_bn": 60 / i, "tv": 0.8, "l2": 0.02}
        for i in range(1, 40)
    ]
    picture = pixels(loss_terms(curve, "task 0"))
    bottom = axes_bottom(picture)
    for color in COLORS[:5]:
        assert places(picture[:bottom], color).shape[1] > 200


def test_a_long_title_is_wrapped_into_the_picture() -> None:
    panel = Panel("y", [Curve("a", [0, 1], [0, 1])])
    short = pixels(draw("short", "x", [panel]))
    words = (
        "resnet34 pruned by L1 norm, 256,000 synthetic images of run f4f6c24d3413; accuracy on cifar10-test"
    )
    long = pixels(draw(words, "x", [panel]))
    assert long.shape == short.shape
    title = long[:60]
    assert (title < 100).any()
    assert (title[:, :6] > 250).all()
    assert (title[:, -6:] > 250).all()


@pytest.mark.parametrize("num_classes", [2, 10, 100, 200])
def test_a_confusion_matrix(num_classes: int) -> None:
    confusion = [
        [90 if row == column else row % 3 for column in range(num_classes)] for row in range(num_classes)
    ]
    confusion[-1] = [0] * num_classes  # a class without images
    picture = pixels(draw_confusion(confusion, [f"class {i}" for i in range(num_classes)], "a network"))
    assert picture.shape[0] >= 540
    assert (picture.min(axis=2) < 250).any()
    assert max(picture.shape) <= 2100
