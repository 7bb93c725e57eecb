"""`verify` and `status` as gates in scripts: what they say, and the code they end with."""

import json
from pathlib import Path

import pytest

from nisynth.commits import Run
from nisynth.commits.records import commit_key, shard_key
from nisynth.commits.seal import seal
from nisynth.errors import DataError
from nisynth.execution.run import run as execute
from nisynth.storage import open_store
from tests.command_line import nisynth
from tests.sources import contents
from tests.tiny import commit_all, tiny_config, tiny_plan


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.join(open_store(str(tmp_path / "run")), tiny_plan(tmp_path))


def test_a_gate_asks_for_a_complete_run(run: Run) -> None:
    url = run.store.url
    empty = nisynth("verify", url)
    assert (empty.returncode, nisynth("verify", url, "--complete").returncode) == (0, 3)
    assert "0 of 4 tasks are committed: nothing to judge; run it first" in empty.stdout
    commit_all(run)
    unsealed = nisynth("verify", url, "--complete")
    assert unsealed.returncode == 3
    assert f"`nisynth verify {url} --deep` reads them; the run is not complete" in unsealed.stdout
    assert (
        "4 of 4 tasks are committed: their sizes are right, their contents were not read" in unsealed.stdout
    )
    seal(run)
    complete = nisynth("verify", url, "--complete", "--deep")
    assert complete.returncode == 0
    assert "4 of 4 tasks are committed: every image is sound; the run is complete" in complete.stdout
    assert json.loads(nisynth("verify", url, "--json").stdout)["complete"] is True
    run.store.put(commit_key(run.plan.fp12, 1), b"{")
    assert nisynth("verify", url, "--complete").returncode == 1


def test_status_says_what_it_checked(run: Run) -> None:
    commit_all(run)
    seal(run)
    said = nisynth("status", run.store.url)
    assert said.returncode == 0
    assert f"checked: 4 shards, by size alone; `nisynth verify {run.store.url} --deep`" in said.stdout


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("fault", ["missing", "truncated", "no commit"])
def test_status_run_and_watch_know_of_damage(fault: str, sealed: bool, run: Run, tmp_path: Path) -> None:
    attempts = commit_all(run)
    if sealed:
        seal(run)
    shard = shard_key(run.plan.fp12, 1, attempts[1], "parquet")
    match fault:
        case "missing":
            run.store.delete(shard)
            says = "is missing; `nisynth redo"
        case "truncated":
            run.store.put(shard, run.store.get(shard)[:-1])
            says = "is damaged: it has"
        case _:
            run.store.put(commit_key(run.plan.fp12, 1), b"{")
            says = "not a commit (damaged JSON)"
    status = nisynth("status", run.store.url)
    assert (status.returncode, status.stdout.count(says)) == (1, 1)
    assert f"damaged; `nisynth redo {run.store.url} --bad`, then run again" in status.stdout
    assert json.loads(nisynth("status", run.store.url, "--json").stdout)["damaged"]
    if sealed:
        watched = nisynth("status", run.store.url, "--watch")
        assert (watched.returncode, says in watched.stdout) == (1, True)
    nisynth("redo", run.store.url, "--bad")
    assert run.committed() == {0, 2, 3}


@pytest.mark.parametrize("fault", ["missing", "truncated"])
def test_a_run_that_is_complete_already_is_not_believed(fault: str, tmp_path: Path) -> None:
    url, config = str(tmp_path / "run"), tiny_config(tmp_path)
    execute(config, url)
    run = Run.open(open_store(url))
    commit = run.read(2)
    assert commit is not None
    if fault == "missing":
        run.store.delete(commit.shard)
    else:
        run.store.put(commit.shard, b"")
    with pytest.raises(DataError, match=r"redo .* --task 2`, then run again"):
        execute(config, url)


def test_status_says_what_to_do_with_a_quarantined_task(run: Run) -> None:
    run.quarantine(2, [{"kind": "raised", "message": "ValueError: no", "slot": 0}])
    said = nisynth("status", run.store.url).stdout
    assert f"given up on: 1 task; `nisynth logs {run.store.url}` says why" in said
    assert f"`nisynth retry {run.store.url}`" in said


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
