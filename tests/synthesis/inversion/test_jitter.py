"""Roll and mirror as permutations."""

import itertools
from typing import Any

import pytest
import torch

from nisynth.synthesis.inversion.jitter import apply_jitter, draw_jitter

ROWS = list(itertools.product((-2, 0, 1, 2), (-2, -1, 0, 2), (0, 1)))


@pytest.mark.parametrize("row", ROWS)
def test_a_row_of_the_table_is_a_roll_then_a_mirror(row: Any) -> None:
    down, right, mirrored = row
    x = torch.arange(2 * 3 * 5 * 7.0).view(2, 3, 5, 7)
    expected = torch.roll(x, shifts=(down, right), dims=(2, 3))
    if mirrored:
        expected = torch.flip(expected, dims=(3,))
    assert torch.equal(apply_jitter(x, torch.tensor(row)), expected)


@pytest.mark.parametrize("row", ROWS)
def test_the_backward_pass_is_the_inverse_permutation(row: Any) -> None:
    x = torch.randn(2, 3, 5, 7, requires_grad=True)
    jittered = apply_jitter(x, torch.tensor(row))
    jittered.backward(jittered.detach())
    assert torch.equal(x.grad, x.detach())


def test_the_table_holds_every_shift_equally_often_and_mirrors_every_second_time() -> None:
    table = draw_jitter(5000, 2, True, torch.Generator().manual_seed(0))
    assert table.shape == (5000, 2, 3)
    assert table.dtype == torch.int64
    for column in (0, 1):
        values, counts = table[..., column].unique(return_counts=True)
        assert values.tolist() == [-2, -1, 0, 1, 2]
        assert all(abs(count - 2000) < 200 for count in counts.tolist())
    assert abs(float(table[..., 2].double().mean()) - 0.5) < 0.02
    assert not torch.equal(table[:, 0], table[:, 1])


def test_without_jitter_the_table_is_zero() -> None:
    assert not draw_jitter(10, 0, False, torch.Generator().manual_seed(0)).any()


def test_a_longer_table_begins_with_the_shorter_one() -> None:
    short, long = (draw_jitter(n, 2, True, torch.Generator().manual_seed(1)) for n in (7, 50))
    assert torch.equal(long[:7], short)
