"""The engine's arithmetic, and whether a device supports it.

Statistics, norms, softmax, the head, the optimizer and the rendering of the result are float32 in each.
`float32` is IEEE throughout; `tf32` rounds the factors of convolutions to TF32; `bfloat16` and `float16`
run convolutions and what lies between them in 16 bits, through autocast.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from nisynth.device import float32_arithmetic
from nisynth.errors import ConfigError

# Gradients of single pixels are near 1e-6, below float16's normal range; scaled by this they are not. Those
# of one image are 14 times those of 64 (seen: 55,000 and 3,900 when scaled), and float16 ends at 65,504.
FLOAT16_LOSS_SCALE, FULL_SCALE_BATCH = 4096.0, 64


@dataclass(frozen=True)
class Arithmetic:
    """An arithmetic that the device supports. loss_scale: a power of two, for the loss of large batches."""

    name: str
    dtype: torch.dtype = torch.float32
    loss_scale: float = 1.0

    def scale(self, batch_size: int) -> float:
        """Returns what multiplies the loss of a batch before the backward pass, a power of two."""
        part = 2.0 ** math.floor(math.log2(batch_size / FULL_SCALE_BATCH))
        return max(1.0, self.loss_scale * min(1.0, part))

    @contextmanager
    def applied(self, device: torch.device) -> Iterator[None]:
        """Runs its block on `device` with this float32 arithmetic, and restores the settings after.

        Matrix products stay IEEE float32 with `tf32` too: torch 2.11's compiler raises where their precision
        was set through this interface, the only one that is not deprecated.
        """
        on_device = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
        with on_device, float32_arithmetic(tf32_convolutions=self.name == "tf32", benchmark=True):
            yield

    def autocast(self, device: torch.device) -> torch.autocast:
        """Returns the context in which convolutions and linear layers run in `dtype`."""
        return torch.autocast(device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)


@contextmanager
def untuned() -> Iterator[None]:
    """Runs its block without cuDNN's search for algorithms, which does not pay for what runs once."""
    cudnn: Any = torch.backends.cudnn
    before = cudnn.benchmark
    cudnn.benchmark = False
    try:
        yield
    finally:
        cudnn.benchmark = before


FLOAT32 = Arithmetic("float32")
_ALL = {
    "float32": FLOAT32,
    "tf32": Arithmetic("tf32"),
    "bfloat16": Arithmetic("bfloat16", torch.bfloat16),
    "float16": Arithmetic("float16", torch.float16, FLOAT16_LOSS_SCALE),
}


def resolve(asked: str, device: torch.device) -> Arithmetic:
    """Returns the precision that `engine.precision` names on this device.

    `auto` is bfloat16 where the device has units for it, else float32. Raises ConfigError, which says what
    would work, where the device lacks what is asked for.
    """
    able = _on_cuda(device) if device.type == "cuda" else _on_cpu()
    if asked == "auto":
        return _ALL["bfloat16" if "bfloat16" in able else "float32"]
    if asked not in able:
        raise ConfigError(
            f"engine.precision {asked!r}: {_name(device)} does not support it; "
            f"set engine.precision to auto or {' or '.join(able)}"
        )
    return _ALL[asked]


def _on_cuda(device: torch.device) -> list[str]:
    capability = torch.cuda.get_device_capability(device)
    if capability >= (8, 0):
        return ["bfloat16", "float16", "tf32", "float32"]
    return ["float16", "float32"] if capability >= (7, 0) else ["float32"]


def _on_cpu() -> list[str]:
    # torch has no public question for these. float16 on a CPU is emulated, and slower than float32.
    cpu: Any = torch.cpu
    bfloat16 = cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported()
    return ["bfloat16", "float32"] if bfloat16 else ["float32"]


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return f"{torch.cuda.get_device_name(device)} (compute capability {major}.{minor})"
    return "this CPU"
