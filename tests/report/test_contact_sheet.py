"""The contact sheet: where every cell lies, what it shows, and that names stay legible."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torch import Tensor

from nisynth.report.contact_sheet import contact_sheet

GAP = 8
EMPTY = (244, 244, 244)
EDGE = (210, 210, 210)
WHITE = (255, 255, 255)


def noise(count: int, height_px: int = 32, width_px: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, height_px, width_px), dtype=torch.uint8, generator=generator)


def area(sheet: Image.Image, left: int, top: int, width: int, height: int) -> npt.NDArray[np.uint8]:
    return np.asarray(sheet.crop((left, top, left + width, top + height)))


def enlarged(image: Tensor, scale: int) -> npt.NDArray[np.uint8]:
    return image.permute(1, 2, 0).numpy().repeat(scale, axis=0).repeat(scale, axis=1)


def test_each_class_has_a_column_in_order() -> None:
    pixels, labels = noise(7), torch.tensor([2, 0, 1, 2, 0, 2, 1])
    sheet = contact_sheet(pixels, labels, ("plane", "car", "bird"), rows=2)
    assert sheet.mode == "RGB"
    assert sheet.size == (GAP + 3 * (96 + GAP), GAP + 17 + 2 * (96 + GAP))
    for column, shown in enumerate([(1, 4), (2, 6), (0, 3)]):
        for row, position in enumerate(shown):
            cell = area(sheet, GAP + column * (96 + GAP), GAP + 17 + row * (96 + GAP), 96, 96)
            assert np.array_equal(cell, enlarged(pixels[position], 3))


def test_background_is_white_and_names_lie_above_their_columns() -> None:
    sheet = contact_sheet(noise(2), torch.tensor([0, 2]), ("one", "", "three"), rows=1)
    header = np.asarray(sheet)[: GAP + 17]
    inked = [bool((header[:, GAP + column * 104 :][:, :96] < 128).any()) for column in range(3)]
    assert inked == [True, False, True]
    assert (np.asarray(sheet)[:, :GAP] == 255).all()
    assert (np.asarray(sheet)[-GAP:] == 255).all()


def test_missing_images_are_visible_as_empty_cells() -> None:
    sheet = contact_sheet(noise(3), torch.tensor([0, 0, 1]), ("a", "b", "c"), rows=5)
    assert sheet.height == GAP + 17 + 2 * (96 + GAP)  # no class has more than 2
    for left, top in ((GAP + 104, GAP + 17 + 104), (GAP + 208, GAP + 17)):
        assert sheet.getpixel((left, top)) == EDGE
        assert sheet.getpixel((left + 48, top + 48)) == EMPTY
    assert sheet.getpixel((GAP + 48, GAP + 17 + 2 * 104 - 4)) == WHITE


def test_nothing_at_all_is_one_row_of_empty_cells() -> None:
    sheet = contact_sheet(noise(0), torch.tensor([], dtype=torch.int64), ("a", "b"))
    assert sheet.size == (GAP + 2 * 104, GAP + 17 + 104)


def test_a_hundred_classes_wrap_into_five_bands() -> None:
    pixels, labels = noise(200), torch.arange(200) % 100
    sheet = contact_sheet(pixels, labels, [f"class {i}" for i in range(100)], rows=2)
    band = 17 + 2 * (64 + GAP)
    assert sheet.size == (GAP + 20 * (64 + GAP), GAP + 5 * band + 4 * 18)
    for label in (0, 19, 20, 63, 99):
        left, top = GAP + label % 20 * 72, GAP + 17 + label // 20 * (band + 18)
        assert np.array_equal(area(sheet, left, top, 64, 64), enlarged(pixels[label], 2))
        assert np.array_equal(area(sheet, left, top + 72, 64, 64), enlarged(pixels[100 + label], 2))
        assert (area(sheet, left, top - 17, 64, 17) < 128).any()


@pytest.mark.parametrize(
    ("size", "cell"),
    [
        ((32, 32), (96, 96)),
        ((64, 64), (64, 64)),
        ((28, 28), (84, 84)),
        ((96, 48), (96, 48)),
        ((224, 224), (96, 96)),
        ((448, 224), (96, 48)),
    ],
)
def test_cell_sizes(size: tuple[int, int], cell: tuple[int, int]) -> None:
    sheet = contact_sheet(noise(1, *size), torch.tensor([0]), ("a",))
    assert sheet.size == (GAP + cell[1] + GAP, GAP + 17 + cell[0] + GAP)


def test_large_images_are_averaged() -> None:
    checks = (torch.arange(192)[:, None] + torch.arange(192)[None]) % 2 * 254
    pixels = checks.to(torch.uint8).expand(1, 3, 192, 192)
    sheet = contact_sheet(pixels, torch.tensor([0]), ("a",))
    assert (area(sheet, GAP, GAP + 17, 96, 96) == 127).all()


def test_long_names_wrap_and_never_run_into_their_neighbours() -> None:
    names = ("", "a_name of several words_and_some_more_to_come", "", "W" * 80, "")
    sheet = contact_sheet(noise(5), torch.arange(5), names, rows=1)
    assert sheet.height == GAP + 3 * 17 + 104  # three lines at most
    header = np.asarray(sheet)[: GAP + 3 * 17]
    for column in (0, 2, 4):
        assert (header[:, GAP + column * 104 :][:, :96] == 255).all()
    assert (header[GAP + 34 :, GAP + 3 * 104 :][:, :96] < 128).any()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pixels": torch.zeros(2, 3, 8, 8)}, "float32"),
        ({"pixels": torch.zeros(2, 1, 8, 8, dtype=torch.uint8)}, "not uint8"),
        ({"labels": torch.tensor([0])}, "2 images"),
        ({"labels": torch.tensor([0, 2])}, "0..2, there are 2 classes"),
        ({"labels": torch.tensor([-1, 0])}, "-1..0"),
        ({"rows": 0}, "rows 0"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(changes: dict[str, Any], words: str) -> None:
    sound = {"pixels": noise(2), "labels": torch.tensor([0, 1]), "classes": ("a", "b")}
    with pytest.raises(ValueError, match=words):
        contact_sheet(**{**sound, **changes})
