"""A training's progress in lines: one per epoch, and one every 10 s of a long one, with speed and ETA."""

import time
from collections.abc import Callable, Mapping

from nisynth.progress import Rate, format_rate, format_seconds

Say = Callable[[str], None]
"""Prints one line for a person."""

LINES_EVERY_S = 10.0


def silent(line: str) -> None:
    """Says nothing."""


class TrainingLog:
    """Prints a training's progress from its steps and epochs. num_epochs, batch_size: of the training."""

    def __init__(
        self, say: Say, num_epochs: int, batch_size: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._say, self._clock = say, clock
        self._num_epochs, self._batch_size = num_epochs, batch_size
        self._rate = Rate(clock)
        self._first: int | None = None
        self._pace = ""
        self._next_line_s = clock() + LINES_EVERY_S

    def on_step(self, done: int, total: int) -> None:
        """Measures the speed, and prints it where nothing was printed for 10 s."""
        if self._first is None:
            # The first step compiles and warms up; what comes after it tells the pace.
            self._first, self._rate = done, Rate(self._clock)
            if done > 1:
                self._line(f"continuing from the checkpoint at step {done - 1:,} of {total:,}")
            return
        ends_epoch = done * self._num_epochs % total == 0
        if self._clock() < self._next_line_s and not ends_epoch:
            return
        images_per_s = self._rate.per_s((done - self._first) * self._batch_size)
        eta_s = self._rate.eta_s(done - self._first, total - done)
        speed = "" if images_per_s is None else format_rate(images_per_s)
        self._pace = f"{speed}, ETA {'unknown' if eta_s is None else format_seconds(eta_s)}"
        if not ends_epoch:  # the epoch's own line follows
            self._line(f"step {done:,} of {total:,}: {self._pace}")

    def on_epoch(self, record: Mapping[str, float]) -> None:
        """Prints the epoch's loss and accuracies."""
        facts = [f"loss {record['loss']:.4g}", f"train {record['train_accuracy']:.1%}"]
        if "test_accuracy" in record:
            facts.append(f"test {record['test_accuracy']:.2%}")
        if self._pace:
            facts.append(self._pace)
        self._line(f"epoch {record['epoch']:.0f} of {self._num_epochs}: {', '.join(facts)}")

    def _line(self, text: str) -> None:
        self._next_line_s = self._clock() + LINES_EVERY_S
        self._say(text)
