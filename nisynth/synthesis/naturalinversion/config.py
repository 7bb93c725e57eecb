"""Every option of NaturalInversion, with the published code's value as default.

The paper and its published code differ in places; each difference is one field here, and its comment
says what the paper has. Differences of no consequence for the image are settled without an option: the
published class of the pyramid has two layers that it never calls, and Eq. 5 counts its features off by
one against Table 7.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from nisynth.synthesis.inversion.bn_scale import BNScale
from nisynth.synthesis.inversion.config import check_options
from nisynth.synthesis.inversion.priors import TVForm
from nisynth.synthesis.inversion.rival import RivalConfig

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "cifar10": {"iterations": 2000, "bn_weight": 10.0, "tv_weight": 6.0e-3, "l2_weight": 1.5e-5},
    "cifar100": {"iterations": 4000, "bn_weight": 3.0, "tv_weight": 6.0e-3, "l2_weight": 1.5e-5},
    "short": {
        **{"iterations": 150, "bn_weight": 3.0, "tv_weight": 6.0e-3, "l2_weight": 1.5e-5},
        "alpha_mean": 2.0,
        "normalization": "reference",
    },
}
"""The fields of the paper's two experiments (appendix, "Experiments Settings"), and of runs of minutes.

`short` is ours: in some hundred iterations R_BN at weight 10 keeps cross-entropy from falling, and an alpha
that begins at 5 from coming back to what pixels can be, which is further away the larger the teacher's std,
hence the reference's units (benchmarks/results/teachers.md). It is what a run of
fewer than SHORT_RUN iterations takes that names no preset.
"""

SHORT_RUN = 500
"""In iterations: from here on the paper's weights have the time that they need."""


def default_preset(method: Mapping[str, Any]) -> str | None:
    """Returns the preset of a `method` section that names none: `short` for a short run, None for others.

    A section with `bn_scale: published` asks for the paper's loss, and keeps the paper's weights.
    """
    iterations = method.get("iterations")
    is_short = isinstance(iterations, int) and iterations < SHORT_RUN
    return "short" if is_short and method.get("bn_scale") != "published" else None


@dataclass(frozen=True, kw_only=True)
class NaturalInversionConfig:
    """How one batch is inverted. Raises ConfigError for a value that cannot be used.

    iterations: steps of Algorithm 1's inner loop ("inversion epochs"). Fewer than 500 take the preset `short`
        where the config names no preset and keeps `bn_scale: teacher`.
    latent_dim: length of z (Table 6).
    lr_generator, lr_pyramid, lr_alpha: Adam's rates, no schedule.
    bn_weight, tv_weight, l2_weight: the lambdas of Eq. 4 and of R_BN.
    rescale_priors: R_TV and R_l2 times sqrt(256/B), equal to the published code at B=256; false: as is.
    first_bn_multiplier: weight of the first BatchNorm's term within R_BN.
    bn_scale: `teacher` measures R_BN in the teacher's own scale, that of the paper's ResNet-34 being 1, so
        that the weights suit any network; `published` in the units of its activations (Eq. 3).
    bn_slack: how far a channel's statistics may be off for nothing, in units of what sampling B images
        makes them differ by (real images: about 0.3); 0 in paper and published code.
    jitter_px, flip: roll by -jitter_px..jitter_px on each axis, and mirror every second time; drawn once
        per iteration for the generator's image, and once more for the image that the losses see. Paper:
        neither (0, false).
    feature_gradient: whether the gradient also flows through the teacher's features into the generator.
        Implied by the paper; the published code takes the features without gradient.
    head: `tanh` is tanh(conv1x1(G + m_L)) (Table 7); `sum` is the bare sum of Eq. 7.
    pyramid, scaling: false leaves the part out (Table 3). Without the pyramid there is no head either, and
        the image is alpha * G; without the scaling alpha is 1, and the head stays as configured, so that
        `tanh` limits the image to 1 in normalized units (the paper does not say whether it does); without
        both, the image is G's.
    tv: `l2`, the norms of Eq. 4, or `l1`, see `total_variation`; give that one a weight of its own.
    rival: a student to compete with (`RivalConfig`): the paper's "NaturalInversion + ADI", whose weight it
        does not state.
    alpha_mean: alpha begins as N(alpha_mean, alpha_mean / 5), 5 in the paper: far outside of what a pixel can
        be, which short runs do not make good. 2 begins within it.
    normalization: whose mean and std the optimized images have, in whose units alpha, R_TV and R_l2 are:
        `teacher`, its own, as in the paper; `reference`, those of the paper's CIFAR-10 networks, so that the
        weights suit a teacher of any mean and std. The batch is in the teacher's either way.
    exchange: how many mixed images follow each optimized one, 0 in the paper. Of a batch of B images, the
        first ceil(B / (1 + exchange)) are optimized; the others are rendered from their generator with half
        of the channels of one of its maps swapped between two of them, at next to no cost. All labels are
        then observed: what the teacher says of the decoded image. Raise run.batch_size by as much, to
        optimize as many at once.
    select: `best` renders the iterate of lowest loss, `last` that of the last iteration (Algorithm 1).
    """

    name: Literal["naturalinversion"] = "naturalinversion"
    iterations: int = 2000
    latent_dim: int = 1024
    lr_generator: float = 1e-3
    lr_pyramid: float = 5e-4
    lr_alpha: float = 5e-2
    bn_weight: float = 10.0
    tv_weight: float = 6.0e-3
    l2_weight: float = 1.5e-5
    rescale_priors: bool = True
    first_bn_multiplier: float = 1.0
    bn_scale: BNScale = field(default="teacher", metadata={"added_later": True, "before": "published"})
    bn_slack: float = field(default=0.0, metadata={"added_later": True})
    jitter_px: int = 2
    flip: bool = True
    feature_gradient: bool = False
    head: Literal["tanh", "sum"] = "tanh"
    select: Literal["best", "last"] = "best"
    pyramid: bool = field(default=True, metadata={"added_later": True})
    scaling: bool = field(default=True, metadata={"added_later": True})
    tv: TVForm = field(default="l2", metadata={"added_later": True})
    alpha_mean: float = field(default=5.0, metadata={"added_later": True})
    normalization: Literal["teacher", "reference"] = field(default="teacher", metadata={"added_later": True})
    exchange: int = field(default=0, metadata={"added_later": True})
    rival: RivalConfig | None = field(default=None, metadata={"added_later": True})

    def __post_init__(self) -> None:
        check_options(self, at_least_one=("iterations", "latent_dim"), not_negative=_RATES_AND_WEIGHTS)


_RATES_AND_WEIGHTS = (
    "lr_generator",
    "lr_pyramid",
    "lr_alpha",
    "alpha_mean",
    "bn_weight",
    "tv_weight",
    "l2_weight",
    "first_bn_multiplier",
    "bn_slack",
    "exchange",
)
