"""Generator, pyramid and scaling around one teacher: everything that is trained, and how it renders."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nisynth.synthesis.inversion.initialization import Weights, prefixed
from nisynth.synthesis.inversion.jitter import apply_jitter
from nisynth.synthesis.inversion.model import Acceleration, ImageModel
from nisynth.synthesis.naturalinversion import identities
from nisynth.synthesis.naturalinversion.config import NaturalInversionConfig
from nisynth.synthesis.naturalinversion.exchange import draw_masks, num_optimized
from nisynth.synthesis.naturalinversion.generator import Generator
from nisynth.synthesis.naturalinversion.pyramid import FeatureTransferPyramid, MapSize
from nisynth.synthesis.naturalinversion.scaling import AdaptiveChannelScaling
from nisynth.teachers import Teacher


class Renderer(ImageModel):
    """theta_G, theta_P and alpha of one batch, in this order, and its latents z.

    `pyramid` and `scaling` are None where the config leaves them out.
    """

    z: Tensor

    def __init__(self, config: NaturalInversionConfig, teacher: Teacher, batch_size: int) -> None:
        super().__init__()
        self.config = config
        self._batch_size, optimized = batch_size, num_optimized(batch_size, config.exchange)
        self.differentiates_features = config.feature_gradient
        self.teacher = teacher
        taps = [MapSize(tap.channels, tap.side_px) for tap in teacher.taps]
        self.generator = Generator(teacher.num_classes, teacher.input_px, config.latent_dim)
        self.pyramid = FeatureTransferPyramid(taps, teacher.input_px, config.head) if config.pyramid else None
        self.scaling = AdaptiveChannelScaling(optimized, config.alpha_mean) if config.scaling else None
        self.register_buffer("z", torch.empty((optimized, config.latent_dim)))

    def forward(self, y: Tensor, jitter: Tensor | None = None, by: Acceleration | None = None) -> Tensor:
        """Returns I_hat `(B, 3, H, W)`, normalized: Eq. 5-7, lines 5-8 of Algorithm 1. y: `(B,)` int64.

        The jittered image of G feeds both the teacher's features and the sum (published code); without
        `jitter` neither is jittered. Joining and scaling are float32 in every precision.
        """
        by = by or Acceleration.none(self.teacher)
        generate, _, _ = _operations(by)
        with by.autocast():
            x_hat = generate(self.generator, self.z, self._one_hot(y))
        x_hat = x_hat.float()
        if jitter is not None:
            x_hat = apply_jitter(x_hat, jitter)
        return self._finish(x_hat, by)

    def num_optimized(self, batch_size: int) -> int:
        """Returns the share of the batch that `exchange` leaves to be optimized."""
        return num_optimized(batch_size, self.config.exchange)

    def render(self, y: Tensor, rng: torch.Generator) -> Tensor:
        """Returns the optimized images and, with `exchange`, as many mixed ones as fill the batch.

        A mixed image keeps the alpha of the image whose maps it has, and its own features of the teacher.
        """
        by = Acceleration.none(self.teacher)
        parts, y_one_hot = [self(y)], self._one_hot(y)
        for _ in range(self.config.exchange):
            masks = [mask.to(y.device) for mask in draw_masks(len(y), self.generator.map_widths(), rng)]
            parts.append(self._finish(self.generator.forward_exchanged(self.z, y_one_hot, masks), by))
        return torch.cat(parts)[: self._batch_size]

    def _one_hot(self, y: Tensor) -> Tensor:
        return (y[:, None] == torch.arange(self.teacher.num_classes, device=y.device)).float()

    def _finish(self, x_hat: Tensor, by: Acceleration) -> Tensor:
        """Returns I_hat from G's images: the pyramid over their features, joined and scaled."""
        _, transfer, join = _operations(by)
        if self.pyramid is not None:
            with by.autocast():
                m_l = transfer(self.pyramid, self._features(x_hat, by))
            x_hat = join(self.pyramid, x_hat, m_l.float())
        return x_hat if self.scaling is None else self.scaling(x_hat)

    def _features(self, x_hat: Tensor, by: Acceleration) -> list[Tensor]:
        if self.config.feature_gradient:
            return by.features(x_hat)
        with torch.no_grad():
            return by.features(x_hat)

    def draw_weights(self, rng: torch.Generator) -> Weights:
        """Returns a task's weights, drawn in this order: generator, pyramid, z, alpha."""
        weights = prefixed("generator", self.generator.draw_weights(rng))
        if self.pyramid is not None:
            weights |= prefixed("pyramid", self.pyramid.draw_weights(rng))
        weights["z"] = torch.randn(self.z.shape, generator=rng)
        if self.scaling is not None:
            weights |= prefixed("scaling", self.scaling.draw_weights(rng))
        return weights

    def adam_groups(self) -> list[dict[str, Any]]:
        """Returns the three parts with their learning rates, as torch's optimizers take them."""
        config = self.config
        parts = (
            (self.generator, config.lr_generator),
            (self.pyramid, config.lr_pyramid),
            (self.scaling, config.lr_alpha),
        )
        return [{"params": list(part.parameters()), "lr": lr} for part, lr in parts if part is not None]


def _operations(by: Acceleration) -> tuple[Callable[..., Tensor], ...]:
    """Returns generator, pyramid and the joining of their images: as written, or rewritten."""
    if by.rewrites:
        return partial(identities.generate, layout=by.layout), identities.transfer, identities.join
    return Generator.forward, FeatureTransferPyramid.forward, FeatureTransferPyramid.join
