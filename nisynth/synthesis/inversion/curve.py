"""The loss curve of a task: what every loop logs, and passes on to a listener."""

from collections.abc import Mapping

import torch

from nisynth.synthesis.inversion.objective import Losses
from nisynth.synthesis.protocol import StepCallback


class LossCurve:
    """The loss terms of the first, every `log_every`-th and the last iteration (Figure 5).

    Iterations count from 1: point k holds the losses of the iterate before the k-th step.
    """

    def __init__(self, iterations: int, log_every: int, on_step: StepCallback | None) -> None:
        self.points: list[dict[str, float]] = []
        self._iterations = iterations
        self._log_every = log_every
        self._on_step = on_step

    def wants(self, iteration: int) -> bool:
        """Returns whether this iteration is a point of the curve."""
        return iteration in (1, self._iterations) or iteration % self._log_every == 0

    def add(self, iteration: int, terms: Losses) -> None:
        """Reads the terms from the device, keeps them and passes them on."""
        values = dict(zip(terms, torch.stack(list(terms.values())).tolist(), strict=True))
        self.points.append({"iteration": iteration, **values})
        if self._on_step is not None:
            self._on_step(iteration, values)

    def final(self) -> Mapping[str, float]:
        """Returns the last point's terms as figures: `final_total`, `final_ce`, ..."""
        return {f"final_{name}": value for name, value in self.points[-1].items() if name != "iteration"}
