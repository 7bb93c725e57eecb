"""WGAN-GP (Gulrajani et al., 2017) on real images: the only method that reads any, and says so.

The hash of the set is part of the fit's identity and of every run that samples the generator, and the
dataset card names it.
"""

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nisynth.errors import ConfigError
from nisynth.fitting.critics import DCGANCritic, ResNetCritic
from nisynth.fitting.fit import FitConfig, take_step
from nisynth.fitting.with_student import make_generator
from nisynth.images import LabelledImages
from nisynth.images.real import load_real_set
from nisynth.synthesis.generators import FittedGenerator, GeneratorSpec
from nisynth.teachers import Teacher

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "resnet": {},
    "dcgan": {
        **{"network": "dcgan", "width": 64, "iterations": 200_000, "lr": 1e-4, "betas": [0.5, 0.9]},
        **{"schedule": "constant", "generator_batches": 1, "dither": False},
    },
}
"""The published code's two CIFAR-10 experiments, both with batch 64."""


@dataclass(frozen=True, kw_only=True)
class WGANGPConfig:
    """The published residual networks' values are the defaults. Raises ConfigError for an unusable value.

    data: the real set, as `nisynth evaluate` reads one. split: which of its splits. network: of generator
    and critic. width: their channels. latent_dim: length of the generator's input. conditional: labels for
    generator and critic (AC-GAN). iterations: steps of the generator, each after `critic_steps` of the
    critic. critic_steps: of the critic for each. lr, betas: of both Adams. generator_batches: batches in a
    generator's step. schedule: `linear` falls to 0. penalty_weight: of the gradient penalty. dither: uniform
    noise of half a grey level on real images (x / 256); else none (x / 255). class_weight_critic,
    class_weight_generator: of the class logits' cross-entropies.
    """

    name: Literal["wgan_gp"] = "wgan_gp"
    data: str = ""
    split: str = "train"
    network: Literal["resnet", "dcgan"] = "resnet"
    conditional: bool = False
    width: int = 128
    latent_dim: int = 128
    iterations: int = 100_000
    critic_steps: int = 5
    generator_batches: int = 2
    lr: float = 2e-4
    betas: tuple[float, float] = (0.0, 0.9)
    schedule: Literal["linear", "constant"] = "linear"
    penalty_weight: float = 10.0
    dither: bool = True
    class_weight_critic: float = 1.0
    class_weight_generator: float = 0.1

    def __post_init__(self) -> None:
        if not self.data:
            raise ConfigError(
                "method.data: missing; give the real images to fit to, a Parquet file or folder"
            )
        for name in ("width", "latent_dim", "iterations", "critic_steps", "generator_batches"):
            if getattr(self, name) < 1:
                raise ConfigError(f"method.{name}: {getattr(self, name)} is not at least 1")
        for name in ("penalty_weight", "class_weight_critic", "class_weight_generator"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"method.{name}: {getattr(self, name)} is not a finite number, 0 or more")
        if not 0 < self.lr < math.inf:
            raise ConfigError(f"method.lr: {self.lr} is not above 0")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"method.betas: {list(self.betas)} are not within 0..1")


def gradient_penalty(score: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, share: Tensor) -> Tensor:
    """Returns the mean over images of (||grad D(x_hat)|| - 1)^2, 0-dim, before its weight.

    x_hat = x + share (G(z) - x); share: `(B,)`, 0..1. score: `(B,)` of images `(B, ...)`.
    """
    shape = (-1, *[1] * (real.ndim - 1))
    x_hat = (real + share.view(shape) * (fake - real)).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(score(x_hat).sum(), x_hat, create_graph=True)
    penalty: Tensor = (gradient.flatten(1).norm(dim=1) - 1).square().mean()
    return penalty


def critic_loss(real: Tensor, fake: Tensor, penalty: Tensor, penalty_weight: float = 10.0) -> Tensor:
    """Returns L_D, 0-dim, of scores `(B,)`."""
    return fake.mean() - real.mean() + penalty_weight * penalty


def generator_loss(fake: Tensor) -> Tensor:
    """Returns L_G, 0-dim, of scores `(B,)`."""
    return -fake.mean()


class WGANGP:
    """The fit. Raises ConfigError or DataError for a real set that does not fit the teacher."""

    student: nn.Module | None = None

    def __init__(self, config: FitConfig, teacher: Teacher) -> None:
        options: WGANGPConfig = config.method
        self._config, self._options, self._device = config, options, teacher.device
        self._real = read_real_set(options, teacher)
        self._num_classes = teacher.num_classes
        spec = GeneratorSpec(
            arch=f"wgan_{options.network}",
            num_classes=teacher.num_classes,
            image_px=teacher.input_px,
            latent_dim=options.latent_dim,
            width=options.width,
            conditional=options.conditional,
        )
        self._fitted = make_generator(spec, teacher)
        if options.network == "resnet":
            critic: nn.Module = ResNetCritic(options.width, spec.given_classes)
        else:
            critic = DCGANCritic(options.width, spec.given_classes, teacher.input_px)
        self._critic = critic.to(teacher.device)
        self.networks = nn.ModuleDict({"generator": self._fitted, "critic": self._critic})
        self.optimizers = [
            torch.optim.Adam(network.parameters(), lr=options.lr, betas=options.betas, fused=True)
            for network in (self._fitted, self._critic)
        ]
        self.identity = {"real_images": {"num_images": len(self._real), "sha256": hash_images(self._real)}}

    def step(self, iteration: int) -> Mapping[str, Tensor]:
        """Takes the critic's steps and one of the generator; `total` is the generator's loss."""
        options = self._options
        decay = 1 - iteration / options.iterations if options.schedule == "linear" else 1.0
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = options.lr * decay
        self.networks.train()
        terms: dict[str, Tensor] = {}
        for number in range(options.critic_steps):
            terms = self._critic_step(iteration, number)
        return terms | self._generator_step(iteration)

    def _critic_step(self, iteration: int, number: int) -> dict[str, Tensor]:
        options, count = self._options, self._config.batch_size
        rng = self._config.rng(iteration, "critic", number)
        real, labels = self._batch(rng)
        share = torch.rand(count, generator=rng).to(self._device)
        with torch.no_grad():
            fake = self._fake(count, rng)[0]
        scores, logits = self._critic(real)
        of_fake, _ = self._critic(fake)
        penalty = gradient_penalty(lambda x: self._critic(x)[0], real, fake, share)
        loss = critic_loss(scores, of_fake, penalty, options.penalty_weight)
        terms = {"critic": loss, "distance": scores.mean() - of_fake.mean(), "penalty": penalty}
        if logits is not None:
            terms["real_ce"] = F.cross_entropy(logits, labels)
            loss = loss + options.class_weight_critic * terms["real_ce"]
        take_step(self.optimizers[1], loss)
        return {name: term.detach() for name, term in terms.items()}

    def _generator_step(self, iteration: int) -> dict[str, Tensor]:
        options = self._options
        count = options.generator_batches * self._config.batch_size
        fake, labels = self._fake(count, self._config.rng(iteration, "generator"))
        scores, logits = self._critic(fake)
        loss = generator_loss(scores)
        terms = {}
        if logits is not None:
            terms["fake_ce"] = F.cross_entropy(logits, labels)
            loss = loss + options.class_weight_generator * terms["fake_ce"]
        take_step(self.optimizers[0], loss)
        return {**terms, "total": loss}

    def _batch(self, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Returns real images in -1..1 and their labels, drawn with replacement."""
        chosen = torch.randint(len(self._real), (self._config.batch_size,), generator=rng)
        pixels = self._real.pixels[chosen].float()
        if self._options.dither:
            images = 2 * (pixels / 256 - 0.5) + torch.rand(pixels.shape, generator=rng) / 128
        else:
            images = 2 * pixels / 255 - 1
        return images.to(self._device), self._real.labels[chosen].to(self._device)

    def _fake(self, count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Returns images in -1..1, which the critic sees, and the labels that they were asked for."""
        labels = torch.randint(self._num_classes, (count,), generator=rng).to(self._device)
        z = self._fitted.latents(count, rng)
        images: Tensor = self._fitted.network(z, labels if self._options.conditional else None)
        return images, labels

    def generator(self) -> FittedGenerator:
        """Returns the generator; it takes labels where the fit is conditional."""
        return self._fitted

    def accuracies(self) -> dict[str, Any]:
        """Returns nothing: there is no student."""
        return {}


def read_real_set(options: WGANGPConfig, teacher: Teacher) -> LabelledImages:
    """Returns the real images. Raises ConfigError, DataError: one line that names `method.data`."""
    try:
        real = load_real_set(options.data, options.split)
        real.check_fits(teacher)
    except ConfigError as error:
        raise ConfigError(f"method.{error}") from error.__cause__
    return real


def hash_images(images: LabelledImages) -> str:
    """Returns the sha256, in hex, of pixels and labels: equal for equal sets, whatever files held them."""
    digest = hashlib.sha256(images.pixels.contiguous().numpy().tobytes())
    digest.update(images.labels.numpy().tobytes())
    return digest.hexdigest()
