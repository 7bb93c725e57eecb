"""Views of a run that still grows: which shards an epoch reads, agreed on by all ranks.

A view changes only between epochs. It grows, but for tasks that were redone meanwhile, and becomes the
manifest when the run is sealed.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from nisynth.commits import Run
from nisynth.commits.records import ManifestRow
from nisynth.commits.seal import read_commits, read_manifest
from nisynth.errors import ConfigError, DataError, IncompleteRun, one_line
from nisynth.reader.cursor import rank_and_world_size
from nisynth.reader.view import View, check_rows

log = logging.getLogger("nisynth.reader")


@dataclass(frozen=True, kw_only=True)
class FollowConfig:
    """How a growing run is followed.

    min_images: wait for as many before the first epoch. poll_s: between two looks while waiting.
    stall_s: without a new commit for so long, go on with what is there. clock, sleep: of this machine.
    """

    min_images: int = 1
    poll_s: float = 30.0
    stall_s: float = 3600.0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        if self.min_images < 1:
            raise ConfigError(f"min_images: {self.min_images} is not at least 1")
        if not (self.poll_s > 0 and self.stall_s >= 0):
            raise ConfigError(f"poll_s {self.poll_s}, stall_s {self.stall_s}: must be positive")


@dataclass
class _Waiting:
    """How long a view has been waited for. moved_s: when there were last more images. images: so many."""

    moved_s: float
    images: int = -1


class Follower:
    """Looks at a run when an epoch begins. sealed: the last view is the whole run."""

    def __init__(self, run: Run, config: FollowConfig) -> None:
        self.run, self._config = run, config
        self.sealed = False
        self._known: dict[int, ManifestRow] = {}
        _, self._world_size = rank_and_world_size(None, None)

    def view(self, *, whole: bool = False) -> View:
        """Returns the view of the next epoch, the same on every rank. whole: wait for the sealed run.

        Raises IncompleteRun when nothing is committed within `stall_s`, or what must be whole does not grow
        for as long; ConfigError where several ranks have no torch.distributed to agree by, DataError,
        StorageError.
        """
        if self._world_size > 1 and not (
            torch.distributed.is_available() and torch.distributed.is_initialized()
        ):
            raise ConfigError(
                f"follow: {self._world_size} ranks must agree on the shards of an epoch; call"
                " torch.distributed.init_process_group first, or wait for the run's end"
            )
        waiting = _Waiting(self._config.clock())
        while True:
            view = self._agreed(whole, waiting)
            if view is not None:
                return view
            # On every rank: one that waited for rank 0 in a collective would run into the group's timeout.
            self._config.sleep(self._config.poll_s)

    def _agreed(self, whole: bool, waiting: "_Waiting") -> View | None:
        """Returns what rank 0 sees now, on every rank; None while there is not enough."""
        if self._world_size == 1:
            rows = self._look(whole, waiting)
            return None if rows is None else View(rows)
        # Of rank 0: None when it failed, () while there is not enough, or the view.
        told: list[tuple[Any, ...] | None] = [None]
        failure: Exception | None = None
        if torch.distributed.get_rank() == 0:
            try:
                rows = self._look(whole, waiting)
                told = [
                    () if rows is None else ([r.task for r in rows], View(rows).content_sha256, self.sealed)
                ]
            except Exception as error:  # the others must be told, or they wait without end
                failure = error
        torch.distributed.broadcast_object_list(told, src=0)
        if failure is not None:
            raise failure
        if told[0] is None:
            raise IncompleteRun(f"{self.run.store.url}: rank 0 could not look at the run; see its error")
        if not told[0]:
            return None
        tasks, content, self.sealed = told[0]
        return self._on_all_ranks(lambda: self._as_told(tasks, content))

    def _as_told(self, tasks: Sequence[int], content: str) -> View:
        view = self.view_of(tasks)
        if view.content_sha256 != content:
            raise DataError(f"{self.run.store.url}: a task was redone while the ranks looked; run again")
        return view

    def _on_all_ranks(self, work: Callable[[], View]) -> View:
        """Returns what `work` does once it is done on every rank.

        Raises what it raises here, and IncompleteRun where it failed on another rank alone: to go on without
        that one is to wait in the next collective until the group's timeout.
        """
        failure: Exception | None = None
        try:
            view = work()
        except Exception as error:
            failure = error
        problems: list[str | None] = [None] * self._world_size
        torch.distributed.all_gather_object(problems, None if failure is None else one_line(failure))
        if failure is not None:
            raise failure
        for rank, problem in enumerate(problems):
            if problem is not None:
                raise IncompleteRun(f"rank {rank} could not read what the others did: {problem}")
        return view

    def view_of(self, tasks: Sequence[int]) -> View:
        """Returns the view of these tasks. Raises DataError when one is no longer committed."""
        self._read([task for task in tasks if task not in self._known])
        missing = [task for task in tasks if task not in self._known]
        if missing:
            raise DataError(
                f"{self.run.store.url}: task {missing[0]} of the view is no longer committed; start over"
            )
        return View([self._known[task] for task in tasks])

    def _look(self, whole: bool, waiting: "_Waiting") -> list[ManifestRow] | None:
        """Returns the rows of the next view; None while there are not enough of them."""
        config, url, now_s = self._config, self.run.store.url, self._config.clock()
        enough = self.run.plan.num_images if whole else config.min_images
        rows = self._committed()
        images = sum(row.rows for row in rows)
        if self.sealed or (not whole and images >= min(enough, self.run.plan.num_images)):
            return rows
        if images != waiting.images:
            waiting.moved_s, waiting.images = now_s, images
            log.warning("%s: waiting for images, %s of %s are committed", url, f"{images:,}", f"{enough:,}")
        elif now_s - waiting.moved_s >= config.stall_s:
            if whole:
                raise IncompleteRun(
                    f"{url}: no commit within {config.stall_s:.0f} s, and the run is not complete; resume it,"
                    " then run this again to go on from the last checkpoint"
                )
            if not rows:
                raise IncompleteRun(
                    f"{url}: nothing was committed within {config.stall_s:.0f} s (stall_s); is the run being"
                    " executed?"
                )
            log.warning(
                "%s: no commit within %.0f s (stall_s); going on with %s images",
                url,
                config.stall_s,
                f"{images:,}",
            )
            return rows
        return None

    def _committed(self) -> list[ManifestRow]:
        """Returns a row for every committed task; reads only the commits that are new."""
        if self.sealed:
            return list(self._known.values())
        try:
            rows = read_manifest(self.run)
        except IncompleteRun:
            return self._committed_so_far()
        check_rows(self.run, rows, partial=False)
        self._known, self.sealed = {row.task: row for row in rows}, True
        return rows

    def _committed_so_far(self) -> list[ManifestRow]:
        listed = sorted(self.run.committed())
        shards = {key for key, *_ in self.run.shards()}
        # A task that was redone has another shard by now; its row is read again.
        kept = {task: row for task, row in self._known.items() if task in listed and row.shard in shards}
        self._known, before = kept, self._known
        self._read([task for task in listed if task not in kept])
        gone = sorted(set(before) - set(self._known))
        if gone:
            log.warning("%s: task %s was taken back and is left out", self.run.store.url, gone[0])
        return [self._known[task] for task in sorted(self._known)]

    def _read(self, tasks: Sequence[int]) -> None:
        self._known |= {row.task: row for row in read_commits(self.run, tasks)}
