"""Competition with a rival: a loss term for images on which teacher and student disagree.

This is the term of Adaptive DeepInversion.

The gradient reaches the images through both networks; the weights of neither take any. Teacher and rival see
the same image, jitter included, and the rival stays in eval mode.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nisynth.batch import ImageBatch, Task
from nisynth.errors import ConfigError, TeacherError, one_line
from nisynth.synthesis.artefacts import differing_normalization
from nisynth.synthesis.inversion.priors import at_least_float32
from nisynth.synthesis.inversion.term import Seen, Term
from nisynth.synthesis.protocol import StepCallback, Synthesizer
from nisynth.teachers import Teacher, build_network
from nisynth.teachers.checkpoint import hash_weights, read_checkpoint
from nisynth.teachers.logits import logits_of
from nisynth.teachers.narrow import PRUNED, narrow_to
from nisynth.teachers.predict import share


@dataclass(frozen=True, kw_only=True)
class RivalConfig:
    """Which student to compete with, and how.

    weights: a path or URL of its weights; the fingerprint holds their hash instead. arch, kwargs: as a
        teacher's.
    loss: `js` is 1 - D, with D as `disagreement` has it (DeepInversion); `masked_kl` is minus the divergence
        of teacher and rival over the images on which they still agree (CMI).
    weight: of the term. 10 is what reproductions use on CIFAR with an R_BN weight of 10, 0.2 DeepInversion's
        on ImageNet with 0.01; masked_kl is published with 0.5 to 1.33.
    temperature: divides the logits; by default 3 for js, 1 for masked_kl.
    floor: js clips probabilities to floor..1 - floor. With 100 classes 0.01 is the uniform probability, and
        clips most of them.
    """

    weights: str
    arch: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    loss: Literal["js", "masked_kl"] = "js"
    weight: float = 10.0
    temperature: float | None = None
    floor: float = 0.01

    def __post_init__(self) -> None:
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise ConfigError(
                f"method.rival.weight: {self.weight} cannot be used; give a finite number, 0 or more"
            )
        if self.temperature is not None and not 0 < self.temperature < math.inf:
            raise ConfigError(f"method.rival.temperature: {self.temperature} is not above 0")
        if not 0 <= self.floor < 0.5:
            raise ConfigError(f"method.rival.floor: {self.floor} is not within 0..0.5")

    def value(self, teacher_logits: Tensor, rival_logits: Tensor) -> Tensor:
        """Returns the term before its weight, 0-dim, from `(B, C)` logits."""
        if self.loss == "masked_kl":
            return masked_divergence(teacher_logits, rival_logits, self.temperature or 1.0)
        d = disagreement(teacher_logits, rival_logits, self.temperature or 3.0, self.floor)
        return 1 - d.clamp(0, 1)


def disagreement(teacher: Tensor, rival: Tensor, temperature: float = 3.0, floor: float = 0.01) -> Tensor:
    """Returns D, 0-dim: 0 where both agree, at most 1.6145 with the published floor.

    D = KL(M || P) / 2 + KL(M || Q) / 2, with P and Q the rival's and the teacher's probabilities at
    `temperature` and M their mean; all three are clipped to floor..1 - floor afterwards, without being
    normalized again, and D is the mean over the batch. Published code (DeepInversion); it calls D the
    Jensen-Shannon divergence, whose KLs have the arguments the other way round.
    """
    q, p = (at_least_float32(logits).div(temperature).softmax(1) for logits in (teacher, rival))
    p, q, m = (part.clamp(floor, 1 - floor) for part in (p, q, (p + q) / 2))
    to_p, to_q = ((m * (m.log() - part.log())).sum(1).mean() for part in (p, q))
    return to_p / 2 + to_q / 2


def masked_divergence(teacher: Tensor, rival: Tensor, temperature: float = 1.0) -> Tensor:
    """Returns minus the mean over the batch of KL(teacher || rival), 0 for images they disagree on; 0-dim.

    CMI's: an image on which the two name different classes is left alone.
    """
    t, s = at_least_float32(teacher) / temperature, at_least_float32(rival) / temperature
    divergence = F.kl_div(s.log_softmax(1), t.log_softmax(1), reduction="none", log_target=True).sum(1)
    return -(divergence * (t.argmax(1) == s.argmax(1))).mean()


@dataclass(frozen=True, eq=False)
class Rival:
    """A student in eval mode whose weights take no gradient. sha256: of its weights, as a teacher's.

    states: nothing more of it belongs to a run's identity.
    """

    network: nn.Module
    sha256: str
    num_classes: int
    states: Mapping[str, Any] = field(default_factory=dict)

    def logits(self, x: Tensor) -> Tensor:
        """Returns `(B, C)` logits of normalized images `(B, 3, H, W)`."""
        return logits_of(self.network(x), len(x), self.num_classes)


def load_rival(config: RivalConfig, teacher: Teacher) -> Rival:
    """Returns the rival of a teacher, on its device.

    Raises ConfigError, TeacherError or StorageError, one line that names the field of `method.rival`: weights
    that are not there, of another network or number of classes, or trained with another mean and std.
    """
    try:
        checkpoint = read_checkpoint(config.weights)
        differing = differing_normalization(checkpoint.metadata, teacher.normalization)
        if differing is not None:
            raise ConfigError(f"teacher.weights {config.weights}: trained with {differing}")
        network = build_network(config.arch, teacher.num_classes, **config.kwargs).float()
        if PRUNED in checkpoint.metadata:
            narrow_to(network, checkpoint.tensors)
        checkpoint.load_into(network, config.arch)
    except (ConfigError, TeacherError) as error:
        line = str(error).replace("teacher.num_classes", "method.rival.weights")
        line = line.replace("teacher.", "method.rival.")
        raise type(error)(f"method.rival.{line}" if line.startswith("arch") else line) from error.__cause__
    network = network.to(teacher.device).eval().requires_grad_(False)
    rival = Rival(network, hash_weights(network), teacher.num_classes)
    _check_forward(rival, teacher)
    return rival


def _check_forward(rival: Rival, teacher: Teacher) -> None:
    side = teacher.input_px
    try:
        with torch.no_grad():
            logits = rival.logits(torch.zeros(2, 3, side, side, device=teacher.device))
    except TeacherError as error:  # an output without logits
        raise TeacherError(f"method.rival.arch: {str(error).partition(': ')[2]}") from None
    except Exception as error:  # the user's network may raise anything
        raise TeacherError(
            f"method.rival.arch: the network's forward of 2 RGB images of {side} px raised {one_line(error)}"
        ) from error
    if logits.shape != (2, teacher.num_classes) or not bool(torch.isfinite(logits).all()):
        raise TeacherError(
            f"method.rival.arch: 2 images give an output of {tuple(logits.shape)}; it must be "
            f"(2, {teacher.num_classes}) and finite"
        )


def competition(config: RivalConfig, rival: Rival) -> Term:
    """Returns the loss term of a rival."""

    def value(seen: Seen) -> Tensor:
        return config.value(seen.logits, rival.logits(seen.images))

    return Term("competition", config.weight, value)


class Judged:
    """A synthesizer whose batches also say how far teacher and rival disagree, and whether the rival errs.

    figures: `rival_accuracy`, 0 to 1, of the images as they are (not decoded), and `disagreement`, D.
    """

    def __init__(self, synthesizer: Synthesizer, teacher: Teacher, rival: Rival) -> None:
        self._synthesizer, self._teacher, self._rival = synthesizer, teacher, rival

    @property
    def notes(self) -> Sequence[str]:
        """Returns those of the synthesizer."""
        return self._synthesizer.notes

    def synthesize(self, task: Task, on_step: StepCallback | None = None) -> ImageBatch:
        """Returns the task's batch, with two more figures."""
        batch = self._synthesizer.synthesize(task, on_step)
        x = batch.images.to(self._teacher.device)
        with torch.no_grad():
            teacher, rival = self._teacher.logits(x), self._rival.logits(x)
        hits = rival.argmax(1).cpu() == batch.labels
        judged = {"rival_accuracy": share(hits), "disagreement": float(disagreement(teacher, rival))}
        return replace(batch, figures={**batch.figures, **judged})
