"""A run in this process: what it tells, what it counts, and how it ends."""

import errno
import os
import sys
import types
from pathlib import Path

import pytest

from nisynth import run
from nisynth.errors import BudgetExceeded, ConfigError, StorageError
from nisynth.execution.events import AttemptFailed, Event, Note, Stepped, TaskDone, WorkerReady
from nisynth.execution.run import begin, execute
from nisynth.execution.schedule import Rules
from tests.disks import forbid_links
from tests.tiny import tiny_config


def test_a_run_tells_what_happens_in_the_order_in_which_it_does(tmp_path: Path) -> None:
    config, heard = tiny_config(tmp_path), list[Event]()
    assert execute(config, begin(config, str(tmp_path / "run")), heard.append, "local") == 4
    names = [type(event).__name__ for event in heard if not isinstance(event, Note)]
    one_task = ["AttemptStarted", "Stepped", "Stepped", "Stepped", "TaskDone"]
    assert names == ["Listed", "WorkerReady", *(4 * one_task)]
    steps = [event for event in heard if isinstance(event, Stepped)]
    assert [(step.iteration, step.iterations) for step in steps[:3]] == [(0, 2), (1, 2), (2, 2)]
    assert steps[2].losses["total"] > 0
    (ready,) = (event for event in heard if isinstance(event, WorkerReady))
    assert {event.receipt.worker for event in heard if isinstance(event, TaskDone)} == {ready.worker}


@pytest.mark.skipif(os.cpu_count() == 1, reason="this machine has one CPU, which is used")
def test_the_local_executor_says_that_it_leaves_cpus_idle(tmp_path: Path) -> None:
    heard: list[Event] = []
    run(tiny_config(tmp_path), str(tmp_path / "run"), listeners=[heard.append])
    notes = [event.text for event in heard if isinstance(event, Note)]
    assert any(
        note.startswith(f"the local executor is one worker and uses 1 of {os.cpu_count()} CPUs")
        for note in notes
    )


@pytest.mark.parametrize(
    ("notebook", "progress", "shown"),
    [(True, None, True), (True, False, False), (False, None, False), (False, True, True)],
)
def test_progress_is_shown_in_notebooks_and_where_it_is_asked_for(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    notebook: bool,
    progress: bool | None,
    shown: bool,
) -> None:
    if notebook:
        monkeypatch.setitem(sys.modules, "ipykernel", types.ModuleType("ipykernel"))
    run(tiny_config(tmp_path), str(tmp_path / "run"), progress=progress)
    said = capsys.readouterr()
    assert ("4 tasks, 16 images; 0 done before" in (said.out if notebook else said.err)) == shown
    assert shown or (said.out, said.err) == ("", "")


def test_a_store_that_fails_the_worker_ends_the_run_after_six_times(tmp_path: Path) -> None:
    config, heard = tiny_config(tmp_path), list[Event]()
    joined = begin(config, str(tmp_path / "run"))
    (tmp_path / "run" / "data").write_text("a file where the folder of the shards should be")
    with pytest.raises(StorageError, match="data"):
        execute(config, joined, heard.append, "local")
    failures = [event for event in heard if isinstance(event, AttemptFailed)]
    assert [failure.kind for failure in failures] == ["storage"] * Rules().storage_failures
    assert joined.quarantined() == set()


def test_an_exception_outside_the_synthesis_is_the_tasks_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object) -> bytes:
        raise OverflowError("no room")

    monkeypatch.setattr("nisynth.worker.encode", broken)
    config = tiny_config(tmp_path)
    joined = begin(config, str(tmp_path / "run"))
    with pytest.raises(BudgetExceeded):
        execute(config, joined, lambda event: None, "local")
    record = joined.read_quarantine(0)
    assert record is not None
    assert [failure["kind"] for failure in record["failures"]] == ["raised"] * 3
    assert "task 0: OverflowError: no room" in record["failures"][0]["message"]
    assert "Traceback" in record["failures"][0]["message"]


def test_the_local_executor_joins_no_cluster(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="address 'auto': the local executor joins no cluster"):
        run(tiny_config(tmp_path), str(tmp_path / "run"), address="auto")


def test_one_writer_runs_and_resumes_on_a_disk_without_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_links(monkeypatch, errno.EPERM)
    url = str(tmp_path / "run")
    with pytest.raises(StorageError, match=r"or set execution\.single_writer: true"):
        run(tiny_config(tmp_path), url)
    config = tiny_config(tmp_path, execution={"single_writer": True})
    assert run(config, url).complete
    assert run(config, url).executed == 0
