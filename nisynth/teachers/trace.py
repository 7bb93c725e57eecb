"""What a forward pass goes through: module calls in execution order, and hooks that read them.

A `Site` is one call of one module. Taps and BatchNorm inputs are both read at sites, through hooks that
exist only inside `reading(...)`.
"""

import difflib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nisynth.errors import TeacherError

MIN_TAP_SIDE_PX = 4


@dataclass(frozen=True)
class Tap:
    """A place where the network's features are read: `(B, channels, side_px, side_px)`.

    `name` is the module's, with `#k` behind it (k from 0) where the module runs more than once.
    """

    name: str
    channels: int
    side_px: int


@dataclass(frozen=True, eq=False)
class Site:
    """One call of one module; `copied` where the network later overwrites the tensor in place."""

    name: str
    module: nn.Module
    call: int
    shape: torch.Size
    copied: bool

    @property
    def tap(self) -> Tap:
        """The site as a tap; its output is 4-D and square."""
        return Tap(self.name, channels=self.shape[1], side_px=self.shape[2])


@dataclass(frozen=True, eq=False)
class Trace:
    """One forward pass: the logits, every site's 4-D output in execution order, BatchNorm inputs.

    `batch_norms` is in module order; a BatchNorm2d that the pass does not reach has no site.
    """

    logits: Tensor
    outputs: tuple[Site, ...]
    batch_norms: tuple[Site, ...]


def first_tensor(output: Any) -> Tensor | None:
    """Returns the tensor, or the first tensor of a tuple, list or mapping; None where there is none."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        output = tuple(output.values())
    if isinstance(output, (tuple, list)):
        return next((item for item in output if isinstance(item, Tensor)), None)
    return None


def trace(network: nn.Module, x: Tensor) -> Trace:
    """Returns what one gradient-free forward pass of `x` `(B, 3, H, W)` goes through.

    Raises TeacherError when the network gives no tensor; whatever its forward raises passes through.
    """
    seen: list[tuple[str, nn.Module, int, Tensor, int, Literal["input", "output"]]] = []
    calls: Counter[nn.Module] = Counter()
    names = {module: name for name, module in network.named_modules() if name}

    def note(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        call = calls[module]
        calls[module] += 1
        if isinstance(module, nn.BatchNorm2d):
            seen.append((names[module], module, call, args[0], args[0]._version, "input"))
        tensor = first_tensor(output)
        if tensor is not None and tensor.ndim == 4:
            seen.append((names[module], module, call, tensor, tensor._version, "output"))

    handles = [module.register_forward_hook(note) for module in names]
    try:
        with torch.no_grad():
            logits = first_tensor(network(x))
    finally:
        for handle in handles:
            handle.remove()
    if logits is None:
        raise TeacherError("arch: the network's output holds no tensor; it must give logits (B, C)")

    sites: dict[str, list[Site]] = {"input": [], "output": []}
    for name, module, call, tensor, version, what in seen:
        label = f"{name}#{call}" if calls[module] > 1 else name
        # A version that moved on means that a later operation, such as an in-place ReLU, wrote into it.
        sites[what].append(Site(label, module, call, tensor.shape, tensor._version != version))
    order = {module: i for i, module in enumerate(names)}
    batch_norms = sorted(sites["input"], key=lambda site: (order[site.module], site.call))
    return Trace(logits, tuple(sites["output"]), tuple(batch_norms))


def find_taps(outputs: Sequence[Site]) -> tuple[Site, ...]:
    """Returns the last output of each spatial size, side >= 4 px, in execution order: shallow to deep."""
    last: dict[int, int] = {}
    for i, site in enumerate(outputs):
        height, width = site.shape[2:]
        if height == width and height >= MIN_TAP_SIDE_PX:
            last[height] = i
    if not last:
        raise TeacherError(
            f"teacher.taps: no module gives square features of side >= {MIN_TAP_SIDE_PX} px; "
            "raise teacher.input_px, or name the modules to tap"
        )
    return tuple(outputs[i] for i in sorted(last.values()))


def name_taps(outputs: Sequence[Site], names: Sequence[str]) -> tuple[Site, ...]:
    """Returns the named outputs in execution order. Raises TeacherError for a name that is not one."""
    if not names:
        raise TeacherError("teacher.taps is an empty list; name at least one module, or leave it out")
    known = {site.name: site for site in outputs}
    for name in names:
        if name not in known:
            calls = [other for other in known if other.startswith(f"{name}#")]
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.0)
            cure = f"it runs {len(calls)} times, name a call" if calls else "nearest"
            raise TeacherError(
                f"teacher.taps: {name!r} is no module with a 4-D output; {cure}: {', '.join(calls or near)}"
            )
        height, width = known[name].shape[2:]
        if height != width:
            raise TeacherError(f"teacher.taps: {name!r} gives {height}x{width} features; they must be square")
    return tuple(site for site in outputs if site.name in names)


@contextmanager
def reading(sites: Sequence[Site], what: Literal["input", "output"]) -> Iterator[list[Tensor]]:
    """Yields a list that a forward pass inside the block fills with the sites' tensors, in their order.

    The hooks are gone when the block ends, whatever ends it.
    """
    values: list[Tensor] = [torch.empty(0)] * len(sites)
    wanted = {(site.module, site.call): i for i, site in enumerate(sites)}
    calls: Counter[nn.Module] = Counter()

    def read(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        i = wanted.get((module, calls[module]))
        calls[module] += 1
        if i is None:
            return
        tensor = args[0] if what == "input" else first_tensor(output)
        assert tensor is not None
        values[i] = tensor.clone() if sites[i].copied else tensor

    handles = [module.register_forward_hook(read) for module in {site.module: None for site in sites}]
    try:
        yield values
    finally:
        for handle in handles:
            handle.remove()
