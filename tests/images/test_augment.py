"""Shuffle, crop and flip against the plain way to do them, and as pure functions of (seed, epoch)."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from nisynth.images.augment import Mixture, Padding, augment, draw_epoch, draw_mixture


def images(count: int = 5, side: int = 6) -> Tensor:
    return torch.randint(1, 256, (count, 3, side, side + 1), dtype=torch.uint8)


@pytest.mark.parametrize("padding", ["zero", "reflect"])
@pytest.mark.parametrize("pad", [0, 1, 4, 5])
def test_it_is_pad_crop_and_mirror(pad: int, padding: Padding) -> None:
    pixels = images()
    draws = draw_epoch(3, 0, 5, pad, flip=True)
    expected = []
    for image, (down, right), flip in zip(draws.order, draws.shift_px, draws.flip, strict=True):
        mirrored = (pixels[image].flip(-1) if flip else pixels[image]).float()
        mode = "reflect" if padding == "reflect" else "constant"
        padded = F.pad(mirrored, (pad, pad, pad, pad), mode=mode).to(torch.uint8)
        # A crop at the corner (y, x) of the padded image shows the image shifted by pad - (y, x).
        y, x = pad + int(down), pad + int(right)
        expected.append(padded[:, y : y + 6, x : x + 7])
    result = augment(pixels, draws.order, draws.shift_px, draws.flip, padding)
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


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.4, 0.0), (0.0, 1.0), (1.0, 0.2)])
def test_mixtures_depend_on_seed_and_epoch_alone_and_leave_the_other_draws_alone(
    mixup: float, cutmix: float
) -> None:
    one = draw_mixture(7, 2, 1000, mixup, cutmix)
    np.random.seed(3)
    same = draw_mixture(7, 2, 1000, mixup, cutmix)
    assert one is not None
    assert same is not None
    assert all(torch.equal(a, b) for a, b in zip(vars(one).values(), vars(same).values(), strict=True))
    for seed, epoch in ((7, 3), (8, 2)):
        other = draw_mixture(seed, epoch, 1000, mixup, cutmix)
        assert other is not None
        assert not torch.equal(one.share, other.share)


def test_without_strength_nothing_is_mixed() -> None:
    assert draw_mixture(0, 0, 10, 0.0, 0.0) is None


def test_the_shares_are_beta_distributed_and_both_kinds_come_equally_often() -> None:
    """Beta(a, a) has mean 1/2 and variance 1 / (4 (2a + 1)): 1/12 for a = 1, 0.1389 for a = 0.4."""
    drawn = draw_mixture(0, 0, 20_000, 0.4, 1.0)
    assert drawn is not None
    assert float(drawn.in_box.float().mean()) == pytest.approx(0.5, abs=0.02)
    for in_box, variance in ((False, 0.1389), (True, 1 / 12)):
        shares = drawn.share[drawn.in_box == in_box]
        assert float(shares.mean()) == pytest.approx(0.5, abs=0.01)
        assert float(shares.var()) == pytest.approx(variance, rel=0.04)


def test_weights_are_the_share_everywhere_or_a_box_of_the_rest() -> None:
    places = torch.arange(2)
    drawn = Mixture(
        share=torch.tensor([0.3, 0.75]),
        center=torch.tensor([[0.1, 0.2], [0.5, 0.5]]),
        in_box=torch.tensor([False, True]),
    )
    by_weight, by_box = drawn.weights(places, 8, 8)
    assert torch.equal(by_weight, torch.full((1, 8, 8), 0.3))
    expected = torch.ones(1, 8, 8)
    expected[:, 2:6, 2:6] = 0.0  # a quarter of the area belongs to the partner, in the middle
    assert torch.equal(by_box, expected)


def test_a_box_is_cut_off_at_the_border() -> None:
    drawn = Mixture(torch.tensor([0.75]), torch.tensor([[0.0, 1.0]]), torch.tensor([True]))
    expected = torch.ones(1, 1, 8, 8)
    expected[:, :, :2, 6:] = 0.0
    assert torch.equal(drawn.weights(torch.arange(1), 8, 8), expected)
