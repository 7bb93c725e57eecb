"""Algorithm 1 at the speed of the machine: the plain loop's mathematics, in memory that is set up once.

An `Inversion` holds one batch's weights, latents, labels, jitter table, optimizer state, kept iterate and
loss log on the device; every task starts by writing its draws into them. A step is the same sequence of
operations each time and reads where it is from a counter on the device. So on a GPU it is compiled once,
captured once as a CUDA graph, and replayed, and nothing in the loop waits for the device. Speed itself
lives next door: `fused`, `activations` and `normalization` (the frozen teacher), `identities` (generator and
pyramid), `statistics` (R_BN), `precision`, `capture`; `shortcuts` names each.
"""

import gc
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nisynth.batch import ImageBatch, Task
from nisynth.errors import NisynthError, one_line
from nisynth.synthesis.engine.capture import (
    NotCaptured,
    captured,
    compiled,
    fitting_batch_size,
)
from nisynth.synthesis.engine.fused import FusedTeacher, Untraceable
from nisynth.synthesis.engine.precision import Precision, resolve, untuned
from nisynth.synthesis.engine.shortcuts import Shortcuts
from nisynth.synthesis.engine.statistics import FeatureDistribution
from nisynth.synthesis.inversion.curve import (
    LossCurve,
    conclude,
    is_out_of_memory,
    out_of_memory,
    within_memory,
)
from nisynth.synthesis.inversion.jitter import apply_jitter
from nisynth.synthesis.inversion.objective import KeptIterate, Losses, losses
from nisynth.synthesis.inversion.plain import PlainSynthesizer
from nisynth.synthesis.naturalinversion.config import NaturalInversionConfig
from nisynth.synthesis.naturalinversion.draws import Draws, draw
from nisynth.synthesis.naturalinversion.generator import Generator
from nisynth.synthesis.naturalinversion.identities import generate, join, transfer
from nisynth.synthesis.naturalinversion.pyramid import FeatureTransferPyramid
from nisynth.synthesis.naturalinversion.renderer import Renderer
from nisynth.synthesis.protocol import EngineConfig, StepCallback
from nisynth.teachers import Teacher

logger = logging.getLogger(__name__)


class Unserved(Exception):
    """This machine cannot run the engine's step for this teacher; the plain loop can."""


class Inversion:
    """The inner loop of Algorithm 1 for batches of one size on one device, for one task after another."""

    def __init__(
        self,
        config: NaturalInversionConfig,
        teacher: Teacher,
        fused: FusedTeacher,
        batch_size: int,
        precision: Precision,
        shortcuts: Shortcuts,
    ) -> None:
        device = teacher.device
        self.batch_size = batch_size
        self._config, self._fused, self._precision, self._shortcuts = config, fused, precision, shortcuts
        self._render = Renderer.blank(config, teacher, batch_size, device)
        self._r_bn = FeatureDistribution(
            teacher.batch_norms, config.first_bn_multiplier, config.bn_scale, config.bn_slack
        )
        self.kept = KeptIterate(list(self._render.parameters()), config.select)
        # Adam divides by a root of squared gradients: for a scaled loss, only epsilon needs scaling.
        self._loss_scale = precision.scale(batch_size)
        epsilon, on_gpu = 1e-8 * self._loss_scale, device.type == "cuda"
        self._adam = torch.optim.Adam(self._render.adam_groups(), eps=epsilon, fused=True, capturable=on_gpu)
        self._z = torch.zeros((batch_size, config.latent_dim), device=device)
        self._y = torch.zeros(batch_size, dtype=torch.int64, device=device)
        self._y_one_hot = torch.zeros((batch_size, teacher.num_classes), device=device)
        self._jitter = torch.zeros((config.iterations, 2, 3), dtype=torch.int64, device=device)
        self._epoch = torch.zeros((), dtype=torch.int64, device=device)
        self._log = torch.zeros((config.iterations, len(Losses._fields)), device=device)
        self._loss = compiled(self._evaluate) if shortcuts.compiled else self._evaluate
        self.step = self._advance

    def begin(self, draws: Draws, labels: Tensor) -> None:
        """Writes a task's start over whatever was there before: Algorithm 1, lines 2 and 3."""
        self._render.load_state_dict(draws.weights)
        self._z.copy_(draws.z)
        self._y.copy_(labels)
        self._y_one_hot.copy_(F.one_hot(labels, self._y_one_hot.shape[1]))
        self._jitter.copy_(draws.jitter)
        self._epoch.zero_()
        self.kept.reset()
        for state in self._adam.state.values():
            for value in state.values():
                value.zero_()

    def parameters(self) -> list[nn.Parameter]:
        """Returns theta_G, theta_P and alpha, with the gradients of the latest step."""
        return list(self._render.parameters())

    def prepare(self) -> None:
        """Takes a step, which compiles it where asked, and captures it where asked. Begin again after it.

        Raises NotCaptured, and whatever a step may raise that this machine cannot take.
        """
        self._advance()
        if self._shortcuts.captured:
            self.step = captured(self._advance, rewind=self._epoch.zero_)

    def losses_at(self, iteration: int) -> Losses:
        """Returns the loss terms of an iteration that is done, counted from 1."""
        return Losses(*self._log[iteration - 1].unbind())

    def render(self) -> Tensor:
        """Returns the kept iterate's images, in float32 and without jitter: line 14."""
        self.kept.restore()
        with torch.no_grad(), untuned():
            i_hat: Tensor = self._render(self._z, self._y_one_hot)
        return i_hat

    def _advance(self) -> None:
        jitter_1, jitter_2 = self._jitter.index_select(0, self._epoch.view(1))[0]
        loss = self._loss(jitter_1, jitter_2)  # lines 5-9
        self.kept.see(loss.total.detach(), self._epoch + 1)
        self._log.index_copy_(0, self._epoch.view(1), torch.stack(loss).detach()[None])
        self._adam.zero_grad()
        torch.autograd.backward(loss.total * self._loss_scale)
        self._adam.step()  # lines 10-12
        self._epoch += 1

    def _evaluate(self, jitter_1: Tensor, jitter_2: Tensor) -> Losses:
        render, shortcuts, autocast = self._render, self._shortcuts, self._precision.autocast
        g, p, joined = _image_makers(shortcuts)
        r_bn = self._r_bn if self._fused.statistics else None
        with autocast(self._z.device):
            x_hat = g(render.generator, self._z, self._y_one_hot)  # line 5
        x_hat = apply_jitter(x_hat.float(), jitter_1)
        with autocast(self._z.device):
            m_l = p(render.pyramid, self._features(x_hat))  # line 6
        i_hat = render.scaling(joined(render.pyramid, x_hat, m_l.float()))  # lines 7 and 8
        i_hat = apply_jitter(i_hat, jitter_2)
        with autocast(self._z.device):
            terms = losses(self._config, self._fused, i_hat, self._y, r_bn)  # line 9
        return Losses(terms.total, *(term.detach() for term in terms[1:]))

    def _features(self, x_hat: Tensor) -> list[Tensor]:
        with torch.set_grad_enabled(self._config.feature_gradient):
            return self._fused.features(x_hat)


def _image_makers(shortcuts: Shortcuts) -> tuple[Callable[..., Tensor], ...]:
    """Returns generator, pyramid and the joining of their images: as written, or rewritten."""
    if shortcuts.identities:
        return partial(generate, layout=shortcuts.layout), transfer, join
    return Generator.forward, FeatureTransferPyramid.forward, FeatureTransferPyramid.join


class FastSynthesizer:
    """Runs Algorithm 1 for one task after another in one long-lived Inversion.

    notes: one line for each thing that this machine or teacher cannot have; `figures["engine"]` of a batch
    says how it was made. Raises ConfigError when the device lacks the precision that is asked for.
    """

    def __init__(
        self,
        config: NaturalInversionConfig,
        engine: EngineConfig,
        teacher: Teacher,
        *,
        log_every: int = 50,
        shortcuts: Shortcuts | None = None,
    ) -> None:
        self.notes: list[str] = []
        self.prepared_s = 0.0
        self._config = config
        self._teacher = teacher
        self._log_every = log_every
        self._precision = resolve(engine.precision, teacher.device)
        self._shortcuts = shortcuts or Shortcuts.on(teacher.device)
        self._plain = PlainSynthesizer(config, teacher, log_every=log_every)
        self._fused = self._fuse()
        self._inversion: Inversion | None = None

    def synthesize(self, task: Task, on_step: StepCallback | None = None) -> ImageBatch:
        """Returns the task's full batch, `(B, 3, H, W)` float32, normalized, on the CPU.

        On a GPU, the first batch of a size compiles and captures before it starts, which takes about a
        minute. Raises TaskFailure: `not_finite` when a loss or an image is, `out_of_memory`.
        """
        if self._fused is None:
            batch = self._plain.synthesize(task, on_step)
            batch.figures["engine"] = self.describe()
            return batch
        try:
            with self._precision.arithmetic(self._teacher.device):
                done = within_memory(lambda: self._invert(task, on_step))
                if done is None:
                    self._drop()
                    raise out_of_memory(task, self._teacher.device, self._fitting(task))
                return done
        except Unserved:
            self._fused = None
        return self.synthesize(task, on_step)

    def describe(self) -> str:
        """Returns how tasks are run, such as `fast, bfloat16, compiled, CUDA graph`."""
        if self._fused is None:
            return "plain, float32"
        made = ("compiled" * self._shortcuts.compiled, "CUDA graph" * self._shortcuts.captured)
        return ", ".join(["fast", self._precision.name, *filter(None, made)])

    def _invert(self, task: Task, on_step: StepCallback | None) -> ImageBatch:
        config = self._config
        inversion = self._begin(task)  # lines 2 and 3
        curve = LossCurve(config.iterations, self._log_every, on_step)
        for epoch in range(1, config.iterations + 1):  # line 4
            inversion.step()  # lines 5-12
            if on_step is not None and curve.wants(epoch):
                curve.add(epoch, inversion.losses_at(epoch))  # for a listener alone, wait for the device
        if on_step is None:
            for epoch in filter(curve.wants, range(1, config.iterations + 1)):
                curve.add(epoch, inversion.losses_at(epoch))
        i_hat = inversion.render()  # line 14
        return conclude(task, i_hat, inversion.kept, curve, self._figures())

    def _figures(self) -> dict[str, Any]:
        figures: dict[str, Any] = {"engine": self.describe()}
        if self._teacher.device.type == "cuda":
            figures["gpu_memory_bytes"] = torch.cuda.max_memory_reserved(self._teacher.device)
        return figures

    def _begin(self, task: Task) -> Inversion:
        """Returns the Inversion of the task's batch size, at the task's start. Raises Unserved."""
        draws = draw(task, self._config, self._teacher)
        labels = torch.from_numpy(task.labels.copy())
        if self._inversion is None or self._inversion.batch_size != len(labels):
            self._drop()
            self._inversion = self._prepare(draws, labels)
        self._inversion.begin(draws, labels)
        return self._inversion

    def _drop(self) -> None:
        """Frees the memory of the present Inversion, which refers to itself."""
        self._inversion = None
        gc.collect()

    def _prepare(self, draws: Draws, labels: Tensor) -> Inversion:
        """Returns an Inversion whose step runs on this machine, with as many shortcuts as that allows."""
        start = time.perf_counter()
        while True:
            inversion = self._build(draws, labels, self._shortcuts)
            try:
                inversion.prepare()
                break
            except Exception as error:  # compilers and drivers may raise anything
                if isinstance(error, NisynthError) or is_out_of_memory(error):
                    raise
                self._do_without(error)
            del inversion
            gc.collect()
        self.prepared_s = time.perf_counter() - start
        logger.info("%s: batch size %d prepared in %.1f s", self.describe(), len(labels), self.prepared_s)
        return inversion

    def _build(self, draws: Draws, labels: Tensor, shortcuts: Shortcuts) -> Inversion:
        assert self._fused is not None
        config, teacher, precision = self._config, self._teacher, self._precision
        inversion = Inversion(config, teacher, self._fused, len(labels), precision, shortcuts)
        inversion.begin(draws, labels)
        return inversion

    def _do_without(self, error: Exception) -> None:
        """Leaves out the shortcut that failed. Raises Unserved when the step fails without any."""
        if isinstance(error, NotCaptured):
            self._shortcuts = replace(self._shortcuts, captured=False)
            how, reason = "as a CUDA graph", one_line(error.__cause__ or error)
        elif self._shortcuts.compiled:
            self._shortcuts = replace(self._shortcuts, compiled=False)
            how, reason = "with torch.compile", one_line(error)
        else:
            self._note(f"its step failed ({one_line(error)}); tasks run in the plain loop")
            raise Unserved from error
        self._note(f"its step failed {how} ({reason}); it runs without")

    def _fuse(self) -> FusedTeacher | None:
        shortcuts, dtype = self._shortcuts, self._precision.dtype
        # cuDNN's fused calls have no gradient, and pay in 16 bits only.
        activations = shortcuts.activations and not self._config.feature_gradient and dtype != torch.float32
        try:
            with self._precision.arithmetic(self._teacher.device):
                fused = FusedTeacher(
                    self._teacher,
                    dtype,
                    shortcuts.layout,
                    folded=shortcuts.folded,
                    activations=activations,
                    statistics=shortcuts.statistics,
                    normalization=shortcuts.normalization,
                )
        except Untraceable as reason:
            self._note(f"{reason}; tasks run in the plain loop")
            return None
        for note in fused.notes:
            self._note(note)
        return fused

    def _fitting(self, task: Task) -> int | None:
        """Returns the largest batch that should fit; None where it cannot be told (on a CPU)."""
        if self._teacher.device.type != "cuda":
            return None

        def run(batch_size: int) -> None:
            part = replace(task, labels=task.labels[:batch_size], rows=batch_size)
            draws, labels = draw(part, self._config, self._teacher), torch.from_numpy(part.labels.copy())
            self._build(draws, labels, replace(self._shortcuts, compiled=False, captured=False)).step()
            gc.collect()

        return fitting_batch_size(len(task.labels), run, self._teacher.device)

    def _note(self, text: str) -> None:
        self.notes.append(f"engine.name fast: {text}")
        logger.warning(self.notes[-1])
