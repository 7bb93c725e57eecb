"""The order of an epoch: literal values, a bijection for any set, one sequence for any cluster."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nisynth.errors import ConfigError
from nisynth.randomness import Int64
from nisynth.reader.order import Batches, Order, default_window

FIVE = Order(rows=(256,) * 64, seed=3, window=4096)


def sequence(order: Order, epoch: int = 0) -> Int64:
    return order.epoch(epoch).images(np.arange(order.num_images, dtype=np.int64))


def test_the_literals_of_the_formula() -> None:
    order = Order(rows=(4, 4, 3), seed=7, window=4, lanes=2)
    assert sequence(order, 0).tolist() == [4, 3, 6, 2, 5, 8, 0, 9, 7, 10, 1]
    assert sequence(order, 1).tolist() == [4, 10, 5, 0, 6, 1, 7, 2, 8, 3, 9]


def test_the_default_window_is_a_gibibyte_of_pixels() -> None:
    assert [default_window(10**6, px) for px in (32, 64, 224)] == [349_525, 87_381, 7_133]
    assert default_window(1000, 32) == 1000


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    seed=st.integers(0, 2**63),
    epoch=st.integers(0, 5),
    window=st.integers(1, 600),
    lanes=st.integers(1, 40),
    shuffle=st.booleans(),
)
def test_every_image_has_one_position(
    rows: list[int], seed: int, epoch: int, window: int, lanes: int, shuffle: bool
) -> None:
    order = Order(tuple(rows), seed, window, lanes, shuffle)
    images = sequence(order, epoch)
    assert np.array_equal(np.sort(images), np.arange(sum(rows)))
    if not shuffle:
        assert np.array_equal(images, np.arange(sum(rows)))
    some = np.arange(sum(rows), dtype=np.int64)[::3]
    assert np.array_equal(order.epoch(epoch).images(some), images[::3])


def test_epochs_and_seeds_differ_and_equal_ones_agree() -> None:
    other = Order(FIVE.rows, 4, FIVE.window)
    assert np.array_equal(sequence(FIVE), sequence(FIVE))
    for changed in (sequence(FIVE, 1), sequence(other)):
        assert np.mean(changed == sequence(FIVE)) < 0.01


@pytest.mark.parametrize("batch_size", [240, 480])
@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 8, 16, 24])
def test_any_number_of_ranks_reads_the_same_steps(world_size: int, drop_last: bool, batch_size: int) -> None:
    order = Order((100,) * 11 + (37,), seed=1, window=500)
    epoch = order.epoch(0)
    ranks = [Batches(order.num_images, batch_size, r, world_size, drop_last) for r in range(world_size)]
    steps = ranks[0].from_position(0)
    assert {rank.from_position(0) for rank in ranks} == {steps}
    read: list[Int64] = []
    for step in range(steps):
        positions = ranks[0].positions(step * batch_size)
        parts = [rank.of_rank(positions, epoch.num_lanes) for rank in ranks]
        assert len({len(part) for part in parts}) == 1
        assert np.array_equal(np.sort(np.concatenate(parts)), positions)
        read.append(positions)
    count = sum(len(positions) for positions in read)
    assert np.array_equal(np.concatenate(read), np.arange(count))
    whole = order.num_images // batch_size * batch_size
    left = 0 if drop_last else order.num_images - whole
    assert count == whole + left - left % world_size


def test_a_rank_reads_whole_lanes_where_the_ranks_divide_them() -> None:
    epoch = FIVE.epoch(0)
    positions = np.arange(256, dtype=np.int64)
    for world_size in (2, 4, 8, 16):
        lanes = [
            set(Batches(FIVE.num_images, 256, r, world_size).of_rank(positions, epoch.num_lanes) % 16)
            for r in range(world_size)
        ]
        assert all(len(own) == 16 // world_size for own in lanes)
        assert all(not one & other for one, other in pairwise(lanes))


@pytest.mark.parametrize(("shards", "expected"), [(1000, 207.9), (256, 157.4), (64, 70.9), (16, 31.0)])
def test_a_batch_draws_from_as_many_shards_as_was_measured(shards: int, expected: float) -> None:
    order = Order((256,) * 1000, seed=0, window=256 * shards)
    epoch = order.epoch(0)
    steps = range(0, 1000, 25)
    distinct = [
        len(np.unique(epoch.images(np.arange(step * 256, step * 256 + 256, dtype=np.int64)) // 256))
        for step in steps
    ]
    assert np.mean(distinct) == pytest.approx(expected, rel=0.05)


def test_neighbours_in_an_epoch_have_unrelated_labels() -> None:
    order = Order((256,) * 400, seed=0, window=256 * 64)
    labels = sequence(order) % 10
    assert abs(np.corrcoef(labels[:-1], labels[1:])[0, 1]) < 0.02


def test_what_cannot_be_divided_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"batch_size: 250 .* world size 8"):
        Batches(1000, 250, 0, 8)
    with pytest.raises(ConfigError, match=r"rank: 3 is not within 0\.\.2"):
        Batches(1000, 30, 3, 3)
    with pytest.raises(ConfigError, match="window 0"):
        Order((4,), 0, 0)
