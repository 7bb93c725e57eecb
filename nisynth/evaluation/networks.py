"""A network as figures see it: uint8 images go in, the features of its layers come out."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from nisynth.errors import ConfigError, one_line
from nisynth.images import Normalization
from nisynth.teachers.checkpoint import hash_weights
from nisynth.teachers.logits import Exit, find_logits
from nisynth.teachers.trace import Site, find_taps, name_taps, reading, trace

POOL, HIDDEN, LOGITS = "pool", "hidden", "logits"


@dataclass(frozen=True, eq=False)
class EmbeddingNetwork:
    """A frozen network and what of it is read: `features(pixels)` gives a `(B, d)` array per layer.

    layers: names and widths, shallow to deep: `tap1`.. (the last output of each spatial size, averaged
    over space), `pool` (input of the first linear layer), `hidden` (of the last, where it is another),
    `logits`. resize: how images of another size are brought to the network's, in words. classes: by
    logit, () where they have no names. sha256: of the weights.
    """

    name: str
    sha256: str
    resize: str
    classes: tuple[str, ...]
    layers: Mapping[str, int]
    features: Callable[[Tensor], dict[str, Tensor]]


def read_layers(
    name: str,
    network: nn.Module,
    normalization: Normalization,
    network_px: int,
    image_px: int,
    classes: tuple[str, ...] = (),
    taps: Sequence[str] | None = None,
) -> EmbeddingNetwork:
    """Returns a network's layers, found in one forward pass; taps: by name, None finds them.

    Raises ConfigError where the network fails.
    """
    network = network.eval().requires_grad_(False)
    device = next(network.parameters()).device
    blank = torch.zeros(2, 3, network_px, network_px, device=device)
    try:
        outputs = trace(network, blank).outputs
        sites = find_taps(outputs) if taps is None else name_taps(outputs, taps, len(blank))
        linears = _linears(network, blank)
        with torch.no_grad():
            exit_ = find_logits(network(blank), len(blank), len(classes)) if classes else Exit()
    except Exception as error:  # the user's network may raise anything
        raise ConfigError(
            f"--embedding {name}: fails on {network_px} px images ({one_line(error)})"
        ) from error
    forward = _Forward(network, normalization, network_px, sites, linears, exit_)
    layers = {layer: values.shape[1] for layer, values in forward(blank.to(torch.uint8)).items()}
    resize = "none" if image_px == network_px else f"bilinear, antialiased, to {network_px} px"
    return EmbeddingNetwork(name, hash_weights(network), resize, classes, layers, forward)


@dataclass(frozen=True, eq=False)
class _Forward:
    """uint8 pixels `(B, 3, H, W)` -> every layer's features `(B, d)`, float32 on the CPU."""

    network: nn.Module
    normalization: Normalization
    network_px: int
    taps: tuple[Site, ...]
    linears: tuple[Site, ...]
    exit: Exit

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> dict[str, Tensor]:
        images = pixels.to(next(self.network.parameters()).device)
        if images.shape[-1] != self.network_px:
            images = functional.interpolate(
                images.float(), (self.network_px,) * 2, mode="bilinear", antialias=True
            )
        with reading(self.taps, "output") as maps, reading(self.linears, "input") as inputs:
            logits = self.exit.of(self.network(self.normalization.normalize(images)))
        values = {f"tap{number}": part.mean(dim=(2, 3)) for number, part in enumerate(maps, 1)}
        values[POOL] = inputs[0].flatten(1) if inputs else maps[-1].mean(dim=(2, 3))
        if len(inputs) > 1:
            values[HIDDEN] = inputs[-1].flatten(1)
        values[LOGITS] = logits.flatten(1)
        return {layer: part.float().cpu() for layer, part in values.items()}


def _linears(network: nn.Module, x: Tensor) -> tuple[Site, ...]:
    """Returns the calls of linear layers in execution order: the first and the last."""
    seen: list[Site] = []
    calls: Counter[nn.Module] = Counter()
    names: dict[nn.Module, str] = {
        module: name for name, module in network.named_modules() if isinstance(module, nn.Linear)
    }

    def note(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        seen.append(Site(names[module], module, calls[module], output.shape, copied=False))
        calls[module] += 1

    handles = [module.register_forward_hook(note) for module in names]
    try:
        with torch.no_grad():
            network(x)
    finally:
        for handle in handles:
            handle.remove()
    return (seen[0], seen[-1]) if len(seen) > 1 else tuple(seen)
