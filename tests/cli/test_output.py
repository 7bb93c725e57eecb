"""Where the output goes: a pipe closed early, a full disk. The exit code is never 0, nor 1 (damaged)."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nisynth.commits import Run
from nisynth.execution.events import Note
from nisynth.progress import make_progress
from nisynth.storage import open_store
from tests.tiny import commit_all, tiny_plan

OUTPUT_ENDED = 141


def run_into(stdout: int, *arguments: str, stderr: int = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nisynth", *arguments]
    return subprocess.run(command, stdout=stdout, stderr=stderr, text=True)


@pytest.fixture
def closed_pipe() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


@pytest.mark.parametrize("verb", ["--help", "teachers", "verify"])
def test_a_closed_pipe_ends_with_141(closed_pipe: int, tmp_path: Path, verb: str) -> None:
    run = Run.join(open_store(str(tmp_path / "run")), tiny_plan(tmp_path))
    arguments = [verb, run.store.url, "--json"] if verb == "verify" else [verb]
    ended = run_into(closed_pipe, *arguments)
    assert (ended.returncode, ended.stderr) == (OUTPUT_ENDED, "")


def test_a_full_disk_under_the_output_is_one_line() -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("/dev/full is not there")
    full = os.open("/dev/full", os.O_WRONLY)
    ended = run_into(full, "teachers")
    assert ended.returncode == OUTPUT_ENDED
    assert ended.stderr.splitlines() == [
        "nisynth: error: the output cannot be written: OSError: [Errno 28] No space left on device"
    ]


def test_an_error_that_nobody_hears_keeps_its_code(closed_pipe: int, tmp_path: Path) -> None:
    assert run_into(subprocess.PIPE, "status", str(tmp_path), stderr=closed_pipe).returncode == 2


def test_progress_into_a_closed_pipe_or_a_closed_file_ends_nothing(closed_pipe: int, tmp_path: Path) -> None:
    run = Run.join(open_store(str(tmp_path / "run")), tiny_plan(tmp_path))
    commit_all(run)
    ended = run_into(subprocess.PIPE, "verify", run.store.url, stderr=closed_pipe)
    assert ended.returncode == 0
    assert "4 of 4 tasks are committed" in ended.stdout
    closed = io.StringIO()
    closed.close()
    make_progress(closed)(Note("said to nobody"))
