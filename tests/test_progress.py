"""Progress: arithmetic against literals, plain lines as a log shows them, the display on a real terminal."""

import io
import os
import pty
import re
import subprocess
import sys
import threading
import types
from typing import Any

import pytest

from nisynth.commits import Receipt
from nisynth.errors import FailureKind
from nisynth.execution.events import (
    AttemptFailed,
    Ended,
    Listed,
    Note,
    ShardsChecked,
    Stepped,
    TaskDone,
    TaskQuarantined,
    WorkerLost,
)
from nisynth.execution.ledger import Attempt
from nisynth.progress import PlainLines, Rate, format_rate, format_seconds, make_progress
from nisynth.progress.terminal import TerminalDisplay


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


def done(task: int, outcome: Any = "mine", rows: int = 32) -> TaskDone:
    seconds = {"synthesize": 1.0}
    receipt = Receipt(task, "attempt", outcome, rows, seconds, figures={}, worker="w")
    return TaskDone(Attempt("attempt", task, 0), receipt)


def step(task: int, iteration: int, iterations: int = 100, slot: int = 0, **losses: float) -> Stepped:
    return Stepped(slot, task, iteration, iterations, losses)


def failed(task: int, kind: FailureKind, message: str) -> AttemptFailed:
    return AttemptFailed(Attempt("attempt", task, 0), kind, message)


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
    tell = PlainLines(stream, clock=clock)
    tell(Listed(4, 1, 128))
    tell(step(1, 0))
    clock.now_s += 4
    tell(Stepped(0, 1, 50, 100, {"iteration": 50, "total": 12.345, "ce": 0.0123}))
    clock.now_s += 6
    tell(step(1, 75, total=9.0))
    clock.now_s += 6
    tell(done(1))
    tell(Note("another driver is at work here"))
    tell(failed(2, "not_finite", "task 2: the loss is nan\nTraceback ..."))
    clock.now_s += 16
    tell(done(2))
    clock.now_s += 16
    tell(done(3))
    tell(Ended())
    assert stream.getvalue().splitlines() == [
        "4 tasks, 128 images; 1 done before",
        "task 1: iteration 75/100, total 9; 1/4 tasks, 43%, 1.33 images/s, ETA 54s",
        "task 1 done; 2/4 tasks, 50%, 1.33 images/s, ETA 48s",
        "another driver is at work here",
        "task 2 failed (not_finite): the loss is nan",
        "task 2 done; 3/4 tasks, 75%, 1.71 images/s, ETA 19s, 1 failure",
        "task 3 done; 4/4 tasks, 100%, 1.82 images/s, 1 failure",
    ]


def test_a_start_that_takes_long_is_not_in_the_rate() -> None:
    """Workers load for 3 minutes, the first step compiles for another; then 4 batches take 40 s each."""
    stream, clock = io.StringIO(), Clock()
    tell = PlainLines(stream, clock=clock)
    tell(Listed(100, 0, 25_600))
    clock.now_s += 180
    for slot in range(4):
        tell(step(slot, 0, slot=slot))
    clock.now_s += 60
    tell(step(0, 25, total=1.0))
    assert stream.getvalue().splitlines()[-1].endswith("; 0/100 tasks, 0%, ETA unknown")
    for task in range(100):
        clock.now_s += 10
        tell(done(task, rows=256))
    rates = [float(rate) for rate in re.findall(r"([\d.]+) images/s", stream.getvalue())]
    assert len(rates) == 100
    assert min(rates[4:]) >= 24.3
    assert set(rates[20:]) == {25.6}


def test_the_rate_is_that_of_the_last_minutes() -> None:
    stream, clock = io.StringIO(), Clock()
    tell = PlainLines(stream, clock=clock)
    tell(Listed(100, 0, 25_600))
    for task in range(40):  # ten workers at first, one later
        clock.now_s += 1 if task < 20 else 10
        tell(done(task, rows=256))
    assert "1%, ETA unknown" in stream.getvalue().splitlines()[1]
    assert "20%, 256 images/s, ETA 1m20s" in stream.getvalue().splitlines()[20]
    assert stream.getvalue().splitlines()[-1].endswith("40%, 25.6 images/s, ETA 10m00s")


def test_work_whose_steps_are_minutes_apart_has_a_rate() -> None:
    stream, clock = io.StringIO(), Clock()
    tell = PlainLines(stream, clock=clock)
    tell(Listed(4, 0, 128))
    for iteration in range(10, 60, 10):
        clock.now_s += 500
        tell(step(0, iteration, total=1.0))
    assert stream.getvalue().splitlines()[-1].endswith("0/4 tasks, 12%, 0.38 images/min, ETA 4h52m")


def test_a_step_that_is_no_further_is_no_line() -> None:
    stream, clock = io.StringIO(), Clock()
    tell = PlainLines(stream, clock=clock)
    tell(Listed(4, 0, 128))
    for _ in range(30):
        clock.now_s += 11
        tell(step(1, 50, total=3.0))
    assert len(stream.getvalue().splitlines()) == 2
    tell(step(1, 51, total=3.0))
    assert len(stream.getvalue().splitlines()) == 3


def test_plain_lines_stay_few_in_a_large_run() -> None:
    stream, clock = io.StringIO(), Clock()
    tell = PlainLines(stream, clock=clock)
    tell(Listed(10_000, 0, 320_000))
    for task in range(10_000):
        clock.now_s += 0.1
        tell(step(task, 1, 1, total=1.0))
        tell(done(task))
    lines = stream.getvalue().splitlines()
    assert sum(" done; " in line for line in lines) == 100
    assert sum("iteration" in line for line in lines) == 99  # 1,000 s, one in 10 s
    assert lines[-1] == "task 9999 done; 10,000/10,000 tasks, 100%, 320 images/s"


def test_tasks_of_others_count_as_done_but_not_as_speed() -> None:
    stream, clock = io.StringIO(), Clock()
    tell = PlainLines(stream, clock=clock)
    tell(Listed(8, 0, 256))
    tell(step(0, 50))
    clock.now_s += 16
    tell(done(0))
    tell(done(0, "other"))
    tell(done(1, "other"))
    assert stream.getvalue().splitlines()[-1] == "task 1 done; 2/8 tasks, 25%, 1.00 images/s, ETA 3m12s"
    tell(Listed(8, 6, 256))
    tell(done(7))
    assert stream.getvalue().splitlines()[-1] == "task 7 done; 7/8 tasks, 87%, 3.00 images/s, ETA 11s"


def test_what_a_lost_worker_was_at_is_not_done() -> None:
    stream, clock = io.StringIO(), Clock()
    tell = PlainLines(stream, clock=clock)
    tell(Listed(4, 0, 128))
    tell(step(0, 99, slot=0))
    tell(step(1, 99, slot=1))
    tell(WorkerLost(0, "node_died", "node a1 is gone", "h/1"))
    tell(WorkerLost(1, "worker_died", "exit code 139\nmore", "h/2", given_up=True))
    tell(TaskQuarantined(3, "raised", "ValueError: no\nTraceback ..."))
    clock.now_s += 30
    tell(done(2))
    assert stream.getvalue().splitlines()[1:] == [
        "h/1 is gone (node_died): node a1 is gone",
        "h/2 is gone (worker_died): exit code 139; its slot is given up",
        "task 3 is quarantined: raised, and no attempt is left",
        "task 2 done; 1/4 tasks, 25%, ETA unknown",
    ]


def test_plain_lines_carry_no_control_codes() -> None:
    stream = io.StringIO()
    tell = PlainLines(stream)
    tell(failed(0, "raised", "\x1b[31mred\x07"))
    tell(Note("two\nlines"))
    assert stream.getvalue() == "task 0 failed (raised):  [31mred \ntwo lines\n"


def test_a_failure_is_told_in_full_once() -> None:
    stream = io.StringIO()
    tell = PlainLines(stream)
    tell(Listed(8, 1, 256))
    for _ in range(2):
        tell(failed(3, "quality_gate", "task 3: too few"))
    tell(failed(3, "raised", "ValueError: no"))
    tell(TaskQuarantined(3, "raised", "ValueError: no"))
    assert stream.getvalue().splitlines()[1:] == [
        "task 3 failed (quality_gate): too few",
        "task 3 failed in the same way again (quality_gate)",
        "task 3 failed (raised): ValueError: no",
        "task 3 is quarantined: raised, and no attempt is left",
    ]


def test_the_canary_s_failure_is_left_to_the_error_that_ends_the_run() -> None:
    stream = io.StringIO()
    tell = PlainLines(stream)
    tell(Listed(8, 0, 256))
    tell(failed(0, "quality_gate", "task 0: too few"))
    assert stream.getvalue().splitlines()[1:] == ["task 0, the canary, failed the quality gate"]


def test_a_look_through_shards_of_less_than_two_seconds_is_silent() -> None:
    stream, clock = io.StringIO(), Clock()
    tell = PlainLines(stream, "shards", clock)
    for number in range(1, 5):
        tell(ShardsChecked(number, 4))
        clock.now_s += 0.4
    assert stream.getvalue() == ""


def test_plain_lines_of_a_verification() -> None:
    stream, clock = io.StringIO(), Clock()
    tell = PlainLines(stream, "shards", clock)
    clock.now_s += 2
    for number in range(1, 501):
        tell(ShardsChecked(number, 500))
        clock.now_s += 0.01
    lines = stream.getvalue().splitlines()
    assert len(lines) == 100
    assert lines[9] == "50/500 shards, 10%, ETA unknown"  # half a second says nothing of speed
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
    tell = TerminalDisplay(stream, clock=clock)
    try:
        tell(Listed(1000, 200, 256_000))
        for task in range(200, 206):
            tell(step(task, 500, 2000))
        clock.now_s += 100
        for task in range(200, 206):
            tell(step(task, 1000, 2000, total=3.21))
        tell(failed(206, "out_of_memory", "task 206: [CUDA] wants 3 GiB"))
        tell(Note("[bold]a note[/bold] about /a/path"))
        display(stream)
    finally:
        tell(Ended())
        tell(Note("200 tasks done"))
    text = display(stream)
    assert "200/1,000 tasks, 20%, 3.84 images/s, ETA 14h46m, 1 failure" in text
    assert "task 203: iteration 1,000/2,000, total 3.21" in text
    assert "task 204" not in text
    assert "and 2 more" in text
    assert text.rstrip().endswith("200 tasks done")
    tell(step(206, 1, 2000))
    tell(Ended())
    assert display(stream) == ""


def test_notes_are_printed_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    stream = Terminal()
    tell = TerminalDisplay(stream)
    path = "/a/rather/long/path/that/does/not/fit/on/forty/columns"
    tell(Note(f"[bold]kept[/bold] {path}"))
    assert f"[bold]kept[/bold] {path}\n" in display(stream)
    tell(failed(1, "raised", "[red]no[/red]"))
    tell(Ended())
    assert "task 1 failed (raised): [red]no[/red]" in display(stream)


def test_a_real_terminal_gets_the_display_and_its_cursor_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as screen, os.fdopen(theirs, "w") as stream:
        tell = make_progress(stream)
        assert isinstance(tell, TerminalDisplay)
        for event in (Listed(2, 0, 64), done(0), done(1), Ended(), Note("complete")):
            tell(event)
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
    assert isinstance(make_progress(stream), PlainLines)


def test_stderr_is_the_default_and_stdout_in_a_notebook(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_progress()(Note("here"))
    assert capsys.readouterr() == ("", "here\n")
    monkeypatch.setitem(sys.modules, "ipykernel", types.ModuleType("ipykernel"))
    make_progress()(Note("there"))
    assert capsys.readouterr() == ("there\n", "")


@pytest.mark.parametrize("kind", [PlainLines, TerminalDisplay])
def test_progress_may_be_told_of_by_several_threads(kind: Any) -> None:
    stream = Terminal()
    tell = kind(stream)
    tell(Listed(400, 0, 12_800))

    def work(first: int) -> None:
        for task in range(first, first + 100):
            tell(step(task, 1, 2, total=1.0))
            tell(done(task))

    threads = [threading.Thread(target=work, args=(first,)) for first in range(0, 400, 100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tell(ShardsChecked(400, 400))
    tell(Ended())
    assert "400/400 tasks" in display(stream)


def test_progress_loads_neither_torch_nor_ray() -> None:
    heavy = ("torch", "ray", "pyarrow", "numpy", "rich")
    code = f"import sys, nisynth.progress; print([name for name in {heavy} if name in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert said.stdout == "[]\n"
