"""The table of fits, by the name that `method.name` of a fit's config states."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nisynth.config_loader import load_as
from nisynth.device import default_device
from nisynth.fitting import dafl, dfad, one_to_many, wgan_gp
from nisynth.fitting.fit import FitConfig, FitReport, Fitting, OnStep, fit_with
from nisynth.teachers import Teacher


@dataclass(frozen=True, kw_only=True)
class FitRow:
    """What a fit brings.

    summary: one line for a list. tables: where it stands in the NaturalInversion paper. cost: of the whole
    fit, spread over 256,000 images: for each 256 of them, relative to NaturalInversion's, in multiplications,
    with a ResNet-34 teacher, a ResNet-18 student, the first preset and the published batch. config: its
    frozen dataclass, the `method` section. presets: fields of published experiments, by preset. make:
    constructs it.
    """

    summary: str
    tables: str
    cost: float
    config: type[Any]
    presets: Mapping[str, Mapping[str, Any]]
    make: Callable[[FitConfig, Teacher], Fitting]


FITS: dict[str, FitRow] = {
    "one_to_many": FitRow(
        summary="NaturalInversion's generator, one for all images; labels planned",
        tables="3",
        cost=0.000631,
        config=one_to_many.OneToManyConfig,
        presets=one_to_many.PRESETS,
        make=one_to_many.OneToMany,
    ),
    "dafl": FitRow(
        summary="a generator of images that the teacher is sure of, with a student; labels observed",
        tables="1, 2, 5, 9",
        cost=0.491,
        config=dafl.DAFLConfig,
        presets=dafl.PRESETS,
        make=dafl.DAFL,
    ),
    "dfad": FitRow(
        summary="a generator of images on which teacher and student differ, with a student; labels observed",
        tables="1, 5",
        cost=0.0544,
        config=dfad.DFADConfig,
        presets=dfad.PRESETS,
        make=dfad.DFAD,
    ),
    "wgan_gp": FitRow(
        summary="a generator fitted to real images; labels planned where conditional, else observed",
        tables="2",
        cost=0.0647,
        config=wgan_gp.WGANGPConfig,
        presets=wgan_gp.PRESETS,
        make=wgan_gp.WGANGP,
    ),
}
"""Every fit by its name; the first is the default. Adding one is a row here and a file."""


def load_fit_config(
    source: str | Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
    given: Mapping[str, Any] | None = None,
) -> FitConfig:
    """Returns a fit's config from a file, a shipped config's name or a mapping. Raises ConfigError."""
    return load_as(FitConfig, source, overrides, kind="fit", given=given, choices={"method": FITS})


def fit(
    config: FitConfig | str | Path | Mapping[str, Any],
    *,
    device: str | torch.device | None = None,
    on_step: OnStep | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> FitReport:
    """Returns the report of a finished fit, whose generator lies at the output URL; resumes one begun there.

    config: a FitConfig, a file, a shipped config's name, or a mapping. device: by default this process's GPU
    where there is one. on_step: called with (iterations done, loss terms) every `log_every` iterations. say:
    hears the same as a line.
    Raises ConfigError (also for a loss that is not finite), TeacherError, PlanMismatch when another config's
    fit is at the URL, DataError, StorageError.
    """
    resolved = config if isinstance(config, FitConfig) else load_fit_config(config)

    def tell(iteration: int, terms: dict[str, float]) -> None:
        shown = ", ".join(f"{name} {value:.4g}" for name, value in terms.items())
        say(f"iteration {iteration:,} of {resolved.method.iterations:,}: {shown}")
        if on_step is not None:
            on_step(iteration, terms)

    make = FITS[resolved.method.name].make
    return fit_with(make, resolved, default_device() if device is None else device, tell)
