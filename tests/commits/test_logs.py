"""What storage knows of a task, whoever wrote it there."""

import json
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from nisynth.commits import Run
from nisynth.commits.fetch import MAX_DOCUMENT_BYTES
from nisynth.commits.logs import Failed, quarantine_logs, task_log
from nisynth.commits.records import commit_key, quarantine_key
from nisynth.errors import ConfigError, DataError
from tests.sources import forge, make_run, source_of
from tests.tiny import commit_all, fake_commit

BOOM = "RuntimeError: boom\nTraceback (most recent call last):\n  in forward"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return make_run(tmp_path, tasks=[0])


def test_a_task_is_committed_quarantined_or_open(run: Run) -> None:
    record = replace(
        fake_commit(run, 1, str(uuid4())), device="a card", curve=[{"iteration": 1, "total": 2.0}]
    )
    run.commit(record)
    failures = [
        {"kind": "not_finite", "message": "task 2: nan", "slot": 0},
        {"kind": "raised", "message": BOOM},
    ]
    run.quarantine(2, failures)
    assert task_log(run, 1).commit == record
    assert task_log(run, 2).failures == (Failed("not_finite", "task 2: nan"), Failed("raised", BOOM))
    assert [task_log(run, task).state for task in range(4)] == [
        "committed",
        "committed",
        "quarantined",
        "open",
    ]
    assert quarantine_logs(run) == [task_log(run, 2)]


def test_a_commit_beats_a_quarantine(run: Run) -> None:
    run.quarantine(3, [{"kind": "raised", "message": "boom"}])
    commit_all(run, [3])
    assert task_log(run, 3).state == "committed"
    assert quarantine_logs(run) == []


def test_a_task_outside_the_plan(run: Run) -> None:
    for task in (-1, 6):
        with pytest.raises(ConfigError, match=r"tasks 0\.\.5"):
            task_log(run, task)


@pytest.mark.parametrize("data", [b"", b"[]", b"[" * 100_000, b"{}", b'{"failures": {}}', b"\xff"])
def test_a_record_that_is_none_is_said_to_be_damaged(run: Run, data: bytes) -> None:
    run.store.create(quarantine_key(run.plan.fp12, 1), data)
    assert task_log(run, 1).failures == (Failed("unknown", "its quarantine record is damaged"),)
    assert len(quarantine_logs(run)) == 1


def test_failures_of_the_wrong_types_are_shown_as_text_or_left_out(run: Run) -> None:
    record = {"failures": [3, {"kind": ["x"], "message": None}, {}]}
    run.store.create(quarantine_key(run.plan.fp12, 1), json.dumps(record).encode())
    assert task_log(run, 1).failures == (Failed("['x']", "None"), Failed("unknown", ""))


def test_a_damaged_commit_is_named(run: Run) -> None:
    forge(run, 0, curve=[{"iteration": "\x1b[2J"}])
    with pytest.raises(DataError, match="redo URL --bad"):
        task_log(run, 0)


def test_records_too_large_to_be_ours_are_not_read(run: Run) -> None:
    run.quarantine(1, [])
    for key, task in ((commit_key(run.plan.fp12, 0), 0), (quarantine_key(run.plan.fp12, 1), 1)):
        source_of(run).sizes = {key: MAX_DOCUMENT_BYTES + 1}
        source_of(run).gets.clear()
        with pytest.raises(DataError, match="it was not read"):
            task_log(run, task)
        assert source_of(run).gets[key] == 0
