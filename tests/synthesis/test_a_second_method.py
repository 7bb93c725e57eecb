"""What a new inversion method costs: a config, a model of one batch's images, and a row of METHODS."""

from dataclasses import dataclass
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from nisynth.synthesis import METHODS, EngineConfig, MethodRow, inverting, make_synthesizer
from nisynth.synthesis.inversion.bn_scale import BNScale
from nisynth.synthesis.inversion.initialization import Weights
from nisynth.synthesis.inversion.model import Acceleration, ImageModel
from nisynth.synthesis.inversion.priors import TVForm
from nisynth.teachers import Teacher
from tests.synthesis.conftest import MakeTask


@dataclass(frozen=True, kw_only=True)
class PixelConfig:
    """Pixels under Eq. 2 and Eq. 3 alone."""

    name: str = "pixels"
    iterations: int = 5
    lr: float = 0.1
    bn_weight: float = 1.0
    tv_weight: float = 0.0
    l2_weight: float = 0.0
    tv: TVForm = "l2"
    rescale_priors: bool = True
    first_bn_multiplier: float = 1.0
    bn_scale: BNScale = "published"
    bn_slack: float = 0.0
    jitter_px: int = 2
    flip: bool = True
    select: Literal["best", "last"] = "best"
    rival: None = None


class Pixels(ImageModel):
    """x `(B, 3, H, W)`, initially N(0, 1)."""

    def __init__(self, config: PixelConfig, teacher: Teacher, batch_size: int) -> None:
        super().__init__()
        self.lr = config.lr
        self.x = nn.Parameter(torch.empty(batch_size, 3, teacher.input_px, teacher.input_px))

    def draw_weights(self, rng: torch.Generator) -> Weights:
        return {"x": torch.randn(self.x.shape, generator=rng)}

    def adam_groups(self) -> list[dict[str, Any]]:
        return [{"params": [self.x], "lr": self.lr}]

    def forward(self, y: Tensor, jitter: Tensor | None = None, by: Acceleration | None = None) -> Tensor:
        return self.x


ROW = MethodRow(
    summary="pixels", tables="-", cost=0.5, config=PixelConfig, presets={}, make=inverting(Pixels)
)


@pytest.mark.parametrize("select", ["best", "last"])
def test_it_runs_in_the_plain_loop_and_in_the_engine(
    odd_teacher: Teacher,
    make_task: MakeTask,
    monkeypatch: pytest.MonkeyPatch,
    select: Literal["best", "last"],
) -> None:
    monkeypatch.setitem(METHODS, "pixels", ROW)
    engines = EngineConfig(), EngineConfig(name="fast", precision="float32")
    plain, fast = (
        make_synthesizer(PixelConfig(select=select), engine, odd_teacher, log_every=1).synthesize(
            make_task(4)
        )
        for engine in engines
    )
    assert fast.figures["engine"] == "fast, float32"
    totals = [point["total"] for point in plain.curve]
    assert totals[-1] < totals[0]
    assert [point["total"] for point in fast.curve] == pytest.approx(totals, rel=1e-2)
    torch.testing.assert_close(fast.images, plain.images, rtol=0.1, atol=0.05)
