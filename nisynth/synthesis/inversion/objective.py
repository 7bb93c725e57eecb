"""What a batch is optimized for: a list of weighted loss terms, Eq. 8 for the paper's."""

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor, nn

from nisynth.synthesis.inversion.config import InversionConfig
from nisynth.synthesis.inversion.priors import cross_entropy, feature_distribution, l2, total_variation
from nisynth.synthesis.inversion.term import Seen, Term

FeatureDistance = Callable[[Sequence[Tensor]], Tensor]
"""R_BN from what the teacher's `logits_and_bn_inputs` returns beside the logits."""

Losses = dict[str, Tensor]
"""The terms before their weights, by name, behind their weighted sum `total`; 0-dim float32 tensors."""


class Observed(Protocol):
    """A teacher, or graphs that stand for it."""

    @property
    def batch_norms(self) -> Sequence[nn.BatchNorm2d]:
        """The layers whose inputs `logits_and_bn_inputs` returns, in its order."""

    def logits_and_bn_inputs(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Returns logits `(B, C)` and the input of every BatchNorm2d, or what an engine's R_BN reads."""


def image_terms(
    config: InversionConfig, teacher: Observed, r_bn: FeatureDistance | None = None
) -> list[Term]:
    """Returns the terms of Eq. 8: L_CE (Eq. 2), R_BN (Eq. 3), R_TV and R_l2 (Eq. 4).

    `r_bn` computes R_BN from what the teacher observes; by default that is `feature_distribution`.
    """

    def feature_distance(bn_inputs: Sequence[Tensor]) -> Tensor:
        return feature_distribution(
            bn_inputs,
            teacher.batch_norms,
            first_bn_multiplier=config.first_bn_multiplier,
            bn_scale=config.bn_scale,
            slack=config.bn_slack,
        )

    distance, rescale, form = r_bn or feature_distance, config.rescale_priors, config.tv
    return [
        Term("ce", 1.0, lambda seen: cross_entropy(seen.logits, seen.labels)),
        Term("r_bn", config.bn_weight, lambda seen: distance(seen.bn_inputs)),
        Term("tv", config.tv_weight, lambda seen: total_variation(seen.images, rescale=rescale, form=form)),
        Term("l2", config.l2_weight, lambda seen: l2(seen.images, rescale=rescale)),
    ]


def losses(terms: Sequence[Term], teacher: Observed, images: Tensor, labels: Tensor) -> Losses:
    """Returns each term of normalized `(B, 3, H, W)` images with `(B,)` int64 labels, and their sum `total`.

    The teacher runs once for all terms.
    """
    seen = Seen(images, labels, *teacher.logits_and_bn_inputs(images))
    values = [term.value(seen) for term in terms]
    total = terms[0].weight * values[0]
    for term, value in zip(terms[1:], values[1:], strict=True):
        total = total + term.weight * value
    return {"total": total, **{term.name: value for term, value in zip(terms, values, strict=True)}}
