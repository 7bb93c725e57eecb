"""The local crew: one worker in this process, task after task.

It computes where it is waited for, so Ctrl-C and SIGTERM end it in the middle of a task.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from nisynth.commits import Receipt, Run
from nisynth.config import RunConfig
from nisynth.errors import ConfigError, StorageError
from nisynth.execution.events import AttemptFailed, Report, Stepped, TaskDone, WorkerLost, WorkerReady
from nisynth.execution.ledger import Attempt
from nisynth.worker import Worker

POLL_S = 1.0


@contextmanager
def local_crew(config: RunConfig, run: Run, address: str | None = None) -> Iterator["LocalCrew"]:
    """Gives the crew of a run in this process. Raises ConfigError for an address."""
    if address is not None:
        raise ConfigError(f"address {address!r}: the local executor joins no cluster; use --executor ray")
    yield LocalCrew(config, run)


class LocalCrew:
    """One worker, in slot 0."""

    def __init__(self, config: RunConfig, run: Run) -> None:
        self._config, self._run = config, run
        self._worker: Worker | None = None
        self._starting = False
        self._attempt: Attempt | None = None

    def start(self, slot: int) -> None:
        self._starting = True

    def submit(self, attempt: Attempt) -> None:
        self._attempt = attempt

    def wait(self, hear: Callable[[Report], None]) -> None:
        """Starts the worker, or carries out what was submitted."""
        if self._starting:
            self._starting = False
            hear(self._started())
        elif self._attempt is not None and self._worker is not None:
            attempt, self._attempt = self._attempt, None
            hear(self._carry_out(attempt, self._worker, hear))
        else:
            time.sleep(POLL_S)

    def kill(self, slot: int) -> None:
        self._worker, self._attempt = None, None

    def _started(self) -> Report:
        try:
            self._worker = Worker(self._config, self._run.plan.fingerprint, self._run.store.url)
        except StorageError as error:
            return WorkerLost(0, "storage", str(error))
        return WorkerReady(0, self._worker.name, device=self._worker.device)

    def _carry_out(self, attempt: Attempt, worker: Worker, hear: Callable[[Report], None]) -> Report:
        began_s = time.monotonic()  # nobody else holds the compute lock

        def on_step(iteration: int, losses: Mapping[str, float]) -> None:
            elapsed_s = time.monotonic() - began_s
            hear(Stepped(0, attempt.task, iteration, worker.iterations, losses, elapsed_s))

        answer = worker.attempt(attempt.task, attempt.id, on_step)
        if isinstance(answer, Receipt):
            return TaskDone(attempt, answer)
        return AttemptFailed(attempt, answer.kind, answer.text)
