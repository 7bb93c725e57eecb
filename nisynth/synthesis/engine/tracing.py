"""A network's forward as a graph of plain operations, by `torch.fx`, with its sites' values as outputs.

Default arguments of forward count as constants, and every size but the batch's is a number while the
network is traced: what it computes from sizes, such as padding, may use them in Python's `if` and `range`.
"""

import operator
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, ValuesView
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.node import map_aggregate

from nisynth.errors import one_line
from nisynth.teachers import Teacher
from nisynth.teachers.trace import Site

BATCH_SIZES = (2, 3)
"""Of the two examples by which sizes are known: what differs between them depends on the batch."""

IN_PLACE = (operator.iadd, operator.isub, operator.imul, operator.itruediv)


class Untraceable(Exception):
    """The network's forward cannot be traced into a graph; the message says why, in one line."""


def trace_teacher(teacher: Teacher, what: Literal["input", "output"]) -> fx.GraphModule:
    """Returns a graph that gives the taps (`output`), or the logits and each BatchNorm's input (`input`).

    A value that the network overwrites later is copied at its site. Raises Untraceable.
    """
    sites = teacher.tap_sites if what == "output" else teacher.batch_norm_sites
    root = _Root(teacher)
    tracer = _Tracer(teacher, what, sites)
    try:
        graph = tracer.trace(root)
    except Untraceable:
        raise
    except Exception as error:  # the user's network may do anything with a proxy
        raise Untraceable(f"torch.fx cannot trace the teacher: {one_line(error)}") from error
    for site, value in zip(sites, tracer.values, strict=True):
        if value is None:
            raise Untraceable(f"{site.name!r} runs inside of a module that torch.fx takes as one operation")
    (output,) = graph.find_nodes(op="output")
    output.args = ((*([] if what == "output" else [output.args[0]]), *tracer.values),)
    traced = fx.GraphModule(root, graph)
    _give_inputs_by_position(traced.graph)
    _read_what_was_written(traced)
    traced.graph.eliminate_dead_code()
    traced.recompile()
    return traced


class _Root(nn.Module):
    """The network with one argument and one output: images in, logits out."""

    def __init__(self, teacher: Teacher) -> None:
        super().__init__()
        self.network, self._exit = teacher.network, teacher.exit

    def forward(self, x: Tensor) -> Tensor:
        return self._exit.of(self.network(x))


class _Proxy(fx.Proxy):
    """A value of the forward; its sizes are numbers, but for those that depend on the batch."""

    tracer: "_Tracer"

    @property
    def shape(self) -> Any:
        sizes = self.tracer.sizes(self.node)
        return super().__getattr__("shape") if sizes is None else sizes

    def size(self, dim: int | None = None) -> Any:
        sizes = self.tracer.sizes(self.node)
        if sizes is None:
            return super().__getattr__("size")(*([] if dim is None else [dim]))
        return sizes if dim is None else sizes[dim]

    @property
    def ndim(self) -> Any:
        return len(self.shape)

    def dim(self) -> Any:
        return len(self.shape)

    def __len__(self) -> Any:
        first = self.shape[0]
        return first if isinstance(first, int) else super().__len__()

    @property
    def data(self) -> Any:
        return self.detach()

    @property
    def device(self) -> torch.device:
        return self.tracer.device

    @property
    def is_cuda(self) -> bool:
        return self.tracer.device.type == "cuda"


class _Tracer(fx.Tracer):
    """Notes what passes the sites while it traces, and knows the sizes of every value."""

    def __init__(self, teacher: Teacher, what: Literal["input", "output"], sites: Sequence[Site]) -> None:
        super().__init__()
        self.device = teacher.device
        self.values: list[fx.Node | None] = [None] * len(sites)
        self._side_px = teacher.input_px
        self._what = what
        self._sites = sites
        self._index = {(site.module, site.call): i for i, site in enumerate(sites)}
        self._calls: Counter[nn.Module] = Counter()
        self._examples: dict[fx.Node, tuple[Any, ...] | None] = {}
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._running = False  # an example, during which the network's modules are plain modules
        self._batch: fx.Proxy | None = None

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, torch.jit.ScriptModule) or super().is_leaf_module(m, module_qualified_name)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return attr_val if self._running else super().getattr(attr, attr_val, parameter_proxy_cache)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if self._running:
            return forward(*args, **kwargs)
        try:
            output = super().call_module(m, forward, args, kwargs)
        except NameError:  # no submodule: forward has just made it, as in `nn.ReLU()(x)`
            return forward(*args, **kwargs)
        i = self._index.get((m, self._calls[m]))
        self._calls[m] += 1
        if i is not None:
            node = _first_node((*args, *kwargs.values()) if self._what == "input" else output)
            self.values[i] = self.graph.call_method("clone", (node,)) if self._sites[i].copied else node
        return output

    def sizes(self, node: fx.Node) -> tuple[Any, ...] | None:
        """Returns a value's sizes: numbers, and proxies where they depend on the batch; None if unknown."""
        for earlier in self.graph.nodes:
            if earlier not in self._examples:
                self._examples[earlier] = self._example(earlier)
        examples = self._examples[node]
        if examples is None or not all(isinstance(value, Tensor) for value in examples):
            return None
        of_examples = list(zip(*(value.shape for value in examples), strict=True))
        return tuple(self._size(node, dim, sizes) for dim, sizes in enumerate(of_examples))

    def _size(self, node: fx.Node, dim: int, sizes: tuple[int, ...]) -> Any:
        if sizes[0] == sizes[1]:
            return sizes[0]
        if sizes != BATCH_SIZES:
            return self.create_proxy("call_method", "size", (fx.Proxy(node, self), dim), {})
        if self._batch is None:  # one for all, so that equal shapes are equal
            (x,) = self.graph.find_nodes(op="placeholder")
            self._batch = self.create_proxy("call_method", "size", (fx.Proxy(x, self), 0), {})
        return self._batch

    def _example(self, node: fx.Node) -> tuple[Any, ...] | None:
        """Returns the value of a node for each example, as tensors without data; None if it has none."""
        self._running = True
        try:
            with self._fake, torch.no_grad():
                return tuple(self._run(node, i) for i in range(len(BATCH_SIZES)))
        except Exception:  # such as a value that depends on data: its sizes stay unknown
            return None
        finally:
            self._running = False

    def _run(self, node: fx.Node, i: int) -> Any:
        def of(value: Any) -> Any:
            if not isinstance(value, fx.Node):
                return value
            examples = self._examples[value]
            if examples is None:
                raise LookupError(value.name)
            return examples[i]

        target: Any = node.target
        args: Any = map_aggregate(node.args, of)
        kwargs: Any = map_aggregate(node.kwargs, of)
        if node.op == "placeholder":
            return torch.empty((BATCH_SIZES[i], 3, self._side_px, self._side_px), device=self.device)
        if node.op == "call_function":
            return target(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], target)(*args[1:], **kwargs)
        value: Any = self.root
        for part in target.split("."):
            value = getattr(value, part)
        return value(*args, **kwargs) if node.op == "call_module" else value


def _first_node(value: Any) -> fx.Node:
    """Returns the node of a proxy, or of the first proxy of a tuple, list or mapping."""
    parts = value.values() if isinstance(value, Mapping) else value
    for part in parts if isinstance(parts, (tuple, list, ValuesView)) else (parts,):
        if isinstance(part, (fx.Proxy, fx.Node)):
            return part.node if isinstance(part, fx.Proxy) else part
    raise Untraceable(f"a {type(value).__name__} holds no tensor where one is read")


def _give_inputs_by_position(graph: fx.Graph) -> None:
    """Rewrites calls such as `conv(input=x)`, so that every pass over the graph finds x at one place."""
    for node in graph.nodes:
        if not node.args and "input" in node.kwargs:
            node.args = (node.kwargs["input"],)
            node.kwargs = {name: value for name, value in node.kwargs.items() if name != "input"}


def _read_what_was_written(traced: fx.GraphModule) -> None:
    """Makes later readers of a value that is overwritten in place read the in-place operation's result.

    Both are the same tensor, but torch.fx removes an operation whose result is not read as dead code.
    """
    order = {node: i for i, node in enumerate(traced.graph.nodes)}
    for node in traced.graph.nodes:
        before = node.args[0] if node.args else None
        if isinstance(before, fx.Node) and _writes_in_place(traced, node):
            for user in list(before.users):
                if order[user] > order[node]:
                    user.replace_input_with(before, node)


def _writes_in_place(traced: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_method":
        name = str(node.target)
        return name.endswith("_") and not name.endswith("__")
    if node.op == "call_module":
        return bool(getattr(traced.get_submodule(str(node.target)), "inplace", False))
    return node.target in IN_PLACE or node.kwargs.get("inplace") is True
