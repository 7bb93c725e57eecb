"""The local executor: one worker in this process, task after task, by the Ray driver's scheduler."""

import time
from collections.abc import Mapping

from nisynth.commits import Receipt, Run
from nisynth.config import RunConfig
from nisynth.errors import ConfigError, TaskFailure
from nisynth.execution.schedule import Attempt, Failure, Rules, Scheduler
from nisynth.progress import Observer
from nisynth.worker import Worker

RELIST_S = 30.0


def execute(config: RunConfig, run: Run, observer: Observer, address: str | None = None) -> int:
    """Executes every task that has no commit yet and returns how many it committed.

    Raises ConfigError for an address, and what the scheduler or the worker raise to end a
    run early: BudgetExceeded, TaskFailure (the canary), StorageError, Stopped.
    """
    if address is not None:
        raise ConfigError(f"address {address!r}: the local executor joins no cluster; use --executor ray")
    worker = Worker(config, run.plan.fingerprint, run.store.url)
    if config.execution.workers > 1:
        observer.note("the local executor is one worker; --executor ray runs execution.workers of them")
    rules = Rules(
        max_failed_tasks=config.execution.max_failed_tasks, in_flight=1, slot_failures=run.plan.num_tasks
    )
    # Another driver on the same URL walks the tasks in another order.
    scheduler = Scheduler(run.plan.num_tasks, 1, rules, seed=time.time_ns(), now_s=time.monotonic())
    scheduler.joined(0, time.monotonic())
    _relist(scheduler, run)
    observer.started(run.plan.num_tasks, scheduler.num_committed, run.plan.num_images)
    told: set[str] = set()
    executed, listed_s = 0, time.monotonic()
    while not scheduler.done:
        scheduler.check(time.monotonic())
        if time.monotonic() - listed_s > RELIST_S:
            _relist(scheduler, run)
            listed_s = time.monotonic()
        for attempt in scheduler.assign(time.monotonic()):
            executed += _attempt(attempt, worker, scheduler, run, observer, told)
        for task, failures in list(scheduler.condemned.items()):
            give_up(run, scheduler, task, failures, observer)
    scheduler.check(time.monotonic())
    return executed


def give_up(run: Run, scheduler: Scheduler, task: int, failures: list[Failure], observer: Observer) -> None:
    """Quarantines a task in storage and tells the scheduler, unless it turns out to be committed."""
    records = [{"kind": f.kind, "message": f.message, "slot": f.slot} for f in failures]
    if run.quarantine(task, records):
        scheduler.quarantined([task])
        observer.note(
            f"task {task} is quarantined: {failures[-1].kind}: {failures[-1].message.splitlines()[0]}"
        )
    else:
        scheduler.committed([task], time.monotonic())


def tell_engine(receipt: Receipt, told: set[str], observer: Observer) -> None:
    """Notes, once a worker, which engine it runs, in how much GPU memory, and what it falls short of."""
    figures = receipt.figures
    if receipt.outcome == "other" or receipt.worker in told or "engine" not in figures:
        return
    told.add(receipt.worker)
    memory = figures.get("gpu_memory_bytes")
    size = f", {memory / 2**30:.1f} GiB of GPU memory" if memory else ""
    notes = "".join(f"; {note}" for note in figures.get("engine_notes", ()))
    observer.note(f"worker {receipt.worker}: engine {figures['engine']}{size}{notes}")


def _attempt(
    attempt: Attempt, worker: Worker, scheduler: Scheduler, run: Run, observer: Observer, told: set[str]
) -> bool:
    """Carries out one attempt; True when this one committed its task."""
    iterations = worker.config.method.iterations

    def on_step(iteration: int, losses: Mapping[str, float]) -> None:
        observer.step(attempt.task, iteration, iterations, losses)

    try:
        receipt = worker.committed_before(attempt.task, attempt.id)
        receipt = receipt or worker.execute(attempt.task, attempt.id, on_step)
    except TaskFailure as failure:
        message = f"{failure}\n{failure.trace}" if failure.trace else str(failure)
        scheduler.failed(attempt, failure.kind, message, time.monotonic())
        observer.task_failed(attempt.task, failure.kind, str(failure), attempt.id)
        return False
    outcome = receipt.outcome
    if receipt.commit is not None:
        outcome = run.commit(receipt.commit)
    if outcome == "unknown":
        scheduler.failed(
            attempt, "storage", f"task {attempt.task}: its commit got no clear answer", time.monotonic()
        )
        _relist(scheduler, run)
        return False
    scheduler.finished(attempt, receipt.seconds.get("synthesize"), time.monotonic())
    tell_engine(receipt, told, observer)
    observer.task_done(receipt)
    return outcome == "mine"


def _relist(scheduler: Scheduler, run: Run) -> None:
    scheduler.quarantined(run.quarantined())
    scheduler.committed(run.committed(), time.monotonic())
