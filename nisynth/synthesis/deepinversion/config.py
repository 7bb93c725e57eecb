"""Every option of DeepInversion (CVPR-20), whose pixels are optimized directly.

The defaults are the settings that its CIFAR-10 README calls better than the paper's. Left out on purpose:
the published code returns the last iterate while it means to return the best, because its copy aliases the
memory that Adam updates; here `select` decides.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from nisynth.errors import ConfigError
from nisynth.synthesis.inversion.bn_scale import BNScale
from nisynth.synthesis.inversion.config import check_options
from nisynth.synthesis.inversion.priors import TVForm
from nisynth.synthesis.inversion.rival import RivalConfig

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "cifar10": {"iterations": 2000, "lr": 0.1, "bn_weight": 10.0, "tv_weight": 1e-3, "l2_weight": 0.0},
    "cifar10_paper": {
        "iterations": 2000,
        "lr": 0.05,
        "bn_weight": 10.0,
        "tv_weight": 2.5e-5,
        "l2_weight": 3e-8,
    },
    "cifar100": {"iterations": 4000, "lr": 0.1, "bn_weight": 3.0, "tv_weight": 1e-3, "l2_weight": 0.0},
    "imagenet": {
        "iterations": 3000,
        "half_size_iterations": 2000,
        "lr": 0.25,
        "betas": (0.5, 0.9),
        "schedule": "cosine",
        "bn_weight": 0.01,
        "first_bn_multiplier": 10.0,
        "tv_weight": 5.7e-5,
        "l2_weight": 6.25e-7,
        "jitter_px": 30,
        "flip": True,
        "clip": True,
    },
}
"""The published experiments.

cifar10, cifar10_paper: the README's two settings. cifar100: NaturalInversion's iterations and R_BN weight for
CIFAR-100; its authors do not state those of their DeepInversion rows. imagenet: setting 1 of the ImageNet
code for 224 px, of use from 64 px on; its norms of R_TV run over its batch of 84 and its R_l2 is a mean over
images, so that the weights here are 1e-4 sqrt(84/256) and 1e-5 / 16 (`rescale_priors`).
"""


@dataclass(frozen=True, kw_only=True)
class DeepInversionConfig:
    """How one batch is inverted. Raises ConfigError for a value that cannot be used.

    iterations: steps in all. half_size_iterations: how many of them, first, optimize the images' 2x2 means
        at half the side, with half the jitter; Adam then starts anew.
    lr, betas: Adam's. schedule: `constant`, or `cosine` with a warm-up (ImageNet).
    bn_weight, tv_weight, l2_weight, first_bn_multiplier, rescale_priors, bn_scale, bn_slack, tv: as in
        NaturalInversionConfig.
    jitter_px, flip: roll by -jitter_px..jitter_px on each axis, and mirror every second time, once per
        iteration.
    clip: after each step, clip the pixels to the range 0..255 (ImageNet).
    rival: a student to compete with (`RivalConfig`), which makes it Adaptive DeepInversion.
    select: `best` takes the iterate of lowest loss, `last` that of the last iteration.
    """

    name: Literal["deepinversion"] = "deepinversion"
    iterations: int = 2000
    half_size_iterations: int = 0
    lr: float = 0.1
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: Literal["constant", "cosine"] = "constant"
    bn_weight: float = 10.0
    tv_weight: float = 1e-3
    l2_weight: float = 0.0
    tv: TVForm = "l2"
    rescale_priors: bool = True
    first_bn_multiplier: float = 1.0
    bn_scale: BNScale = "published"
    bn_slack: float = 0.0
    jitter_px: int = 2
    flip: bool = False
    clip: bool = False
    select: Literal["best", "last"] = "best"
    rival: RivalConfig | None = None

    def __post_init__(self) -> None:
        check_options(
            self,
            at_least_one=("iterations",),
            not_negative=("lr", "bn_weight", "tv_weight", "l2_weight", "first_bn_multiplier", "bn_slack"),
        )
        if not 0 <= self.half_size_iterations < self.iterations:
            raise ConfigError(
                f"method.half_size_iterations: {self.half_size_iterations} is not within 0.."
                f"{self.iterations - 1}; some of method.iterations must run at full size"
            )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"method.betas: {self.betas} must be two numbers from 0 to below 1")
