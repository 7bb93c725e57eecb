"""The Ray crew: actors on a cluster.

All actors are asked for at once and Ray holds those that do not fit yet, so that a node that joins later is
used as soon as it is there. Actors are never restarted and calls never retried by Ray (`max_restarts=0,
max_task_retries=0`): attempts are the scheduler's. Not `ActorPool`, which keeps picking dead actors, and not
Ray Data, which hides who failed where.
"""

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import Event
from typing import Any

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, OutOfMemoryError, RayError

from nisynth.commits import Receipt, Run
from nisynth.config import RunConfig
from nisynth.errors import (
    LossKind,
    NisynthError,
    Stalled,
    Stopped,
    StorageError,
    TaskFailure,
    counted,
    last_line,
)
from nisynth.execution.actors import Actor
from nisynth.execution.cluster import connected, free_resources, live_nodes, resources, sigterm_noted
from nisynth.execution.events import (
    AttemptFailed,
    Note,
    Report,
    Stepped,
    TaskDone,
    WorkerLost,
    WorkerReady,
)
from nisynth.execution.ledger import Attempt
from nisynth.identity import __version__

POLL_S = 1.0
WAITING_NOTE_S = 30.0

Hear = Callable[[Report], None]


@contextmanager
def ray_crew(
    config: RunConfig,
    run: Run,
    address: str | None = None,
    *,
    actor: type[Actor] = Actor,
    version: str = __version__,
) -> Iterator["RayCrew"]:
    """Gives the crew of a run, on a cluster that is joined, or started, for the time of the block.

    address: a cluster's `host:port` or `auto`; None is RAY_ADDRESS where it is set, as inside a job, else
    a cluster of this machine's own. actor, version: what the workers are, and the driver's version that
    they must have. Raises ConfigError when no cluster answers, Stalled when the connection to it breaks.
    """
    with connected(address, config.execution), sigterm_noted() as sigterm:
        try:
            yield RayCrew(config, run, sigterm, actor, version)
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


class RayCrew:
    """An actor per slot, and the calls that are under way."""

    def __init__(self, config: RunConfig, run: Run, sigterm: Event, actor: type[Actor], version: str) -> None:
        self._sigterm = sigterm
        self._execution = config.execution
        gpus = config.execution.gpus_per_worker
        self._gpus = (1.0 if resources()["GPU"] > 0 else 0.0) if gpus is None else gpus
        self._actor_class: Any = ray.remote(actor).options(
            num_cpus=config.execution.cpu_threads,
            num_gpus=self._gpus,
            max_restarts=0,
            max_task_retries=0,
            # Two attempts, so that an upload overlaps the next compute; a progress call; and one to spare.
            max_concurrency=4,
        )
        self._handshake = (version, config.to_dict(), run.plan.fingerprint, run.store.url)
        self._actors: dict[int, Any] = {}
        self._ready: dict[int, WorkerReady] = {}
        self._calls: dict[Any, _Call] = {}
        self._polled_s: dict[int, float] = {}
        self._noted_s = time.monotonic()

    def start(self, slot: int) -> None:
        actor = self._actors[slot] = self._actor_class.remote(slot)
        self._calls[actor.start.remote(*self._handshake)] = _Call(slot, "start")

    def submit(self, attempt: Attempt) -> None:
        answer = self._actors[attempt.slot].execute.remote(attempt.task, attempt.id)
        self._calls[answer] = _Call(attempt.slot, "execute", attempt)

    def wait(self, hear: Hear) -> None:
        if self._sigterm.is_set():
            raise Stopped("stopped by SIGTERM; run again to resume")
        self._ask_for_progress()
        self._note_waiting(hear)
        self._receive(self._answers(), hear)

    def kill(self, slot: int) -> None:
        actor = self._actors.pop(slot, None)
        self._ready.pop(slot, None)
        self._calls = {answer: call for answer, call in self._calls.items() if call.slot != slot}
        if actor is not None:
            with suppress(RayError):  # without a cluster there is nothing to kill
                ray.kill(actor)

    def _ask_for_progress(self) -> None:
        now_s = time.monotonic()
        busy = {call.slot for call in self._calls.values() if call.method == "execute"}
        asked = {call.slot for call in self._calls.values() if call.method == "progress"}
        for slot in busy - asked:
            if now_s - self._polled_s.get(slot, 0.0) >= POLL_S:
                self._polled_s[slot] = now_s
                self._calls[self._actors[slot].progress.remote()] = _Call(slot, "progress")

    def _answers(self) -> list[Any]:
        """Waits a second at most for an answer, and returns all that have come."""
        if not self._calls:
            time.sleep(POLL_S)
            return []
        ready, rest = ray.wait(list(self._calls), num_returns=1, timeout=POLL_S, fetch_local=False)
        if ready and rest:
            ready += ray.wait(rest, num_returns=len(rest), timeout=0, fetch_local=False)[0]
        return ready

    def _receive(self, answers: list[Any], hear: Hear) -> None:
        """Reports the answers, receipts before deaths: what a worker finished before it died shall count."""
        deaths = []
        for answer in answers:
            try:
                value = ray.get(answer)
            except RayError as error:
                deaths.append((answer, error))
            else:
                call = self._calls.pop(answer, None)
                if call is not None:  # else an earlier answer took the worker from its slot
                    self._report(call, value, hear)
        for answer, death in deaths:
            call = self._calls.get(answer)
            if call is not None:  # the first death of a worker takes its other calls with it
                kind, line = self._cause(call, death)
                hear(WorkerLost(call.slot, kind, line))

    def _report(self, call: _Call, value: Any, hear: Hear) -> None:
        match value:
            case WorkerReady():
                self._ready[call.slot] = value
                hear(value)
            case Stepped():
                hear(value)
            case Receipt() if call.attempt is not None:
                hear(TaskDone(call.attempt, value))
            case TaskFailure() if call.attempt is not None:
                hear(AttemptFailed(call.attempt, value.kind, value.text))
            case StorageError():
                hear(WorkerLost(call.slot, "storage", str(value)))
            case NisynthError():
                raise value

    def _cause(self, call: _Call, error: RayError) -> tuple[LossKind, str]:
        """Returns the scheduler's word for a worker's end, and one line about it."""
        line = _line(error)
        if isinstance(error, OutOfMemoryError):
            # All workers of the node together took too much memory, so the task may not be the cause and does
            # not count it. The slot does: else a node would be filled again for ever.
            used = re.search(r"[\d.]+GB used / [\d.]+GB", str(error))
            detail = used[0] if used else line
            return "node_memory", f"Ray ended it because its node is out of memory: {detail}"
        if isinstance(error, ActorDiedError) and error.preempted:
            return "preempted", line
        worker = self._ready.get(call.slot)
        if worker and worker.node not in live_nodes():
            return "node_died", f"node {worker.node[:12]} is gone"
        if isinstance(error, ActorUnavailableError):
            return "unavailable", line
        return ("start_failed" if call.method == "start" else "worker_died"), line

    def _note_waiting(self, hear: Hear) -> None:
        """Says every 30 s, while no worker is ready, what one needs and what the cluster has."""
        now_s = time.monotonic()
        if self._ready:
            self._noted_s = now_s
        elif now_s - self._noted_s > WAITING_NOTE_S:
            self._noted_s = now_s
            needs = f"{self._execution.cpu_threads} CPUs, {self._gpus:g} GPUs"
            hear(
                Note(
                    f"waiting for {counted(len(self._actors), 'worker')} to start; a worker needs {needs};"
                    f" the cluster has {_shown(resources())}, {_shown(free_resources())} of them free"
                )
            )


def _shown(amounts: Mapping[str, float]) -> str:
    return ", ".join(f"{number:g} {name}s" for name, number in amounts.items())


def _line(error: RayError) -> str:
    """Returns the line of Ray's paragraph that says what happened: how the process ended, else the last."""
    _, found, detail = str(error).rpartition("Worker exit detail: ")
    line = detail.partition(" Some common causes")[0] if found else last_line(str(error))
    return line.strip()[:300]
