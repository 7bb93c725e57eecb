"""Batches of image numbers for a DataLoader, in the order of `Stream`."""

from collections.abc import Iterator
from typing import Any

from torch.utils.data import Sampler

from nisynth.reader.cursor import Cursor
from nisynth.reader.order import Batches


class ElasticBatchSampler(Sampler[list[int]]):
    """One epoch of batches of this rank at each `iter`; made by `SyntheticDataset.sampler`.

    Batches are counted as the loader takes them, which runs ahead of what it gives out: only torchdata's
    StatefulDataLoader, whose own state corrects this, resumes exactly, and it wants the same number of
    workers again. `Stream` does so by itself and has no workers.
    """

    def __init__(self, cursor: Cursor, batches: Batches) -> None:
        self._cursor, self._batches = cursor, batches

    def __len__(self) -> int:
        """Returns the steps of a whole epoch, the same on every rank."""
        return self._batches.over(len(self._cursor.view)).from_position(0)

    def __iter__(self) -> Iterator[list[int]]:
        return _Steps(self)

    def set_epoch(self, epoch: int) -> None:
        """Goes to the beginning of an epoch, wherever the sampler stood."""
        self._cursor.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Returns where the sampler stands, the same on every rank; see `Cursor.state_dict`."""
        return self._cursor.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes where a state says, in a set of the same content. Raises DataError."""
        self._cursor.load_state_dict(state)


class _Steps(Iterator[list[int]]):
    """The steps that are left of an epoch; holds the state that StatefulDataLoader asks an iterator for."""

    def __init__(self, sampler: ElasticBatchSampler) -> None:
        self._sampler = sampler
        self._begin()

    def _begin(self) -> None:
        cursor = self._sampler._cursor
        self._order = cursor.begin()
        self._batches = self._sampler._batches.over(len(cursor.view))
        self._steps_left = self._batches.from_position(cursor.position)
        cursor.finish_if_nothing_left(self._batches)

    def __next__(self) -> list[int]:
        cursor = self._sampler._cursor
        if self._steps_left == 0:
            raise StopIteration
        positions = self._batches.positions(cursor.position)
        own = self._batches.of_rank(positions, self._order.num_lanes)
        images: list[int] = self._order.images(own).tolist()
        self._steps_left -= 1
        cursor.move_to(cursor.position + len(positions), self._steps_left)
        return images

    def state_dict(self) -> dict[str, Any]:
        return self._sampler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._sampler.load_state_dict(state)
        self._begin()
