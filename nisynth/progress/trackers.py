"""Experiment trackers as listeners of a run: Weights & Biases, MLflow, TensorBoard.

Each imports its library when it hears its first event, so that nothing is needed where none is used:

    nisynth.run(config, url, listeners=[wandb_tracker(project="synthesis")])
"""

from collections.abc import Callable, Mapping
from typing import Any

from nisynth.execution.events import AttemptFailed, Ended, Event, Listed, TaskDone, WorkerLost

Log = Callable[[Mapping[str, float], int], object]
Open = Callable[[], tuple[Log, Callable[[], object]]]


class Tracker:
    """A listener that gives the figures of every finished task to a tracker's `log(figures, step)`.

    step: tasks that were committed by this driver. open_log: called at the first event; returns `log`, and
    what closes it.
    """

    def __init__(self, open_log: Open) -> None:
        self._open = open_log
        self._log: Log | None = None
        self._close: Callable[[], object] = lambda: None
        self._done = self._images = self._failures = self._losses = 0

    def __call__(self, event: Event) -> None:
        if self._log is None and isinstance(event, Listed):
            self._log, self._close = self._open()
        match event:
            case TaskDone() if self._log is not None and event.receipt.outcome != "other":
                self._done += 1
                self._images += event.receipt.rows
                self._log(self._figures(event), self._done)
            case AttemptFailed():
                self._failures += 1
            case WorkerLost():
                self._losses += 1
            case Ended():
                self._close()

    def _figures(self, done: TaskDone) -> dict[str, float]:
        receipt = done.receipt
        quality = {
            f"quality/{name}": float(value)
            for name, value in receipt.figures.items()
            if isinstance(value, int | float)
        }
        seconds = {f"seconds/{stage}": spent for stage, spent in receipt.seconds.items()}
        counts = {"images": self._images, "failures": self._failures, "worker_losses": self._losses}
        return {**counts, **seconds, **quality}


def wandb_tracker(**options: Any) -> Tracker:
    """Returns a listener that logs to Weights & Biases; options: of `wandb.init`."""

    def open_log() -> tuple[Log, Callable[[], object]]:
        import wandb

        run = wandb.init(**options)
        return lambda figures, step: run.log(dict(figures), step=step), run.finish

    return Tracker(open_log)


def mlflow_tracker(**options: Any) -> Tracker:
    """Returns a listener that logs to MLflow; options: of `mlflow.start_run`."""

    def open_log() -> tuple[Log, Callable[[], object]]:
        import mlflow

        mlflow.start_run(**options)
        return lambda figures, step: mlflow.log_metrics(dict(figures), step=step), mlflow.end_run

    return Tracker(open_log)


def tensorboard_tracker(folder: str) -> Tracker:
    """Returns a listener that writes TensorBoard's event files into a folder."""

    def open_log() -> tuple[Log, Callable[[], object]]:
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(folder)

        def log(figures: Mapping[str, float], step: int) -> None:
            for name, value in figures.items():
                writer.add_scalar(name, value, step)

        return log, writer.close

    return Tracker(open_log)
