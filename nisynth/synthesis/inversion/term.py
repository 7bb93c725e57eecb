"""A loss term, and what it may read."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor


class Seen(NamedTuple):
    """What a loss term may read: the images with their jitter, their labels, and the teacher's view of them.

    images: `(B, 3, H, W)` float32, normalized. labels: `(B,)` int64. logits: `(B, C)`.
    bn_inputs: the input of every BatchNorm2d, or their moments, which only the engine's R_BN reads.
    """

    images: Tensor
    labels: Tensor
    logits: Tensor
    bn_inputs: Sequence[Tensor]


class Term(NamedTuple):
    """One loss term: its name in curves, its weight, and its value as a 0-dim float32 tensor."""

    name: str
    weight: float
    value: Callable[[Seen], Tensor]
