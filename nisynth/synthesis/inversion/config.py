"""The options that every inversion method has, and the check of their values."""

import math
from collections.abc import Iterable
from typing import Literal, Protocol

from nisynth.errors import ConfigError
from nisynth.synthesis.inversion.bn_scale import BNScale
from nisynth.synthesis.inversion.priors import TVForm
from nisynth.synthesis.inversion.rival import RivalConfig
from nisynth.synthesis.protocol import Method


class InversionConfig(Method, Protocol):
    """What both loops read of a method's config, which is a frozen dataclass with at least these fields.

    bn_weight, tv_weight, l2_weight: the weights of R_BN (Eq. 3) and of Eq. 4's two terms.
    tv: the form of R_TV. rescale_priors: R_TV and R_l2 times sqrt(256/B).
    first_bn_multiplier, bn_scale, bn_slack: see `feature_distribution`.
    jitter_px, flip: see `draw_jitter`. select: which iterate is the result.
    rival: a student to compete with, or None.
    """

    @property
    def bn_weight(self) -> float: ...
    @property
    def tv_weight(self) -> float: ...
    @property
    def l2_weight(self) -> float: ...
    @property
    def tv(self) -> TVForm: ...
    @property
    def rescale_priors(self) -> bool: ...
    @property
    def first_bn_multiplier(self) -> float: ...
    @property
    def bn_scale(self) -> BNScale: ...
    @property
    def bn_slack(self) -> float: ...
    @property
    def jitter_px(self) -> int: ...
    @property
    def flip(self) -> bool: ...
    @property
    def rival(self) -> RivalConfig | None: ...
    @property
    def select(self) -> Literal["best", "last"]: ...


def check_options(config: object, *, at_least_one: Iterable[str], not_negative: Iterable[str]) -> None:
    """Raises ConfigError for a field of a method's config whose number cannot be used."""
    values = vars(config)
    for field in at_least_one:
        if values[field] < 1:
            raise ConfigError(f"method.{field}: {values[field]} is too small; give 1 or more")
    if values["jitter_px"] < 0:
        raise ConfigError(f"method.jitter_px: {values['jitter_px']} is negative; give 0 (no roll) or more")
    for field in not_negative:
        if not (math.isfinite(values[field]) and values[field] >= 0):
            raise ConfigError(
                f"method.{field}: {values[field]} cannot be used; give a finite number, 0 or more"
            )
