"""Runs and series by URL: how far one is, whether it is sound, and a verified local copy of it.

What only a series needs is imported where one is met: it takes torch, and a run needs none.
"""

import dataclasses
from collections.abc import Callable

from nisynth.commits import Run, audit
from nisynth.commits import status as run_status
from nisynth.commits.audit import Verdict
from nisynth.commits.pull import WORKERS, Pulled
from nisynth.commits.pull import pull as pull_run
from nisynth.commits.status import Status
from nisynth.series.run import Series, open_run

OnChecked = Callable[[int, int], None]


def status(source: str | Run) -> Status:
    """Returns the status of a run or series, by its URL or opened, from its storage alone; reads no shard.

    Raises PlanMismatch when the URL holds neither, DataError, StorageError.
    """
    return run_status.status(_opened(source))


def verify(source: str | Run, deep: bool = False, on_checked: OnChecked | None = None) -> Verdict:
    """Returns what is wrong with a run or series, by its URL or opened; changes nothing.

    It compares sizes. deep: also fetch, hash and decode every shard. on_checked: called with (tasks judged,
    tasks in all). A run that is not complete is no problem. Raises PlanMismatch when the URL holds neither,
    StorageError.
    """
    run = _opened(source)
    verdict = audit.verify(run, deep, on_checked)
    if isinstance(run, Series):
        from nisynth.series.rivals import judge_rivals

        return dataclasses.replace(verdict, problems=(*verdict.problems, *judge_rivals(run)))
    return verdict


def pull(
    source: str | Run,
    folder: str,
    *,
    workers: int = WORKERS,
    allow_partial: bool = False,
    on_checked: OnChecked | None = None,
) -> Pulled:
    """Copies a run or series, by its URL or opened, into a local folder; run again, it resumes.

    Arguments, and what it raises, as `nisynth.commits.pull.pull` has them.
    """
    run = _opened(source)
    if isinstance(run, Series):
        from nisynth.series.pull import pull_series

        return pull_series(run, folder, workers=workers, allow_partial=allow_partial, on_checked=on_checked)
    return pull_run(run.store, folder, workers=workers, allow_partial=allow_partial, on_checked=on_checked)


def _opened(source: str | Run) -> Run:
    return source if isinstance(source, Run) else open_run(source)
