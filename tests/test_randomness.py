"""Seeds and permutations by literal values: a change of one would change runs that exist."""

import numpy as np
import pytest

from nisynth.randomness import hashed_order, key, permutation, splitmix64, torch_seed


def test_the_literals() -> None:
    # splitmix64's published first outputs for the state 0.
    assert [f"{word:x}" for word in splitmix64(0, 2)] == ["e220a8397b1dcdaf", "6e789e6aa1b965f4"]
    assert key("x") == 3274422879871479876
    assert torch_seed("x") == 3274422879871479876 >> 1
    assert permutation(8, "x").tolist() == [1, 7, 2, 3, 4, 5, 0, 6]


def test_parts_are_joined_by_slashes() -> None:
    assert key(7, "class", 3) == key("7/class/3")


@pytest.mark.parametrize("count", [1, 2, 1000])
def test_permutations_hold_every_number_once(count: int) -> None:
    assert sorted(permutation(count, 1, "a").tolist()) == list(range(count))
    assert sorted(hashed_order(count, 1, "a").tolist()) == list(range(count))


def test_other_parts_give_another_permutation() -> None:
    assert not np.array_equal(permutation(100, 0), permutation(100, 1))
    assert not np.array_equal(hashed_order(100, 0), hashed_order(100, 1))
