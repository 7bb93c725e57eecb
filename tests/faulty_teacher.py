"""A tiny teacher that goes wrong when a file in a folder says so, in whatever process it computes.

`folder/exit` makes every process exit; `folder/exit-1`, `folder/exit-2` are two tokens, each taken by one
process once. `folder/wait` holds all computing up until the file is gone, but for one pass for each
`folder/step-N`; `folder/slow` makes every pass take a quarter of a second without computing, so that a task
takes as long on a busy machine. Only passes of the losses are meant: those with a gradient to the input, and
more images than the two that loading looks at.
"""

import ctypes
import os
import time
from pathlib import Path

import torch
from torch import Tensor

from nisynth.synthesis.diagnosis import NOISE_IMAGES
from nisynth.teachers.probe import BATCH_SIZE as PROBE_BATCH_SIZE
from tests.tiny import TinyNet

SLOW_PASS_S = 0.25


class FaultyNet(TinyNet):
    """The tiny network, with a folder of faults."""

    def __init__(self, num_classes: int, folder: str) -> None:
        super().__init__(num_classes)
        self.faults = Path(folder)

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return self._go_wrong(logits) if is_of_a_loss(x) else logits

    def _go_wrong(self, logits: Tensor) -> Tensor:
        while (self.faults / "wait").exists() and not self._is_told("step"):
            time.sleep(0.02)
        if (self.faults / "slow").exists():
            time.sleep(SLOW_PASS_S)
        if self._is_told("exit"):
            os._exit(1)
        if self._is_told("sysexit"):
            raise SystemExit(3)
        if self._is_told("segfault"):
            ctypes.string_at(0)
        if self._is_told("hang"):
            time.sleep(3600)
        if self._is_told("raise"):
            raise RuntimeError("the network broke")
        if self._is_told("memory"):
            raise torch.OutOfMemoryError("CUDA out of memory (not really)")
        return logits * float("nan") if self._is_told("nan") else logits

    def _is_told(self, fault: str) -> bool:
        for token in self.faults.glob(f"{fault}-*"):
            try:
                token.unlink()
                return True
            except FileNotFoundError:
                continue  # another process took it
        return (self.faults / fault).exists()


def is_of_a_loss(x: Tensor) -> bool:
    """Tells whether a forward pass of these images is one of the losses of a task.

    A driver's own passes have other sizes: the two images of loading, and the noise that weighs the losses.
    """
    return x.requires_grad and torch.is_grad_enabled() and PROBE_BATCH_SIZE < len(x) < NOISE_IMAGES


def hold_after(folder: Path, tasks: int, workers: int, iterations: int = 2) -> None:
    """Lets at least so many tasks be finished and then holds all workers, however late anybody looks.

    Of the passes that are let through, each worker may have spent all but the last of a task on one more.
    """
    steps = iterations * tasks + (iterations - 1) * workers
    tell(folder, *(f"step-{number}" for number in range(steps)), "wait")


def tell(folder: Path, *faults: str) -> None:
    """Puts files into the folder of faults."""
    folder.mkdir(exist_ok=True)
    for fault in faults:
        (folder / fault).touch()
