"""One generator for all images (Table 3, row 2): fresh latents and labels at every iteration, Eq. 8.

The paper names no procedure; its "if the latent vector changes every training epoch" is taken at its word.
The generator is NaturalInversion's, without pyramid and scaling. The loop runs in float32 as the plain one
does. At its URL a fit leaves `generator.safetensors`, `result.json` (written last: with it the fit is done)
and, until then, `checkpoint.safetensors`, from which it goes on bit for bit.
"""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from nisynth.determinism import deterministic
from nisynth.errors import ConfigError, DataError
from nisynth.randomness import key
from nisynth.storage import NotFound, Store, open_store
from nisynth.synthesis import NaturalInversionConfig
from nisynth.synthesis.inversion.jitter import apply_jitter, draw_jitter
from nisynth.synthesis.inversion.model import blank
from nisynth.synthesis.inversion.objective import Losses, image_terms, losses
from nisynth.synthesis.inversion.term import Term
from nisynth.synthesis.naturalinversion.renderer import Renderer
from nisynth.synthesis.sampling import generator_bytes
from nisynth.teachers import Teacher, TeacherConfig, load_teacher
from nisynth.teachers.checkpoint import hash_weights
from nisynth.training.checkpoints import Checkpoints, TrainState, check_identity

GENERATOR_KEY, RESULT_KEY = "generator.safetensors", "result.json"

OnStep = Callable[[int, dict[str, float]], None]
"""Called with (iterations done, loss terms) every `log_every` iterations."""


def _method() -> NaturalInversionConfig:
    return NaturalInversionConfig(pyramid=False, scaling=False)


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How a generator is fitted. Raises ConfigError for a value that cannot be used.

    output: where the generator goes, a folder or s3:// URL. method: the losses' weights, the learning rate,
    the jitter and the number of iterations, as NaturalInversion has them; its pyramid and scaling must be
    off, since they belong to single images. checkpoint_minutes: between two saves. log_every: iterations
    between two points of the curve.
    """

    output: str = ""
    teacher: TeacherConfig
    batch_size: int = 256
    seed: int = 0
    method: NaturalInversionConfig = field(default_factory=_method)
    checkpoint_minutes: float = 5.0
    log_every: int = 50

    def __post_init__(self) -> None:
        if not self.output:
            raise ConfigError("output: missing; give a folder or s3:// URL, in the config or with --output")
        if self.method.pyramid or self.method.scaling:
            raise ConfigError("method.pyramid, method.scaling: must be false; one generator makes all images")
        if self.method.rival is not None:
            raise ConfigError("method.rival: a fit has none")
        for name, least in (("batch_size", 2), ("seed", 0), ("log_every", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}: {getattr(self, name)} is not at least {least}")
        if not self.checkpoint_minutes >= 0:
            raise ConfigError(f"checkpoint_minutes: {self.checkpoint_minutes} is negative")


@dataclass(frozen=True)
class FitReport:
    """What `result.json` holds. sha256: of the generator's weights. curve: loss terms by iteration."""

    identity: dict[str, Any]
    sha256: str
    iterations: int
    curve: list[dict[str, float]]


def fit(config: FitConfig, *, device: str | torch.device = "cpu", on_step: OnStep | None = None) -> FitReport:
    """Returns the report of a finished fit; run again, it goes on where the last one ended.

    Raises ConfigError (also for a loss that is not finite), TeacherError, PlanMismatch when another config's
    fit is at the URL, DataError, StorageError.
    """
    teacher, store = load_teacher(config.teacher, device), open_store(config.output)
    identity = {
        "fit": "one_to_many",
        "teacher": teacher.identity,
        "method": asdict(config.method),
        "batch_size": config.batch_size,
        "seed": config.seed,
    }
    done = _finished(store, identity)
    if done is not None:
        return done
    checkpoints = Checkpoints(store, identity, every_s=60 * config.checkpoint_minutes)
    with deterministic():
        state = _Fit(config, teacher).run(checkpoints, on_step)
    model = state.network
    assert isinstance(model, Renderer)
    more = {"teacher_sha256": str(teacher.identity["weights_sha256"])}
    store.put(GENERATOR_KEY, generator_bytes(model.generator, teacher.normalization, more))
    report = FitReport(identity, hash_weights(model.generator), state.step, state.history)
    store.put(RESULT_KEY, json.dumps(asdict(report), indent=1).encode())
    checkpoints.clear()
    return report


def _finished(store: Store, identity: dict[str, Any]) -> FitReport | None:
    where = f"{store.url}/{RESULT_KEY}"
    try:
        document = json.loads(store.get(RESULT_KEY))
        report = FitReport(**document)
    except NotFound:
        return None
    except (ValueError, TypeError):
        raise DataError(f"{where}: not the result of a fit, or damaged; delete it to start over") from None
    check_identity(identity, report.identity, where)
    return report


class _Fit:
    """The loop: everything that an iteration draws comes from the seed and its number."""

    def __init__(self, config: FitConfig, teacher: Teacher) -> None:
        self._config, self._teacher = config, teacher
        self._terms: list[Term] = image_terms(config.method, teacher)
        model = blank(lambda: Renderer(config.method, teacher, config.batch_size), teacher.device)
        assert isinstance(model, Renderer)
        self._model = model
        self._model.load_state_dict(self._model.draw_weights(self._rng("weights")))

    def run(self, checkpoints: Checkpoints, on_step: OnStep | None) -> TrainState:
        """Returns the state after the last iteration."""
        adam = torch.optim.Adam(self._model.adam_groups(), fused=True)
        state = TrainState(self._model, adam, torch.zeros(3, dtype=torch.float64))
        checkpoints.load_into(state)
        while state.step < self._config.method.iterations:
            terms = self._losses(state.step)
            adam.zero_grad()
            torch.autograd.backward(terms["total"])
            adam.step()
            state.step += 1
            self._log(state, terms, on_step)
            checkpoints.save_if_due(state)
        return state

    def _losses(self, step: int) -> Losses:
        config, device = self._config, self._teacher.device
        rng = self._rng(str(step))
        self._model.z.copy_(torch.randn(self._model.z.shape, generator=rng))
        y = torch.randint(self._teacher.num_classes, (config.batch_size,), generator=rng).to(device)
        jitter = draw_jitter(1, config.method.jitter_px, config.method.flip, rng).to(device)[0]
        images = self._model(y, jitter[0])
        return losses(self._terms, self._teacher, apply_jitter(images, jitter[1]), y)

    def _log(self, state: TrainState, terms: Losses, on_step: OnStep | None) -> None:
        last = state.step == self._config.method.iterations
        if not (last or state.step == 1 or state.step % self._config.log_every == 0):
            return
        values = {name: float(term.detach()) for name, term in terms.items()}
        if not math.isfinite(values["total"]):
            raise ConfigError(
                f"iteration {state.step}: the loss is not finite; lower method.lr_generator, or check the "
                "teacher's weights and normalization"
            )
        state.history.append({"iteration": state.step, **values})
        if on_step is not None:
            on_step(state.step, values)

    def _rng(self, purpose: str) -> torch.Generator:
        return torch.Generator().manual_seed(key(self._config.seed, "fit", purpose))
