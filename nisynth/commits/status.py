"""How far a run is, from its storage alone: a few listings, never an image."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nisynth.commits.parallel import in_parallel
from nisynth.commits.records import Commit
from nisynth.commits.rejected import read_rejected
from nisynth.commits.run import Run
from nisynth.errors import DataError, StorageError

SAMPLE = 32
PATIENCE = 5
"""Looks in a row that may fail before `watch` gives up."""


@dataclass(frozen=True)
class Status:
    """The state of a run.

    eta_s: at the pace of the last commits; 0 when complete, None when unknown. canary: why task 0 failed the
    quality gate, while it is not committed. teacher_accuracy, r_bn_in_y: medians over the last commits (at
    most 32), None where there are none or they do not say. step: what a series is at, "" for a run.
    """

    url: str
    fingerprint: str
    planned: int
    committed: int
    quarantined: int
    images: int
    complete: bool
    eta_s: float | None
    canary: str = ""
    teacher_accuracy: float | None = None
    r_bn_in_y: float | None = None
    step: str = ""

    @property
    def settled(self) -> bool:
        """True when no driver has anything left to do: complete, or only quarantined tasks are left."""
        given_up = self.quarantined > 0 and self.committed + self.quarantined >= self.planned
        return self.complete or given_up


def status(run: Run) -> Status:
    """Returns the status of a run; costs two listings and at most 32 small reads. Raises StorageError."""
    committed = run.committed()
    quarantined = run.quarantined(committed)
    complete = run.is_sealed()
    left = run.plan.num_tasks - len(committed) - len(quarantined)
    rejected = None if run.first_task in committed else read_rejected(run)
    latest = _latest(run, committed)
    return Status(
        url=run.store.url,
        fingerprint=run.plan.fingerprint,
        planned=run.plan.num_tasks,
        committed=len(committed),
        quarantined=len(quarantined),
        images=sum(run.plan.rows(task) for task in committed),
        complete=complete,
        eta_s=0.0 if complete else _eta_s(latest, left),
        canary="" if rejected is None else rejected.message,
        teacher_accuracy=_median(latest, "teacher_accuracy"),
        r_bn_in_y=_median(latest, "r_bn_in_y"),
        step="" if complete else run.step(),
    )


def watch(
    run: Run,
    show: Callable[[Status | None, str], None],
    *,
    every_s: float,
    sleep: Callable[[float], None] = time.sleep,
) -> Status:
    """Looks at the run every `every_s` seconds until it is settled; returns the last status.

    show: called after each look with the last status known, and with what went wrong in this look, or
    "". Raises StorageError when more than `PATIENCE` looks in a row fail.
    """
    found: Status | None = None
    failures = 0
    while True:
        try:
            found = status(run)
            failures = 0
            show(found, "")
        except StorageError as error:
            failures += 1
            if failures > PATIENCE:
                raise
            show(found, f"{error}; looking again")
        if found is not None and found.settled:
            return found
        sleep(every_s)


def _latest(run: Run, committed: set[int]) -> list[Commit]:
    def read(task: int) -> Commit | None:
        try:
            return run.read(task)
        except DataError:
            return None

    commits = in_parallel(read, sorted(committed)[-SAMPLE:])
    return [commit for commit in commits if commit is not None]


def _median(commits: Sequence[Commit], name: str) -> float | None:
    values = [float(commit.figures[name]) for commit in commits if name in commit.figures]
    return statistics.median(values) if values else None


def _eta_s(commits: Sequence[Commit], left: int) -> float | None:
    times = [commit.finished_at for commit in commits if commit.finished_at > 0]
    if len(times) < 2 or max(times) <= min(times):
        return None
    return round(left * (max(times) - min(times)) / (len(times) - 1), 1)
