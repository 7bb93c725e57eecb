"""What counts of a run, as it is in storage, for the drive loop: listed in a thread beside it."""

import queue
import threading
import time
from collections.abc import Iterator
from typing import Any

from nisynth.commits import Outcome, Receipt, Run
from nisynth.errors import StorageError

RELIST_S = 30.0


class StoredCommits:
    """The commits of one run; those of other drivers are listed again every 30 s.

    A million tasks take a minute to list, so a listing is never waited for.
    """

    def __init__(self, run: Run, every_s: float = RELIST_S) -> None:
        self._run = run
        self._every_s = every_s
        self._found: queue.SimpleQueue[set[int] | StorageError] = queue.SimpleQueue()
        self._due_s = time.monotonic() + every_s
        self._thread: threading.Thread | None = None

    def now(self) -> tuple[set[int], set[int]]:
        """Returns the committed and the quarantined tasks. Raises StorageError."""
        return self._run.committed(), self._run.quarantined()

    def fresh(self) -> Iterator[set[int] | StorageError]:
        """Yields the committed tasks listed since the last call, or why they could not be; never waits."""
        while not self._found.empty():
            self._due_s = time.monotonic() + self._every_s
            yield self._found.get()
        idle = self._thread is None or not self._thread.is_alive()
        if idle and time.monotonic() >= self._due_s:
            # A daemon: a store that does not answer must not hold up the end of the run.
            self._thread = threading.Thread(target=self._list, daemon=True)
            self._thread.start()

    def outcome(self, receipt: Receipt) -> Outcome:
        """Returns whose commit the task has; in single-writer mode, makes it first. Raises StorageError."""
        if receipt.outcome != "unknown":
            return receipt.outcome
        found = self._run.read(receipt.task)
        if found is not None:
            return "mine" if found.attempt == receipt.attempt else "other"
        return "unknown" if receipt.commit is None else self._run.commit(receipt.commit)

    def quarantine(self, task: int, failures: list[dict[str, Any]]) -> bool:
        """Records that the task is given up on; False when it is committed after all. Raises StorageError."""
        return self._run.quarantine(task, failures)

    def _list(self) -> None:
        try:
            self._found.put(self._run.committed())
        except StorageError as error:
            self._found.put(error)
