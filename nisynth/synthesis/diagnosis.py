"""Before a run: how its losses balance. After a batch that failed: which never fell, and what to change."""

import contextlib
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from nisynth.batch import REAL_R_BN_IN_Y
from nisynth.errors import one_line
from nisynth.synthesis.inversion.bn_scale import sampling_noise
from nisynth.synthesis.inversion.config import InversionConfig
from nisynth.synthesis.inversion.priors import cross_entropy, feature_distribution
from nisynth.synthesis.judgement import Judgement
from nisynth.synthesis.methods import METHODS
from nisynth.teachers import Teacher

NOISE_IMAGES = 32
NOISE_IMAGES_OF_MANY_PIXELS = 8
MANY_PX = 96
"""Images of N(0, 1), which an inversion nearly begins with, on which the balance of the losses is measured;
fewer where they have more than 96 pixels a side, so that a CPU needs seconds."""

RECOGNISED = 0.5
"""Of a batch's images: from here on the gate is what it failed at, no setting of the teacher is wrong."""
UNSETTLED_CE = 0.25
"""Of ln C, which guessing gives: above it, the images of a batch are not yet of their classes."""
UNSETTLED_R_BN = 2.0
"""In units of Y: above it, the statistics are not yet those of the teacher's training (noise: 4-25)."""


def what_to_change(
    curve: Sequence[Mapping[str, float]], judgement: Judgement, num_classes: int, method: Any
) -> str:
    """Returns which loss term of an unrecognised batch never fell, and what to change, in one line.

    curve: the batch's loss terms by iteration, with `ce` and `r_bn` where the method has them.
    method: its config.
    """
    settings = "teacher.mean/std (the teacher's own, in units of pixel value / 255)"
    if not curve or "ce" not in curve[-1]:
        return f"check {settings}"
    chance, r_bn = math.log(num_classes), judgement.r_bn_in_y
    ce = curve[-1]["ce"]
    matched = f"R_BN is {r_bn:.1f} Y (real images: {REAL_R_BN_IN_Y})"
    iterations = getattr(method, "iterations", "?")
    if judgement.teacher_accuracy >= RECOGNISED:
        return (
            f"most images are recognised (cross-entropy {ce:.2f}, guessing: {chance:.2f}; {matched}), so the"
            f" gate asks for more than this run gives: lower execution.quality_gate below"
            f" {judgement.teacher_accuracy:.2f}, or raise method.iterations ({iterations})"
        )
    if ce < UNSETTLED_CE * chance:
        return (
            f"the loss saw other images than these: its cross-entropy fell to {ce:.2f}, and {matched}; "
            f"check {settings} and output.pixels"
        )
    from_to = f"{curve[0]['ce']:.2f} -> {ce:.2f} (guessing: {chance:.2f})"
    if r_bn > UNSETTLED_R_BN:
        return (
            f"neither cross-entropy, {from_to}, nor R_BN fell far enough ({matched}); "
            f"raise method.iterations ({iterations}), and check {settings}"
        )
    return (
        f"cross-entropy did not fall far enough: {from_to}, while {matched}; {_less_r_bn(method)}, or raise"
        f" method.iterations ({iterations})"
    )


def more_classes(method: Any) -> str:
    """Returns what to change where observed labels leave classes out, in one line. method: its config."""
    if method.name == "sampling":
        return (
            "the generator leaves classes out: fit it longer, or with a higher method.balance_weight (dafl)"
        )
    return "the images are not of the planned classes: raise method.iterations"


def _less_r_bn(method: Any) -> str:
    weight = getattr(method, "bn_weight", 0.0)
    if getattr(method, "bn_scale", "teacher") == "published":
        return "set method.bn_scale to teacher"
    return f"lower method.bn_weight from {weight:g} to {weight / 3:.2g}"


def balance(teacher: Teacher, method: InversionConfig, batch_size: int) -> dict[str, str]:
    """Returns, in words, the teacher's yardstick Y and how CE and R_BN pull at noise: one backward pass each.

    The shares are of the norms of both gradients by the image, each with its weight.
    """
    noise = sampling_noise(teacher.batch_norms)
    num_images = NOISE_IMAGES if teacher.input_px <= MANY_PX else NOISE_IMAGES_OF_MANY_PIXELS
    rng = torch.Generator().manual_seed(0)
    size = (num_images, 3, teacher.input_px, teacher.input_px)
    x = torch.randn(size, generator=rng).to(teacher.device).requires_grad_()
    labels = torch.arange(num_images, device=teacher.device) % teacher.num_classes
    with contextlib.redirect_stdout(sys.stderr):  # a network's prints would break `plan --json`
        logits, inputs = teacher.logits_and_bn_inputs(x)
    r_bn = feature_distribution(
        inputs,
        teacher.batch_norms,
        first_bn_multiplier=method.first_bn_multiplier,
        bn_scale=method.bn_scale,
        slack=method.bn_slack,
    )
    raw = feature_distribution([value.detach() for value in inputs], teacher.batch_norms)
    (of_ce,) = torch.autograd.grad(cross_entropy(logits, labels), x, retain_graph=True)
    (of_r_bn,) = torch.autograd.grad(method.bn_weight * r_bn, x)
    ce, bn = float(of_ce.norm()), float(of_r_bn.norm())
    weights = f"ce 1, r_bn {method.bn_weight:g}, tv {method.tv_weight:g}, l2 {method.l2_weight:g}"
    return {
        "Y": f"{noise.y(batch_size):.3g} at batch size {batch_size}",
        "R_BN of noise": f"{float(raw) / noise.y(num_images):.1f} Y at batch size {num_images}",
        "weights": f"{weights}, bn_scale {method.bn_scale}{_preset(method)}",
        "gradient": f"{bn / (ce + bn):.0%} R_BN, {ce / (ce + bn):.0%} cross-entropy, on noise",
    }


def _preset(method: InversionConfig) -> str:
    """Returns in words the preset whose fields, all but the iterations, a config has; else nothing."""
    presets = METHODS[method.name].presets
    same = [
        name
        for name, fields in presets.items()
        if all(getattr(method, field) == value for field, value in fields.items() if field != "iterations")
    ]
    return f" (preset {max(same, key=lambda name: len(presets[name]))})" if same else ""


def balance_line(teacher: Teacher, method: InversionConfig, batch_size: int) -> str:
    """Returns `balance` in one line; raises nothing: a run is not to end for a remark about it."""
    try:
        found = balance(teacher, method, batch_size)
    except Exception as error:  # anyone's network runs in there, and may raise anything
        return f"how the losses balance cannot be told: {one_line(error)}"
    return "; ".join(f"{name} {value}" for name, value in found.items())


def progress_made(curve: Sequence[Mapping[str, float]], num_classes: int) -> str | None:
    """Returns in words how far an unrecognised batch's losses have come; None where they stand still.

    They are on their way while cross-entropy is below what guessing gives and still falling, by a
    twentieth or more over the last third of the curve.
    """
    values = [record["ce"] for record in curve if "ce" in record]
    third = len(values) // 3
    if third < 1:
        return None
    before, after = (statistics.median(part) for part in (values[-2 * third : -third], values[-third:]))
    if after > 0.95 * before or after > math.log(num_classes):
        return None
    return (
        f"cross-entropy still falls: {values[0]:.2f} -> {after:.2f} (guessing: {math.log(num_classes):.2f})"
    )
