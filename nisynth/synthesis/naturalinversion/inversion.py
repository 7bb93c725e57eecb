"""Algorithm 1, as a plain loop: float32, deterministic, the reference that other engines are held to."""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F

from nisynth.batch import ImageBatch, Task
from nisynth.errors import TaskFailure
from nisynth.synthesis.determinism import deterministic
from nisynth.synthesis.naturalinversion.config import NaturalInversionConfig
from nisynth.synthesis.naturalinversion.draws import draw
from nisynth.synthesis.naturalinversion.jitter import apply_jitter
from nisynth.synthesis.naturalinversion.objective import KeptIterate, Losses, losses
from nisynth.synthesis.naturalinversion.renderer import Renderer
from nisynth.synthesis.protocol import StepCallback
from nisynth.teachers import Teacher

# The CPU's allocator and the CUDA libraries have no exception type of their own.
ALLOCATION_ERRORS = ("can't allocate memory", "not enough memory", "STATUS_ALLOC_FAILED")


class LossCurve:
    """The loss terms of the first, every `log_every`-th and the last iteration (Figure 5).

    Iterations count from 1: point k holds the losses of the iterate before the k-th step.
    """

    def __init__(self, iterations: int, log_every: int, on_step: StepCallback | None) -> None:
        self.points: list[dict[str, float]] = []
        self._iterations = iterations
        self._log_every = log_every
        self._on_step = on_step

    def wants(self, iteration: int) -> bool:
        """Says whether this iteration is a point of the curve."""
        return iteration in (1, self._iterations) or iteration % self._log_every == 0

    def add(self, iteration: int, terms: Losses) -> None:
        """Reads the terms from the device, keeps them and passes them on."""
        values = dict(zip(Losses._fields, torch.stack(terms).tolist(), strict=True))
        self.points.append({"iteration": iteration, **values})
        if self._on_step is not None:
            self._on_step(iteration, values)

    def final(self) -> Mapping[str, float]:
        """Returns the last point's terms as figures: `final_total`, `final_ce`, ..."""
        return {f"final_{name}": value for name, value in self.points[-1].items() if name != "iteration"}


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
        try:
            with deterministic():
                return self._invert(task, on_step)
        except (torch.OutOfMemoryError, MemoryError):
            pass
        except RuntimeError as error:
            if not any(text in str(error) for text in ALLOCATION_ERRORS):
                raise
        # Raised outside the handlers: a chained exception would keep the failed task's tensors alive.
        raise self._out_of_memory(task)

    def _invert(self, task: Task, on_step: StepCallback | None) -> ImageBatch:
        config, teacher = self._config, self._teacher
        labels = torch.from_numpy(task.labels.copy())
        y = labels.to(teacher.device)
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
        if not (kept.finite & torch.isfinite(i_hat).all()):
            raise TaskFailure("not_finite", self._not_finite(task, curve))
        figures = {
            "best_iteration": int(kept.best_iteration),
            "best_total": float(kept.best_total),
            **curve.final(),
        }
        return ImageBatch(
            task=task,
            images=i_hat.cpu(),
            labels=labels,
            curve=curve.points,
            figures=figures,
        )

    def _not_finite(self, task: Task, curve: LossCurve) -> str:
        good = [p["iteration"] for p in curve.points if math.isfinite(p["total"])]
        when = f"after iteration {good[-1]}" if good else "from the first iteration"
        return (
            f"task {task.index}: the loss is not finite {when}; "
            "check the teacher's weights and normalization, or lower method.lr_generator"
        )

    def _out_of_memory(self, task: Task) -> TaskFailure:
        if self._teacher.device.type == "cuda":
            torch.cuda.empty_cache()
        batch_size = len(task.labels)
        return TaskFailure(
            "out_of_memory",
            f"task {task.index}: run.batch_size {batch_size} does not fit the memory of "
            f"{self._teacher.device}; try run.batch_size {max(1, batch_size // 2)}",
        )
