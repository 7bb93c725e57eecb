"""The execution of a run: which worker takes which task, and when. Both executors, `local` and `ray`, use the
same worker and scheduler.

The truth is what is committed in storage; an executor only decides what to try next.
"""

from dataclasses import dataclass

COMPLETE = 0
PARTIAL = 3


@dataclass(frozen=True)
class RunReport:
    """What a driver leaves behind when it ends: counts read back from storage, and why it ended.

    executed: tasks that this driver's workers committed. teacher_accuracy: of the teacher on all
    decoded images, 0..1; None while the run is not complete.
    """

    url: str
    fingerprint: str
    planned: int
    committed: int
    quarantined: int
    images: int
    executed: int
    seconds: float
    exit_code: int
    message: str
    teacher_accuracy: float | None = None

    @property
    def complete(self) -> bool:
        """True when every planned task is committed and the run is sealed."""
        return self.exit_code == COMPLETE
