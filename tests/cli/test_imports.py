"""What each verb imports: no help and no look at a run waits for torch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nisynth.cli.verbs import VERBS
from nisynth.commits import Run
from nisynth.storage import open_store
from tests.tiny import commit_all, tiny_plan

HEAVY = ("torch", "ray", "matplotlib", "boto3", "botocore", "pyarrow", "numpy")
READING = {"numpy", "pyarrow"}
"""What reading plans and commits takes."""
EACH = """
import contextlib, io, json, sys
from nisynth.cli import execute
heavy, *lines = json.loads(sys.argv[1])
found = []
for line in lines:
    with contextlib.redirect_stdout(io.StringIO()):
        code = execute(line)
    found.append([code, [name for name in heavy if name in sys.modules]])
print(json.dumps(found))
"""


def imported(*lines: list[str]) -> list[tuple[int, set[str]]]:
    """Returns, after each command line run in one new process, its exit code and the heavy modules there."""
    told = subprocess.run(
        [sys.executable, "-c", EACH, json.dumps([HEAVY, *lines])],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "NO_COLOR": "1"},
    )
    return [(code, set(names)) for code, names in json.loads(told.stdout)]


def test_the_list_of_verbs_imports_nothing_heavy() -> None:
    assert imported(["--help"]) == [(0, set())]


def test_no_verbs_help_imports_what_computes() -> None:
    for verb, (code, names) in zip(VERBS, imported(*([verb, "--help"] for verb in VERBS)), strict=True):
        assert code == 0, verb
        assert names <= READING, verb


@pytest.fixture
def complete(tmp_path: Path) -> str:
    run = Run.join(open_store(str(tmp_path / "run")), tiny_plan(tmp_path))
    commit_all(run)
    return run.store.url


def test_looking_at_a_local_run_imports_what_reading_takes(complete: str, tmp_path: Path) -> None:
    lines = [
        ["status", complete],
        ["status", complete, "--json"],
        ["verify", complete],
        ["logs", complete],
        ["logs", complete, "--task", "0"],
        ["retry", complete],
        ["gc", complete],
        ["pull", complete, str(tmp_path / "pulled"), "--allow-partial"],
        ["redo", complete, "--task", "2"],
    ]
    for line, (code, names) in zip(lines, imported(*lines), strict=True):
        assert code in (0, 3), line
        assert names <= READING, line


def test_a_verb_that_computes_is_seen_to_import_torch(complete: str) -> None:
    assert "torch" in imported(["verify", complete, "--deep"])[0][1]
