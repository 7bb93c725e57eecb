"""Algorithm 1 in memory that is set up once; its step can be compiled whole and replayed as a CUDA graph.

An `Inversion` holds one batch's model, labels, jitter table, optimizer state, kept iterate and loss log on
the device; every task starts by writing its draws into them. A step is the same sequence of operations each
time and reads its iteration from a counter on the device. So on a GPU it is compiled once, captured once as
a CUDA graph, and replayed, and nothing in the loop waits for the device.
"""

from functools import partial

import torch
from torch import Tensor

from nisynth.synthesis.engine.capture import captured, compiled
from nisynth.synthesis.engine.fused import FusedTeacher
from nisynth.synthesis.engine.precision import Arithmetic, untuned
from nisynth.synthesis.engine.shortcuts import Shortcuts
from nisynth.synthesis.engine.statistics import FeatureDistribution
from nisynth.synthesis.inversion.draws import Draws
from nisynth.synthesis.inversion.iterate import KeptIterate
from nisynth.synthesis.inversion.jitter import apply_jitter
from nisynth.synthesis.inversion.method import InversionMethod
from nisynth.synthesis.inversion.model import Acceleration
from nisynth.synthesis.inversion.objective import Losses, losses
from nisynth.synthesis.inversion.schedule import LearningRates


class Inversion:
    """The inner loop of Algorithm 1 for batches of one size on one device, for one task after another."""

    def __init__(
        self,
        method: InversionMethod,
        fused: FusedTeacher,
        batch_size: int,
        precision: Arithmetic,
        shortcuts: Shortcuts,
    ) -> None:
        config, teacher, device = method.config, method.teacher, method.teacher.device
        self.batch_size = batch_size
        self.model = method.blank_model(batch_size, device)
        self.kept = KeptIterate(list(self.model.parameters()), config.select)
        self._fused, self._captured = fused, shortcuts.captured
        r_bn = FeatureDistribution(
            teacher.batch_norms, config.first_bn_multiplier, config.bn_scale, config.bn_slack
        )
        self._terms = method.terms(r_bn if fused.statistics else None)
        self._names = ("total", *(term.name for term in self._terms))
        self._by = Acceleration(
            fused.features, partial(precision.autocast, device), shortcuts.identities, shortcuts.layout
        )
        # Adam divides by a root of squared gradients: for a scaled loss, only epsilon needs scaling.
        num_optimized = self.model.num_optimized(batch_size)
        self._loss_scale = precision.scale(num_optimized)
        epsilon, on_gpu = 1e-8 * self._loss_scale, device.type == "cuda"
        self._adam = torch.optim.Adam(self.model.adam_groups(), eps=epsilon, fused=True, capturable=on_gpu)
        factors = self.model.learning_rate_factors(config.iterations)
        self._rates = LearningRates(self._adam, factors, device)
        self._y = torch.zeros(num_optimized, dtype=torch.int64, device=device)
        self._jitter = torch.zeros((config.iterations, 2, 3), dtype=torch.int64, device=device)
        self._epoch = torch.zeros((), dtype=torch.int64, device=device)
        self._log = torch.zeros((config.iterations, len(self._names)), device=device)
        self._loss = compiled(self._evaluate) if shortcuts.compiled else self._evaluate
        self.step = self._advance

    def begin(self, draws: Draws, labels: Tensor) -> None:
        """Writes a task's start over whatever was there before: Algorithm 1, lines 2 and 3."""
        self.model.load_state_dict(draws.weights)
        self._y.copy_(labels[: len(self._y)])
        self._jitter.copy_(draws.jitter)
        self._epoch.zero_()
        self.kept.reset()
        for state in self._adam.state.values():
            for value in state.values():
                value.zero_()

    def prepare(self) -> None:
        """Takes a step, which compiles it where asked, and captures it where asked. `begin` comes after.

        Raises NotCaptured, and whatever a step may raise that this machine cannot take.
        """
        self._advance()
        if self._captured:
            self.step = captured(self._advance, rewind=self._epoch.zero_)

    def losses_at(self, iteration: int) -> Losses:
        """Returns the loss terms of an iteration that is done, counted from 1."""
        return dict(zip(self._names, self._log[iteration - 1].unbind(), strict=True))

    def render(self, rng: torch.Generator) -> Tensor:
        """Returns the kept iterate's images, in float32 and without jitter: line 14."""
        self.kept.restore()
        with torch.no_grad(), untuned():
            return self.model.render(self._y, rng)

    def _advance(self) -> None:
        jitter_1, jitter_2 = self._jitter.index_select(0, self._epoch.view(1))[0]
        loss = self._loss(jitter_1, jitter_2)  # lines 5-9
        total = loss["total"]
        self.kept.consider(total.detach(), self._epoch + 1)
        self._log.index_copy_(0, self._epoch.view(1), torch.stack(list(loss.values())).detach()[None])
        self._adam.zero_grad()
        torch.autograd.backward(total * self._loss_scale)
        self._rates.set(self._epoch)
        self._adam.step()  # lines 10-12
        self.model.constrain()
        self._epoch += 1

    def _evaluate(self, jitter_1: Tensor, jitter_2: Tensor) -> Losses:
        i_hat = self.model(self._y, jitter_1, self._by)  # lines 5-8
        i_hat = apply_jitter(i_hat, jitter_2)
        with self._by.autocast():
            terms = losses(self._terms, self._fused, i_hat, self._y)  # line 9
        # The total alone carries a gradient: a compiler then keeps nothing for the terms' own.
        return {name: term if name == "total" else term.detach() for name, term in terms.items()}
