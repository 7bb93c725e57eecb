"""The engine: one long-lived `Inversion` that runs task after task, with the shortcuts that work here."""

import gc
import logging
import time
from dataclasses import replace
from typing import Any

import torch

from nisynth.batch import ImageBatch, Task
from nisynth.errors import NisynthError, one_line
from nisynth.synthesis.engine.capture import NotCaptured
from nisynth.synthesis.engine.fused import FusedTeacher
from nisynth.synthesis.engine.loop import Inversion
from nisynth.synthesis.engine.precision import resolve
from nisynth.synthesis.engine.shortcuts import Shortcuts
from nisynth.synthesis.engine.tracing import Untraceable
from nisynth.synthesis.inversion.curve import LossCurve
from nisynth.synthesis.inversion.draws import draw, rendering_rng
from nisynth.synthesis.inversion.initialization import Weights
from nisynth.synthesis.inversion.memory import is_out_of_memory, out_of_memory, within_memory
from nisynth.synthesis.inversion.method import InversionMethod
from nisynth.synthesis.inversion.plain import PlainSynthesizer
from nisynth.synthesis.inversion.result import finish_batch
from nisynth.synthesis.protocol import EngineConfig, StepCallback

logger = logging.getLogger(__name__)


class Unserved(Exception):
    """This machine cannot run the engine's step for this teacher; the plain loop can."""


class FastSynthesizer:
    """Runs an inversion method for one task after another in one long-lived Inversion.

    notes: one line for each shortcut that this machine or teacher does not allow; `figures["engine"]` of a
    batch says how it was made. Raises ConfigError when the device lacks the precision that is asked for.
    """

    def __init__(
        self,
        method: InversionMethod,
        engine: EngineConfig,
        *,
        log_every: int = 50,
        shortcuts: Shortcuts | None = None,
    ) -> None:
        self.notes: list[str] = []
        self.prepared_s = 0.0
        self._method, self._config, self._teacher = method, method.config, method.teacher
        self._log_every = log_every
        self._precision = resolve(engine.precision, self._teacher.device)
        self._shortcuts = shortcuts or Shortcuts.on(self._teacher.device)
        self._plain = PlainSynthesizer(method, log_every=log_every)
        self._fused = self._fuse()
        self._inversion: Inversion | None = None

    def synthesize(
        self, task: Task, on_step: StepCallback | None = None, start: Weights | None = None
    ) -> ImageBatch:
        """Returns the task's full batch, `(B, 3, H, W)` float32, normalized, on the CPU.

        start: initial weights, by name, in place of those that the task draws.
        On a GPU, the first batch of a size compiles and captures before it starts, which takes about a
        minute. Raises TaskFailure: `not_finite` when a loss or an image is, `out_of_memory`.
        """
        if self._fused is None:
            batch = self._plain.synthesize(task, on_step, start)
            batch.figures["engine"] = self.describe()
            return batch
        try:
            with self._precision.applied(self._teacher.device):
                done = within_memory(lambda: self._invert(task, on_step, start or {}))
                if done is None:
                    self._drop()
                    raise out_of_memory(task, self._teacher.device)
                return done
        except Unserved:
            self._fused = None
        return self.synthesize(task, on_step, start)

    def describe(self) -> str:
        """Returns how tasks are run, such as `fast, bfloat16, compiled, CUDA graph`."""
        if self._fused is None:
            return "plain, float32"
        made = ("compiled" * self._shortcuts.compiled, "CUDA graph" * self._shortcuts.captured)
        return ", ".join(["fast", self._precision.name, *filter(None, made)])

    def _invert(self, task: Task, on_step: StepCallback | None, start: Weights) -> ImageBatch:
        config = self._config
        inversion = self._begin(task, start)  # lines 2 and 3
        curve = LossCurve(config.iterations, self._log_every, on_step)
        for epoch in range(1, config.iterations + 1):  # line 4
            inversion.step()  # lines 5-12
            if on_step is not None and curve.wants(epoch):
                # Only a listener makes the host wait for the device.
                curve.add(epoch, inversion.losses_at(epoch))
        if on_step is None:
            for epoch in filter(curve.wants, range(1, config.iterations + 1)):
                curve.add(epoch, inversion.losses_at(epoch))
        i_hat = inversion.render(rendering_rng(task))  # line 14
        return finish_batch(task, i_hat, inversion.kept, curve, self._figures())

    def _figures(self) -> dict[str, Any]:
        figures: dict[str, Any] = {"engine": self.describe()}
        if self._teacher.device.type == "cuda":
            figures["gpu_memory_bytes"] = torch.cuda.max_memory_reserved(self._teacher.device)
        return figures

    def _begin(self, task: Task, start: Weights) -> Inversion:
        """Returns the Inversion of the task's batch size, at the task's start. Raises Unserved."""
        if self._inversion is None or self._inversion.batch_size != len(task.labels):
            self._drop()
            self._inversion = self._prepare(task)
        self._start(self._inversion, task, start)
        return self._inversion

    def _start(self, inversion: Inversion, task: Task, start: Weights) -> None:
        draws = draw(task, self._config, inversion.model)
        draws = draws._replace(weights=draws.weights | start)
        inversion.begin(draws, torch.from_numpy(task.labels.copy()))

    def _drop(self) -> None:
        """Frees the memory of the present Inversion, which refers to itself."""
        self._inversion = None
        gc.collect()

    def _prepare(self, task: Task) -> Inversion:
        """Returns an Inversion whose step runs on this machine, with as many shortcuts as that allows."""
        start = time.perf_counter()
        while True:
            inversion = self._build(task)
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
        size = inversion.batch_size
        logger.info("%s: batch size %d prepared in %.1f s", self.describe(), size, self.prepared_s)
        return inversion

    def _build(self, task: Task) -> Inversion:
        assert self._fused is not None
        batch_size = len(task.labels)
        inversion = Inversion(self._method, self._fused, batch_size, self._precision, self._shortcuts)
        self._start(inversion, task, {})
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
        model = self._method.blank_model(1, torch.device("meta"))
        # cuDNN's fused calls have no gradient, and save time in 16 bits only.
        fusible = not model.differentiates_features and dtype != torch.float32
        activations = shortcuts.activations and fusible
        try:
            with self._precision.applied(self._teacher.device):
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

    def _note(self, text: str) -> None:
        self.notes.append(f"engine.name fast: {text}")
        logger.warning(self.notes[-1])
