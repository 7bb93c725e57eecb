"""A set of any size as batches of tensors: read ahead by threads, in an order that a position resumes.

Three parts run at once. Loader threads open shards in the order of their first need, which fetches and
decodes those that are not in the cache. One thread copies each batch together. The caller takes batches
from a short queue. Decoders, hashes and copies let go of Python's lock, so threads suffice.
"""

import logging
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from nisynth.errors import ConfigError, counted
from nisynth.randomness import Int64
from nisynth.reader.cursor import Cursor
from nisynth.reader.order import Batches, EpochOrder
from nisynth.reader.source import ShardSource, Stats
from nisynth.reader.view import View

PREFETCH_BYTES = 256 << 20
READY_BATCHES = 3
Batch = tuple[Tensor, Tensor]
log = logging.getLogger("nisynth.reader")


class Stream(IterableDataset[Batch]):
    """Batches of this rank, uint8 `(b, 3, H, W)` and int64 `(b,)`; made by `SyntheticDataset.stream`.

    `iter` gives what is left of an epoch, and after its end the next one. Every rank has the same number
    of steps. A batch is the caller's to keep and to change.
    """

    def __init__(
        self,
        cursor: Cursor,
        batches: Batches,
        *,
        threads: int | None = None,
        prefetch_bytes: int = PREFETCH_BYTES,
        device: torch.device | str | None = None,
    ) -> None:
        self._cursor, self._batches = cursor, batches
        self._threads = default_threads() if threads is None else threads
        self._prefetch_bytes = prefetch_bytes
        self._pinned = device is not None and torch.device(device).type == "cuda"
        self._said_slow = False
        if self._threads < 1:
            raise ConfigError(f"threads: {self._threads} is not at least 1")

    def __len__(self) -> int:
        """Returns the steps of a whole epoch, the same on every rank."""
        return self._batches.over(len(self._cursor.view)).from_position(0)

    def __repr__(self) -> str:
        batches, cursor = self._batches, self._cursor
        return (
            f"Stream({counted(len(cursor.view), 'image')}, batch_size={batches.batch_size},"
            f" rank {batches.rank} of {batches.world_size}, epoch {cursor.epoch},"
            f" position {cursor.position:,})"
        )

    @property
    def epoch(self) -> int:
        """The epoch that the next batch belongs to."""
        return self._cursor.epoch

    @property
    def stats(self) -> Stats:
        """What reading has cost this process so far."""
        return self._cursor.dataset.source.stats

    def set_epoch(self, epoch: int) -> None:
        """Goes to the beginning of an epoch, wherever the stream stood."""
        self._cursor.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Returns where the caller stands: behind the last batch it was given. The same on every rank."""
        return self._cursor.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes where a state says, in a set of the same content; reads no image. Raises DataError."""
        self._cursor.load_state_dict(state)

    def __iter__(self) -> Iterator[Batch]:
        if get_worker_info() is not None:
            raise ConfigError(
                "Stream: every worker of a DataLoader would give the whole set; iterate over the stream"
                " itself, or use images.sampler: DataLoader(images, batch_sampler=images.sampler(...),"
                " collate_fn=nisynth.collate)"
            )
        cursor = self._cursor
        order = cursor.begin()
        batches = self._batches.over(len(cursor.view))
        steps = batches.from_position(cursor.position)
        cursor.finish_if_nothing_left(batches)
        if steps == 0:
            return
        began_s, waited_s = time.perf_counter(), self.stats.wait_s
        with self._reading(order, batches, steps) as reading:
            for left in range(steps - 1, -1, -1):
                end, batch = reading.next_batch()
                cursor.move_to(end, left)
                cursor.dataset.source.count(images=len(batch[1]))
                if left == 0:
                    self._say_if_slow(self.stats.wait_s - waited_s, time.perf_counter() - began_s)
                yield batch

    def _reading(self, order: EpochOrder, batches: Batches, steps: int) -> "_Reading":
        dataset = self._cursor.dataset
        image_bytes = 3 * dataset.input_px**2
        ahead = max(2 * batches.batch_size, self._prefetch_bytes // image_bytes)
        plan = _Steps(order, batches, self._cursor.position, steps)
        return _Reading(dataset.source, dataset.view, plan, self._threads, ahead, self._pinned)

    def _say_if_slow(self, waited_s: float, epoch_s: float) -> None:
        if not self._said_slow and waited_s > max(2.0, 0.05 * epoch_s):
            self._said_slow = True
            log.warning(
                "the epoch of %.0f s waited %.0f s for images: raise threads= (%d) or prefetch_bytes=,"
                " install nisynth[fast], or fetch and decode the set once with images.warm()",
                epoch_s,
                waited_s,
                self._threads,
            )


def read_ahead(
    source: ShardSource, view: View, steps: Sequence[Int64], *, pinned: bool = False
) -> Iterator[Batch]:
    """Yields pixels and labels of the images of each step, whose shards are opened ahead of their need.

    Raises DataError, StorageError.
    """
    if not steps:
        return
    ahead = max(2 * len(steps[0]), PREFETCH_BYTES // (3 * source.run.plan.input_px**2))
    with _Reading(source, view, enumerate(steps), default_threads(), ahead, pinned) as reading:
        for _ in steps:
            yield reading.next_batch()[1]


def default_threads() -> int:
    """Returns how many threads fetch and decode shards."""
    return min(32, 4 * (os.cpu_count() or 1))


class _Steps:
    """The steps that are left of an epoch: for each, the position behind it and this rank's images."""

    def __init__(self, order: EpochOrder, batches: Batches, position: int, steps: int) -> None:
        self._order, self._batches = order, batches
        self._position, self._left = position, steps

    def __iter__(self) -> Iterator[tuple[int, Int64]]:
        for _ in range(self._left):
            positions = self._batches.positions(self._position)
            self._position += len(positions)
            own = self._batches.of_rank(positions, self._order.num_lanes)
            yield self._position, self._order.images(own)


class _Reading:
    """The threads of one pass, as a context manager that always ends them."""

    def __init__(
        self,
        source: ShardSource,
        view: View,
        steps: Iterable[tuple[int, Int64]],
        threads: int,
        ahead: int,
        pinned: bool,
    ) -> None:
        self._source, self._view, self._pinned = source, view, pinned
        self._steps, self._ahead = iter(steps), ahead
        self._planned: deque[tuple[int, Int64]] = deque()
        self._planned_images = 0
        self._opened: dict[int, Future[Any]] = {}
        self._ready: queue.Queue[tuple[int, Batch] | BaseException | None] = queue.Queue(READY_BATCHES)
        self._stopping = threading.Event()
        self._pool = ThreadPoolExecutor(threads, "nisynth-shard")
        self._producer = threading.Thread(target=self._produce, name="nisynth-batches", daemon=True)

    def __enter__(self) -> "_Reading":
        self._producer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._pool.shutdown(wait=False, cancel_futures=True)
        while self._producer.is_alive():  # it may wait for room in the queue
            try:
                self._ready.get(timeout=0.05)
            except queue.Empty:
                continue
        self._pool.shutdown(wait=True)

    def next_batch(self) -> tuple[int, Batch]:
        """Returns the next step's end position and batch. Raises what reading it raised."""
        began_s = time.perf_counter()
        found = self._ready.get()
        self._source.count(wait_s=time.perf_counter() - began_s)
        if isinstance(found, BaseException):
            raise found
        assert found is not None
        return found

    def _produce(self) -> None:
        try:
            while not self._stopping.is_set() and self._look_ahead():
                end, images = self._planned.popleft()
                self._planned_images -= len(images)
                for number in self._shards_of(images):
                    self._opened[number].result()
                self._ready.put((end, self._source.gather(self._view, images, pinned=self._pinned)))
        except CancelledError:  # the caller stopped
            return
        except BaseException as error:  # raised where the caller takes the batch that it spoiled
            self._ready.put(error)

    def _look_ahead(self) -> bool:
        """Asks for the shards of the steps to come; false when no step is left."""
        while self._planned_images < self._ahead or not self._planned:
            step = next(self._steps, None)
            if step is None:
                break
            self._planned.append(step)
            self._planned_images += len(step[1])
            for number in self._shards_of(step[1]):
                if number not in self._opened:
                    row = self._view.shards[number]
                    self._opened[number] = self._pool.submit(self._open, row)
        return bool(self._planned)

    def _open(self, row: Any) -> None:
        self._source.open(row)  # kept there; a future that held it would keep it for the whole epoch

    def _shards_of(self, images: Int64) -> list[int]:
        """Returns the numbers of the shards of these images, in the order of their first need."""
        return list(dict.fromkeys(self._view.places(images)[0].tolist()))
