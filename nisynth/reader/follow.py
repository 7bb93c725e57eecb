"""Views of a run that still grows: which shards an epoch reads, agreed on by all ranks.

A view changes only between epochs. It grows, but for tasks that were redone meanwhile, and becomes the
manifest when the run is sealed.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from nisynth.commits import Run
from nisynth.commits.records import ManifestRow
from nisynth.commits.seal import read_commits, read_manifest
from nisynth.errors import ConfigError, DataError, IncompleteRun
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
        if self._world_size == 1:
            return View(self._look(whole))
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            raise ConfigError(
                f"follow: {self._world_size} ranks must agree on the shards of an epoch; call"
                " torch.distributed.init_process_group first, or wait for the run's end"
            )
        chosen: list[tuple[list[int], str, bool] | None] = [None]
        failure: Exception | None = None
        if torch.distributed.get_rank() == 0:
            try:
                rows = self._look(whole)
                chosen = [([row.task for row in rows], View(rows).content_sha256, self.sealed)]
            except Exception as error:  # the others must hear of it, or wait for ever
                failure = error
        torch.distributed.broadcast_object_list(chosen, src=0)
        if failure is not None:
            raise failure
        if chosen[0] is None:
            raise IncompleteRun(f"{self.run.store.url}: rank 0 could not look at the run; see its error")
        tasks, content, self.sealed = chosen[0]
        view = self.view_of(tasks)
        if view.content_sha256 != content:
            raise DataError(f"{self.run.store.url}: a task was redone while the ranks looked; run again")
        return view

    def view_of(self, tasks: Sequence[int]) -> View:
        """Returns the view of these tasks. Raises DataError when one is no longer committed."""
        self._read([task for task in tasks if task not in self._known])
        missing = [task for task in tasks if task not in self._known]
        if missing:
            raise DataError(
                f"{self.run.store.url}: task {missing[0]} of the view is no longer committed; begin anew"
            )
        return View([self._known[task] for task in tasks])

    def _look(self, whole: bool) -> list[ManifestRow]:
        """Returns the rows of the next view, after waiting for enough of them."""
        enough = self.run.plan.num_images if whole else self._config.min_images
        clock, moved_s, said = self._config.clock, self._config.clock(), -1
        while True:
            rows = self._committed()
            images = sum(row.rows for row in rows)
            if self.sealed or (not whole and images >= min(enough, self.run.plan.num_images)):
                return rows
            if images != said:
                moved_s, said = clock(), images
                log.warning(
                    "%s: waiting for images, %s of %s are committed",
                    self.run.store.url,
                    f"{images:,}",
                    f"{enough:,}",
                )
            elif clock() - moved_s >= self._config.stall_s:
                if whole:
                    raise IncompleteRun(
                        f"{self.run.store.url}: no commit within {self._config.stall_s:.0f} s, and the run is"
                        " not complete; resume it, then run this again to go on from the last checkpoint"
                    )
                if not rows:
                    raise IncompleteRun(
                        f"{self.run.store.url}: nothing was committed within {self._config.stall_s:.0f} s"
                        " (stall_s); is the run being executed?"
                    )
                log.warning(
                    "%s: no commit within %.0f s (stall_s); going on with %s images",
                    self.run.store.url,
                    self._config.stall_s,
                    f"{images:,}",
                )
                return rows
            self._config.sleep(self._config.poll_s)

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
