"""What storage knows of the tasks of a run: who made them, or how they failed.

A quarantine record may come from anyone who can write to the bucket, so it is read as what it claims to
be only where its fields have the right types; the rest is left out.
"""

from dataclasses import dataclass, replace
from typing import Literal

from nisynth.commits.parallel import in_parallel
from nisynth.commits.records import Commit
from nisynth.commits.rejected import Rejected, read_rejected
from nisynth.commits.run import Run


@dataclass(frozen=True)
class Failed:
    """One failed attempt. message: its first line says what happened, a traceback may follow."""

    kind: str
    message: str


DAMAGED = Failed("unknown", "its quarantine record is damaged")


@dataclass(frozen=True)
class TaskLog:
    """One task. commit: of a committed one. failures: of a quarantined one, oldest first.

    rejected: of the canary that failed the quality gate and is not committed since.
    """

    task: int
    state: Literal["committed", "quarantined", "open"]
    commit: Commit | None = None
    failures: tuple[Failed, ...] = ()
    rejected: Rejected | None = None


def task_log(run: Run, task: int) -> TaskLog:
    """Returns what storage knows of a task; a commit beats a quarantine.

    Raises ConfigError for a task that the run does not have, DataError for a damaged commit, StorageError.
    """
    run.require_task(task)
    commit = run.read(task)
    if commit is not None:
        return TaskLog(task, "committed", commit=commit)
    rejected = read_rejected(run) if task == run.first_task else None
    return replace(_quarantine_log(run, task), rejected=rejected)


def quarantine_logs(run: Run) -> list[TaskLog]:
    """Returns the tasks that were given up on, by task. Raises DataError, StorageError."""
    found = in_parallel(lambda task: _quarantine_log(run, task), sorted(run.quarantined()))
    return [log for log in found if log.state == "quarantined"]  # a retry may have lifted one meanwhile


def _quarantine_log(run: Run, task: int) -> TaskLog:
    record = run.read_quarantine(task)
    if record is None:
        return TaskLog(task, "open")
    listed = record.get("failures")
    if "damaged" in record or not isinstance(listed, list):
        return TaskLog(task, "quarantined", failures=(DAMAGED,))
    failures = tuple(
        Failed(str(failure.get("kind", "unknown")), str(failure.get("message", "")))
        for failure in listed
        if isinstance(failure, dict)
    )
    return TaskLog(task, "quarantined", failures=failures)
