"""How far a run is, from its storage alone: a few listings, never an image."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nisynth.commits.audit import known_damage, read_or_why
from nisynth.commits.parallel import in_parallel
from nisynth.commits.records import Commit
from nisynth.commits.rejected import read_rejected
from nisynth.commits.run import Run
from nisynth.errors import DataError, StorageError

SAMPLE = 32
PATIENCE = 5
"""How many looks in a row may fail before `watch` gives up."""


@dataclass(frozen=True)
class Status:
    """The state of a run.

    eta_s: at the pace of the last commits; 0 when complete, None when unknown. canary: why task 0 failed the
    quality gate, while it is not committed. teacher_accuracy, r_bn_in_y: medians over the last commits (at
    most 32), None where there are none or they do not say. checked: shards whose sizes were compared with
    what was committed, None where that was not asked for. damaged: what is known to be wrong, a line each.
    step: the present step of a series, "" for a run.
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
    checked: int | None = None
    damaged: tuple[str, ...] = ()

    @property
    def settled(self) -> bool:
        """True when no driver has anything left to do: complete, or only quarantined tasks are left."""
        given_up = self.quarantined > 0 and self.committed + self.quarantined >= self.planned
        return self.complete or given_up


def status(run: Run, check: bool = True) -> Status:
    """Returns the status of a run, from two listings and at most 32 small reads. Raises StorageError.

    check: also compare what the store lists of the shards with what was committed, for one listing more and
    the manifest; no shard is read.
    """
    committed = run.committed()
    quarantined = run.quarantined(committed)
    complete = run.is_sealed()
    left = run.plan.num_tasks - len(committed) - len(quarantined)
    rejected = None if run.first_task in committed else read_rejected(run)
    sample = list(in_parallel(lambda task: read_or_why(run, task), sorted(committed)[-SAMPLE:]))
    latest = [one for one in sample if isinstance(one, Commit)]
    unsound = [one for one in sample if isinstance(one, DataError)]
    checked, damaged = known_damage(run, committed, complete, [*latest, *unsound]) if check else (None, [])
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
        checked=checked,
        damaged=tuple(damaged),
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
            found = status(run, check=False)
            if found.settled:
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


def _median(commits: Sequence[Commit], name: str) -> float | None:
    values = [float(commit.figures[name]) for commit in commits if name in commit.figures]
    return statistics.median(values) if values else None


def _eta_s(commits: Sequence[Commit], left: int) -> float | None:
    times = [commit.finished_at for commit in commits if commit.finished_at > 0]
    if len(times) < 2 or max(times) <= min(times):
        return None
    return round(left * (max(times) - min(times)) / (len(times) - 1), 1)
