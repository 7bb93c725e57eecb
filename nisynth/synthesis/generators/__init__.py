"""The generators that a fit trains and a run samples, by the name that their file states.

upsampling.py  DAFL, DFAD and DataFree
wgan.py        WGAN-GP's residual and DCGAN networks
One-to-many's is NaturalInversion's own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nisynth.images import Normalization
from nisynth.synthesis.generators.upsampling import UpsamplingGenerator
from nisynth.synthesis.generators.wgan import DOUBLINGS, DCGANGenerator, ResNetGenerator
from nisynth.synthesis.naturalinversion.generator import Generator


@dataclass(frozen=True, kw_only=True)
class GeneratorSpec:
    """Which network a generator is.

    arch: a name of GENERATORS. width: channels, of those whose width is chosen. conditional: it takes labels.
    """

    arch: str
    num_classes: int
    image_px: int
    latent_dim: int
    width: int = 0
    conditional: bool = False

    @property
    def given_classes(self) -> int | None:
        """Returns the number of classes that the network is told of, None for one without labels."""
        return self.num_classes if self.conditional else None


@dataclass(frozen=True)
class Architecture:
    """build: constructs the network. values: what its output is. px_step: which sides it makes: multiples."""

    build: Callable[[GeneratorSpec], nn.Module]
    values: Literal["normalized", "unit", "symmetric"]
    px_step: int


class _OneHot(Generator):
    """NaturalInversion's generator, told the label by its number as the others are."""

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        classes = self.linear.in_features - z.shape[1]
        return super().forward(z, F.one_hot(y, classes).to(z.dtype))


GENERATORS = {
    "naturalinversion": Architecture(
        lambda spec: _OneHot(spec.num_classes, spec.image_px, spec.latent_dim), "normalized", 1
    ),
    "dafl": Architecture(
        lambda spec: UpsamplingGenerator(spec.latent_dim, spec.image_px, eps=0.8), "normalized", 4
    ),
    "dfad": Architecture(lambda spec: UpsamplingGenerator(spec.latent_dim, spec.image_px), "normalized", 4),
    "datafree": Architecture(
        lambda spec: UpsamplingGenerator(
            spec.latent_dim, spec.image_px, widths=(256, 128, 64), bias=False, unit=True
        ),
        "unit",
        4,
    ),
    "wgan_resnet": Architecture(
        lambda spec: ResNetGenerator(spec.latent_dim, spec.image_px, spec.width, spec.given_classes),
        "symmetric",
        2**DOUBLINGS,
    ),
    "wgan_dcgan": Architecture(
        lambda spec: DCGANGenerator(spec.latent_dim, spec.image_px, spec.width, spec.given_classes),
        "symmetric",
        2**DOUBLINGS,
    ),
}
"""Every generator by its name. Adding one is a row here."""


class FittedGenerator(nn.Module):
    """A generator with its output in the teacher's normalized space, whatever values its network gives."""

    def __init__(self, spec: GeneratorSpec, normalization: Normalization) -> None:
        super().__init__()
        self.spec, self._normalization = spec, normalization
        architecture = GENERATORS[spec.arch]
        self._values = architecture.values
        self.network = architecture.build(spec)

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """Returns `(B, 3, H, W)` normalized images of z `(B, latent_dim)` and labels `(B,)` int64.

        y: needed by a conditional one, and of no consequence to others.
        """
        out: Tensor = self.network(z, y if self.spec.conditional else None)
        if self._values == "normalized":
            return out
        mean, std = self._normalization.columns(out.device)
        return ((out if self._values == "unit" else (out + 1) / 2) - mean) / std

    def latents(self, count: int, rng: torch.Generator) -> Tensor:
        """Returns `(count, latent_dim)` normal latents, drawn on the CPU, on the network's device."""
        device = next(self.network.parameters()).device
        return torch.randn((count, self.spec.latent_dim), generator=rng).to(device)
