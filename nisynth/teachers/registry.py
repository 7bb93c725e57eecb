"""Architectures by name, one line each; `timm:NAME` and `torchvision:NAME`; any other by its factory.

A factory is imported because the user's own config names it, never because a plan, a manifest or a
checkpoint does.
"""

import contextlib
import difflib
import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from nisynth.errors import ConfigError, one_line
from nisynth.teachers.mobilenet import mobilenetv2
from nisynth.teachers.resnet import resnet18, resnet20, resnet34, resnet56
from nisynth.teachers.trace import Tap, find_taps, trace
from nisynth.teachers.vgg import vgg11, vgg16

REGISTRY: dict[str, tuple[Callable[..., nn.Module], str]] = {
    "resnet18": (resnet18, "He et al., CVPR-16"),
    "resnet34": (resnet34, "He et al., CVPR-16"),
    "resnet20": (resnet20, "He et al., CVPR-16, section 4.2"),
    "resnet56": (resnet56, "He et al., CVPR-16, section 4.2"),
    "vgg11": (vgg11, "Simonyan and Zisserman, ICLR-15"),
    "vgg16": (vgg16, "Simonyan and Zisserman, ICLR-15"),
    "mobilenetv2": (mobilenetv2, "Sandler et al., CVPR-18"),
}

LIBRARIES = {"timm": "timm", "torchvision": "torchvision.models"}
"""Libraries whose models go by name, and where their `list_models` is."""


@dataclass(frozen=True)
class ArchitectureInfo:
    """One line of `nisynth teachers`: parameters at 10 classes, traced taps at 32 px, publication."""

    name: str
    parameters: int
    taps: tuple[Tap, ...]
    source: str


def architectures() -> tuple[ArchitectureInfo, ...]:
    """Returns what the registry knows, in its order."""
    return tuple(_describe(name) for name in REGISTRY)


def build_network(arch: str, num_classes: int, **kwargs: Any) -> nn.Module:
    """Returns a freshly initialized network of a registered name, `timm:NAME`, `torchvision:NAME` or factory.

    A factory receives `kwargs`, and `num_classes` where it has such a parameter. Registered networks
    start from He et al.'s normal initialization (ICCV-15, Eq. 10) drawn from torch's global generator.
    Raises ConfigError: unknown name, no such module or attribute, arguments or a result that do not fit.
    """
    network = _call(arch, find_factory(arch), num_classes, kwargs)
    if arch in REGISTRY:
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
    return network


def find_factory(arch: str) -> Callable[..., Any]:
    """Returns what builds `arch`. Raises ConfigError: unknown name, no such module or attribute."""
    library, _, model = arch.partition(":")
    if library in LIBRARIES and (factory := _library_factory(arch, library, model)) is not None:
        return factory
    if ":" in arch:
        return _import_factory(arch)
    if arch not in REGISTRY:
        nearest = difflib.get_close_matches(arch.lower(), REGISTRY, n=1, cutoff=0.5)
        guess = f"did you mean {nearest[0]!r}? " if nearest else ""
        raise ConfigError(
            f"arch {arch!r} is unknown; {guess}there are {', '.join(REGISTRY)}, timm:NAME,"
            " torchvision:NAME, and package.module:factory"
        )
    return REGISTRY[arch][0]


def _describe(name: str) -> ArchitectureInfo:
    build, source = REGISTRY[name]
    with torch.device("meta"):
        network = build(10).eval()
        taps = find_taps(trace(network, torch.empty(1, 3, 32, 32)).outputs)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return ArchitectureInfo(name, parameters, tuple(site.tap for site in taps), source)


def _library_factory(arch: str, library: str, model: str) -> Callable[..., Any] | None:
    """Returns what builds a model of timm or torchvision by its name there; None for another attribute."""
    try:
        with _settings_kept():
            module = importlib.import_module(LIBRARIES[library])
    except ModuleNotFoundError:
        raise ConfigError(f"arch {arch!r}: {library} is not installed; pip install {library}") from None
    names = module.list_models()
    if model in names:
        return functools.partial(module.create_model if library == "timm" else module.get_model, model)
    if hasattr(importlib.import_module(library), model):
        return None
    nearest = difflib.get_close_matches(model, names, n=3)
    guess = f"; nearest: {', '.join(nearest)}" if nearest else ""
    raise ConfigError(f"arch {arch!r}: {library} has no model {model!r}{guess}")


@contextmanager
def _settings_kept() -> Iterator[None]:
    """Restores torch's global settings after foreign code, whose prints go to standard error."""
    gradients, dtype = torch.is_grad_enabled(), torch.get_default_dtype()
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        torch.set_grad_enabled(gradients)
        torch.set_default_dtype(dtype)


def _import_factory(arch: str) -> Callable[..., Any]:
    module_name, _, attribute = arch.partition(":")
    try:
        with _settings_kept():
            module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise ConfigError(f"arch {arch!r}: importing {module_name!r} failed: {error}") from error
        raise ConfigError(
            f"arch {arch!r}: there is no module {error.name!r}; install it or add its folder to PYTHONPATH"
        ) from None
    except (Exception, SystemExit) as error:  # the user's module may raise anything while it is imported
        raise ConfigError(f"arch {arch!r}: importing {module_name!r} failed: {one_line(error)}") from error
    factory = getattr(module, attribute, None)
    if factory is None:
        public = [name for name, value in vars(module).items() if callable(value) and name[0] != "_"]
        nearest = difflib.get_close_matches(attribute, public, n=1)
        guess = f"; did you mean {nearest[0]!r}?" if nearest else ""
        raise ConfigError(f"arch {arch!r}: module {module_name!r} has no attribute {attribute!r}{guess}")
    if not callable(factory):
        raise ConfigError(f"arch {arch!r}: {attribute!r} is a {type(factory).__name__}, not a factory")
    return factory  # type: ignore[no-any-return]


def _call(arch: str, factory: Callable[..., Any], num_classes: int, kwargs: dict[str, Any]) -> nn.Module:
    try:
        parameters = inspect.signature(factory).parameters.values()
    except ValueError:
        raise ConfigError(f"arch {arch!r} is a function of Python itself, not a network's factory") from None
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    names = [parameter.name for parameter in parameters]
    unknown = [name for name in kwargs if name not in names]
    if unknown and not takes_any:
        raise ConfigError(
            f"arch {arch!r}: no argument {unknown[0]!r} in kwargs; it takes {', '.join(names) or 'none'}"
        )
    if takes_any or "num_classes" in names:
        kwargs["num_classes"] = num_classes
    try:
        with _settings_kept():
            network = factory(**kwargs)
    except SystemExit as error:
        raise ConfigError(
            f"arch {arch!r}: the factory ended the program (by sys.exit, or by argparse, which reads the "
            "command line of this one); give it arguments by kwargs instead"
        ) from error
    except Exception as error:  # the user's factory may raise anything
        raise ConfigError(f"arch {arch!r}: the factory raised {one_line(error)}; see kwargs") from error
    if not isinstance(network, nn.Module):
        raise ConfigError(f"arch {arch!r} returned a {type(network).__name__}; it must return a nn.Module")
    return network
