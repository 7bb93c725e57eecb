"""The exception tree: everything a user, a machine or a store can do wrong.

Each message is one line that names the field or the object, the value met, and what would be right.
The command line prints the message and exits with `exit_code`; a traceback is only ever shown for an
exception from outside this tree, which is a bug of ours (exit code 70).
"""

from collections.abc import Iterator
from typing import ClassVar, Literal

FailureKind = Literal["not_finite", "quality_gate", "out_of_memory", "raised", "storage"]
"""How one attempt at a task failed, in a worker that lives on.

`not_finite`: a loss or a pixel. `quality_gate`: the teacher recognises too few of the images. `raised`: any
exception of anyone's code. `storage`: the store failed the worker, which says nothing against the task.
"""

LossKind = Literal[
    "worker_died",
    "deadline",
    "sick",
    "start_failed",
    "storage",
    "preempted",
    "node_died",
    "node_memory",
    "unavailable",
]
"""How a worker was lost, with what it was doing.

`worker_died`: its process ended. `deadline`, `sick`: killed by the driver, for a task that took too long or
for task after task that failed on it. `start_failed`, `storage`: it never was ready, the latter because it
could not read what it needs. `preempted`, `node_died`, `node_memory` (ended by its node for want of memory),
`unavailable`: the machine's doing.
"""


class NisynthError(Exception):
    """A mistake that has a cure; the message says which."""

    exit_code: ClassVar[int] = 2


def one_line(error: BaseException) -> str:
    """Returns a foreign exception as one line for a message of ours: its type, and how its text begins."""
    line = first_line(str(error))[:200]
    return f"{type(error).__name__}: {line}" if line else type(error).__name__


def first_line(text: str) -> str:
    """Returns the first line of a text that is not blank; "" where there is none."""
    return next(_lines(text), "")


def last_line(text: str) -> str:
    """Returns the last line of a text that is not blank; "" where there is none. A traceback ends so."""
    return next(_lines(text, -1), "")


def _lines(text: str, step: int = 1) -> Iterator[str]:
    return (line.strip() for line in text.splitlines()[::step] if line.strip())


def counted(count: int, noun: str) -> str:
    """Returns a count with its noun, in the plural where it is not one: `1 task`, `1,000 tasks`."""
    plural = "" if count == 1 else "es" if noun.endswith("s") else "s"
    return f"{count:,} {noun}{plural}"


class ConfigError(NisynthError):
    """A config value, key or combination that cannot be used."""


class TeacherError(NisynthError):
    """A classifier, or its weights, that cannot be inverted or trained."""


class PlanMismatch(NisynthError):
    """The URL already holds a run of another plan, or something that is no run."""


class IncompleteRun(NisynthError):
    """A consumer asked for a whole run, and tasks are missing."""


class DataError(NisynthError):
    """Stored data is not what its commit says: damaged, truncated, or not ours."""

    exit_code = 1


class TaskFailure(NisynthError):
    """One attempt at a task failed; `kind` says why, in one of the words the driver counts by.

    Kinds that count against the task: `not_finite`, `quality_gate`, `out_of_memory`, `raised`.
    trace: the traceback of what was raised, for the quarantine record; empty where the message is all.
    Travels between processes as a value: it holds nothing but strings.
    """

    exit_code = 4

    def __init__(self, kind: FailureKind, message: str, trace: str = "") -> None:
        super().__init__(message)
        self.kind = kind
        self.trace = trace

    def __reduce__(self) -> tuple[type, tuple[str, str, str]]:
        return type(self), (self.kind, str(self), self.trace)

    @property
    def text(self) -> str:
        """The message, and below it the traceback where there is one."""
        return f"{self}\n{self.trace}" if self.trace else str(self)


class BudgetExceeded(NisynthError):
    """More tasks failed for good than `execution.max_failed_tasks` allows."""

    exit_code = 4


class Stalled(NisynthError):
    """Work is left and nothing can do it: no live or pending worker, or no progress."""

    exit_code = 5


class StorageError(NisynthError):
    """The store cannot be reached, written or trusted."""

    exit_code = 6


class Stopped(NisynthError):
    """SIGTERM or a limit ended the run early; running it again resumes it."""

    exit_code = 7


class NotStarted(NisynthError):
    """Ray could not be started on this machine; the same command may succeed later (EX_TEMPFAIL)."""

    exit_code = 75


class ConnectionLost(NisynthError):
    """A client lost the cluster that runs its job; the job goes on (75 is the system's EX_TEMPFAIL)."""

    exit_code = 75
