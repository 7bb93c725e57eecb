"""Prometheus metrics of a run, through Ray's own exporter: every node of the cluster serves them.

`cluster/grafana-dashboard.json` shows them. Ray puts `ray_` before each name; every series has a `run`, the
first 12 digits of the fingerprint.
"""

from typing import Any

import ray
from ray.util.metrics import Counter, Gauge, Histogram

from nisynth.execution.events import (
    AttemptFailed,
    AttemptStarted,
    Event,
    Listed,
    Stepped,
    TaskDone,
    TaskQuarantined,
    WorkerLost,
    WorkerReady,
)
from nisynth.storage import Store

SECONDS = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0]
GAUGES = {
    "nisynth_tasks": (
        "Tasks of the run by state: committed, in_flight, quarantined, left.",
        ("run", "state"),
    ),
    "nisynth_workers": ("Workers that are ready.", ("run",)),
}
COUNTERS = {
    "nisynth_images": ("Images that this driver's workers committed.", ("run",)),
    "nisynth_compute_seconds": ("Seconds of GPU (or CPU) compute of committed tasks.", ("run",)),
    "nisynth_failures": ("Failed attempts by kind.", ("run", "kind")),
    "nisynth_store_retries": (
        "Requests to the store that were sent again, by sender: driver or workers.",
        ("run", "sender"),
    ),
    "nisynth_worker_losses": ("Lost workers by kind.", ("run", "kind")),
}
HISTOGRAMS = {
    "nisynth_stage_seconds": (
        "Seconds of a task by stage; put and commit are the store's latency, its retries included.",
        ("run", "stage"),
    ),
}


class RayMetrics:
    """A listener that keeps the metrics of one run up to date while this process is connected to Ray.

    store: the driver's own, whose retries count beside those of the workers.
    """

    def __init__(self, fp12: str, store: Store) -> None:
        self._run, self._store = {"run": fp12}, store
        self._metrics: dict[str, Any] = {}
        self._total = self._committed = self._quarantined = 0
        self._ready: set[int] = set()
        self._in_flight: dict[str, int] = {}
        self._told_retries = 0

    def __call__(self, event: Event) -> None:
        if not ray.is_initialized():  # before the connection, or after it
            return
        if isinstance(event, Stepped):  # by far the most, and nothing is counted by them
            return
        if not self._metrics:
            self._metrics = _made()
        self._count(event)
        self._record(event)
        self._count_driver_retries()
        self._set_gauges()

    def _count(self, event: Event) -> None:
        match event:
            case Listed():
                self._total, self._committed = event.total_tasks, event.committed
            case AttemptStarted():
                self._in_flight[event.attempt.id] = event.attempt.slot
            case TaskDone():
                self._committed += 1
                self._in_flight.pop(event.attempt.id, None)
            case AttemptFailed():
                self._in_flight.pop(event.attempt.id, None)
            case TaskQuarantined():
                self._quarantined += 1
            case WorkerReady():
                self._ready.add(event.slot)
            case WorkerLost():
                self._ready.discard(event.slot)
                self._in_flight = {name: slot for name, slot in self._in_flight.items() if slot != event.slot}

    def _record(self, event: Event) -> None:
        match event:
            case TaskDone():
                for stage, seconds in event.receipt.seconds.items():
                    self._metrics["nisynth_stage_seconds"].observe(seconds, {**self._run, "stage": stage})
                self._count_retries("workers", event.receipt.store_retries)
                if event.receipt.outcome != "other":
                    self._metrics["nisynth_images"].inc(event.receipt.rows, self._run)
                    self._metrics["nisynth_compute_seconds"].inc(event.receipt.compute_s or 0.0, self._run)
            case AttemptFailed():
                self._metrics["nisynth_failures"].inc(1, {**self._run, "kind": event.kind})
            case WorkerLost():
                self._metrics["nisynth_worker_losses"].inc(1, {**self._run, "kind": event.kind})

    def _count_driver_retries(self) -> None:
        told, self._told_retries = self._told_retries, self._store.retries
        self._count_retries("driver", self._told_retries - told)

    def _count_retries(self, sender: str, number: int) -> None:
        if number:
            self._metrics["nisynth_store_retries"].inc(number, {**self._run, "sender": sender})

    def _set_gauges(self) -> None:
        self._metrics["nisynth_workers"].set(len(self._ready), self._run)
        committed = min(self._committed, self._total)
        in_flight = len(self._in_flight)
        left = max(0, self._total - committed - self._quarantined - in_flight)
        states = {
            "committed": committed,
            "in_flight": in_flight,
            "quarantined": self._quarantined,
            "left": left,
        }
        for state, number in states.items():
            self._metrics["nisynth_tasks"].set(number, {**self._run, "state": state})


def _made() -> dict[str, Any]:
    metrics: dict[str, Any] = {}
    for name, (text, tags) in GAUGES.items():
        metrics[name] = Gauge(name, text, tags)
    for name, (text, tags) in COUNTERS.items():
        metrics[name] = Counter(name, text, tags)
    for name, (text, tags) in HISTOGRAMS.items():
        metrics[name] = Histogram(name, text, SECONDS, tags)
    return metrics
