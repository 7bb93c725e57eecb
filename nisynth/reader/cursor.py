"""Where a reading of a set stands: an epoch and a position in it, and what a resume needs besides.

Stream and sampler share this. The state is a small JSON document, the same on every rank; whoever takes it
up may have another number of ranks or workers, and another batch size.
"""

import logging
import os
from collections.abc import Mapping
from typing import Any, Protocol

import torch

from nisynth.errors import ConfigError, DataError
from nisynth.reader.order import ORDER_NAME, Batches, EpochOrder, Order, default_window
from nisynth.reader.source import ShardSource
from nisynth.reader.view import View, pack, unpack

STATE_VERSION = 1
_TYPES = {
    "version": int,
    "order": str,
    "content": str,
    "seed": int,
    "epoch": int,
    "position": int,
    "lanes": int,
    "window": int,
    "shuffle": bool,
    "images": int,
}
log = logging.getLogger("nisynth.reader")


class Readable(Protocol):
    """What a cursor moves over: `SyntheticDataset`."""

    url: str
    view: View
    input_px: int

    @property
    def follows(self) -> bool: ...
    @property
    def joined(self) -> Mapping[int, int]: ...
    @property
    def source(self) -> ShardSource: ...
    def refresh(self, epoch: int, *, whole: bool = False) -> None: ...
    def return_to(self, joined: Mapping[int, int], epoch: int) -> None: ...


class Cursor:
    """An epoch and a position, images of all ranks together, in the order of a dataset.

    window: None for the default of the set, see `default_window`.
    """

    def __init__(
        self, dataset: Readable, *, seed: int, shuffle: bool, window: int | None, lanes: int
    ) -> None:
        self.dataset = dataset
        self.seed, self.shuffle, self.window, self.lanes = seed, shuffle, window, lanes
        self.epoch, self.position = 0, 0
        self.order()  # refuses wrong arguments now, not in the first epoch

    @property
    def view(self) -> View:
        return self.dataset.view

    def order(self) -> Order:
        """Returns the order of the view as it is now."""
        window = self.window or default_window(len(self.view), self.dataset.input_px)
        return Order(self.view.rows, self.seed, window, self.lanes, self.shuffle)

    def begin(self) -> EpochOrder:
        """Returns the sequence of the epoch to read; a run that grows is looked at when an epoch begins."""
        if self.position == 0:
            self.dataset.refresh(self.epoch)
        return self.order().epoch(self.epoch)

    def move_to(self, position: int, steps_left: int) -> None:
        """Notes that everything before `position` was read; the next epoch follows the last step."""
        self.position = position
        if steps_left == 0:
            self.set_epoch(self.epoch + 1)

    def finish_if_nothing_left(self, batches: Batches) -> None:
        """Goes to the next epoch where what is left of this one is less than a batch."""
        if batches.from_position(self.position) == 0:
            self.set_epoch(self.epoch + 1)

    def set_epoch(self, epoch: int) -> None:
        """Goes to the beginning of an epoch."""
        self.epoch, self.position = epoch, 0

    def state_dict(self) -> dict[str, Any]:
        """Returns the state: under 1 kB of JSON; with a view of a growing run, about 2 kB."""
        order = self.order()
        return {
            "version": STATE_VERSION,
            "order": ORDER_NAME,
            "content": self.view.content_sha256,
            "seed": self.seed,
            "epoch": self.epoch,
            "position": self.position,
            "lanes": self.lanes,
            "window": order.window,
            "shuffle": self.shuffle,
            "images": len(self.view),
            "view": pack(self.dataset.joined) if self.dataset.follows else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up a state: epoch, position, seed, lanes, window and shuffle. No image is read.

        Raises DataError for a state of another set, or of another version.
        """
        _check(state)
        if state["view"] is not None:
            self.dataset.return_to(unpack(state["view"]), state["epoch"])
        if state["content"] != self.view.content_sha256:
            raise DataError(
                f"{self.dataset.url}: the set is not the one this state was saved on: content"
                f" {state['content'][:12]} with {state['images']:,} images there,"
                f" {self.view.content_sha256[:12]} with {len(self.view):,} here; open that set, or start over"
            )
        mine = (self.seed, self.lanes, self.order().window, self.shuffle)
        theirs = (state["seed"], state["lanes"], state["window"], state["shuffle"])
        if mine != theirs:
            log.warning(
                "the state was saved with seed, lanes, window, shuffle %s; these replace %s", theirs, mine
            )
        self.seed, self.lanes, self.shuffle = state["seed"], state["lanes"], state["shuffle"]
        default = default_window(len(self.view), self.dataset.input_px)
        self.window = None if state["window"] == default else state["window"]
        self.epoch, self.position = state["epoch"], state["position"]
        self.order()


def _check(state: Any) -> None:
    if not isinstance(state, dict) or not {*_TYPES, "view"} <= set(state):
        raise DataError("reader state: not one of `state_dict()`; start over")
    if state["version"] != STATE_VERSION or state["order"] != ORDER_NAME:
        raise DataError(
            f"reader state: version {state['version']!r} of {state['order']!r}, this nisynth reads"
            f" {STATE_VERSION} of {ORDER_NAME}; start over"
        )
    wrong = [name for name, kind in _TYPES.items() if type(state[name]) is not kind]
    if wrong or not (0 <= state["position"] <= state["images"] and state["epoch"] >= 0):
        raise DataError(f"reader state: {', '.join(wrong) or 'position or epoch'} is wrong; start over")


def rank_and_world_size(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Returns this process's rank and how many there are, from the first that knows.

    The arguments, torch.distributed where it is initialized, RANK and WORLD_SIZE, else one process.
    Raises ConfigError when only one of the two is given.
    """
    if (rank is None) != (world_size is None):
        raise ConfigError(f"rank {rank}, world_size {world_size}: give both or neither")
    if rank is not None and world_size is not None:
        return rank, world_size
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    try:
        return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    except ValueError:
        raise ConfigError(
            f"RANK={os.environ.get('RANK')!r}, WORLD_SIZE={os.environ.get('WORLD_SIZE')!r}: not numbers"
        ) from None
