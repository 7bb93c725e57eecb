"""The frozen teacher as two graphs without branches: one computes features, the other what losses need.

`tracing` makes them. The feature graph ends at the deepest tap, and every BatchNorm that directly follows a
convolution is folded into it: exact, because both are frozen. The loss graph keeps its BatchNorms, since
R_BN reads their inputs. Both graphs return the values that `Teacher.features` and
`Teacher.logits_and_bn_inputs` read with hooks, but without hooks, so that a compiler sees plain operations.
Both are compared with the teacher's own forward pass before they are used.
"""

import copy
from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from nisynth.errors import one_line
from nisynth.synthesis.engine.activations import fuse_activations
from nisynth.synthesis.engine.normalization import return_moments
from nisynth.synthesis.engine.precision import FLOAT32
from nisynth.synthesis.engine.tracing import Untraceable, trace_teacher
from nisynth.teachers import Teacher
from nisynth.teachers.probe import BATCH_SIZE as PROBE_BATCH_SIZE
from nisynth.teachers.probe import weighed_sum

LARGEST_ERROR, LARGEST_ERROR_16_BIT, LARGEST_GROWTH = 1e-3, 2e-2, 1.5
LARGEST_GRADIENT_ERROR = 1e-2


class FusedTeacher:
    """A teacher's features, logits and BatchNorm inputs as graphs whose layers compute in `dtype`.

    folded: fold BatchNorms of the feature graph into their convolutions. activations: there, let cuDNN
        compute convolutions, residual sums and ReLUs in one call; such features have no gradient.
    statistics: `logits_and_bn_inputs` returns the `moments` of BatchNorm inputs instead of the inputs.
        normalization: where a ReLU follows, compute these moments in the pass that normalizes.
    batch_norms: the teacher's, in the order in which `logits_and_bn_inputs` returns their inputs.
    notes: one line for each of these options that this device does not support; it is then left out.
    Raises Untraceable when the network cannot be traced, or when its graphs and its own forward pass
    disagree (relative error over 1e-3 on a random batch, in float32; 1e-2 of the gradient).
    """

    def __init__(
        self,
        teacher: Teacher,
        dtype: torch.dtype = torch.float32,
        memory_format: torch.memory_format = torch.contiguous_format,
        *,
        folded: bool = True,
        activations: bool = False,
        statistics: bool = False,
        normalization: bool = False,
    ) -> None:
        self.batch_norms, self.statistics = teacher.batch_norms, statistics
        self.notes: list[str] = []
        self._dtype, self._memory_format = dtype, memory_format
        features = trace_teacher(teacher, "output")
        if folded:
            _fold_batch_norms(features)
        observing = trace_teacher(teacher, "input")
        x = _sample(teacher)
        # In IEEE float32, whatever the engine will compute in: TF32 alone differs by more than is allowed.
        with FLOAT32.applied(x.device), torch.autocast(x.device.type, enabled=False):
            _compare(teacher, features, observing, x)
            if statistics:
                _check_batches(teacher)
                return_moments(observing, teacher.batch_norm_sites, fused=False)
            with torch.no_grad():
                of_features, of_observing = features(x.clone()), observing(x.clone())
        self._observing = _in_arithmetic(observing, dtype, memory_format)
        self._features = _in_arithmetic(features, dtype, memory_format)
        if activations:
            fused = copy.deepcopy(self._features)
            fuse_activations(fused)
            self._features = self._sound(fused, self._features, x, of_features, "cuDNN's fused activations")
        if statistics and normalization:
            fused = trace_teacher(teacher, "input")
            return_moments(fused, teacher.batch_norm_sites, fused=True)
            fused = _in_arithmetic(fused, dtype, memory_format)
            self._observing = self._sound(
                fused, self._observing, x, of_observing, "normalization in one read"
            )

    def features(self, x: Tensor) -> list[Tensor]:
        """Returns the taps' outputs, shallow to deep, as `Teacher.features` does."""
        values: Sequence[Tensor] = self._features(self._cast(x))
        return list(values)

    def logits_and_bn_inputs(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Returns logits and the input of every BatchNorm2d, as the teacher does, or each input's moments."""
        logits, *inputs = self._observing(self._cast(x))
        return logits, inputs

    def _cast(self, x: Tensor) -> Tensor:
        # A copy whatever the type, since some networks write into their input.
        return x.to(self._dtype, memory_format=self._memory_format, copy=True)

    @torch.no_grad()
    def _sound(
        self, fused: fx.GraphModule, separate: fx.GraphModule, x: Tensor, exact: Sequence[Tensor], what: str
    ) -> fx.GraphModule:
        """Returns the fused graph; the separate one, with a note, where the fused one cannot be used.

        That is where the device cannot run it, or where its error against `exact`, the values in
        float32, is clearly larger than that of the separate operations.
        """
        with torch.autocast(x.device.type, self._dtype, enabled=self._dtype != torch.float32):
            near = separate(self._cast(x))
            try:
                given = fused(self._cast(x))
            except Exception as error:  # compilers and drivers may raise anything
                self.notes.append(f"no {what} ({one_line(error)})")
                return separate
        allowed = LARGEST_ERROR if self._dtype == torch.float32 else LARGEST_ERROR_16_BIT
        for value, other, wanted in zip(given, near, exact, strict=True):
            if not _error(value, wanted) < LARGEST_GROWTH * _error(other, wanted) + allowed:
                self.notes.append(f"no {what} (its values differ from those of the separate operations)")
                return separate
        return fused


def _fold_batch_norms(traced: fx.GraphModule) -> None:
    """Folds each BatchNorm2d into the convolution before it, where nothing else reads between the two."""
    calls = Counter(node.target for node in traced.graph.find_nodes(op="call_module"))
    for node in traced.graph.find_nodes(op="call_module"):
        before = node.args[0] if node.args else None
        norm = traced.get_submodule(str(node.target))
        if not isinstance(norm, nn.BatchNorm2d) or not isinstance(before, fx.Node):
            continue
        if before.op != "call_module" or len(before.users) > 1 or calls[before.target] > 1:
            continue
        conv = traced.get_submodule(str(before.target))
        if type(conv) is nn.Conv2d:
            traced.set_submodule(str(before.target), fuse_conv_bn_eval(conv, norm).requires_grad_(False))
            node.replace_all_uses_with(before)
            traced.graph.erase_node(node)
    traced.delete_all_unused_submodules()
    traced.recompile()


def _in_arithmetic(
    traced: fx.GraphModule, dtype: torch.dtype, memory_format: torch.memory_format
) -> fx.GraphModule:
    """Gives the graph its own copy of the convolutions and linear layers, in `dtype` and layout.

    BatchNorms stay float32. The weights are cast once, here, so that autocast has no layer left to cast
    in the loop.
    """
    for target in {str(node.target) for node in traced.graph.find_nodes(op="call_module")}:
        layer = traced.get_submodule(target)
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            own = copy.deepcopy(layer).to(dtype=dtype).to(memory_format=memory_format)
            traced.set_submodule(target, own)
    return traced


def _check_batches(teacher: Teacher) -> None:
    """Raises Untraceable where a BatchNorm does not read one map for each image: `moments` are by image."""
    for site in teacher.batch_norm_sites:
        if site.shape[0] != PROBE_BATCH_SIZE:
            raise Untraceable(f"BatchNorm2d {site.name!r} reads windows or views folded into the batch")


def _compare(teacher: Teacher, features: fx.GraphModule, observing: fx.GraphModule, x: Tensor) -> None:
    """Raises Untraceable where the graphs disagree with the network they were traced from.

    Gradients count too: a graph does not know of `torch.no_grad()` inside of forward.
    """

    def of_network(x: Tensor) -> list[Tensor]:
        logits, inputs = teacher.logits_and_bn_inputs(x)
        return [logits, *inputs]

    for graph, own in ((observing, of_network), (features, teacher.features)):
        expected, slopes = _values_and_gradients(own, x)
        try:
            seen, slopes_seen = _values_and_gradients(graph, x)
        except Exception as error:
            raise Untraceable(f"the teacher's graph does not run: {one_line(error)}") from error
        for value, wanted in zip(seen, expected, strict=True):
            if value.shape != wanted.shape or not _error(value, wanted) < LARGEST_ERROR:
                raise Untraceable("the teacher's graph and its forward pass give different values")
        for slope, wanted in zip(slopes_seen, slopes, strict=True):
            if not _error(slope, wanted) < LARGEST_GRADIENT_ERROR:
                raise Untraceable("the gradient of the teacher's graph is not that of its forward")


def _values_and_gradients(
    run: Callable[[Tensor], Sequence[Tensor]], x: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """Returns the values of a run at x, and the gradients at x of the first and of all: 0 where none is."""
    x = x.clone().requires_grad_()
    slopes: list[Tensor] = []
    with torch.enable_grad():
        values = list(run(x.clone()))
        for some in (values[:1], values):
            sums = [weighed_sum(value) for value in some if value.requires_grad]
            slope = torch.autograd.grad(sums, x, retain_graph=True) if sums else (torch.zeros_like(x),)
            slopes += slope
    return [value.detach() for value in values], slopes


def _sample(teacher: Teacher) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    return torch.randn((3, 3, teacher.input_px, teacher.input_px), generator=rng).to(teacher.device)


def _error(value: Tensor, wanted: Tensor) -> float:
    # A teacher that gives NaN can be traced all the same; its tasks fail because their losses are not finite.
    value, wanted = value.float().nan_to_num(), wanted.float().nan_to_num()
    return float(torch.linalg.vector_norm(value - wanted) / torch.linalg.vector_norm(wanted).clamp_min(1e-12))
