"""What happens in a run, as typed events, and how listeners hear of it.

The drive loop tells every event once, in the order in which things happen. A listener is any function of
one event: the display of a terminal, the lines of a log, the record in the store, metrics. Listeners decide
nothing, and a run never waits for them: each has its own thread, and a listener that raises, hangs or is too
slow misses events, which costs the run nothing.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nisynth.errors import FailureKind, LossKind, one_line
from nisynth.execution.ledger import Attempt

if TYPE_CHECKING:  # a display of progress must not load torch, which reading shards takes
    from nisynth.commits import Receipt

MOST_WAITING = 10_000
CLOSE_S = 5.0


@dataclass(frozen=True)
class Listed:
    """The run has `committed` of `total_tasks` in storage; told first, and again after each new listing."""

    total_tasks: int
    committed: int
    total_images: int


@dataclass(frozen=True)
class WorkerReady:
    """A worker is up in a slot: its name (host/pid), the node it lives on, the device it computes on."""

    slot: int
    worker: str
    node: str = ""
    device: str = ""


@dataclass(frozen=True)
class AttemptStarted:
    """An attempt was handed to the worker in its slot, which may have another one to finish first."""

    attempt: Attempt


@dataclass(frozen=True)
class Stepped:
    """The worker in a slot computes `task`, since `elapsed_s`, and is at `iteration` of `iterations`.

    iteration: 0, without losses, when the compute begins.
    """

    slot: int
    task: int
    iteration: int
    iterations: int
    losses: Mapping[str, float] = field(default_factory=dict)
    elapsed_s: float = 0.0


@dataclass(frozen=True)
class TaskDone:
    """A task has its commit, this attempt's or another's, as the receipt says."""

    attempt: Attempt
    receipt: "Receipt"


@dataclass(frozen=True)
class AttemptFailed:
    """One attempt ended without a commit, in a worker that lives on; the task may be tried again.

    message: its first line says what happened, a traceback may follow.
    """

    attempt: Attempt
    kind: FailureKind
    message: str


@dataclass(frozen=True)
class WorkerLost:
    """The worker of a slot is gone, with what it was doing. given_up: no other is started there."""

    slot: int
    kind: LossKind
    message: str
    worker: str = ""
    given_up: bool = False


@dataclass(frozen=True)
class TaskQuarantined:
    """A task was given up on; kind and message are those of its last failure."""

    task: int
    kind: FailureKind | LossKind
    message: str


@dataclass(frozen=True)
class Note:
    """Something a person should read, once."""

    text: str


@dataclass(frozen=True)
class ShardsChecked:
    """`number` of `total` shards are verified or fetched: told by verify and pull, not by a run."""

    number: int
    total: int


@dataclass(frozen=True)
class Ended:
    """The last event, of a good end and of a bad one. error: why the run ended early, else empty."""

    error: str = ""


Report = WorkerReady | Stepped | TaskDone | AttemptFailed | WorkerLost | Note
"""What a crew tells the drive loop."""

Event = Report | Listed | AttemptStarted | TaskQuarantined | ShardsChecked | Ended

Listener = Callable[[Event], None]


class Broadcast:
    """Tells events to listeners, each in a thread of its own; a listener itself.

    As a context manager it ends with `Ended` and waits up to `close_s` for what listeners still have to
    say. most_waiting: events that wait for one listener; what comes when there are as many is left out.
    """

    def __init__(
        self, listeners: Iterable[Listener], *, most_waiting: int = MOST_WAITING, close_s: float = CLOSE_S
    ) -> None:
        self._close_s = close_s
        self._threads = [_ListenerThread(listener, most_waiting, self._failed) for listener in listeners]

    def __call__(self, event: Event) -> None:
        for thread in self._threads:
            thread.tell(event)

    def __enter__(self) -> "Broadcast":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self(Ended("" if error is None else one_line(error)))
        deadline_s = time.monotonic() + self._close_s
        for thread in self._threads:
            thread.close(deadline_s - time.monotonic())

    def _failed(self, failed: "_ListenerThread", error: BaseException) -> None:
        note = Note(f"listener {failed.name} failed and hears no more of the run: {one_line(error)}")
        for thread in self._threads:
            if thread is not failed:
                thread.tell(note)


class _ListenerThread:
    """Calls one listener for the events of a bounded queue; what does not fit is left out."""

    def __init__(
        self,
        listener: Listener,
        most_waiting: int,
        on_failure: Callable[["_ListenerThread", BaseException], None],
    ) -> None:
        self.name = getattr(listener, "__qualname__", type(listener).__name__)
        self._listener, self._on_failure = listener, on_failure
        self._events: queue.Queue[Event] = queue.Queue(most_waiting)
        # A daemon: a listener that hangs must not hold up the end of the process.
        self._thread = threading.Thread(target=self._call, daemon=True, name=f"listener {self.name}")
        self._thread.start()

    def tell(self, event: Event) -> None:
        while True:
            try:
                return self._events.put_nowait(event)
            except queue.Full:
                if not isinstance(event, Ended):
                    return None
                # The end is told to everybody: it takes the place of the oldest event.
                self._events.get_nowait()

    def close(self, timeout_s: float) -> None:
        self._thread.join(max(0.0, timeout_s))

    def _call(self) -> None:
        while True:
            event = self._events.get()
            try:
                self._listener(event)
            except BaseException as error:  # anyone's code; rich ends a broken pipe by SystemExit
                self._on_failure(self, error)
                return
            if isinstance(event, Ended):
                return
