"""The Ray executor: actors on a cluster do the tasks; this driver carries out what the scheduler decides.

The driver keeps nothing that matters: losing it, or the head it runs on, costs what is in flight. It
starts `execution.workers` actors at once and lets Ray hold those that do not fit yet, so that a node that
joins later is used as soon as it is there. Actors are never restarted and calls never retried by Ray
(`max_restarts=0, max_task_retries=0`): attempts are the scheduler's. Not `ActorPool`, which keeps picking
dead actors, and not Ray Data, which hides who failed where.
"""

import time
from contextlib import suppress
from dataclasses import dataclass
from threading import Event
from typing import Any

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayError

from nisynth import __version__
from nisynth.commits import Receipt, Run
from nisynth.config import RunConfig
from nisynth.errors import NisynthError, Stalled, Stopped, StorageError
from nisynth.execution.actors import Actor, Progress, Ready, Refusal
from nisynth.execution.cluster import Listing, connected, live_nodes, resources, sigterm_noted
from nisynth.execution.local import give_up, tell_engine
from nisynth.execution.schedule import Attempt, Rules, Scheduler
from nisynth.progress import Observer

POLL_S = 1.0
WAITING_NOTE_S = 30.0


def execute(
    config: RunConfig, run: Run, observer: Observer, address: str | None = None, rules: Rules | None = None
) -> int:
    """Executes every task that has no commit yet on Ray actors; returns how many of them they committed.

    address: a cluster's `host:port` or `auto`; None is RAY_ADDRESS where it is set, as inside a job, else
    a cluster of this machine's own for the time of the run. rules: other limits than the usual ones.
    Raises ConfigError when no cluster answers, what a worker refuses to start with (TeacherError,
    PlanMismatch), what the scheduler ends a run with (BudgetExceeded, TaskFailure for the canary,
    StorageError, Stalled), and Stopped after SIGTERM.
    """
    driver = _Driver(config, run, observer, rules)
    if driver.scheduler.done:
        driver.scheduler.check(time.monotonic())
        return 0
    with connected(address, config.execution), sigterm_noted() as sigterm:
        try:
            return driver.drive(sigterm)
        except RayError as error:
            raise Stalled(
                f"the connection to the cluster broke: {_line(error)}; run again to resume"
            ) from error


@dataclass(frozen=True)
class _Call:
    """One unanswered call to the actor in a slot. attempt: what an `execute` call carries out."""

    slot: int
    method: str
    attempt: Attempt | None = None


class _Driver:
    """One execution of a run. Holds an actor per slot and the calls that are under way."""

    def __init__(self, config: RunConfig, run: Run, observer: Observer, rules: Rules | None) -> None:
        self._config, self._run, self._observer = config, run, observer
        self._listing = Listing(run)
        committed, quarantined = self._listing.now()
        num_slots = min(config.execution.workers, run.plan.num_tasks)
        self.scheduler = Scheduler(
            run.plan.num_tasks,
            num_slots,
            rules or Rules(max_failed_tasks=config.execution.max_failed_tasks),
            seed=time.time_ns(),  # another driver on the same URL walks the tasks in another order
            now_s=time.monotonic(),
        )
        self.scheduler.quarantined(quarantined)
        self.scheduler.committed(committed, time.monotonic())
        self._actors: dict[int, Any] = dict.fromkeys(range(num_slots))
        self._workers: dict[int, Ready] = {}
        self._calls: dict[Any, _Call] = {}
        self._polled_s: dict[int, float] = {}
        self._noted_s = time.monotonic()
        self._told: set[str] = set()
        self._executed = 0

    def drive(self, sigterm: Event) -> int:
        """Runs until every task is settled; returns how many tasks the actors committed."""
        self._announce()
        self._actor_class = _actor_class(self._config)
        try:
            for slot in self._actors:
                self._start(slot)
            while not self.scheduler.done:
                if sigterm.is_set():
                    raise Stopped("stopped by SIGTERM; run again to resume")
                self.scheduler.check(time.monotonic())
                self._relist()
                self._submit()
                self._receive(self._wait())
                self._kill()
                self._give_up()
            self.scheduler.check(time.monotonic())
        finally:
            with suppress(RayError):  # without a cluster there is nothing to kill
                for actor in self._actors.values():
                    if actor is not None:
                        ray.kill(actor)
        return self._executed

    def _start(self, slot: int) -> None:
        actor = self._actors[slot] = self._actor_class.remote()
        answer = actor.start.remote(
            __version__, self._config.to_dict(), self._run.plan.fingerprint, self._run.store.url
        )
        self._calls[answer] = _Call(slot, "start")

    def _submit(self) -> None:
        now_s = time.monotonic()
        for attempt in self.scheduler.assign(now_s):
            answer = self._actors[attempt.slot].execute.remote(attempt.task, attempt.id)
            self._calls[answer] = _Call(attempt.slot, "execute", attempt)
        busy = {call.slot for call in self._calls.values() if call.method == "execute"}
        asked = {call.slot for call in self._calls.values() if call.method == "progress"}
        for slot in busy - asked:
            if now_s - self._polled_s.get(slot, 0.0) >= POLL_S:
                self._polled_s[slot] = now_s
                self._calls[self._actors[slot].progress.remote()] = _Call(slot, "progress")

    def _wait(self) -> list[Any]:
        """Returns the answers that are there, after a second at most."""
        if not self._calls:
            time.sleep(POLL_S)
            return []
        ready, rest = ray.wait(list(self._calls), num_returns=1, timeout=POLL_S, fetch_local=False)
        if ready and rest:
            ready += ray.wait(rest, num_returns=len(rest), timeout=0, fetch_local=False)[0]
        return ready

    def _receive(self, answers: list[Any]) -> None:
        """Takes answers in, good ones first: a worker's last receipt counts before its death does."""
        deaths = []
        for answer in answers:
            try:
                value = ray.get(answer)
            except RayError as error:
                deaths.append((answer, error))
            else:
                self._hear(self._calls.pop(answer), value)
        for answer, death in deaths:
            call = self._calls.get(answer)  # the first death of a worker took its other calls with it
            if call is not None:
                self._lose(call.slot, *self._cause(call, death))

    def _hear(self, call: _Call, value: Any) -> None:
        now_s = time.monotonic()
        match value:
            case Ready():
                self._workers[call.slot] = value
                self.scheduler.joined(call.slot, now_s)
            case StorageError():
                self.scheduler.storage_failed(str(value))
                self._lose(call.slot, "storage", str(value))
            case NisynthError():
                raise value
            case Receipt() if call.attempt is not None:
                self._settle(call.attempt, value)
                tell_engine(value, self._told, self._observer)
            case Refusal() if call.attempt is not None:
                self._refuse(call.attempt, value.kind, value.message)
            case Progress():
                self.scheduler.progress(call.slot, value.task, value.iteration, value.elapsed_s, now_s)
                iterations = self._config.method.iterations
                self._observer.step(value.task, value.iteration, iterations, value.losses)

    def _settle(self, attempt: Attempt, receipt: Receipt) -> None:
        try:
            outcome = self._outcome(receipt)
        except StorageError as error:
            self._refuse(attempt, "storage", str(error))
            return
        if outcome == "unknown":
            self._refuse(attempt, "storage", f"task {attempt.task}: its commit got no clear answer")
            return
        self._executed += outcome == "mine"
        duration_s = sum(receipt.seconds.values()) if receipt.seconds else None
        self.scheduler.finished(attempt, duration_s, time.monotonic())
        self._observer.task_done(receipt)

    def _outcome(self, receipt: Receipt) -> str:
        """Returns whose commit the task has; in single-writer mode, makes it first."""
        if receipt.outcome != "unknown":
            return receipt.outcome
        found = self._run.read(receipt.task)
        if found is not None:
            return "mine" if found.attempt == receipt.attempt else "other"
        return "unknown" if receipt.commit is None else self._run.commit(receipt.commit)

    def _refuse(self, attempt: Attempt, kind: str, message: str) -> None:
        self.scheduler.failed(attempt, kind, message, time.monotonic())
        self._observer.task_failed(attempt.task, kind, message.splitlines()[0], attempt.id)

    def _cause(self, call: _Call, error: RayError) -> tuple[str, str]:
        """Returns the scheduler's word for a worker's end, and one line about it."""
        line = _line(error)
        if isinstance(error, ActorDiedError) and error.preempted:
            return "preempted", line
        worker = self._workers.get(call.slot)
        if worker and worker.node_id not in live_nodes():
            return "node_died", f"node {worker.node_id[:12]} is gone"
        if isinstance(error, ActorUnavailableError):
            return "unavailable", line
        return ("start_failed" if call.method == "start" else "worker_died"), line

    def _lose(self, slot: int, kind: str, line: str) -> None:
        ray.kill(self._actors[slot])
        self._calls = {answer: call for answer, call in self._calls.items() if call.slot != slot}
        worker = self._workers.pop(slot, None)
        name = worker.name if worker else f"worker {slot}"
        again = self.scheduler.lost(slot, kind, f"{name}: {line}", time.monotonic())
        self._observer.note(f"{name} is gone ({kind}): {line}" + ("" if again else "; its slot is given up"))
        self._actors[slot] = None
        if again:
            self._start(slot)

    def _kill(self) -> None:
        for slot, kind, reason in self.scheduler.to_kill(time.monotonic()):
            self._lose(slot, kind, reason)

    def _give_up(self) -> None:
        for task, failures in list(self.scheduler.condemned.items()):
            give_up(self._run, self.scheduler, task, failures, self._observer)

    def _relist(self) -> None:
        """Drops what another driver did, and says so when nothing can run."""
        now_s = time.monotonic()
        for found in self._listing.fresh():
            if isinstance(found, StorageError):
                self.scheduler.storage_failed(str(found))
            else:
                self.scheduler.committed(found, now_s)
                self._announce()
        if self.scheduler.num_live > 0:
            self._noted_s = now_s
        elif now_s - self._noted_s > WAITING_NOTE_S:
            self._noted_s = now_s
            there = ", ".join(f"{number:g} {name}s" for name, number in resources().items())
            self._observer.note(f"no worker of {len(self._actors)} is up; the cluster has {there}")

    def _announce(self) -> None:
        plan = self._run.plan
        self._observer.started(plan.num_tasks, self.scheduler.num_committed, plan.num_images)


def _actor_class(config: RunConfig) -> Any:
    execution = config.execution
    gpus = execution.gpus_per_worker
    if gpus is None:
        gpus = 1.0 if resources()["GPU"] > 0 else 0.0
    return ray.remote(Actor).options(
        num_cpus=execution.cpu_threads,
        num_gpus=gpus,
        max_restarts=0,
        max_task_retries=0,
        # Two attempts, so that an upload overlaps the next compute, a report, and one to spare.
        max_concurrency=4,
    )


def _line(error: RayError) -> str:
    """Returns the line of Ray's paragraph that says what happened: how the process ended, else the last."""
    text = str(error).strip()
    _, found, detail = text.rpartition("Worker exit detail: ")
    line = detail.partition(" Some common causes")[0] if found else text.splitlines()[-1]
    return line.strip()[:300]
