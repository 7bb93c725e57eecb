"""A tiny teacher that goes wrong or waits on demand, and that shows in which processes it is at work."""

import os

from torch import Tensor

from tests.faulty_teacher import FaultyNet, is_of_a_loss

WAIT = "wait"
AT_WORK = "at-work-"


class ChaosNet(FaultyNet):
    """The faulty network; every process in which it computes losses leaves a file `at-work-PID`."""

    def forward(self, x: Tensor) -> Tensor:
        if is_of_a_loss(x):
            (self.faults / f"{AT_WORK}{os.getpid()}").touch()
        return super().forward(x)
