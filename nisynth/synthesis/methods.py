"""The table of methods, and how a row becomes a synthesizer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch

from nisynth.errors import ConfigError
from nisynth.synthesis.deepinversion import config as deepinversion
from nisynth.synthesis.deepinversion.stages import make_stages
from nisynth.synthesis.engine.fast import FastSynthesizer
from nisynth.synthesis.engine.precision import resolve
from nisynth.synthesis.inversion.config import InversionConfig
from nisynth.synthesis.inversion.method import InversionMethod, Loop, MakeLoop, MakeModel
from nisynth.synthesis.inversion.plain import PlainSynthesizer
from nisynth.synthesis.inversion.reference_units import (
    REFERENCE_NORMALIZATION,
    InTeachersUnits,
    from_reference_units,
    in_reference_units,
)
from nisynth.synthesis.inversion.rival import Judged, Rival, competition, load_rival
from nisynth.synthesis.naturalinversion import config as naturalinversion
from nisynth.synthesis.naturalinversion.exchange import ObservedLabels
from nisynth.synthesis.naturalinversion.renderer import Renderer
from nisynth.synthesis.noise import NoiseConfig, NoiseSynthesizer
from nisynth.synthesis.protocol import EngineConfig, Method, Synthesizer
from nisynth.synthesis.sampling import Sampler, SamplingConfig, load_generator
from nisynth.teachers import Teacher

Artefacts = Mapping[str, Any]
"""What other trainings left and a method's config names by URL, loaded, by the config's field.

Each has a `sha256`, of its weights.
"""

Make = Callable[[Any, Teacher, Artefacts, MakeLoop], Synthesizer]


def load_rivals(config: InversionConfig, teacher: Teacher) -> Artefacts:
    """Returns the rival of an inversion method's config, if it has one."""
    return {} if config.rival is None else {"rival": load_rival(config.rival, teacher)}


@dataclass(frozen=True, kw_only=True)
class MethodRow:
    """What a method brings.

    summary: one line for a list. tables: where it stands in the NaturalInversion paper. cost: of 256 images
        relative to NaturalInversion's, in multiplications, with a ResNet-34 teacher and the first preset.
    config: its frozen dataclass. presets: fields of published experiments, by preset.
    default_preset: the preset of a `method` section that names none, or None.
    make: constructs its synthesizer from its config, the teacher, its artefacts, and what makes the loop that
        `engine` names. `inverting(model)` is that of a method which is one ImageModel.
    uses_engine: whether it runs in such a loop. load: reads the artefacts that its config names.
    """

    summary: str
    tables: str
    cost: float
    config: type[Any]
    presets: Mapping[str, Mapping[str, Any]]
    make: Make
    default_preset: Callable[[Mapping[str, Any]], str | None] = lambda method: None
    uses_engine: bool = True
    load: Callable[[Any, Teacher], Artefacts] = load_rivals


def inverting(model: MakeModel) -> Make:
    """Returns the `make` of an inversion method with one ImageModel."""
    return lambda config, teacher, artefacts, loop: loop(config, model)


def _make_naturalinversion(
    config: Any, teacher: Teacher, artefacts: Artefacts, loop: MakeLoop
) -> Synthesizer:
    inverted = loop(config, Renderer)
    return ObservedLabels(inverted, teacher, config.exchange) if config.exchange else inverted


METHODS: dict[str, MethodRow] = {
    "naturalinversion": MethodRow(
        summary="one generator per batch, with the teacher's features and learned channel scales",
        tables="1, 2, 3, 5, 9",
        cost=1.0,
        config=naturalinversion.NaturalInversionConfig,
        presets=naturalinversion.PRESETS,
        default_preset=naturalinversion.default_preset,
        make=_make_naturalinversion,
    ),
    "deepinversion": MethodRow(
        summary="pixels optimized directly; with method.rival, Adaptive DeepInversion",
        tables="1, 2, 3, 9",
        cost=0.546,
        config=deepinversion.DeepInversionConfig,
        presets=deepinversion.PRESETS,
        make=lambda config, teacher, artefacts, loop: make_stages(config, loop),
    ),
    "sampling": MethodRow(
        summary="a generator that `nisynth fit` left: one forward pass a task",
        tables="1, 2, 3, 5, 9",
        cost=0.0,
        config=SamplingConfig,
        presets={},
        make=lambda config, teacher, artefacts, loop: Sampler(teacher, artefacts["generator"]),
        uses_engine=False,
        load=lambda config, teacher: {"generator": load_generator(config.generator, teacher)},
    ),
    "noise": MethodRow(
        summary="normal noise: what any method must be better than, and a quick load for tests",
        tables="-",
        cost=0.0,
        config=NoiseConfig,
        presets={},
        make=lambda config, teacher, artefacts, loop: NoiseSynthesizer(teacher),
        uses_engine=False,
        load=lambda config, teacher: {},
    ),
}
"""Every method by the name that its config states; the first is the default. Adding one is a row here."""


def check_engine(method: Method, engine: EngineConfig, device: torch.device) -> None:
    """Raises ConfigError when the engine, or the device, lacks what `make_synthesizer` would need of it."""
    if not METHODS[method.name].uses_engine:
        return
    if engine.name == "fast":
        resolve(engine.precision, device)
    elif engine.precision not in ("auto", "float32"):
        raise ConfigError(
            f"engine.precision {engine.precision!r} needs engine.name: fast; "
            "the plain engine is float32, so set engine.precision to auto or float32"
        )


def load_artefacts(method: Method, teacher: Teacher) -> Artefacts:
    """Returns what the method's config names by URL, such as its rival, read and checked against the teacher.

    Raises ConfigError, TeacherError, StorageError: one line that names the field.
    """
    return METHODS[method.name].load(method, teacher)


def make_synthesizer(
    method: Method,
    engine: EngineConfig,
    teacher: Teacher,
    *,
    log_every: int = 50,
    artefacts: Artefacts | None = None,
) -> Synthesizer:
    """Returns the synthesizer that runs `method` on `teacher` with `engine`, on the teacher's device.

    `log_every` is the number of iterations between two points of the loss curve. A method without a loop
    ignores both. artefacts: what `load_artefacts` returned, which is called without. Raises ConfigError when
    the engine cannot run the method, and what `load_artefacts` raises.
    """
    check_engine(method, engine, teacher.device)
    artefacts = load_artefacts(method, teacher) if artefacts is None else artefacts
    rival: Rival | None = artefacts.get("rival")

    own, seen, opponent = teacher.normalization, teacher, rival
    renormalized = (
        getattr(method, "normalization", "teacher") == "reference" and own != REFERENCE_NORMALIZATION
    )
    if renormalized:
        seen = in_reference_units(teacher)
        if rival is not None:
            opponent = replace(rival, network=from_reference_units(rival.network, own, teacher.device))

    def loop(config: Any, model: MakeModel) -> Loop:
        terms = [] if opponent is None else [competition(config.rival, opponent)]
        inversion = InversionMethod(cast(InversionConfig, config), seen, model, terms)
        made: Loop
        if engine.name == "fast":
            made = FastSynthesizer(inversion, engine, log_every=log_every)
        else:
            made = PlainSynthesizer(inversion, log_every=log_every)
        return InTeachersUnits(made, own) if renormalized else made

    synthesizer = METHODS[method.name].make(method, teacher, artefacts, loop)
    return synthesizer if rival is None else Judged(synthesizer, teacher, rival)
