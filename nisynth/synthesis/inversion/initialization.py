"""Initial weights drawn from an explicit generator, by the rules of the published code.

torch's layers draw theirs from the global generator when they are constructed; a task must not depend
on it, and a long-lived engine re-initializes the same layers for every task.
"""

import math

import torch
from torch import Tensor, nn

Weights = dict[str, Tensor]
"""Parameters by name, on the CPU, float32."""


def default_weights(layer: nn.Linear | nn.Conv2d, rng: torch.Generator) -> Weights:
    """Returns weight and bias by torch's default rule: both uniform within 1/sqrt(fan-in)."""
    bound = 1 / math.sqrt(_fan_in(layer))
    assert layer.bias is not None
    return {
        "weight": torch.empty(layer.weight.shape).uniform_(-bound, bound, generator=rng),
        "bias": torch.empty(layer.bias.shape).uniform_(-bound, bound, generator=rng),
    }


def kaiming_weights(layer: nn.Conv2d, rng: torch.Generator) -> Weights:
    """Returns Kaiming-normal weights by fan-in, N(0, 2/fan-in), and a bias of zero."""
    assert layer.bias is not None
    std = math.sqrt(2 / _fan_in(layer))
    return {
        "weight": torch.empty(layer.weight.shape).normal_(0.0, std, generator=rng),
        "bias": torch.zeros(layer.bias.shape),
    }


def batch_norm_weights(layer: nn.BatchNorm2d, rng: torch.Generator) -> Weights:
    """Returns gamma ~ N(1, 0.02) and a beta of zero."""
    return {
        "weight": torch.empty(layer.num_features).normal_(1.0, 0.02, generator=rng),
        "bias": torch.zeros(layer.num_features),
    }


def prefixed(name: str, weights: Weights) -> Weights:
    """Returns the weights under `name.`, as in the state dict of the module that holds the layer."""
    return {f"{name}.{key}": value for key, value in weights.items()}


def _fan_in(layer: nn.Linear | nn.Conv2d) -> int:
    return layer.weight[0].numel()
