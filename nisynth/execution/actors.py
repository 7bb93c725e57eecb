"""The actor: a worker inside Ray, and what it may say to the driver.

It adds to the worker only what distance needs: a handshake, a look for the commit before the work, a
report of where the compute is, and failures as values, so that no exception of anyone's network has to
survive a journey through pickle. A few hundred bytes per message, never images.
"""

import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray

from nisynth import __version__
from nisynth.commits import Receipt
from nisynth.config import load_config
from nisynth.errors import NisynthError, PlanMismatch, StorageError, TaskFailure
from nisynth.worker import Worker


@dataclass(frozen=True)
class Ready:
    """The worker is up: its name (host/pid), the node it lives on, the device it computes on."""

    name: str
    node_id: str
    device: str


@dataclass(frozen=True)
class Refusal:
    """One attempt ended without a commit; `kind` is a word of the scheduler's."""

    kind: str
    message: str


@dataclass(frozen=True)
class Progress:
    """Where the compute is: `elapsed_s` counts from the moment that the task took the lock."""

    task: int
    iteration: int
    losses: dict[str, float]
    elapsed_s: float


class Actor:
    """Holds a worker for as long as its process lives. Its methods run in threads beside each other."""

    def __init__(self) -> None:
        self._worker: Worker | None = None
        self._computing: tuple[int, int, dict[str, float], float] | None = None

    def start(
        self, version: str, config: Mapping[str, Any], fingerprint: str, store_url: str
    ) -> Ready | NisynthError:
        """Loads the teacher; returns why this worker must not take part, if it must not."""
        context = ray.get_runtime_context()
        node_id = context.get_node_id()
        # A GPU that Ray gave to others is still in sight of a worker that asked for none.
        device = None if context.get_accelerator_ids()["GPU"] else "cpu"
        try:
            if version != __version__:
                raise PlanMismatch(
                    f"worker on node {node_id[:12]}: has nisynth {__version__}, the driver {version};"
                    " install one version on every node"
                )
            self._worker = Worker(load_config(config), fingerprint, store_url, device)
        except NisynthError as error:
            return error
        return Ready(self._worker.name, node_id, self._worker.device)

    def execute(self, task: int, attempt: str) -> Receipt | Refusal:
        """Returns the receipt of one attempt, or why it failed."""
        assert self._worker is not None, "the driver submits tasks after start() has returned"
        try:
            done = self._worker.committed_before(task, attempt)
            return done or self._worker.execute(task, attempt, lambda *step: self._on_step(task, *step))
        except TaskFailure as failure:
            message = f"{failure}\n{failure.trace}" if failure.trace else str(failure)
            return Refusal(failure.kind, message)
        except StorageError as error:
            return Refusal("storage", str(error))
        except Exception as error:
            return Refusal(
                "raised", f"task {task}: {type(error).__name__}: {error}\n{traceback.format_exc()}"
            )

    def progress(self) -> Progress | None:
        """Returns where the compute is; None before the first task."""
        if self._computing is None:
            return None
        task, iteration, losses, since_s = self._computing
        return Progress(task, iteration, losses, time.monotonic() - since_s)

    def _on_step(self, task: int, iteration: int, losses: Mapping[str, float]) -> None:
        now_s = time.monotonic()
        since_s = now_s if iteration == 0 or self._computing is None else self._computing[3]
        self._computing = (task, iteration, dict(losses), since_s)
