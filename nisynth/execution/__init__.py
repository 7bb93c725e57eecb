"""Who runs which task when. Both executors, `local` and `ray`, drive the very same worker and scheduler.

The truth is what is committed in storage; an executor only decides what to try next.
"""

from dataclasses import dataclass

from nisynth.errors import ConfigError

COMPLETE = 0
PARTIAL = 3


@dataclass(frozen=True, kw_only=True)
class ExecutionConfig:
    """How a run is carried out; none of it changes an image, so none of it is fingerprinted.

    workers: actors. cpu_threads: torch threads per worker. gpus_per_worker: may be a fraction, and is
    waited for until the cluster has it; 0 is the CPU; none is 1 where the cluster has GPUs when the run
    starts, else 0. max_failed_tasks: quarantined tasks that a run may end with.
    quality_gate: the least accuracy, 0..1, of the teacher on a batch's decoded images.
        Where labels are observed, which is an accuracy of 1, the least entropy of a batch's classes instead,
        as a share of that of balanced ones.
    single_writer: only the driver commits, for a store without conditional writes.
    log_every: iterations between two entries of a commit's loss curve.
    """

    workers: int = 1
    cpu_threads: int = 1
    gpus_per_worker: float | None = None
    max_failed_tasks: int = 0
    quality_gate: float = 0.5
    single_writer: bool = False
    log_every: int = 50

    def __post_init__(self) -> None:
        for name in ("workers", "cpu_threads", "log_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"execution.{name}: {getattr(self, name)} is not at least 1")
        if self.gpus_per_worker is not None and not self.gpus_per_worker >= 0:
            raise ConfigError(f"execution.gpus_per_worker: {self.gpus_per_worker} is negative")
        if self.max_failed_tasks < 0:
            raise ConfigError(f"execution.max_failed_tasks: {self.max_failed_tasks} is negative")
        if not 0.0 <= self.quality_gate <= 1.0:
            raise ConfigError(f"execution.quality_gate: {self.quality_gate} is not within 0..1")


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
