"""The loop of every fit: a generator (and a student, where one is trained), resumable bit for bit.

At its URL a fit leaves `generator.safetensors`, `student.safetensors` where the method trains one,
`result.json` (written last: with it the fit is done) and, until then, `checkpoint.safetensors`, from which
it goes on. It runs in float32, deterministically.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from nisynth.device import deterministic
from nisynth.errors import ConfigError, DataError
from nisynth.identity import counted_fields
from nisynth.randomness import key, torch_seed
from nisynth.storage import NotFound, Store, open_store
from nisynth.synthesis.generators import FittedGenerator
from nisynth.synthesis.sampling import generator_bytes
from nisynth.teachers import Teacher, TeacherConfig, load_teacher
from nisynth.teachers.checkpoint import hash_weights
from nisynth.teachers.save import network_bytes
from nisynth.training.checkpoints import Checkpoints, TrainState, check_identity
from nisynth.training.device import own_randomness

GENERATOR_KEY, RESULT_KEY, STUDENT_KEY = "generator.safetensors", "result.json", "student.safetensors"

OnStep = Callable[[int, dict[str, float]], None]
"""Called with (iterations done, loss terms) every `log_every` iterations."""


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How a generator is fitted. Raises ConfigError for a value that cannot be used.

    output: where the generator goes, a folder or s3:// URL. teacher: the network whose images it makes.
    method: one of the sections below, by its `name`. batch_size: images of a step. seed: of weights and
    draws. checkpoint_minutes: between two saves. log_every: iterations between two points of the curve.
    """

    output: str = ""
    teacher: TeacherConfig
    method: Any
    batch_size: int = 256
    seed: int = 0
    checkpoint_minutes: float = 5.0
    log_every: int = 50

    def __post_init__(self) -> None:
        if not self.output:
            raise ConfigError("output: missing; give a folder or s3:// URL, in the config or with --output")
        for name, least in (("batch_size", 2), ("seed", 0), ("log_every", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}: {getattr(self, name)} is not at least {least}")
        if not self.checkpoint_minutes >= 0:
            raise ConfigError(f"checkpoint_minutes: {self.checkpoint_minutes} is negative")

    def rng(self, *purpose: object) -> torch.Generator:
        """Returns the generator of one use of randomness: a function of the seed and the purpose alone."""
        return torch.Generator().manual_seed(key(self.seed, "fit", *purpose))


@dataclass(frozen=True)
class FitReport:
    """What `result.json` holds. sha256: of the generator's weights. curve: loss terms by iteration.

    test_accuracy, teacher_accuracy: the student's and the teacher's, 0..1, on the real test set where one is
    given. real_images: the number and sha256 of those that the generator was fitted to.
    """

    identity: dict[str, Any]
    sha256: str
    iterations: int
    curve: list[dict[str, float]]
    test_accuracy: float | None = None
    teacher_accuracy: float | None = None
    test_set: str | None = None
    real_images: dict[str, Any] | None = None

    def __repr__(self) -> str:
        return f"FitReport(generator {self.sha256[:12]} after {self.iterations:,} iterations)"


class Fitting(Protocol):
    """A validated fit, ready to start.

    networks: all that is trained. optimizers: theirs. student: the network that a method trains beside the
    generator. identity: what of its inputs decides the weights, beside teacher, method, batch and seed.
    """

    @property
    def networks(self) -> nn.Module: ...
    @property
    def optimizers(self) -> Sequence[torch.optim.Optimizer]: ...
    @property
    def student(self) -> nn.Module | None: ...
    @property
    def identity(self) -> dict[str, Any]: ...

    def step(self, iteration: int) -> Mapping[str, Tensor]:
        """Takes one iteration, from 0 on, and returns its loss terms, 0-dim."""

    def generator(self) -> FittedGenerator:
        """Returns the generator as it is now."""

    def accuracies(self) -> dict[str, Any]:
        """Returns the report's accuracies, where there is a student and a test set."""


def take_step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """Takes one optimizer's step on a loss, 0-dim; no other weights get a gradient."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    optimizer.zero_grad()
    torch.autograd.backward(loss, inputs=weights)
    optimizer.step()


def fit_with(
    make: Callable[[FitConfig, Teacher], Fitting],
    config: FitConfig,
    device: str | torch.device,
    on_step: OnStep,
) -> FitReport:
    """Returns the report of a finished fit; run again, it goes on where the last one ended.

    Raises ConfigError (also for a loss that is not finite), TeacherError, PlanMismatch when another config's
    fit is at the URL, DataError, StorageError.
    """
    teacher, store = load_teacher(config.teacher, device), open_store(config.output)
    with own_randomness(torch.device(device)), deterministic():
        torch.manual_seed(torch_seed(config.seed, "fit", "weights"))
        fitting = make(config, teacher)
        identity = {
            "fit": config.method.name,
            "teacher": teacher.identity,
            "method": {**counted_fields(config.method), **fitting.identity},
            "batch_size": config.batch_size,
            "seed": config.seed,
        }
        identity["method"].pop("test_set", None)  # nothing is selected by it
        done = _finished(store, identity)
        if done is not None:
            return done
        checkpoints = Checkpoints(store, identity, every_s=60 * config.checkpoint_minutes)
        state = _run(fitting, config, checkpoints, on_step)
        report = _store(fitting, config, teacher, store, identity, state)
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


def _run(fitting: Fitting, config: FitConfig, checkpoints: Checkpoints, on_step: OnStep) -> TrainState:
    """Returns the state after the last iteration; all that one draws comes of the seed and its number."""
    first, *others = fitting.optimizers
    sums = torch.zeros(3, dtype=torch.float64)
    state = TrainState(fitting.networks, first, sums, others=others)
    checkpoints.load_into(state)
    total = config.method.iterations
    while state.step < total:
        torch.manual_seed(torch_seed(config.seed, "fit", "step", state.step))  # for dropout
        terms = fitting.step(state.step)
        state.step += 1
        if state.step in (1, total) or state.step % config.log_every == 0:
            values = {name: float(term.detach()) for name, term in terms.items()}
            if not all(math.isfinite(value) for value in values.values()):
                raise ConfigError(
                    f"iteration {state.step}: a loss is not finite; lower method.lr_generator, or check the "
                    "teacher's weights and normalization"
                )
            state.history.append({"iteration": state.step, **values})
            on_step(state.step, values)
        checkpoints.save_if_due(state)
    return state


def _store(
    fitting: Fitting,
    config: FitConfig,
    teacher: Teacher,
    store: Store,
    identity: dict[str, Any],
    state: TrainState,
) -> FitReport:
    of_teacher = {"teacher_sha256": str(teacher.identity["weights_sha256"]), "fit": config.method.name}
    real = fitting.identity.get("real_images")
    more = {**of_teacher, **({} if real is None else {"real_images": json.dumps(real)})}
    generator = fitting.generator()
    store.put(GENERATOR_KEY, generator_bytes(generator, teacher.normalization, more))
    if fitting.student is not None:
        student = network_bytes(
            fitting.student,
            arch=config.method.student.arch,
            normalization=teacher.normalization,
            classes=teacher.classes,
            input_px=teacher.input_px,
            more=of_teacher,
        )
        store.put(STUDENT_KEY, student)
    report = FitReport(
        json.loads(json.dumps(identity)),
        hash_weights(generator),
        state.step,
        state.history,
        real_images=real,
        **fitting.accuracies(),
    )
    store.put(RESULT_KEY, json.dumps(asdict(report), indent=1).encode())
    return report
