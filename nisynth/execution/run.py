"""A run from config to seal: plan it, join it at its URL, let a crew do what is missing, finish it.

Stateless: everything that matters is in storage, so running it again resumes, and two drivers on one
URL help each other.
"""

import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast
from uuid import uuid4

import torch

from nisynth.commits import Run
from nisynth.commits.seal import check_sizes, delete_losers, losers_of, read_manifest, seal
from nisynth.config import RunConfig, load_config
from nisynth.device import default_device
from nisynth.errors import BudgetExceeded, DataError, Stalled, counted
from nisynth.execution import COMPLETE, PARTIAL, RunReport
from nisynth.execution.crew import Crew
from nisynth.execution.drive import Drive
from nisynth.execution.event_log import EventLog
from nisynth.execution.events import Broadcast, Listener, Note
from nisynth.execution.schedule import Rules
from nisynth.execution.stored import StoredCommits
from nisynth.plan import Plan, make_plan
from nisynth.progress import in_notebook, make_progress
from nisynth.storage import open_store
from nisynth.storage.probe import probe_conditional_create
from nisynth.synthesis import METHODS, check_engine, load_artefacts
from nisynth.synthesis.diagnosis import balance_line
from nisynth.synthesis.inversion.config import InversionConfig
from nisynth.teachers import Teacher, load_teacher

logger = logging.getLogger(__name__)

Executor = Literal["local", "ray"]
OpenCrew = Callable[[RunConfig, Run, str | None], AbstractContextManager[Crew]]


def plan_run(config: RunConfig | str | Path | Mapping[str, Any]) -> Plan:
    """Returns the plan of a config, as `run` takes it; reads the weights that it names once, on the CPU.

    What a person should know of the teacher before a long run is logged, a line each. Raises ConfigError,
    TeacherError.
    """
    config = _loaded(config)
    return _plan_for(config, _teacher_of(config))


def run(
    config: RunConfig | str | Path | Mapping[str, Any],
    store: str,
    *,
    executor: Executor = "local",
    address: str | None = None,
    progress: bool | None = None,
    listeners: Iterable[Listener] = (),
    rules: Rules | None = None,
) -> RunReport:
    """Returns the report of a run that is complete, or partial within `execution.max_failed_tasks`.

    config: a RunConfig, a file, a shipped config's name, or a mapping. store: the run's URL; what is
    committed there is never run again. executor: `local` is one worker in this process, `ray` is
    `execution.workers` actors on the cluster at `address` (none: a cluster of this machine's own).
    progress: show it, as a display on a terminal, as lines elsewhere; by default in notebooks only.
    listeners: functions that hear every event of the run (nisynth.execution.events), each in a thread of
    its own; one that fails costs the run nothing. rules: other limits than the usual ones.
    Raises a NisynthError whose `exit_code` says why the run ended early; run it again to resume.
    """
    config = _loaded(config)
    began_s = time.monotonic()
    if executor == "local":
        # Before the plan is stored, which would hold the URL for a config that cannot run.
        device = default_device()
        check_engine(config.method, config.engine, device)
    teacher = _teacher_of(config)
    joined = _join(config, _plan_for(config, teacher), store)
    executed = 0
    if progress is None:
        progress = in_notebook()
    shown: list[Listener] = [make_progress()] if progress else []
    own: list[Listener] = [EventLog(joined.store, uuid4().hex), *_metrics(executor, joined)]
    with Broadcast([*shown, *own, *listeners]) as tell:
        if joined.is_sealed():
            _look_after(joined)
            tell(Note(f"{store}: complete already; nothing to run"))
        else:
            if METHODS[config.method.name].uses_engine:
                tell(
                    Note(balance_line(teacher, cast(InversionConfig, config.method), joined.plan.batch_size))
                )
            del teacher  # the workers load their own
            executed = execute(config, joined, tell, executor, address=address, rules=rules)
    return _finish(config, joined, executed, time.monotonic() - began_s)


def begin(config: RunConfig, store_url: str) -> Run:
    """Returns the run of `config` at the URL, begun or joined, on a store that was seen to be safe."""
    return _join(config, plan_run(config), store_url)


def _loaded(config: RunConfig | str | Path | Mapping[str, Any]) -> RunConfig:
    return config if isinstance(config, RunConfig) else load_config(config)


def _teacher_of(config: RunConfig) -> Teacher:
    teacher = load_teacher(config.teacher)
    for note in teacher.notes:
        logger.warning("note: %s", note)
    return teacher


def _plan_for(config: RunConfig, teacher: Teacher) -> Plan:
    return make_plan(config, teacher.identity, load_artefacts(config.method, teacher))


def _join(config: RunConfig, plan: Plan, store_url: str) -> Run:
    store = open_store(store_url, single_writer=config.execution.single_writer)
    joined = Run.join(store, plan)
    if not config.execution.single_writer and not joined.is_sealed():
        probe_conditional_create(store)
    return joined


def execute(
    config: RunConfig,
    joined: Run,
    tell: Listener,
    executor: Executor,
    *,
    address: str | None = None,
    rules: Rules | None = None,
    open_crew: OpenCrew | None = None,
) -> int:
    """Executes every task that has no commit yet; returns how many tasks this driver's workers committed.

    tell: hears every event at once, in this thread; must not raise. open_crew: other workers than the
    executor's. Raises what ends a run early: BudgetExceeded, TaskFailure (the canary), StorageError,
    Stalled, Stopped, and what a worker refuses to start with (ConfigError, TeacherError, PlanMismatch).
    """
    plan, limits = joined.plan, replace(rules or Rules(), max_failed_tasks=config.execution.max_failed_tasks)
    num_slots = min(config.execution.workers, plan.num_tasks)
    if executor == "local":
        num_slots = 1
        _note_idle_cpus(config, tell)
        # The worker shares this process: nothing overlaps, and another one would be no better.
        limits = replace(limits, in_flight=1, slot_failures=sys.maxsize)
    drive = Drive(StoredCommits(joined), plan.num_tasks, plan.num_images, num_slots, limits, tell)
    if drive.settled:
        drive.check()
        return 0
    with (open_crew or _crew_of(executor))(config, joined, address) as crew:
        return drive.execute(crew)


def _note_idle_cpus(config: RunConfig, tell: Listener) -> None:
    """Says that a run in this process leaves most of a machine without a GPU idle."""
    used, there = config.execution.cpu_threads, os.cpu_count() or 1
    if not torch.cuda.is_available() and used < there:
        tell(
            Note(
                f"the local executor is one worker and uses {used} of {there} CPUs;"
                f" --executor ray --workers {there // used} uses them all"
            )
        )


def _metrics(executor: Executor, joined: Run) -> list[Listener]:
    """Returns the listener that exports metrics, where there is a Ray to export them."""
    if executor != "ray":
        return []
    from nisynth.execution.metrics import RayMetrics

    return [RayMetrics(joined.plan.fp12, joined.store)]


def _crew_of(executor: Executor) -> OpenCrew:
    if executor == "ray":
        from nisynth.execution.ray import ray_crew

        return ray_crew
    from nisynth.execution.local import local_crew

    return local_crew


def _look_after(joined: Run) -> None:
    """Sweeps the losers' shards that came after the seal, as when a worker died before it deleted its own.

    Raises DataError where a sealed run lacks commits, or shards of the sizes that its manifest lists.
    """
    missing = joined.plan.num_tasks - len(joined.committed())
    if missing:
        raise DataError(
            f"{joined.store.url}: _SUCCESS says the run is complete, yet {counted(missing, 'commit')}"
            f" {'is' if missing == 1 else 'are'} missing;"
            f" `nisynth redo {joined.store.url} --bad` takes the seal off, then run again"
        )
    rows, shards = read_manifest(joined), list(joined.shards())
    check_sizes(joined, rows, shards)
    delete_losers(joined, losers_of(rows, shards))


def _finish(config: RunConfig, joined: Run, executed: int, seconds: float) -> RunReport:
    # A seal is not made twice: another version of pyarrow would write other bytes for the same manifest.
    sealed = joined.is_sealed() or seal(joined)
    committed, quarantined = joined.committed(), joined.quarantined()
    planned, allowed = joined.plan.num_tasks, config.execution.max_failed_tasks
    if not sealed and len(quarantined) > allowed:
        raise BudgetExceeded(
            f"{joined.store.url}: {counted(len(quarantined), 'task')} quarantined, execution.max_failed_tasks"
            f" allows {allowed}; `nisynth logs {joined.store.url}` shows why; mend the cause,"
            f" `nisynth retry {joined.store.url}`, run again"
        )
    if not sealed and len(committed) + len(quarantined) < planned:
        raise Stalled(
            f"{joined.store.url}: {len(committed):,} of {counted(planned, 'task')} committed;"
            " run again to resume"
        )
    rows = read_manifest(joined) if sealed else []
    recognised = sum(row.teacher_accuracy * row.rows for row in rows)
    message = "complete" if sealed else f"partial: {counted(len(quarantined), 'task')} quarantined"
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
