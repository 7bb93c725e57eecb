"""Progress: arithmetic against literals, plain lines as a log shows them, the display on a real terminal."""

import io
import os
import pty
import re
import threading
from typing import Any

import pytest

from nisynth.commits import Receipt
from nisynth.progress import (
    Observer,
    PlainObserver,
    Rate,
    SilentObserver,
    format_rate,
    format_seconds,
    make_observer,
)
from nisynth.progress.terminal import TerminalObserver


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def receipt(task: int, outcome: Any = "mine", rows: int = 32) -> Receipt:
    seconds = {"synthesize": 1.0}
    return Receipt(task, "attempt", outcome, rows, seconds, figures={}, worker="w")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0.0s"),
        (0, "0.0s"),
        (3.24, "3.2s"),
        (9.94, "9.9s"),
        (9.96, "10s"),
        (59.4, "59s"),
        (59.6, "1m00s"),
        (185, "3m05s"),
        (3599.7, "1h00m"),
        (3720, "1h02m"),
        (86_399, "1d00h"),
        (97.5 * 3600, "4d02h"),
    ],
)
def test_seconds_are_written_for_people(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("per_s", "text"),
    [
        (1234.4, "1,234 images/s"),
        (99.96, "100 images/s"),
        (15.14, "15.1 images/s"),
        (0.834, "0.83 images/s"),
        (0.05, "3 images/min"),
    ],
)
def test_rates_are_written_for_people(per_s: float, text: str) -> None:
    assert format_rate(per_s) == text


def test_rate_is_that_of_the_session() -> None:
    clock = Clock()
    rate = Rate(clock)
    assert rate.per_s(10) is None
    assert rate.eta_s(10, 5) is None
    clock.now_s += 20
    assert rate.per_s(0) is None
    assert rate.per_s(10) == 0.5
    assert rate.eta_s(10, 5) == 10.0
    assert rate.eta_s(0, 0) == 0.0


def test_plain_lines_of_a_small_run() -> None:
    stream, clock = io.StringIO(), Clock()
    observer = PlainObserver(stream, clock=clock)
    observer.started(4, 1, 128)
    observer.step(1, 0, 100, {})
    clock.now_s += 4
    observer.step(1, 50, 100, {"iteration": 50, "total": 12.345, "ce": 0.0123})
    clock.now_s += 6
    observer.step(1, 75, 100, {"total": 9.0})
    clock.now_s += 6
    observer.task_done(receipt(1))
    observer.note("another driver is at work here")
    observer.task_failed(2, "not_finite", "task 2: the loss is nan\nTraceback ...", "attempt")
    clock.now_s += 16
    observer.task_done(receipt(2))
    clock.now_s += 16
    observer.task_done(receipt(3))
    observer.finished()
    assert stream.getvalue().splitlines() == [
        "4 tasks, 128 images; 1 done before",
        "task 1: iteration 75/100, total 9; 1/4 tasks, 43%, 2.40 images/s, ETA 30s",
        "task 1 done; 2/4 tasks, 50%, 2.00 images/s, ETA 32s",
        "another driver is at work here",
        "task 2 failed (not_finite): the loss is nan",
        "task 2 done; 3/4 tasks, 75%, 2.00 images/s, ETA 16s, 1 failure",
        "task 3 done; 4/4 tasks, 100%, 2.00 images/s, 1 failure",
    ]


def test_plain_lines_stay_few_in_a_large_run() -> None:
    stream, clock = io.StringIO(), Clock()
    observer = PlainObserver(stream, clock=clock)
    observer.started(10_000, 0, 320_000)
    for task in range(10_000):
        clock.now_s += 0.1
        observer.step(task, 1, 1, {"total": 1.0})
        observer.task_done(receipt(task))
    lines = stream.getvalue().splitlines()
    assert sum(" done; " in line for line in lines) == 100
    assert sum("iteration" in line for line in lines) == 99  # 1,000 s, one in 10 s
    assert lines[-1] == "task 9999 done; 10,000/10,000 tasks, 100%, 320 images/s"


def test_tasks_of_others_count_as_done_but_not_as_speed() -> None:
    stream, clock = io.StringIO(), Clock()
    observer = PlainObserver(stream, clock=clock)
    observer.started(8, 0, 256)
    clock.now_s += 32
    observer.task_done(receipt(0))
    observer.task_done(receipt(0, "other"))
    observer.task_done(receipt(1, "other"))
    assert stream.getvalue().splitlines()[-1] == "task 1 done; 2/8 tasks, 25%, 1.00 images/s, ETA 3m12s"
    observer.started(8, 6, 256)
    observer.task_done(receipt(7))
    assert stream.getvalue().splitlines()[1:][-1] == "task 7 done; 7/8 tasks, 87%, 2.00 images/s, ETA 16s"


def test_plain_lines_carry_no_control_codes() -> None:
    stream = io.StringIO()
    observer = PlainObserver(stream)
    observer.task_failed(0, "raised", "\x1b[31mred\x07", "attempt")
    observer.note("two\nlines")
    assert stream.getvalue() == "task 0 failed (raised):  [31mred \ntwo lines\n"


def test_plain_lines_of_a_verification() -> None:
    stream, clock = io.StringIO(), Clock()
    observer = PlainObserver(stream, "shards", clock)
    for number in range(1, 501):
        observer.checked(number, 500)
        clock.now_s += 0.01
    lines = stream.getvalue().splitlines()
    assert len(lines) == 100
    assert lines[49] == "250/500 shards, 50%, 100 shards/s, ETA 2.5s"
    assert lines[-1] == "500/500 shards, 100%, 100 shards/s"


def display(stream: Terminal) -> str:
    """What was written since the last look, without colours and cursor movements."""
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue())
    stream.seek(0)
    stream.truncate()
    return text


def test_the_display_shows_bar_batches_and_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    stream, clock = Terminal(), Clock()
    observer = TerminalObserver(stream, clock=clock)
    try:
        observer.started(1000, 200, 256_000)
        clock.now_s += 100
        for task in range(200, 206):
            observer.step(task, 1000, 2000, {"total": 3.21})
        observer.task_failed(206, "out_of_memory", "task 206: [CUDA] wants 3 GiB", "attempt")
        observer.note("[bold]a note[/bold] about /a/path")
        display(stream)
    finally:
        observer.finished()
        observer.note("200 tasks done")
    text = display(stream)
    assert "200/1,000 tasks, 20%, 7.68 images/s, ETA 7h23m, 1 failure" in text
    assert "task 203: iteration 1,000/2,000, total 3.21" in text
    assert "task 204" not in text
    assert "and 2 more" in text
    assert text.rstrip().endswith("200 tasks done")
    observer.step(206, 1, 2000, {})
    observer.finished()
    assert display(stream) == ""


def test_notes_are_printed_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    stream = Terminal()
    observer = TerminalObserver(stream)
    path = "/a/rather/long/path/that/does/not/fit/on/forty/columns"
    observer.note(f"[bold]kept[/bold] {path}")
    assert f"[bold]kept[/bold] {path}\n" in display(stream)
    observer.task_failed(1, "raised", "[red]no[/red]", "attempt")
    observer.finished()
    assert "task 1 failed (raised): [red]no[/red]" in display(stream)


def test_a_real_terminal_gets_the_display_and_its_cursor_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as screen, os.fdopen(theirs, "w") as stream:
        observer = make_observer(stream)
        assert isinstance(observer, TerminalObserver)
        observer.started(2, 0, 64)
        observer.task_done(receipt(0))
        observer.task_done(receipt(1))
        observer.finished()
        observer.note("complete")
        stream.flush()
        text = b""
        while b"complete" not in text:
            text += screen.read(65536)
    assert b"2/2 tasks" in text
    assert text.rindex(b"\x1b[?25h") > text.rindex(b"\x1b[?25l")


@pytest.mark.parametrize("term", ["dumb", "xterm"])
def test_what_is_no_capable_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch, term: str) -> None:
    monkeypatch.setenv("TERM", term)
    stream = Terminal() if term == "dumb" else io.StringIO()
    assert isinstance(make_observer(stream), PlainObserver)


def test_stderr_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    make_observer().note("here")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "here\n")


@pytest.mark.parametrize("kind", [SilentObserver, PlainObserver, TerminalObserver])
def test_every_observer_bears_several_threads(kind: Any) -> None:
    stream = Terminal()
    observer: Observer = kind() if kind is SilentObserver else kind(stream)
    observer.started(400, 0, 12_800)

    def work(first: int) -> None:
        for task in range(first, first + 100):
            observer.step(task, 1, 2, {"total": 1.0})
            observer.task_done(receipt(task))

    threads = [threading.Thread(target=work, args=(first,)) for first in range(0, 400, 100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    observer.checked(400, 400)
    observer.finished()
    assert ("400/400 tasks" in display(stream)) == (kind is not SilentObserver)
