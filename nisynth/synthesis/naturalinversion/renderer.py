"""Generator, pyramid and scaling around one teacher: everything that is trained, and how it renders."""

from typing import Any

import torch
from torch import Tensor, nn

from nisynth.synthesis.inversion.initialization import Weights, prefixed
from nisynth.synthesis.inversion.jitter import apply_jitter
from nisynth.synthesis.naturalinversion.config import NaturalInversionConfig
from nisynth.synthesis.naturalinversion.generator import Generator
from nisynth.synthesis.naturalinversion.pyramid import FeatureTransferPyramid, MapSize
from nisynth.synthesis.naturalinversion.scaling import AdaptiveChannelScaling
from nisynth.teachers import Teacher


class Renderer(nn.Module):
    """theta_G, theta_P and alpha of one batch. Its parameters come in this order.

    The weights mean nothing until `load_state_dict` fills them, in place, from a task's draws; `blank`
    constructs one without drawing any.
    """

    def __init__(self, config: NaturalInversionConfig, teacher: Teacher, batch_size: int) -> None:
        super().__init__()
        self.config = config
        self.teacher = teacher
        taps = [MapSize(tap.channels, tap.side_px) for tap in teacher.taps]
        self.generator = Generator(teacher.num_classes, teacher.input_px, config.latent_dim)
        self.pyramid = FeatureTransferPyramid(taps, teacher.input_px, config.head)
        self.scaling = AdaptiveChannelScaling(batch_size)

    @classmethod
    def blank(
        cls, config: NaturalInversionConfig, teacher: Teacher, batch_size: int, device: torch.device
    ) -> "Renderer":
        """Returns a renderer with memory on `device` and arbitrary weights; the `meta` device has none."""
        with torch.device("meta"):
            renderer = cls(config, teacher, batch_size)
        return renderer if device.type == "meta" else renderer.to_empty(device=device)

    def forward(self, z: Tensor, y: Tensor, jitter: Tensor | None = None) -> Tensor:
        """Returns I_hat `(B, 3, H, W)`, normalized: Eq. 5-7, lines 5-8 of Algorithm 1.

        z is `(B, latent_dim)`, y one-hot `(B, num_classes)`. The jittered image of G feeds both the
        teacher's features and the sum (published code); without `jitter` neither is jittered.
        """
        x_hat = self.generator(z, y)
        if jitter is not None:
            x_hat = apply_jitter(x_hat, jitter)
        m_l = self.pyramid(self._features(x_hat))
        i_hat: Tensor = self.scaling(self.pyramid.join(x_hat, m_l))
        return i_hat

    def _features(self, x_hat: Tensor) -> list[Tensor]:
        if self.config.feature_gradient:
            return self.teacher.features(x_hat)
        with torch.no_grad():
            return self.teacher.features(x_hat)

    def draw_weights(self, rng: torch.Generator) -> Weights:
        """Returns fresh weights of generator and pyramid, drawn in this order, by their full names."""
        generator = prefixed("generator", self.generator.draw_weights(rng))
        return generator | prefixed("pyramid", self.pyramid.draw_weights(rng))

    def adam_groups(self) -> list[dict[str, Any]]:
        """Returns the three parts with their learning rates, as torch's optimizers take them."""
        config = self.config
        return [
            {"params": list(self.generator.parameters()), "lr": config.lr_generator},
            {"params": list(self.pyramid.parameters()), "lr": config.lr_pyramid},
            {"params": list(self.scaling.parameters()), "lr": config.lr_alpha},
        ]
