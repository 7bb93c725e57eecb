"""A run from config to seal: plan it, join it at its URL, let an executor do what is missing, finish it.

Stateless: everything that matters is in storage, so running it again resumes, and two drivers on one
URL help each other.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from nisynth.commits import Run
from nisynth.commits.seal import read_manifest, seal
from nisynth.config import RunConfig, load_config
from nisynth.errors import BudgetExceeded, PlanMismatch, Stalled
from nisynth.execution import COMPLETE, PARTIAL, RunReport
from nisynth.plan import Plan, make_plan
from nisynth.progress import Observer, SilentObserver
from nisynth.storage import open_store
from nisynth.storage.probe import probe_conditional_create
from nisynth.synthesis import check_engine
from nisynth.teachers import load_teacher

Executor = Literal["local", "ray"]


def plan_run(config: RunConfig) -> Plan:
    """Returns the plan of a config; reads the teacher's weights once, on the CPU. Raises TeacherError."""
    return make_plan(config, load_teacher(config.teacher).identity)


def run(
    config: RunConfig | str | Path | Mapping[str, Any],
    store: str,
    *,
    executor: Executor = "local",
    address: str | None = None,
    observer: Observer | None = None,
) -> RunReport:
    """Returns the report of a run that is complete, or partial within `execution.max_failed_tasks`.

    config: a RunConfig, a file, a shipped config's name, or a mapping. store: the run's URL; what is
    committed there is never run again. executor: `local` is one worker in this process, `ray` is
    `execution.workers` actors on the cluster at `address` (none: a cluster of this machine's own).
    Raises a NisynthError whose `exit_code` says why the run ended early; run it again to resume.
    """
    config = config if isinstance(config, RunConfig) else load_config(config)
    observer = observer or SilentObserver()
    began = time.monotonic()
    if executor == "local":
        # Before the plan is stored, which would hold the URL for a config that cannot run.
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        check_engine(config.method, config.engine, device)
    joined = begin(config, store)
    executed = 0
    if joined.is_sealed():
        _refuse_missing(joined)
        observer.note(f"{store}: complete already; nothing to run")
    else:
        try:
            executed = _executor(executor)(config, joined, observer, address)
        finally:
            observer.finished()
    return _finish(config, joined, executed, time.monotonic() - began)


def begin(config: RunConfig, store_url: str) -> Run:
    """Returns the run of `config` at the URL, begun or joined, on a store that was seen to be safe."""
    plan = plan_run(config)
    store = open_store(store_url)
    joined = Run.join(store, plan)
    if not config.execution.single_writer and not joined.is_sealed():
        probe_conditional_create(store)
    return joined


def _executor(name: Executor) -> Any:
    if name == "ray":
        from nisynth.execution.ray import execute as on_ray

        return on_ray
    from nisynth.execution.local import execute as in_this_process

    return in_this_process


def _refuse_missing(joined: Run) -> None:
    missing = joined.plan.num_tasks - len(joined.committed())
    if missing:
        raise PlanMismatch(
            f"{joined.store.url}: _SUCCESS says the run is complete, yet {missing} commits are missing;"
            f" `nisynth redo {joined.store.url} --bad` takes the seal off, then run again"
        )


def _finish(config: RunConfig, joined: Run, executed: int, seconds: float) -> RunReport:
    # A seal is not made twice: another version of pyarrow would write other bytes for the same manifest.
    sealed = joined.is_sealed() or seal(joined)
    committed, quarantined = joined.committed(), joined.quarantined()
    planned, allowed = joined.plan.num_tasks, config.execution.max_failed_tasks
    if not sealed and len(quarantined) > allowed:
        raise BudgetExceeded(
            f"{joined.store.url}: {len(quarantined)} tasks are quarantined, execution.max_failed_tasks"
            f" allows {allowed}; `nisynth logs {joined.store.url}` shows why; mend the cause,"
            f" `nisynth retry {joined.store.url}`, run again"
        )
    if not sealed and len(committed) + len(quarantined) < planned:
        raise Stalled(
            f"{joined.store.url}: {len(committed)} of {planned} tasks are committed; run again to resume"
        )
    rows = read_manifest(joined) if sealed else []
    recognised = sum(row.teacher_accuracy * row.rows for row in rows)
    message = "complete" if sealed else f"partial: {len(quarantined)} tasks quarantined"
    return RunReport(
        url=joined.store.url,
        fingerprint=joined.plan.fingerprint,
        planned=planned,
        committed=len(committed),
        quarantined=len(quarantined),
        images=sum(joined.plan.rows(task) for task in committed),
        executed=executed,
        seconds=seconds,
        exit_code=COMPLETE if sealed else PARTIAL,
        message=message,
        teacher_accuracy=recognised / joined.plan.num_images if sealed else None,
    )
