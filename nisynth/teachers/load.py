"""From a TeacherConfig, or a module in memory, to a Teacher.

What the config leaves open is taken from a safetensors file's metadata: mean, std, classes, dataset,
num_classes, input_size; and how random crops were padded: padding, or recipe with "crop(4, reflect)" in it.
"""

import contextlib
import copy
import json
import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.resources import files
from typing import Any, get_args

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from nisynth.errors import ConfigError, TeacherError, one_line
from nisynth.images import MAX_PX, Normalization
from nisynth.images.augment import Padding
from nisynth.teachers.checkpoint import Checkpoint, parse_checkpoint, read_checkpoint
from nisynth.teachers.classes import CLASS_NAMES
from nisynth.teachers.narrow import PRUNED, narrow_to
from nisynth.teachers.probe import check_module
from nisynth.teachers.registry import REGISTRY, build_network, find_factory
from nisynth.teachers.teacher import Teacher

SHIPPED_ARCH = "resnet20"
SHIPPED_WEIGHTS = "cifar10_resnet20.safetensors"


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """Which classifier to invert, and where its weights are.

    arch: a name that `nisynth teachers` prints, `timm:NAME`, `torchvision:NAME`, or `package.module:factory`
        (called with kwargs).
    kwargs: arguments of the factory. num_classes: the number of its logits; else the
        metadata's.
    weights: a path or URL, `https://...#sha256=...` and `hf://owner/repo/file#sha256=...` included; null
        takes the shipped CIFAR-10 weights, which arch resnet20 alone has.
    input_px: side of the square input; the metadata's input_size, else 32 for names of `nisynth teachers`.
    mean, std: per channel, in units of pixel value / 255; the metadata's where not given.
    classes: names in label order; else the metadata's, else those of its dataset, else "0".."C-1".
    taps: module names, shallow to deep; else traced.
    """

    arch: str
    weights: str | None = None
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    num_classes: int | None = None
    input_px: int | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    classes: tuple[str, ...] | None = None
    taps: tuple[str, ...] | None = None


def load_teacher(
    source: TeacherConfig | nn.Module | None = None, device: str | torch.device = "cpu", **fields: Any
) -> Teacher:
    """Returns the frozen teacher that a TeacherConfig, its fields, or a network in memory describe.

    `load_teacher(arch="resnet20")` is the shipped CIFAR-10 teacher; `load_teacher(network, num_classes=5,
    mean=..., std=..., input_px=48)` takes a copy of a module as it is. Fields override the config's.
    Raises ConfigError for a field that cannot be used, TeacherError for a network or weights that
    cannot, StorageError when a weights URL cannot be read.
    """
    with contextlib.redirect_stdout(sys.stderr):  # a network's prints would break `plan --json`
        if isinstance(source, nn.Module):
            return _of_module(source, device, **fields)
        config = replace(source, **fields) if source else TeacherConfig(**fields)
        try:
            return _load(config, device)
        except (ConfigError, TeacherError) as error:
            # Networks are built for students too; here the field that named this one is known.
            if str(error).startswith("arch"):
                raise type(error)(f"teacher.{error}") from error.__cause__
            raise


def _of_module(module: nn.Module, device: torch.device | str, **fields: Any) -> Teacher:
    unusable = sorted({"arch", "weights", "kwargs"} & set(fields))
    if unusable:
        raise ConfigError(f"{unusable[0]}: a network in memory has its own; give only what it does not say")
    config = TeacherConfig(arch=type(module).__name__, **fields)
    try:
        network = copy.deepcopy(module)
    except Exception as error:  # such as tensors that a forward pass left behind
        raise TeacherError(f"{config.arch}: the network cannot be copied: {one_line(error)}") from error
    return _teacher(config, network, Checkpoint("in memory", ()), device)


def _load(config: TeacherConfig, device: torch.device | str) -> Teacher:
    find_factory(config.arch)  # an unknown name is reported before missing weights
    twice = sorted({"arch", "num_classes"} & set(config.kwargs))
    if twice:
        raise ConfigError(f"teacher.kwargs names {twice[0]!r}; give it as teacher.{twice[0]}")
    checkpoint = _checkpoint(config)
    _input_px(config, checkpoint)  # what only the config can say is asked for before anything is built
    network = build_network(config.arch, _num_classes(config, checkpoint), **config.kwargs)
    return _teacher(config, network, checkpoint, device)


def _teacher(
    config: TeacherConfig, network: nn.Module, checkpoint: Checkpoint, device: torch.device | str
) -> Teacher:
    num_classes, input_px = _num_classes(config, checkpoint), _input_px(config, checkpoint)
    normalization = Normalization(
        _channels(config.mean, "mean", checkpoint), _channels(config.std, "std", checkpoint)
    )
    classes = _classes(config, checkpoint, num_classes)
    _materialize(network, input_px)
    check_module(network)
    network = network.float()
    notes: list[str] = []
    if checkpoint.state_dicts:
        if PRUNED in checkpoint.metadata:
            narrow_to(network, checkpoint.tensors)
        notes = checkpoint.load_into(network, config.arch)
    return Teacher(
        network,
        normalization=normalization,
        classes=classes,
        arch=config.arch,
        kwargs=config.kwargs,
        input_px=input_px,
        taps=config.taps,
        device=device,
        padding=_padding(checkpoint),
        notes=notes,
    )


@torch.no_grad()
def _materialize(network: nn.Module, input_px: int) -> None:
    """Gives lazy layers (LazyConv2d and its kin) their shapes, by a pass of one image."""
    if not any(map(is_lazy, (*network.parameters(), *network.buffers()))):
        return
    try:
        network.eval()(torch.zeros(1, 3, input_px, input_px))
    except Exception as error:  # the user's network may raise anything
        raise TeacherError(f"arch: lazy layers could not be given their shapes: {one_line(error)}") from error


def _checkpoint(config: TeacherConfig) -> Checkpoint:
    if config.weights is not None:
        return read_checkpoint(config.weights)
    if config.arch != SHIPPED_ARCH:
        raise ConfigError(
            f"teacher.weights is not given, and arch {config.arch!r} has none that ship with nisynth; "
            f"name a file or URL (only {SHIPPED_ARCH} has)"
        )
    shipped = files("nisynth.teachers") / "weights" / SHIPPED_WEIGHTS
    return parse_checkpoint(shipped.read_bytes(), SHIPPED_WEIGHTS)


def _num_classes(config: TeacherConfig, checkpoint: Checkpoint) -> int:
    named = config.classes or CLASS_NAMES.get(checkpoint.metadata.get("dataset", ""), ())
    candidates = (
        config.num_classes,
        checkpoint.metadata.get("num_classes"),
        len(named) or None,
    )
    found = next((candidate for candidate in candidates if candidate is not None), None)
    if found is None:
        raise ConfigError(f"teacher.num_classes is not given, and weights {checkpoint.source} do not say it")
    if not str(found).isdecimal() or int(found) < 1:
        raise ConfigError(f"teacher.num_classes is {found!r}; it must be the number of classes, 1 or more")
    return int(found)


def _input_px(config: TeacherConfig, checkpoint: Checkpoint) -> int:
    ours = "32" if config.arch in REGISTRY else None
    stated = checkpoint.metadata.get("input_size", ours)
    found = stated if config.input_px is None else config.input_px
    if found is None:
        raise ConfigError(
            f"teacher.input_px is not given, and weights {checkpoint.source} do not say it; give the side in "
            "pixels of the images that the network was trained on"
        )
    if not str(found).isdecimal() or not 1 <= int(str(found)[:9]) <= MAX_PX:
        raise ConfigError(
            f"teacher.input_px is {found!r}; it must be the input's side in pixels, such as 32,"
            f" and at most {MAX_PX:,}"
        )
    return int(found)


def _channels(
    given: tuple[float, float, float] | None, name: str, checkpoint: Checkpoint
) -> tuple[float, float, float]:
    """Returns the config's mean or std, else the metadata's, checked."""
    stated = checkpoint.metadata.get(name)
    if given is None and stated is None:
        raise ConfigError(
            f"teacher.{name} is not given, and weights {checkpoint.source} do not say it; "
            "give three numbers in units of pixel value / 255"
        )
    try:
        values = tuple(float(value) for value in (json.loads(stated or "") if given is None else given))
    except (TypeError, ValueError):
        values = ()
    low = 0.0 if name == "mean" else math.nextafter(0.0, 1.0)
    if len(values) != 3 or not all(low <= value <= 1.0 for value in values):
        shown = stated if given is None else given
        raise ConfigError(
            f"teacher.{name} is {shown} ({'config' if given is not None else checkpoint.source}); it must be "
            f"three numbers {'from' if name == 'mean' else 'above'} 0 to 1, in units of pixel value / 255"
        )
    return values[0], values[1], values[2]


def _padding(checkpoint: Checkpoint) -> Padding | None:
    """Returns how the metadata says that random crops were padded: as `padding`, or within its `recipe`."""
    stated = checkpoint.metadata.get("padding")
    if stated is None:
        crop = re.search(r"crop\(\d+, (\w+)\)", checkpoint.metadata.get("recipe", ""))
        stated = crop.group(1) if crop else None
    return next((padding for padding in get_args(Padding) if padding == stated), None)


def _classes(config: TeacherConfig, checkpoint: Checkpoint, num_classes: int) -> tuple[str, ...]:
    stated = checkpoint.metadata.get("classes")
    names: Any = config.classes
    if names is None and stated is not None:
        try:
            names = json.loads(stated)
        except ValueError:
            names = stated
    if names is None:
        named = CLASS_NAMES.get(checkpoint.metadata.get("dataset", ""), ())
        names = named if len(named) == num_classes else [str(label) for label in range(num_classes)]
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"teacher.classes is {names!r}; it must be a list of names")
    if len(names) != num_classes:
        raise ConfigError(f"teacher.classes has {len(names)} names, but teacher.num_classes is {num_classes}")
    return tuple(names)
