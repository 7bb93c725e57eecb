"""Algorithm 1, as a plain loop: float32, deterministic, the reference that other engines are held to."""

import torch
import torch.nn.functional as F

from nisynth.batch import ImageBatch, Task
from nisynth.determinism import deterministic
from nisynth.synthesis.inversion.curve import LossCurve, conclude, out_of_memory, within_memory
from nisynth.synthesis.inversion.jitter import apply_jitter
from nisynth.synthesis.inversion.objective import KeptIterate, losses
from nisynth.synthesis.naturalinversion.config import NaturalInversionConfig
from nisynth.synthesis.naturalinversion.draws import draw
from nisynth.synthesis.naturalinversion.renderer import Renderer
from nisynth.synthesis.protocol import StepCallback
from nisynth.teachers import Teacher


class PlainSynthesizer:
    """Runs Algorithm 1 for one task after another; each has its own generator, pyramid and alpha."""

    def __init__(self, config: NaturalInversionConfig, teacher: Teacher, *, log_every: int = 50) -> None:
        self._config = config
        self._teacher = teacher
        self._log_every = log_every

    def synthesize(self, task: Task, on_step: StepCallback | None = None) -> ImageBatch:
        """Returns the task's full batch, `(B, 3, H, W)` float32, normalized, on the CPU.

        Raises TaskFailure: `not_finite` when a loss or an image is, `out_of_memory`.
        """
        with deterministic():
            batch = within_memory(lambda: self._invert(task, on_step))
        if batch is None:
            raise out_of_memory(task, self._teacher.device)
        return batch

    def _invert(self, task: Task, on_step: StepCallback | None) -> ImageBatch:
        config, teacher = self._config, self._teacher
        y = torch.from_numpy(task.labels.copy()).to(teacher.device)
        y_one_hot = F.one_hot(y, teacher.num_classes).float()
        draws = draw(task, config, teacher)
        render = Renderer.blank(config, teacher, len(y), teacher.device)
        render.load_state_dict(draws.weights)  # Algorithm 1, line 2: theta_G, theta_P, alpha
        z, jitter = draws.z.to(teacher.device), draws.jitter.to(teacher.device)  # line 3
        adam = torch.optim.Adam(render.adam_groups(), fused=True)
        kept = KeptIterate(list(render.parameters()), config.select)
        curve = LossCurve(config.iterations, self._log_every, on_step)

        for epoch in range(1, config.iterations + 1):  # line 4
            jitter_1, jitter_2 = jitter[epoch - 1]
            i_hat = render(z, y_one_hot, jitter_1)  # lines 5-8: Eq. 5-7
            loss = losses(config, teacher, apply_jitter(i_hat, jitter_2), y)  # line 9: Eq. 8
            kept.see(loss.total, epoch)
            adam.zero_grad()
            torch.autograd.backward(loss.total)
            adam.step()  # lines 10-12
            if curve.wants(epoch):
                curve.add(epoch, loss)

        kept.restore()
        with torch.no_grad():
            i_hat = render(z, y_one_hot)  # line 14, without jitter
        return conclude(task, i_hat, kept, curve)
