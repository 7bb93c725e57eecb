"""What counts, as the drive loop asks for it: listed in a thread, settled by reading."""

import threading
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from nisynth.commits import Receipt, Run
from nisynth.errors import StorageError
from nisynth.execution.stored import StoredCommits
from nisynth.storage.memory import MemoryStore
from tests.tiny import commit_all, fake_commit, tiny_plan


def fresh(listing: StoredCommits) -> list[set[int] | StorageError]:
    """What a listing brings, however long its thread takes."""
    found: list[set[int] | StorageError] = []
    while not found:
        found = list(listing.fresh())
    return found


def test_a_listing_brings_what_others_committed(tmp_path: Path) -> None:
    run = Run.join(MemoryStore("memory://listing"), tiny_plan(tmp_path))
    listing = StoredCommits(run, every_s=0.0)
    assert listing.now() == (set(), set())
    commit_all(run, tasks=[2])
    assert fresh(listing) == [{2}]
    commit_all(run, tasks=[3])
    while fresh(listing) != [{2, 3}]:
        pass


def test_a_listing_that_fails_says_why_and_one_that_hangs_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run.join(MemoryStore("memory://hanging"), tiny_plan(tmp_path))
    listing = StoredCommits(run, every_s=0.0)
    error, hang = StorageError("memory://hanging: no answer"), threading.Event()
    monkeypatch.setattr(run, "committed", lambda: (_ for _ in ()).throw(error))
    assert fresh(listing) == [error]
    monkeypatch.setattr(run, "committed", lambda: {1} if hang.wait() else set())
    while list(listing.fresh()):
        pass
    assert list(listing.fresh()) == []
    hang.set()
    while fresh(listing) != [{1}]:
        pass


def test_a_receipt_is_only_a_claim_until_the_commit_is_read(tmp_path: Path) -> None:
    run = Run.join(MemoryStore("memory://claims"), tiny_plan(tmp_path))
    commits = StoredCommits(run)
    winner = commit_all(run, tasks=[0])[0]

    def receipt(task: int, attempt: str) -> Receipt:
        return Receipt(task, attempt, "unknown", 4, {"synthesize": 1.0}, {}, "w")

    assert commits.outcome(receipt(0, winner)) == "mine"
    assert commits.outcome(receipt(0, str(uuid4()))) == "other"
    assert commits.outcome(receipt(1, str(uuid4()))) == "unknown"
    assert commits.outcome(replace(receipt(1, winner), outcome="other")) == "other"


def test_in_single_writer_mode_the_driver_commits_what_a_worker_stored(tmp_path: Path) -> None:
    run = Run.join(MemoryStore("memory://single"), tiny_plan(tmp_path))
    record = fake_commit(run, 1, str(uuid4()))
    receipt = Receipt(1, record.attempt, "unknown", 4, {}, {}, "w", commit=record)
    assert StoredCommits(run).outcome(receipt) == "mine"
    assert run.committed() == {1}
