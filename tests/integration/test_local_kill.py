"""kill -9 at moments nobody chose, then the same command again: nothing is lost and nothing runs twice."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import yaml

from nisynth.commits import Run
from nisynth.commits.audit import verify
from nisynth.errors import PlanMismatch, counted
from nisynth.storage import open_store
from tests.tiny import keys, tiny_config

REPO = Path(__file__).resolve().parents[2]
TASKS = 24


def start(config: Path, url: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    code = "from nisynth.cli import main; main()"
    command = [sys.executable, "-c", code, "run", str(config), "--store", str(url)]
    return subprocess.Popen(
        command, env=environment, cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def committed(url: Path) -> dict[str, bytes]:
    store = open_store(str(url))
    try:
        Run.open(store)
    except PlanMismatch:  # not begun yet
        return {}
    return {key: store.get(key) for key in keys(store, "commits/")}


def test_kill_9_at_random_moments_and_rerun(tmp_path: Path) -> None:
    config, url = tmp_path / "tiny.yaml", tmp_path / "run"
    resolved = tiny_config(tmp_path, run={"num_images": 4 * TASKS}, method={"iterations": 12})
    config.write_text(yaml.safe_dump(resolved.to_dict()))
    moments = random.Random()
    before: dict[str, bytes] = {}
    for _ in range(2):
        # The kill falls wherever the worker then is: in the loop, between shard and commit, in an fsync.
        wanted = len(before) + moments.randrange(1, TASKS // 4)
        process = start(config, url)
        while len(committed(url)) < wanted:
            assert process.poll() is None, process.communicate()
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        after = committed(url)
        assert {key: after[key] for key in before} == before
        before = after
    process = start(config, url)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert f"{counted(TASKS - len(before), 'task')} run now" in out
    after = committed(url)
    assert len(after) == TASKS
    assert {key: after[key] for key in before} == before
    verdict = verify(Run.open(open_store(str(url))), deep=True)
    assert (verdict.checked, verdict.problems) == (TASKS, ())
    assert len(keys(open_store(str(url)), "data/")) == TASKS


def test_sigterm_ends_with_7_and_resumes(tmp_path: Path) -> None:
    config, url = tmp_path / "tiny.yaml", tmp_path / "run"
    resolved = tiny_config(tmp_path, run={"num_images": 4 * TASKS}, method={"iterations": 12})
    config.write_text(yaml.safe_dump(resolved.to_dict()))
    process = start(config, url)
    while not committed(url):
        assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 7, err
    assert "stopped by SIGTERM; run again to resume" in err
    assert "Traceback" not in err


def test_deleting_any_commits_redoes_exactly_those(tmp_path: Path) -> None:
    from nisynth import run

    config, url = tiny_config(tmp_path, run={"num_images": 48}), str(tmp_path / "run")
    assert run(config, url).executed == 12
    store = open_store(url)
    for fraction in (0.1, 0.5, 1.0):
        store.delete("_SUCCESS")
        store.delete("_MANIFEST")
        store.delete("README.md")
        all_commits = keys(store, "commits/")
        doomed = random.Random(fraction).sample(all_commits, max(1, int(fraction * len(all_commits))))
        kept = {key: store.get(key) for key in all_commits if key not in doomed}
        for key in doomed:
            store.delete(key)
        assert run(config, url).executed == len(doomed)
        assert {key: store.get(key) for key in kept} == kept
        assert len(keys(store, "data/")) == 12
