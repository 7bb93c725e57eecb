"""What a forward pass goes through: module calls in execution order, and hooks that read them.

A `Site` is one call of one module. Taps and BatchNorm inputs are both read at sites, through hooks that
exist only inside `reading(...)`.
"""

import difflib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nisynth.errors import TeacherError
from nisynth.teachers.operations import Operations, first_tensor

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
    """One call of one module, and the shape of what is read there.

    copied: the network later overwrites the tensor in place. is_map: an output that is surely a feature map
    `(B, C, H, W)` no larger than the image; others are attention scores, tokens in channels-last order,
    windows folded into the batch, and the like.
    """

    name: str
    module: nn.Module
    call: int
    shape: torch.Size
    copied: bool
    is_map: bool = True

    @property
    def tap(self) -> Tap:
        """The site as a tap; its output is 4-D and square."""
        return Tap(self.name, channels=self.shape[1], side_px=self.shape[2])


@dataclass(frozen=True, eq=False)
class Trace:
    """One forward pass: what it returned, every site's 4-D output in execution order, BatchNorm inputs.

    batch_norms: the calls of BatchNorm2d in module order; one that the pass does not reach has no site.
    other_norms: the calls of other modules that normalize by running statistics.
    functional_norms: how many calls of `F.batch_norm` outside of any such module do, in scripted ones too.
    """

    output: Any
    outputs: tuple[Site, ...]
    batch_norms: tuple[Site, ...]
    other_norms: tuple[Site, ...]
    functional_norms: int

    @property
    def num_norms(self) -> int:
        """Returns how many calls normalize by running statistics, those that R_BN cannot match included."""
        return len(self.batch_norms) + len(self.other_norms) + self.functional_norms


def trace(network: nn.Module, x: Tensor) -> Trace:
    """Returns what one gradient-free forward pass of `x` `(B, 3, H, W)` goes through.

    Raises TeacherError for a BatchNorm that is in train mode; whatever the forward raises passes through.
    """
    seen: list[tuple[str, nn.Module, int, Tensor, int, Literal["input", "output", "other"]]] = []
    calls: Counter[nn.Module] = Counter()
    # Scripted modules run outside of Python, and take no hooks.
    named = network.named_modules()
    names = {m: name for name, m in named if name and not isinstance(m, torch.jit.ScriptModule)}

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        call = calls[module]
        calls[module] += 1
        given, tensor = first_tensor((*args, *kwargs.values())), first_tensor(output)
        if has_running_statistics(module) and given is not None:
            _refuse_train_mode(names[module], module)
            what: Literal["input", "other"] = "input" if isinstance(module, nn.BatchNorm2d) else "other"
            seen.append((names[module], module, call, given, _version(given), what))
        if tensor is not None and tensor.ndim == 4:
            seen.append((names[module], module, call, tensor, _version(tensor), "output"))

    watched = Operations()
    handles = [module.register_forward_hook(note, with_kwargs=True) for module in names]
    handles += [
        hook
        for module in names
        if has_running_statistics(module)
        for hook in (
            module.register_forward_pre_hook(lambda *_: watched.enter_norm(1)),
            module.register_forward_hook(lambda *_: watched.enter_norm(-1)),
        )
    ]
    try:
        with torch.no_grad(), watched:
            output = network(x.clone())
    finally:
        for handle in handles:
            handle.remove()

    sites: dict[str, list[Site]] = {"input": [], "output": [], "other": []}
    for name, module, call, tensor, version, what in seen:
        label = f"{name}#{call}" if calls[module] > 1 else name
        # A version that moved on means that a later operation, such as an in-place ReLU, wrote into it.
        copied, is_map = _version(tensor) != version, watched.is_map(tensor.shape, x.shape)
        sites[what].append(Site(label, module, call, tensor.shape, copied, is_map))
    order = {module: i for i, module in enumerate(names)}
    batch_norms = sorted(sites["input"], key=lambda site: (order[site.module], site.call))
    return Trace(
        output,
        tuple(sites["output"]),
        tuple(batch_norms),
        tuple(sites["other"]),
        watched.functional_norms,
    )


def has_running_statistics(module: nn.Module) -> bool:
    """Returns whether a module normalizes by a mean and variance that it remembers, as a BatchNorm does.

    Every BatchNorm2d counts, so that one without running statistics is met with an error of its own.
    """
    running = (getattr(module, name, None) for name in ("running_mean", "running_var"))
    return isinstance(module, nn.BatchNorm2d) or all(isinstance(value, Tensor) for value in running)


def find_taps(outputs: Sequence[Site]) -> tuple[Site, ...]:
    """Returns the last map of each spatial size, side >= 4 px, in execution order: shallow to deep."""
    last: dict[int, int] = {}
    for i, site in enumerate(outputs):
        height, width = site.shape[2:]
        if site.is_map and height == width and height >= MIN_TAP_SIDE_PX:
            last[height] = i
    if not last:
        raise TeacherError(
            f"teacher.taps: no module gives square features of side >= {MIN_TAP_SIDE_PX} px, one map for each"
            " image; raise teacher.input_px, or name the modules to tap"
        )
    return tuple(outputs[i] for i in sorted(last.values()))


def name_taps(outputs: Sequence[Site], names: Sequence[str], batch_size: int) -> tuple[Site, ...]:
    """Returns the named outputs in execution order. Raises TeacherError for a name that is not one."""
    if not names:
        raise TeacherError("teacher.taps is an empty list; name at least one module, or leave it out")
    name, times = Counter(names).most_common(1)[0]
    if times > 1:
        raise TeacherError(f"teacher.taps names {name!r} {times} times; name each module once")
    known = {site.name: site for site in outputs}
    for name in names:
        if name not in known:
            calls = [other for other in known if other.startswith(f"{name}#")]
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.0)
            cure = f"it runs {len(calls)} times, name a call" if calls else "nearest"
            raise TeacherError(
                f"teacher.taps: {name!r} does not name a module with a 4-D output; {cure}:"
                f" {', '.join(calls or near)}"
            )
        count, _, height, width = known[name].shape
        if count != batch_size:
            raise TeacherError(
                f"teacher.taps: {name!r} gives {count} maps for {batch_size} images (windows or views folded"
                " into the batch dimension); name a module whose output is (B, C, side, side)"
            )
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

    def read(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        i = wanted.get((module, calls[module]))
        calls[module] += 1
        if i is None:
            return
        tensor = first_tensor((*args, *kwargs.values()) if what == "input" else output)
        assert tensor is not None
        values[i] = tensor.clone() if sites[i].copied else tensor

    modules = {site.module: None for site in sites}
    handles = [module.register_forward_hook(read, with_kwargs=True) for module in modules]
    try:
        yield values
    finally:
        for handle in handles:
            handle.remove()


def _version(tensor: Tensor) -> int:
    """Returns how often a tensor was written into; inference tensors do not count it."""
    return 0 if tensor.is_inference() else tensor._version


def _refuse_train_mode(name: str, module: nn.Module) -> None:
    if module.training:
        raise TeacherError(
            f"arch: {type(module).__name__} {name!r} is in train mode although the network is in eval mode, "
            "so it would normalize by each batch's own statistics; let its train() and forward leave the "
            "mode as eval() sets it"
        )
