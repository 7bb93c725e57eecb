"""In which order an epoch shows the images: a formula of (seed, epoch, rows of the shards) and nothing else.

The same sequence of images comes out for any number of machines, workers and images a batch, so a
position in it is all that a resume needs. Shards are shuffled whole, the shuffled set is cut into lanes of
equal length, and each lane is shuffled within blocks of `window / lanes` images: a reader then needs only
the shards of one block a lane at a time, and every batch still draws from all lanes.

The permutations are our own (splitmix64 keyed by sha256), since no library promises that its generator
gives the same stream in its next version.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from nisynth.errors import ConfigError
from nisynth.randomness import Int64, permutation

ORDER_NAME = "nisynth-order-1"
"""Changed whenever the same arguments give another sequence, so that an old state is not misread."""
LANES = 16
WINDOW_BYTES = 1 << 30


def default_window(num_images: int, input_px: int) -> int:
    """Returns how many images are shuffled among each other: 1 GiB of pixels, or the whole set."""
    return max(1, min(num_images, WINDOW_BYTES // (3 * input_px**2)))


@dataclass(frozen=True)
class Order:
    """The sequences of images of every epoch over one list of shards.

    rows: images of each shard, in the manifest's order, which also numbers the images 0..N-1. window: how
    many images are shuffled among each other. lanes: how many places of the shuffled set a batch draws
    from. shuffle: false gives the manifest's order in every epoch.
    """

    rows: tuple[int, ...]
    seed: int
    window: int
    lanes: int = LANES
    shuffle: bool = True

    def __post_init__(self) -> None:
        if self.window < 1 or self.lanes < 1:
            raise ConfigError(f"window {self.window}, lanes {self.lanes}: each must be at least 1")

    @property
    def num_images(self) -> int:
        return sum(self.rows)

    def epoch(self, epoch: int) -> "EpochOrder":
        """Returns the sequence of one epoch; costs as many operations as there are shards."""
        return EpochOrder(self, epoch)


def sequence(order: Order, epoch: int, batch_size: int) -> Int64:
    """Returns the images of an epoch's full batches, `(M,)`, each batch as `Batches.of_rank` divides it.

    Of W ranks, the first takes the first W-th of every batch, and so on: the same images as from a stream.
    """
    shown = order.epoch(epoch)
    positions = np.arange(order.num_images // batch_size * batch_size, dtype=np.int64)
    by_lane = np.argsort(
        positions // batch_size * shown.num_lanes + positions % shown.num_lanes, kind="stable"
    )
    return shown.images(positions[by_lane])


class EpochOrder:
    """One epoch's sequence: `images(positions)` gives the image at each position 0..N-1."""

    def __init__(self, order: Order, epoch: int) -> None:
        self._order, self._epoch = order, epoch
        rows = np.array(order.rows, dtype=np.int64)
        shards = self._permutation(len(rows), "shards")
        self._first_image = (np.cumsum(rows) - rows)[shards]
        self._first_place = np.cumsum(rows[shards]) - rows[shards]
        self.num_lanes = order.lanes if order.shuffle else 1
        self._lane_images, self._longer_lanes = divmod(order.num_images, self.num_lanes)
        self._block_images = -(-order.window // self.num_lanes)
        # A block of each lane is in use at a time; the old ones go as the lanes move on.
        self._block = lru_cache(maxsize=2 * self.num_lanes)(self._shuffled_block)

    def images(self, positions: Int64) -> Int64:
        """Returns the number of the image at each position; positions and images are both 0..N-1."""
        lanes = positions % self.num_lanes
        places = positions // self.num_lanes
        first_block = self._first_blocks(lanes)
        blocks = np.where(places < first_block, 0, 1 + (places - first_block) // self._block_images)
        # One number for each (lane, block), so that the positions of a block are found together.
        groups = blocks * self.num_lanes + lanes
        found = np.empty_like(positions)
        by_group = np.argsort(groups, kind="stable")
        cuts = np.flatnonzero(np.diff(groups[by_group])) + 1
        for members in np.split(by_group, cuts):
            if len(members):
                lane, block = int(lanes[members[0]]), int(blocks[members[0]])
                start = self._block_start(lane, block)
                found[members] = self._block(lane, block)[places[members] - start]
        return found

    def _shuffled_block(self, lane: int, block: int) -> Int64:
        """Returns the images of one block of a lane, in the order in which they are shown."""
        lane_start = lane * self._lane_images + min(lane, self._longer_lanes)
        lane_length = self._lane_images + (lane < self._longer_lanes)
        start = self._block_start(lane, block)
        end = min(lane_length, self._block_start(lane, block + 1))
        shown = lane_start + start + self._permutation(end - start, "block", lane, block)
        shards = np.searchsorted(self._first_place, shown, side="right") - 1
        return self._first_image[shards] + shown - self._first_place[shards]

    def _block_start(self, lane: int, block: int) -> int:
        if block == 0:
            return 0
        return int(self._first_blocks(np.int64(lane))) + (block - 1) * self._block_images

    def _first_blocks(self, lanes: Int64 | np.int64) -> Int64:
        """Returns the length of each lane's first block: staggered, so that lanes do not change at once."""
        return np.maximum(1, self._block_images * (lanes + 1) // self.num_lanes)

    def _permutation(self, count: int, *parts: object) -> Int64:
        if not self._order.shuffle:
            return np.arange(count, dtype=np.int64)
        return permutation(count, ORDER_NAME, self._order.seed, self._epoch, *parts)


@dataclass(frozen=True)
class Batches:
    """Which positions of an epoch make each step's batch, and which of these one rank reads.

    batch_size: images of all ranks together. drop_last: leave out a last batch that is not full; else it
    is cut to a multiple of the ranks. Every rank has the same number of steps and of images.
    Raises ConfigError when the ranks do not divide the batch, or an epoch would have no step.
    """

    num_images: int
    batch_size: int
    rank: int = 0
    world_size: int = 1
    drop_last: bool = True

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.batch_size % self.world_size:
            raise ConfigError(
                f"batch_size: {self.batch_size} is not a multiple of the world size {self.world_size};"
                " each rank takes an equal part"
            )
        if not 0 <= self.rank < self.world_size:
            raise ConfigError(f"rank: {self.rank} is not within 0..{self.world_size - 1}")
        if self.from_position(0) == 0:
            raise ConfigError(
                f"batch_size: {self.batch_size} for {self.num_images} images on {self.world_size} ranks gives"
                " no step; use a smaller batch_size, or drop_last=False with an image for every rank"
            )

    def over(self, num_images: int) -> "Batches":
        """Returns the same division of another number of images."""
        return replace(self, num_images=num_images)

    def from_position(self, position: int) -> int:
        """Returns the number of steps that are left of the epoch from `position` on."""
        left = self.num_images - position
        full, rest = divmod(left, self.batch_size)
        return full + (not self.drop_last and rest >= self.world_size)

    def positions(self, position: int) -> Int64:
        """Returns the positions of the batch that begins at `position`, of all ranks together."""
        left = min(self.batch_size, self.num_images - position)
        return np.arange(position, position + left - left % self.world_size, dtype=np.int64)

    def of_rank(self, positions: Int64, num_lanes: int) -> Int64:
        """Returns the part of a batch that this rank reads: neighbouring lanes, so that ranks share few
        shards."""
        by_lane = positions[np.argsort(positions % num_lanes, kind="stable")]
        count = len(positions)
        start, end = (count * r // self.world_size for r in (self.rank, self.rank + 1))
        return by_lane[start:end]
