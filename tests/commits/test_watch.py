"""Following a run: every change is told, trouble that passes is borne, and the end is noticed."""

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from rich.console import Console

from nisynth.cli.watch import follow
from nisynth.commits import Run
from nisynth.commits.seal import seal
from nisynth.commits.status import PATIENCE, Status, watch
from nisynth.errors import StorageError
from nisynth.storage import ObjectInfo
from nisynth.storage.memory import MemoryStore
from tests.tiny import commit_all, tiny_plan


class Unreliable(MemoryStore):
    """A store whose listings fail as many times as `failures` says."""

    failures = 0

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        if self.failures > 0:
            self.failures -= 1
            raise StorageError("\x1b[2Jthe server is away")
        return super().list(prefix)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.join(Unreliable(f"memory://{uuid4()}"), tiny_plan(tmp_path))


class Script:
    """Stands for the clock: each pause does the next thing; the pauses are kept."""

    def __init__(self, *steps: Callable[[], object]) -> None:
        self.steps = list(steps)
        self.pauses: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.steps.pop(0)()


def nothing() -> None:
    """A pause in which nothing happens."""


def to_the_end(run: Run) -> Script:
    """One task, a quiet pause, the other tasks, then the seal."""
    return Script(
        lambda: commit_all(run, [2]), nothing, lambda: commit_all(run, [0, 1, 3]), lambda: seal(run)
    )


def plain() -> Console:
    return Console(file=io.StringIO(), soft_wrap=True)


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_line_for_every_change_until_the_run_is_complete(run: Run) -> None:
    script, console = to_the_end(run), plain()
    found = follow(run, console, 7.0, as_json=False, sleep=script.sleep)
    assert (found.complete, found.committed) == (True, 4)
    assert script.pauses == [7.0] * 4
    lines = written(console).splitlines()
    assert [line.split("; ")[1].split(",")[0] for line in lines] == [
        "0 of 4 tasks committed",
        "1 of 4 tasks committed",
        "4 of 4 tasks committed",
        "4 of 4 tasks committed",
    ]
    assert [": complete; " in line for line in lines] == [False, False, False, True]


def test_json_is_one_document_a_line(run: Run) -> None:
    console = plain()
    follow(run, console, 1.0, as_json=True, sleep=to_the_end(run).sleep)
    documents = [json.loads(line) for line in written(console).splitlines()]
    assert [document["committed"] for document in documents] == [0, 1, 4, 4]
    assert [document["complete"] for document in documents] == [False, False, False, True]
    assert documents[0]["trouble"] is None


def test_a_terminal_has_one_display_that_is_redrawn(run: Run) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    found = follow(run, console, 1.0, as_json=False, sleep=to_the_end(run).sleep)
    assert found.complete
    shown = written(console)
    assert "━" in shown
    assert "\x1b[1A" in shown  # up, over what was drawn before
    assert shown.rstrip().endswith("\x1b[?25h")  # the cursor is back
    assert "incomplete, ETA unknown at the last commits' pace" in shown
    assert "4 of 4 tasks committed" in shown


def test_trouble_that_passes_is_shown_and_borne(run: Run) -> None:
    store = run.store
    assert isinstance(store, Unreliable)

    def breaks() -> None:
        store.failures = PATIENCE

    def ends() -> None:
        commit_all(run)
        seal(run)

    console = plain()
    script = Script(breaks, *[nothing] * (PATIENCE - 1), ends)
    assert follow(run, console, 1.0, as_json=False, sleep=script.sleep).complete
    lines = written(console).splitlines()
    assert len(lines) == 3
    assert "the server is away; looking again" in lines[1]
    assert "\x1b" not in written(console)


def test_trouble_that_stays_ends_the_watch(run: Run) -> None:
    store = run.store
    assert isinstance(store, Unreliable)
    store.failures = 10**6
    told: list[tuple[Status | None, str]] = []
    script = Script(*[nothing] * 100)
    with pytest.raises(StorageError, match="the server is away"):
        watch(run, lambda *now: told.append(now), every_s=1.0, sleep=script.sleep)
    assert len(script.pauses) == len(told) == PATIENCE


def test_a_terminal_shows_trouble_before_the_first_status(run: Run) -> None:
    store = run.store
    assert isinstance(store, Unreliable)
    commit_all(run)
    seal(run)
    store.failures = 1
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    assert follow(run, console, 1.0, as_json=False, sleep=Script(nothing).sleep).complete
    assert "the server is away" in written(console)
    assert "\x1b[2J" not in written(console)


def test_a_run_with_only_quarantined_tasks_left_is_settled(run: Run) -> None:
    commit_all(run, [0, 1])
    run.quarantine(2, [])
    script = Script(lambda: run.quarantine(3, []))
    found = watch(run, lambda *_: None, every_s=1.0, sleep=script.sleep)
    assert (found.settled, found.complete, found.quarantined) == (True, False, 2)


def test_all_committed_and_not_yet_sealed_is_waited_for(run: Run) -> None:
    commit_all(run)
    script = Script(lambda: seal(run))
    assert watch(run, lambda *_: None, every_s=1.0, sleep=script.sleep).complete
    assert len(script.pauses) == 1
