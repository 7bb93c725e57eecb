"""The actor: a worker inside Ray, and what it may say to the driver.

It adds to the worker only what distance needs: a handshake, a report of where the compute is, and failures
as values, so that no exception of anyone's network has to survive a journey through pickle. A few hundred
bytes per message, never images.
"""

import time
from collections.abc import Mapping
from typing import Any

import ray

from nisynth.commits import Receipt
from nisynth.config import load_config
from nisynth.errors import NisynthError, PlanMismatch, TaskFailure
from nisynth.execution.events import Stepped, WorkerReady
from nisynth.identity import __version__
from nisynth.worker import Worker


class Actor:
    """Holds a worker for as long as its process lives. Its methods run in threads beside each other."""

    def __init__(self, slot: int) -> None:
        self._slot = slot
        self._worker: Worker | None = None
        self._computing: tuple[int, int, dict[str, float], float] | None = None

    def start(
        self, version: str, config: Mapping[str, Any], fingerprint: str, store_url: str
    ) -> WorkerReady | NisynthError:
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
        return WorkerReady(self._slot, self._worker.name, node_id, self._worker.device)

    def execute(self, task: int, attempt: str) -> Receipt | TaskFailure:
        """Returns the receipt of one attempt, or why it failed."""
        assert self._worker is not None, "the driver submits tasks after start() has returned"
        return self._worker.attempt(task, attempt, lambda *step: self._on_step(task, *step))

    def progress(self) -> Stepped | None:
        """Returns where the compute is; None before the first task."""
        if self._computing is None or self._worker is None:
            return None
        task, iteration, losses, since_s = self._computing
        elapsed_s = time.monotonic() - since_s
        return Stepped(self._slot, task, iteration, self._worker.iterations, losses, elapsed_s)

    def _on_step(self, task: int, iteration: int, losses: Mapping[str, float]) -> None:
        now_s = time.monotonic()
        since_s = now_s if iteration == 0 or self._computing is None else self._computing[3]
        self._computing = (task, iteration, dict(losses), since_s)
