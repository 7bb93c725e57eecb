"""The log of one driver in the run's store: what it holds, how long it grows, what hostile lines do."""

import json
from pathlib import Path
from typing import Any

import pytest

from nisynth import run
from nisynth.commits import Receipt
from nisynth.errors import BudgetExceeded, TaskFailure
from nisynth.execution import event_log
from nisynth.execution.event_log import EventLog, read_events
from nisynth.execution.events import (
    AttemptFailed,
    AttemptStarted,
    Ended,
    Listed,
    Note,
    Stepped,
    TaskDone,
    TaskQuarantined,
    WorkerLost,
    WorkerReady,
)
from nisynth.execution.ledger import Attempt
from nisynth.storage import open_store
from nisynth.storage.memory import MemoryStore
from tests.tiny import keys, tiny_config

DRIVER = "0" * 32


class Clock:
    """Seconds that pass when a test says so."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def lines_of(store: MemoryStore) -> list[dict[str, Any]]:
    return [{name: value for name, value in line.items() if name != "at"} for line in read_events(store)]


def test_a_log_says_what_no_commit_says() -> None:
    store, clock = MemoryStore("memory://log"), Clock()
    tell = EventLog(store, DRIVER, clock)
    first, second = Attempt("a1", 3, 0), Attempt("a2", 4, 0)
    tell(Listed(10, 2, 2560))
    tell(WorkerReady(0, "host/1", "node", "cuda"))
    for attempt in (first, second):
        tell(AttemptStarted(attempt))
    clock.now_s = 5.0
    tell(Stepped(0, 3, 0, 100))
    clock.now_s = 12.5
    tell(AttemptFailed(first, "raised", "task 3: ValueError: no\nTraceback ..."))
    tell(Stepped(0, 4, 0, 100))
    clock.now_s = 20.0
    tell(WorkerLost(0, "node_died", "node is gone", "host/1"))
    tell(TaskQuarantined(3, "raised", "ValueError: no"))
    tell(Note("take notice"))
    tell(Listed(10, 5, 2560))
    tell(Ended("Stalled: no worker"))
    lines = lines_of(store)
    assert [line.pop("driver") for line in lines] == [DRIVER] * 7
    assert lines[0].pop("nisynth")
    assert lines == [
        {"event": "started", "tasks": 10, "committed": 2},
        {"event": "worker_ready", "slot": 0, "worker": "host/1", "node": "node", "device": "cuda"},
        {
            "event": "attempt_failed",
            **{"task": 3, "attempt": "a1", "worker": "host/1", "seconds": 7.5},
            **{"kind": "raised", "message": "task 3: ValueError: no"},
        },
        {
            "event": "worker_lost",
            **{"slot": 0, "worker": "host/1", "kind": "node_died", "message": "node is gone"},
            "attempts": [{"task": 4, "attempt": "a2", "worker": "host/1", "seconds": 7.5}],
            "given_up": False,
        },
        {"event": "task_quarantined", "task": 3, "kind": "raised", "message": "ValueError: no"},
        {"event": "note", "text": "take notice"},
        {"event": "ended", "done": 0, "error": "Stalled: no worker"},
    ]


def test_a_log_is_written_once_a_minute_where_something_happened() -> None:
    store, clock = MemoryStore("memory://minutes"), Clock()
    tell = EventLog(store, DRIVER, clock)
    tell(Listed(10, 0, 10))
    assert keys(store) == []
    clock.now_s = 61.0
    tell(Stepped(0, 1, 5, 10))
    assert [line["event"] for line in lines_of(store)] == ["started"]
    store.delete(keys(store)[0])
    clock.now_s = 122.0
    tell(Stepped(0, 1, 6, 10))
    assert keys(store) == []  # nothing new to say
    tell(Note("new"))
    assert [line["event"] for line in lines_of(store)] == ["started", "note"]


def test_a_log_stays_small_however_long_the_run() -> None:
    store = MemoryStore("memory://long")
    tell = EventLog(store, DRIVER, Clock())
    tell(Listed(10, 0, 10))
    for number in range(10_000):
        attempt = Attempt(str(number), number, 0)
        tell(AttemptStarted(attempt))
        tell(TaskDone(attempt, Receipt(number, attempt.id, "mine", 1, {}, {}, "w")))
        tell(AttemptStarted(attempt))
        tell(AttemptFailed(attempt, "raised", "x" * 10_000))
    tell(Ended())
    lines = lines_of(store)
    assert len(lines) == 2 * event_log.LINES_KEPT + 1
    assert lines[event_log.LINES_KEPT]["lines"] == 10_002 - 2 * event_log.LINES_KEPT
    assert (lines[-1]["event"], lines[-1]["done"]) == ("ended", 10_000)
    assert store.size_bytes(f"events/{DRIVER}.jsonl") < 2_000_000


def test_lines_of_strangers_are_read_as_what_they_are() -> None:
    store = MemoryStore("memory://hostile")
    store.put(f"events/{DRIVER}.jsonl", b'{"event": "note"}\n[1]\n\xff\n{"driver": "me"}\n' + b"[" * 100_000)
    store.put("events/short.jsonl", b'{"event": "note"}')
    assert list(read_events(store)) == [{"event": "note", "driver": DRIVER}, {"driver": DRIVER}]


def test_each_driver_of_a_run_leaves_its_log_and_one_without_work_leaves_none(tmp_path: Path) -> None:
    config, url = tiny_config(tmp_path, execution={"quality_gate": 1.0}), str(tmp_path / "run")
    for _ in range(2):
        with pytest.raises((TaskFailure, BudgetExceeded)):
            run(config, url)
    assert run(tiny_config(tmp_path), url).complete
    assert run(tiny_config(tmp_path), url).executed == 0
    store = open_store(url)
    assert len(keys(store, "events/")) == 3
    drivers: dict[str, list[dict[str, Any]]] = {}
    for line in read_events(store):
        drivers.setdefault(line["driver"], []).append(line)
    ends = sorted((lines[-1]["done"], lines[-1]["error"].partition(":")[0]) for lines in drivers.values())
    assert ends == [(0, "TaskFailure"), (0, "TaskFailure"), (4, "")]
    raw = Path(url, keys(store, "events/")[0]).read_text()
    assert all(json.loads(line)["at"] > 1.7e9 for line in raw.splitlines())
