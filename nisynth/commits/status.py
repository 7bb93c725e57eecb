"""How far a run is, from its storage alone: a few listings, never an image."""

from dataclasses import dataclass

from nisynth.commits.run import Run
from nisynth.errors import DataError

SAMPLE = 32


@dataclass(frozen=True)
class Status:
    """The state of a run. `eta_s`: at the pace of the last commits; 0 when complete, None when unknown."""

    url: str
    fingerprint: str
    planned: int
    committed: int
    quarantined: int
    images: int
    complete: bool
    eta_s: float | None


def status(run: Run) -> Status:
    """Returns the status of a run; costs two listings and at most 32 small reads. Raises StorageError."""
    committed, quarantined = run.committed(), run.quarantined()
    complete = run.sealed
    left = run.plan.num_tasks - len(committed) - len(quarantined)
    return Status(
        url=run.store.url,
        fingerprint=run.plan.fingerprint,
        planned=run.plan.num_tasks,
        committed=len(committed),
        quarantined=len(quarantined),
        images=sum(run.plan.rows(task) for task in committed),
        complete=complete,
        eta_s=0.0 if complete else _eta_s(run, committed, left),
    )


def _eta_s(run: Run, committed: set[int], left: int) -> float | None:
    times = []
    for task in sorted(committed)[-SAMPLE:]:
        try:
            commit = run.read(task)
        except DataError:
            continue
        if commit is not None and commit.finished_at > 0:
            times.append(commit.finished_at)
    if len(times) < 2 or max(times) <= min(times):
        return None
    return round(left * (max(times) - min(times)) / (len(times) - 1), 1)
