"""Learning rates that change from step to step, without a number from the host."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

WARM_UP_STEPS = 100


def warm_up_and_cosine(iterations: int) -> list[float]:
    """Returns the factor of each step's learning rate: a linear rise, then half a cosine down to near 0.

    The rise takes 100 steps (DeepInversion's ImageNet code), or a tenth of a shorter loop.
    """
    rise = min(WARM_UP_STEPS, max(1, iterations // 10))
    fall = max(1, iterations - rise)
    return [
        (i + 1) / rise if i < rise else 0.5 * (1 + math.cos(math.pi * (i - rise) / fall))
        for i in range(iterations)
    ]


class LearningRates:
    """Sets the learning rates of an Adam before each step, from a table on its device.

    The rates become tensors, so that a captured CUDA graph reads its step's. Without `factors` they stay
    the numbers that they are.
    """

    def __init__(self, adam: torch.optim.Adam, factors: Sequence[float] | None, device: torch.device) -> None:
        self._rates: list[tuple[Tensor, Tensor]] = []
        for group in adam.param_groups if factors is not None else ():
            table = torch.tensor(factors, device=device) * group["lr"]
            group["lr"] = table[0].clone()
            self._rates.append((group["lr"], table))

    def set(self, step: Tensor) -> None:
        """Sets the rates of a step, a 0-dim int64 tensor counted from 0."""
        for rate, table in self._rates:
            rate.copy_(table.index_select(0, step.view(1))[0])
