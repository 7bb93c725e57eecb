"""The crew: the workers that one drive loop commands, wherever they are.

`local` is one worker in this process, `ray` actors on a cluster, `virtual` workers in virtual time. A crew
keeps workers in numbered slots and carries out; what to do is decided by the scheduler, through the loop.
"""

from collections.abc import Callable
from typing import Protocol

from nisynth.execution.events import Report
from nisynth.execution.ledger import Attempt


class Crew(Protocol):
    """Starts workers, hands them attempts, and reports what becomes of both.

    A report about a worker is about the one that was started last in its slot: after `kill`, and after a
    crew has reported a worker lost, nothing more is heard of it.
    """

    def start(self, slot: int) -> None:
        """Begins to start a worker in an empty slot; `WorkerReady` or `WorkerLost` follows.

        Raises what forbids every worker to take part: ConfigError, TeacherError, PlanMismatch.
        """

    def submit(self, attempt: Attempt) -> None:
        """Hands an attempt to the worker of its slot; `TaskDone`, `AttemptFailed` or `WorkerLost` follows."""

    def wait(self, hear: Callable[[Report], None]) -> None:
        """Waits until something happened, about a second at most, and gives each report to `hear`.

        Raises as `start` does, Stopped when the run shall end, Stalled when no worker can be reached.
        """

    def kill(self, slot: int) -> None:
        """Ends the worker of a slot, if there is one, with everything that it was doing."""
