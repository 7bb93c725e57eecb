"""One generator for all images (Table 3, row 2): fresh latents and labels at every iteration, Eq. 8.

The paper names no procedure; its "if the latent vector changes every training epoch" is followed literally.
The generator is NaturalInversion's, without pyramid and scaling.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nisynth.errors import ConfigError
from nisynth.fitting.fit import FitConfig
from nisynth.synthesis import NaturalInversionConfig
from nisynth.synthesis.generators import FittedGenerator, GeneratorSpec
from nisynth.synthesis.inversion.jitter import apply_jitter, draw_jitter
from nisynth.synthesis.inversion.model import blank
from nisynth.synthesis.inversion.objective import image_terms, losses
from nisynth.synthesis.inversion.term import Term
from nisynth.synthesis.naturalinversion import config as naturalinversion
from nisynth.synthesis.naturalinversion.renderer import Renderer
from nisynth.teachers import Teacher


@dataclass(frozen=True, kw_only=True)
class OneToManyConfig(NaturalInversionConfig):
    """The losses' weights, rate, jitter and iterations, as NaturalInversion has them.

    Its pyramid and scaling belong to single images, so both are off.
    """

    name: Literal["one_to_many"] = "one_to_many"  # type: ignore[assignment]
    pyramid: bool = False
    scaling: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pyramid or self.scaling:
            raise ConfigError("method.pyramid, method.scaling: must be false; one generator makes all images")
        if self.rival is not None:
            raise ConfigError("method.rival: one_to_many takes none; leave it out")
        if self.exchange:
            raise ConfigError("method.exchange: a fit has no finished batch to mix; leave it out")
        if self.normalization != "teacher":
            raise ConfigError(
                "method.normalization: a fitted generator's images have the teacher's; leave it out"
            )


PRESETS = {
    name: {field: value for field, value in fields.items() if field != "normalization"}
    for name, fields in naturalinversion.PRESETS.items()
}
"""NaturalInversion's; the image is the generator's own, in the teacher's units."""


class OneToMany:
    """The fit: everything that an iteration draws comes from the seed and its number."""

    student: nn.Module | None = None

    def __init__(self, config: FitConfig, teacher: Teacher) -> None:
        self._config, self._teacher = config, teacher
        self._terms: list[Term] = image_terms(config.method, teacher)
        model = blank(lambda: Renderer(config.method, teacher, config.batch_size), teacher.device)
        assert isinstance(model, Renderer)
        model.load_state_dict(model.draw_weights(config.rng("weights")))
        self.networks = self._model = model
        self.optimizers = [torch.optim.Adam(model.adam_groups(), fused=True)]
        self.identity: dict[str, Any] = {}

    def step(self, iteration: int) -> Mapping[str, Tensor]:
        """Takes one step on Eq. 8 of a fresh batch."""
        config, device = self._config, self._teacher.device
        rng = config.rng(iteration)
        self._model.z.copy_(torch.randn(self._model.z.shape, generator=rng))
        y = torch.randint(self._teacher.num_classes, (config.batch_size,), generator=rng).to(device)
        jitter = draw_jitter(1, config.method.jitter_px, config.method.flip, rng).to(device)[0]
        images = self._model(y, jitter[0])
        terms = losses(self._terms, self._teacher, apply_jitter(images, jitter[1]), y)
        (adam,) = self.optimizers
        adam.zero_grad()
        torch.autograd.backward(terms["total"])
        adam.step()
        return terms

    def generator(self) -> FittedGenerator:
        """Returns the generator, which takes labels."""
        spec = GeneratorSpec(
            arch="naturalinversion",
            num_classes=self._teacher.num_classes,
            image_px=self._teacher.input_px,
            latent_dim=self._config.method.latent_dim,
            conditional=True,
        )
        fitted = FittedGenerator(spec, self._teacher.normalization)
        fitted.network.load_state_dict(self._model.generator.state_dict())
        return fitted

    def accuracies(self) -> dict[str, Any]:
        """Returns nothing: there is no student."""
        return {}
