"""pull, logs and status --watch as their users meet them."""

import json
import threading
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from nisynth.commits import Run
from nisynth.commits.seal import seal
from nisynth.storage import open_store
from tests.command_line import nisynth
from tests.test_cli import says
from tests.tiny import commit_all, fake_commit, keys, tiny_plan

MARKUP = ":smile: [red]"
"""Of a terminal's library; text with control characters is refused in a commit."""

EVIL = "boom \x1b[2J\x07\x9b31m\u202e:smile: [red]"


@pytest.fixture(autouse=True)
def plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.join(open_store(str(tmp_path / "run")), tiny_plan(tmp_path))


def harmless(text: str) -> bool:
    return all(character.isprintable() or character == "\n" for character in text)


def test_pull_copies_and_tells_how_fast(run: Run, tmp_path: Path) -> None:
    commit_all(run)
    seal(run)
    done = nisynth("pull", run.store.url, tmp_path / "copy", "--workers", 2)
    assert done.returncode == 0, done.stderr
    assert (
        f"{tmp_path / 'copy'}: a whole copy of {run.store.url}, 4 shards, 16 images; fetched now 4"
        in done.stdout
    )
    assert "MB/s" in done.stdout
    assert nisynth("verify", "--deep", tmp_path / "copy").returncode == 0
    assert json.loads(nisynth("status", tmp_path / "copy", "--json").stdout)["complete"]
    again = json.loads(nisynth("pull", run.store.url, tmp_path / "copy", "--json").stdout)
    assert {name: again[name] for name in ("shards", "fetched", "fetched_bytes", "complete")} == {
        "shards": 4,
        "fetched": 0,
        "fetched_bytes": 0,
        "complete": True,
    }


def test_pull_of_an_unfinished_run_is_asked_for_and_ends_with_3(run: Run, tmp_path: Path) -> None:
    commit_all(run, [0, 2])
    says(nisynth("pull", run.store.url, tmp_path / "copy"), 2, "2 of 4 tasks", "--allow-partial")
    done = nisynth("pull", run.store.url, tmp_path / "copy", "--allow-partial")
    assert done.returncode == 3
    assert "a partial copy" in done.stdout


def test_what_one_can_get_wrong_with_pull(run: Run, tmp_path: Path) -> None:
    commit_all(run)
    says(
        nisynth("pull", run.store.url, "s3://bucket/copy"), 2, "DIR 's3://bucket/copy'", "name a local folder"
    )
    says(nisynth("pull", tmp_path / "nowhere", tmp_path / "copy"), 2, "no run there")
    says(nisynth("pull", run.store.url), 2, "DIR")
    says(nisynth("pull", run.store.url, tmp_path / "copy", "--workers", 0), 2, "--workers")
    commit_all(other := Run.join(open_store(str(tmp_path / "other")), tiny_plan(tmp_path, run={"seed": 1})))
    says(nisynth("pull", run.store.url, other.store.url), 2, "holds another run", "run.seed: 1 there, 0 here")
    run.store.put(keys(run.store, "data/")[1], b"damaged")
    says(nisynth("pull", run.store.url, tmp_path / "copy"), 1, "is damaged", "redo", "--task 1")


def test_logs_of_a_committed_task(run: Run) -> None:
    curve = [{"iteration": float(i), "total": 100.0 / i, "ce": 1.5} for i in range(1, 41)]
    record = replace(
        fake_commit(run, 1, str(uuid4())),
        curve=curve,
        device=f"H100 {MARKUP}",
        versions={"torch": "2.14", MARKUP: MARKUP},
        figures={"teacher_accuracy": 0.875, "note": MARKUP},
        timings_s={"synthesize": 17.25, "put": 0.5},
        finished_at=1_700_000_000.0,
    )
    run.commit(record)
    told = nisynth("logs", run.store.url, "--task", 1)
    assert told.returncode == 0, told.stderr
    for part in (
        "task 1: committed, 4 images",
        record.attempt,
        "H100 :smile: [red]",
        "torch 2.14",
        "teacher_accuracy 0.875",
        "put 0.5, synthesize 17.25",
        "2023-11-14 22:13:20 UTC",
    ):
        assert part in told.stdout
    assert harmless(told.stdout)
    table = told.stdout[told.stdout.index("iteration") :].splitlines()
    assert len(table) == 1 + 12
    assert [table[1].split()[:2], table[-1].split()[:2]] == [["1", "100"], ["40", "2.5"]]
    as_json = nisynth("logs", run.store.url, "--task", 1, "--json").stdout
    assert harmless(as_json)
    document = json.loads(as_json)
    assert (document["state"], document["commit"]["curve"]) == ("committed", curve)


def test_logs_draw_the_loss_terms_of_a_task(run: Run, tmp_path: Path) -> None:
    curve = [{"iteration": float(i), "total": 100.0 / i, "ce": 1.5} for i in range(1, 9)]
    run.commit(replace(fake_commit(run, 1, str(uuid4())), curve=curve))
    picture = tmp_path / "curve.png"
    assert nisynth("logs", run.store.url, "--task", 1, "--curve", picture).returncode == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    says(nisynth("logs", run.store.url, "--curve", picture), 2, "--task N")
    says(nisynth("logs", run.store.url, "--task", 0, "--curve", picture), 2, "task 0 has no loss curve")


def test_logs_of_quarantined_tasks(run: Run) -> None:
    trace = (
        f"task 2: {EVIL}\nTraceback (most recent call last):\n  File \x1b]0;title\x07\nRuntimeError: {EVIL}"
    )
    run.quarantine(2, [{"kind": "not_finite", "message": "nan"}, {"kind": EVIL, "message": trace}])
    run.quarantine(3, [])
    short = nisynth("logs", run.store.url)
    assert short.returncode == 0
    lines = short.stdout.splitlines()
    assert lines[0].startswith("task 2 failed (boom ")
    assert "): boom " in lines[0]
    assert lines[1] == "task 3 failed (unknown): no failure is recorded"
    assert f"`nisynth retry {run.store.url}`" in lines[2]
    assert "Traceback" not in short.stdout
    whole = nisynth("logs", run.store.url, "--task", 2)
    assert "task 2: quarantined; failures recorded: 2" in whole.stdout
    assert "  Traceback (most recent call last):" in whole.stdout
    as_json = nisynth("logs", run.store.url, "--json")
    assert json.loads(as_json.stdout)["quarantined"][0]["failures"][1]["message"] == trace
    for told in (short, whole, as_json):
        assert harmless(told.stdout)


def test_logs_when_there_is_nothing_to_tell(run: Run) -> None:
    assert nisynth("logs", run.store.url).stdout == "no task is quarantined\n"
    assert (
        nisynth("logs", run.store.url, "--task", 1).stdout == "task 1: not committed, not quarantined yet\n"
    )
    says(nisynth("logs", run.store.url, "--task", 4), 2, "task 4: the run has tasks 0..3")


def test_errors_show_a_terminal_nothing_to_obey(run: Run, tmp_path: Path) -> None:
    document = json.loads(run.store.get("plan.json")) | {"identity": {EVIL: 1}}
    run.store.put("plan.json", json.dumps(document).encode())
    result = nisynth("pull", f"{run.store.url}/{EVIL}", tmp_path / "copy")
    says(result, 2, "no run there")
    assert harmless(result.stderr)


def test_status_watch_ends_with_the_run(run: Run) -> None:
    def finish() -> None:
        commit_all(run)
        seal(run)

    worker = threading.Thread(target=finish)
    worker.start()
    told = nisynth("status", run.store.url, "--watch", "--every", 0.5)
    worker.join()
    assert told.returncode == 0, told.stderr
    assert ": complete; 4 of 4 tasks committed" in told.stdout.splitlines()[-1]


def test_status_watch_ends_with_3_when_only_quarantined_tasks_are_left(run: Run) -> None:
    commit_all(run, [0, 1, 2])
    run.quarantine(3, [])
    told = nisynth("status", run.store.url, "--watch", "--json")
    assert told.returncode == 3
    assert json.loads(told.stdout)["quarantined"] == 1
    says(nisynth("status", run.store.url, "--watch", "--every", 0), 2, "--every")
