"""Algorithm 1, as a plain loop: float32, deterministic, the reference that the engine is held to."""

from collections.abc import Sequence

import torch

from nisynth.batch import ImageBatch, Task
from nisynth.device import deterministic
from nisynth.synthesis.inversion.curve import LossCurve
from nisynth.synthesis.inversion.draws import draw, rendering_rng
from nisynth.synthesis.inversion.initialization import Weights
from nisynth.synthesis.inversion.iterate import KeptIterate
from nisynth.synthesis.inversion.jitter import apply_jitter
from nisynth.synthesis.inversion.memory import out_of_memory, within_memory
from nisynth.synthesis.inversion.method import InversionMethod
from nisynth.synthesis.inversion.objective import losses
from nisynth.synthesis.inversion.result import finish_batch
from nisynth.synthesis.inversion.schedule import LearningRates
from nisynth.synthesis.protocol import StepCallback


class PlainSynthesizer:
    """Runs an inversion method for one task after another; each task has a model of its own."""

    notes: Sequence[str] = ()

    def __init__(self, method: InversionMethod, *, log_every: int = 50) -> None:
        self._method = method
        self._log_every = log_every

    def synthesize(
        self, task: Task, on_step: StepCallback | None = None, start: Weights | None = None
    ) -> ImageBatch:
        """Returns the task's full batch, `(B, 3, H, W)` float32, normalized, on the CPU.

        start: initial weights, by name, in place of those that the task draws.
        Raises TaskFailure: `not_finite` when a loss or an image is not, `out_of_memory`.
        """
        with deterministic():
            batch = within_memory(lambda: self._invert(task, on_step, start or {}))
        if batch is None:
            raise out_of_memory(task, self._method.teacher.device)
        return batch

    def _invert(self, task: Task, on_step: StepCallback | None, start: Weights) -> ImageBatch:
        method, config, teacher = self._method, self._method.config, self._method.teacher
        model, terms = method.blank_model(len(task.labels), teacher.device), method.terms()
        optimized = task.labels[: model.num_optimized(len(task.labels))]
        y = torch.from_numpy(optimized.copy()).to(teacher.device)
        draws = draw(task, config, model)
        model.load_state_dict(draws.weights | start)  # Algorithm 1, lines 2 and 3: theta_G, theta_P, alpha, z
        jitter = draws.jitter.to(teacher.device)
        adam = torch.optim.Adam(model.adam_groups(), fused=True)
        rates = LearningRates(adam, model.learning_rate_factors(config.iterations), teacher.device)
        kept = KeptIterate(list(model.parameters()), config.select)
        curve = LossCurve(config.iterations, self._log_every, on_step)

        for epoch in range(1, config.iterations + 1):  # line 4
            jitter_1, jitter_2 = jitter[epoch - 1]
            i_hat = model(y, jitter_1)  # lines 5-8: Eq. 5-7
            loss = losses(terms, teacher, apply_jitter(i_hat, jitter_2), y)  # line 9: Eq. 8
            kept.consider(loss["total"], epoch)
            adam.zero_grad()
            torch.autograd.backward(loss["total"])
            rates.set(torch.tensor(epoch - 1))
            adam.step()  # lines 10-12
            model.constrain()
            if curve.wants(epoch):
                curve.add(epoch, loss)

        kept.restore()
        with torch.no_grad():
            i_hat = model.render(y, rendering_rng(task))  # line 14, without jitter
        return finish_batch(task, i_hat, kept, curve)
