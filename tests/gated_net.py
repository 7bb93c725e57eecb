"""A network that travels with a job and waits where a test wants it to.

Inside an actor, and nowhere else, it computes only while fewer commits lie in a folder than a file says:
the file at `gate` holds the number and the folder; without the file nothing waits. Beside the gate it tells
where the nisynth that uses it lies.
"""

import sys
import time
from pathlib import Path

from torch import Tensor, nn

import nisynth


class GatedNet(nn.Module):
    """The tiny network of two stages, 8x16² and 12x8², on 16 px images."""

    def __init__(self, num_classes: int = 4, gate: str = "") -> None:
        super().__init__()
        self.gate = Path(gate)
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.down = nn.Sequential(
            nn.Conv2d(8, 12, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU()
        )
        self.linear = nn.Linear(12, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        if Path(sys.argv[0]).name == "default_worker.py":
            (self.gate.parent / "nisynth").write_text(nisynth.__file__)
            while self._is_shut():
                time.sleep(0.05)
        return self.linear(self.down(self.stem(x)).mean(dim=(2, 3)))

    def _is_shut(self) -> bool:
        try:
            number, folder = self.gate.read_text().split()
        except FileNotFoundError:
            return False
        return len(list(Path(folder).glob("*.json"))) >= int(number)
