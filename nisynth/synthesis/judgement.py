"""What the teacher says of finished images, whatever method made them: how many it recognises, and R_BN.

R_BN is given in units of Y (`inversion.bn_scale`), what sampling noise alone would give, so that it can be
compared between networks and batch sizes. Real images that a CIFAR-10 teacher was not trained on have
0.3-0.4 at B=32 and 0.5-0.7 at B=256: far below that, images match the statistics of training better than
real ones do, which has not made better training data of them.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from nisynth.synthesis.engine.statistics import FeatureDistribution, moments
from nisynth.synthesis.inversion.bn_scale import REFERENCE
from nisynth.teachers import Teacher

CHUNK = 32
"""Images whose features are in memory at a time."""


class Judgement(NamedTuple):
    """teacher_accuracy: fraction, 0..1, classified as labelled. r_bn_in_y: R_BN in units of Y, 0 or more."""

    teacher_accuracy: float
    r_bn_in_y: float


@torch.no_grad()
def judge(teacher: Teacher, pixels: Tensor, labels: Tensor) -> Judgement:
    """Returns the teacher's judgement of decoded images `(N, 3, H, W)` uint8 with labels `(N,)`."""
    hits, of_layers = 0, []
    for start in range(0, len(pixels), CHUNK):
        part = slice(start, start + CHUNK)
        x = teacher.normalization.normalize(pixels[part].to(teacher.device))
        logits, inputs = teacher.logits_and_bn_inputs(x)
        hits += int((logits.argmax(1) == labels[part].to(teacher.device)).sum())
        of_layers.append(
            [moments(x, _mean(norm)) for x, norm in zip(inputs, teacher.batch_norms, strict=True)]
        )
    r_bn = FeatureDistribution(teacher.batch_norms, bn_scale="teacher")
    distance = r_bn([torch.cat(parts) for parts in zip(*of_layers, strict=True)])
    return Judgement(hits / len(labels), float(distance) / REFERENCE.y(len(labels)))


def class_balance(labels: Tensor, num_classes: int) -> float:
    """Returns the entropy of labels `(N,)` as a share, 0..1, of that of balanced classes.

    Miller and Madow's estimate, (classes seen - 1) / 2N above the plain one, and held against ln min(C, N):
    few labels drawn evenly from many classes count as balanced.
    """
    counts = torch.bincount(labels.cpu(), minlength=num_classes).double()
    seen = counts[counts > 0] / len(labels)
    most = math.log(min(num_classes, len(labels)))
    if most == 0:
        return 1.0
    entropy = float(-(seen * seen.log()).sum()) + (len(seen) - 1) / (2 * len(labels))
    return min(1.0, entropy / most)


def _mean(norm: torch.nn.BatchNorm2d) -> Tensor:
    assert norm.running_mean is not None
    return norm.running_mean
