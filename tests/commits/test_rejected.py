"""A canary that fails the quality gate leaves what a person needs to find the cause, and nothing else."""

import json
from pathlib import Path
from typing import Any

import pytest

from nisynth import run
from nisynth.commits import Run
from nisynth.commits.logs import task_log
from nisynth.commits.rejected import read_rejected
from nisynth.commits.status import status
from nisynth.errors import TaskFailure
from nisynth.storage import open_store
from tests.command_line import nisynth
from tests.tiny import commit_all, keys, tiny_config


@pytest.fixture
def failed(tmp_path: Path) -> Run:
    """A run whose canary was refused."""
    with pytest.raises(TaskFailure, match=r"recognises .*% of the decoded images, .* is the canary"):
        run(tiny_config(tmp_path, execution={"quality_gate": 1.0}), str(tmp_path / "run"))
    return Run.open(open_store(str(tmp_path / "run")))


def test_status_logs_and_preview_show_why(failed: Run, tmp_path: Path) -> None:
    url, reason = (
        failed.store.url,
        "under execution.quality_gate 100.0%; cross-entropy did not fall far enough",
    )
    assert failed.committed() == set()
    assert reason in status(failed).canary
    assert "the canary failed: task 0: the teacher recognises" in nisynth("status", url).stdout
    assert reason in nisynth("logs", url).stdout
    one = nisynth("logs", url, "--task", 0, "--curve", tmp_path / "curve.png").stdout
    assert reason in one
    assert "teacher_accuracy 0" in one
    assert "r_bn" in one
    assert (tmp_path / "curve.png").stat().st_size > 1000
    drawn = nisynth("preview", url, "-o", tmp_path / "canary.png")
    assert (drawn.returncode, drawn.stdout.rpartition(": ")[2]) == (0, "4 images\n")
    assert json.loads(nisynth("logs", url, "--task", 0, "--json").stdout)["rejected"]["batch"]["curve"]


def test_a_canary_that_passes_later_leaves_nothing_of_the_one_that_failed(
    failed: Run, tmp_path: Path
) -> None:
    assert run(tiny_config(tmp_path), failed.store.url).complete
    assert read_rejected(failed) is None
    assert status(failed).canary == ""
    assert task_log(failed, 0).rejected is None
    assert len(keys(failed.store, "data/")) == 4


@pytest.mark.parametrize(
    "change", [{"shard": "../../etc/passwd"}, {"rows": 10**9}, {"curve": "x"}, {"fingerprint": "0" * 64}]
)
def test_a_record_of_a_stranger_is_none(failed: Run, change: dict[str, Any]) -> None:
    (key,) = keys(failed.store, "rejected/")
    record = json.loads(failed.store.get(key))
    failed.store.put(key, json.dumps({**record, **change}).encode())
    assert read_rejected(failed) is None
    failed.store.put(key, b"[" * 100_000)
    assert read_rejected(failed) is None


def test_what_is_committed_beats_what_was_refused(failed: Run) -> None:
    commit_all(failed, [0])
    assert read_rejected(failed) is None
