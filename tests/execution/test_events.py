"""Listeners hear everything, and no listener can hold up, break or end a run."""

import sys
import threading
from pathlib import Path

import pytest

from nisynth.execution.events import Broadcast, Ended, Event, Listed, Note
from nisynth.execution.run import begin, execute
from tests.disks import run_on_small_disk
from tests.tiny import tiny_config

LOGS_TO_A_SMALL_DISK = """
import sys
from pathlib import Path
from nisynth import run
from nisynth.execution.events import Note
from tests.tiny import tiny_config
folder, disk = map(Path, sys.argv[1:])
log, heard = (disk / "log").open("w"), []
def logs(event):
    log.write(f"{event}\\n" * 1000)
    log.flush()
def notes(event):
    if isinstance(event, Note) and "logs" in event.text:
        heard.append(event.text)  # a print in here goes where the network's prints go while it runs
report = run(tiny_config(folder), str(folder / "run"), listeners=[logs, notes])
print(*heard, sep="\\n")
print(report.exit_code, report.committed)
"""


def test_every_listener_hears_every_event_in_order_and_the_end_last() -> None:
    heard: list[list[Event]] = [[], []]
    told = [Listed(1, 0, 1), Note("a"), Note("b")]
    with Broadcast([each.append for each in heard]) as tell:
        for event in told:
            tell(event)
    assert heard == [[*told, Ended()]] * 2


def test_the_end_says_what_went_wrong() -> None:
    heard: list[Event] = []
    with pytest.raises(ValueError, match="bad"), Broadcast([heard.append]):
        raise ValueError("bad")
    assert heard == [Ended("ValueError: bad")]


def test_a_listener_that_raises_is_told_of_to_the_others_once() -> None:
    heard: list[Event] = []
    failed = threading.Event()

    def listen(event: Event) -> None:
        heard.append(event)
        if event == Note("listener broken failed and hears no more of the run: SystemExit: full"):
            failed.set()

    def broken(event: Event) -> None:
        raise SystemExit("full")

    broken.__qualname__ = "broken"
    with Broadcast([broken, listen]) as tell:
        tell(Note("a"))
        assert failed.wait(60)
        tell(Note("b"))
    assert [event for event in heard if isinstance(event, Note)][-1] == Note("b")
    assert sum("broken" in str(event) for event in heard) == 1


def test_a_listener_that_hangs_costs_events_and_a_moment_and_hears_of_the_end() -> None:
    release, heard = threading.Event(), list[Event]()

    def hang(event: Event) -> None:
        release.wait()
        heard.append(event)

    ended = threading.Event()

    def after(event: Event) -> None:
        hang(event)
        if isinstance(event, Ended):
            ended.set()

    with Broadcast([after], most_waiting=10, close_s=0.1) as tell:
        for number in range(1000):
            tell(Note(str(number)))
    release.set()
    assert ended.wait(60)
    assert len(heard) <= 12


def test_a_run_whose_listeners_raise_and_hang_is_complete(tmp_path: Path) -> None:
    release = threading.Event()

    def raises(event: Event) -> None:
        raise OSError(28, "No space left on device")

    def hangs(event: Event) -> None:
        release.wait()

    config = tiny_config(tmp_path)
    joined = begin(config, str(tmp_path / "run"))
    with Broadcast([raises, hangs], close_s=0.1) as tell:
        assert execute(config, joined, tell, "local") == 4
    release.set()
    assert len(joined.committed()) == 4


def test_a_run_whose_listener_has_filled_its_disk_is_complete(tmp_path: Path) -> None:
    disk = tmp_path / "small"
    command = [sys.executable, "-c", LOGS_TO_A_SMALL_DISK, str(tmp_path), str(disk)]
    done = run_on_small_disk(command, disk, "64k")
    failed = "listener logs failed and hears no more of the run: OSError: [Errno 28] No space left on device"
    assert done.stdout.splitlines() == [failed, "0 4"], done.stderr
