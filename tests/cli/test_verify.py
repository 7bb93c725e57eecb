"""`verify` as a gate in scripts: what it says, and the code it ends with."""

import json
from pathlib import Path

import pytest

from nisynth.commits import Run
from nisynth.commits.records import commit_key
from nisynth.commits.seal import seal
from nisynth.storage import open_store
from tests.command_line import nisynth
from tests.sources import contents
from tests.tiny import commit_all, tiny_plan


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.join(open_store(str(tmp_path / "run")), tiny_plan(tmp_path))


def test_a_gate_asks_for_a_complete_run(run: Run) -> None:
    url = run.store.url
    empty = nisynth("verify", url)
    assert (empty.returncode, nisynth("verify", url, "--complete").returncode) == (0, 3)
    assert "0 of 4 tasks are committed and checked: nothing to judge; run it first" in empty.stdout
    commit_all(run)
    unsealed = nisynth("verify", url, "--complete")
    assert unsealed.returncode == 3
    assert "4 of 4 tasks are committed and checked: all sound, but the run is not complete" in unsealed.stdout
    seal(run)
    complete = nisynth("verify", url, "--complete", "--deep")
    assert complete.returncode == 0
    assert "4 of 4 tasks are committed and checked deeply: all sound, the run is complete" in complete.stdout
    assert json.loads(nisynth("verify", url, "--json").stdout)["complete"] is True
    run.store.put(commit_key(run.plan.fp12, 1), b"{")
    assert nisynth("verify", url, "--complete").returncode == 1


def test_redo_bad_says_that_nothing_is_bad(run: Run) -> None:
    commit_all(run)
    seal(run)
    before = contents(run.store)
    said = nisynth("redo", run.store.url, "--bad")
    assert (said.returncode, said.stdout) == (0, "nothing is bad in 4 committed tasks; nothing was changed\n")
    assert contents(run.store) == before


def test_a_stray_seal_is_one_line_however_many_tasks_are_missing(tmp_path: Path) -> None:
    run = Run.join(
        open_store(str(tmp_path / "run")), tiny_plan(tmp_path, run={"num_images": 400_000, "batch_size": 4})
    )
    run.store.create("_SUCCESS", b"")
    said = nisynth("verify", run.store.url)
    assert said.returncode == 1
    lines = said.stdout.splitlines()
    assert "100,000 of 100,000 tasks are not committed, though _SUCCESS says" in lines[0]
    assert len(lines) == 2


def test_the_lines_of_many_bad_tasks_are_bounded(tmp_path: Path) -> None:
    run = Run.join(open_store(str(tmp_path / "run")), tiny_plan(tmp_path, run={"num_images": 120}))
    for task in range(30):
        run.store.create(commit_key(run.plan.fp12, task), b"{")
    said = nisynth("verify", run.store.url)
    assert len(said.stdout.splitlines()) == 22
    assert "... and 10 problems more; --json lists all" in said.stdout
    assert len(json.loads(nisynth("verify", run.store.url, "--json").stdout)["problems"]) == 30
