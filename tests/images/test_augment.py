"""Shuffle, crop and flip against the plain way to do them, and as pure functions of (seed, epoch)."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from nisynth.images.augment import augment, draw_epoch


def images(count: int = 5, side: int = 6) -> Tensor:
    return torch.randint(1, 256, (count, 3, side, side + 1), dtype=torch.uint8)


@pytest.mark.parametrize("pad", [0, 1, 4])
def test_it_is_pad_crop_and_mirror(pad: int) -> None:
    pixels = images()
    draws = draw_epoch(3, 0, 5, pad, flip=True)
    expected = []
    for image, (down, right), flip in zip(draws.order, draws.shift_px, draws.flip, strict=True):
        padded = F.pad(pixels[image].flip(-1) if flip else pixels[image], (pad, pad, pad, pad))
        # A crop at the corner (y, x) of the padded image shows the image shifted by pad - (y, x).
        y, x = pad + int(down), pad + int(right)
        expected.append(padded[:, y : y + 6, x : x + 7])
    result = augment(pixels, draws.order, draws.shift_px, draws.flip)
    assert result.dtype == torch.uint8
    assert torch.equal(result, torch.stack(expected))


def test_without_pad_and_flip_it_only_gathers() -> None:
    pixels = images()
    draws = draw_epoch(0, 0, 5, 0, flip=False)
    assert torch.equal(augment(pixels, draws.order, draws.shift_px, draws.flip), pixels[draws.order])


def test_the_draws_depend_on_seed_and_epoch_alone() -> None:
    torch.manual_seed(1)
    one = draw_epoch(7, 2, 1000, 4, flip=True)
    torch.manual_seed(2)
    same, later, other = (draw_epoch(s, e, 1000, 4, flip=True) for s, e in ((7, 2), (7, 3), (8, 2)))
    assert torch.equal(one.order, same.order)
    assert torch.equal(one.shift_px, same.shift_px)
    assert torch.equal(one.flip, same.flip)
    assert not torch.equal(one.order, later.order)
    assert not torch.equal(one.order, other.order)


def test_an_epoch_shows_every_image_once_and_every_shift_about_equally() -> None:
    draws = draw_epoch(0, 0, 9000, 1, flip=True)
    assert sorted(draws.order.tolist()) == list(range(9000))
    shifts = torch.unique(draws.shift_px, dim=0, return_counts=True)
    assert len(shifts[0]) == 9
    assert int(shifts[1].min()) > 850
    assert 4200 < int(draws.flip.sum()) < 4800
