"""What one driver saw of a run, as JSON lines in the run's store: `events/<driver>.jsonl`.

For people and for the report page, never read for a decision: failed attempts that a later one made good,
lost workers, how each driver ended. What the commits say already (who made a task, and when) is not in it.
"""

import json
import re
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from nisynth.commits.fetch import fetch_document
from nisynth.errors import first_line
from nisynth.execution.events import (
    AttemptFailed,
    AttemptStarted,
    Ended,
    Event,
    Listed,
    Note,
    Stepped,
    TaskDone,
    TaskQuarantined,
    WorkerLost,
    WorkerReady,
)
from nisynth.execution.ledger import Attempt
from nisynth.identity import __version__
from nisynth.storage import Store

WRITE_EVERY_S = 60.0
LINES_KEPT = 1000
"""Of the first lines, and as many of the last: at most some 2 MB, however long the run."""
MESSAGE_CHARS = 500
MOST_DRIVERS = 1000
_KEY = re.compile(r"events/[0-9a-f]{32}\.jsonl")


class EventLog:
    """A listener that writes the log of the driver `driver` (32 hex digits), every 60 s and at the end."""

    def __init__(self, store: Store, driver: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._store, self._key, self._driver = store, f"events/{driver}.jsonl", driver
        self._clock = clock
        self._first: list[dict[str, Any]] = []
        self._last: deque[dict[str, Any]] = deque(maxlen=LINES_KEPT)
        self._left_out = self._done = 0
        self._workers: dict[int, str] = {}
        # Since when each attempt is with its worker, and since when the worker computes it.
        self._in_flight: dict[str, tuple[Attempt, float]] = {}
        self._written_s = clock()
        self._dirty = False

    def __call__(self, event: Event) -> None:
        self._follow(event)
        line = self._line(event)
        # A driver that finds nothing to do leaves no log.
        if line is not None and (self._first or isinstance(event, Listed)):
            self._add({"at": round(time.time(), 3), **line})
        if isinstance(event, AttemptFailed | TaskDone):
            self._in_flight.pop(event.attempt.id, None)
        due = isinstance(event, Ended) or self._clock() - self._written_s >= WRITE_EVERY_S
        if due and self._dirty and self._first:
            self._write()

    def _follow(self, event: Event) -> None:
        match event:
            case WorkerReady():
                self._workers[event.slot] = event.worker
            case AttemptStarted():
                self._in_flight[event.attempt.id] = (event.attempt, self._clock())
            case Stepped(iteration=0):
                for attempt, _ in list(self._in_flight.values()):
                    if (attempt.task, attempt.slot) == (event.task, event.slot):
                        self._in_flight[attempt.id] = (attempt, self._clock() - event.elapsed_s)
            case TaskDone():
                self._done += 1

    def _line(self, event: Event) -> dict[str, Any] | None:
        match event:
            case Listed() if not self._first:
                counts = {"tasks": event.total_tasks, "committed": event.committed}
                return {"event": "started", "driver": self._driver, "nisynth": __version__, **counts}
            case WorkerReady():
                place = {"node": event.node, "device": event.device}
                return {"event": "worker_ready", "slot": event.slot, "worker": event.worker, **place}
            case AttemptFailed():
                why = {"kind": event.kind, "message": _short(event.message)}
                return {"event": "attempt_failed", **self._attempt(event.attempt), **why}
            case WorkerLost():
                why = {"worker": event.worker, "kind": event.kind, "message": _short(event.message)}
                lost = self._lost(event.slot)
                return {"event": "worker_lost", **lost, **why, "given_up": event.given_up}
            case TaskQuarantined():
                why = {"kind": event.kind, "message": _short(event.message)}
                return {"event": "task_quarantined", "task": event.task, **why}
            case Note():
                return {"event": "note", "text": _short(event.text)}
            case Ended():
                return {"event": "ended", "done": self._done, "error": _short(event.error)}
        return None

    def _attempt(self, attempt: Attempt) -> dict[str, Any]:
        _, since_s = self._in_flight.get(attempt.id, (attempt, self._clock()))
        seconds, worker = round(self._clock() - since_s, 3), self._workers.get(attempt.slot, "")
        return {"task": attempt.task, "attempt": attempt.id, "worker": worker, "seconds": seconds}

    def _lost(self, slot: int) -> dict[str, Any]:
        """Returns the slot and what its worker was doing, which goes with it."""
        in_flight = [attempt for attempt, _ in self._in_flight.values() if attempt.slot == slot]
        lost = {"slot": slot, "attempts": [self._attempt(attempt) for attempt in in_flight]}
        for attempt in in_flight:
            del self._in_flight[attempt.id]
        self._workers.pop(slot, None)
        return lost

    def _add(self, line: dict[str, Any]) -> None:
        self._dirty = True
        if len(self._first) < LINES_KEPT:
            self._first.append(line)
            return
        self._left_out += len(self._last) == LINES_KEPT
        self._last.append(line)

    def _write(self) -> None:
        gap = [{"event": "left_out", "lines": self._left_out}] if self._left_out else []
        lines = [json.dumps(line) for line in [*self._first, *gap, *self._last]]
        self._store.put(self._key, "".join(f"{line}\n" for line in lines).encode())
        self._written_s, self._dirty = self._clock(), False


def read_events(store: Store) -> Iterator[dict[str, Any]]:
    """Yields the lines of every driver's log, driver by driver, each with its `driver`.

    Anyone who can write to the bucket may have written them: lines that are not JSON objects are left out,
    and the fields of the others may hold anything. Raises StorageError.
    """
    keys = [info.key for info in store.list("events/") if _KEY.fullmatch(info.key)]
    for key in sorted(keys)[:MOST_DRIVERS]:
        driver = key.removeprefix("events/").removesuffix(".jsonl")
        for text in (fetch_document(store, key) or b"").splitlines():
            try:
                line = json.loads(text)
            except (ValueError, RecursionError):
                continue
            if isinstance(line, dict):
                yield {**line, "driver": driver}


def _short(text: str) -> str:
    return first_line(text)[:MESSAGE_CHARS]
