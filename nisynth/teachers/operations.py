"""The operations of a forward pass: which shapes are feature maps, and BatchNorms that no module runs."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

SPATIAL_OPERATIONS = ("conv", "batch_norm", "group_norm", "pool2d", "upsample", "pad2d", "grid_sampler_2d")
"""Parts of the names of torch's operations that treat dimensions 2 and 3 as height and width."""

SPATIAL_REDUCTIONS = ("aten::mean", "aten::sum", "aten::amax")
"""Operations that reduce a map to one value a channel, when they are given dimensions 2 and 3."""


def first_tensor(output: Any) -> Tensor | None:
    """Returns the tensor, or the first tensor of a tuple, list or mapping; None where there is none."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        output = tuple(output.values())
    if isinstance(output, (tuple, list)):
        return next((item for item in output if isinstance(item, Tensor)), None)
    return None


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watches the operations of a forward pass: which shapes are maps, and BatchNorms that are no modules."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.functional_norms = 0
        self._depth = 0
        self._maps: set[tuple[int, ...]] = set()

    def enter_norm(self, step: int) -> None:
        """Notes that a module with running statistics begins (1) or ends (-1): what it runs is its own."""
        self._depth += step

    def is_map(self, shape: torch.Size, image: torch.Size) -> bool:
        """Returns whether an output of this shape is a feature map of the images, one for each.

        That is where some operation read or wrote its `(C, H, W)` as channels, height and width: attention
        scores `(B, heads, tokens, tokens)` and tokens `(B, H, W, C)` are 4-D, too.
        """
        return tuple(shape) in self._maps and shape[0] == image[0] and shape[2] <= image[2]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name: str = func._schema.name
        if "batch_norm" in name and not self._depth and _uses_running_statistics(args):
            self.functional_norms += 1
        given = [value for value in args if isinstance(value, Tensor)][:1]
        if any(part in name for part in SPATIAL_OPERATIONS):
            self._maps.update(_shapes(given))
            if not ("adaptive" in name and _grows(given, result)):
                self._maps.update(_shapes([first_tensor(result)]))
        elif name in SPATIAL_REDUCTIONS and len(args) > 1 and _is_spatial(args[1]):
            self._maps.update(_shapes(given))
        return result


def _uses_running_statistics(args: tuple[Any, ...]) -> bool:
    """Decides by torch's arguments: input, weight, bias, running mean and variance, often training."""
    training = next((value for value in args if isinstance(value, bool)), False)
    return args[0].ndim == 4 and len(args) > 4 and isinstance(args[3], Tensor) and not training


def _shapes(tensors: Sequence[Tensor | None]) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape) for tensor in tensors if tensor is not None and tensor.ndim == 4]


def _grows(given: Sequence[Tensor], result: Any) -> bool:
    """Returns whether a pooling repeats values, as one to 7x7 does with a 1x1 map (VGG on small images)."""
    after = first_tensor(result)
    return after is not None and bool(given) and after.shape[-1] > given[0].shape[-1]


def _is_spatial(dims: Any) -> bool:
    return isinstance(dims, Sequence) and sorted(dim % 4 for dim in dims) == [2, 3]
