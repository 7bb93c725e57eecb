"""Where the logits are in what a network returns: a tensor, or one of several in tuples and mappings."""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from nisynth.errors import TeacherError

Key = str | int
DEPTH = 3


@dataclass(frozen=True)
class Exit:
    """The way from a network's output to its logits: indices of tuples, keys of mappings, field names.

    alternatives: the ways to other tensors of the logits' shape.
    """

    path: tuple[Key, ...] = ()
    alternatives: tuple[str, ...] = ()

    def of(self, output: Any) -> Tensor:
        """Returns the logits of an output, `(B, C)`."""
        for key in self.path:
            output = getattr(output, str(key)) if _is_record(output) else output[key]
        logits: Tensor = output
        return logits

    def __str__(self) -> str:
        return _label(self.path)


def find_logits(output: Any, batch_size: int, num_classes: int) -> Exit:
    """Returns the way to the logits: what is named so, else the first tensor `(B, num_classes)`.

    Raises TeacherError for an output without one.
    """
    found = sorted(_tensors(output, ()), key=lambda pair: len(pair[0]))
    if not found:
        raise TeacherError("arch: the network's output holds no tensor; it must give logits (B, C)")
    fitting = [path for path, tensor in found if tuple(tensor.shape) == (batch_size, num_classes)]
    if not fitting:
        raise _misfit(found[0][1], batch_size, num_classes)
    path = next((path for path in fitting if path and path[-1] == "logits"), fitting[0])
    return Exit(path, tuple(_label(other) for other in fitting if other != path))


def logits_of(output: Any, num_images: int, num_classes: int) -> Tensor:
    """Returns the logits `(num_images, num_classes)` in an output; `find_logits` says which, and raises.

    For networks in train mode, some of which return more there than in eval mode.
    """
    return find_logits(output, num_images, num_classes).of(output)


def _tensors(output: Any, path: tuple[Key, ...]) -> Iterator[tuple[tuple[Key, ...], Tensor]]:
    if isinstance(output, Tensor):
        yield path, output
        return
    parts: Any = ()
    if isinstance(output, Mapping):
        parts = output.items()
    elif isinstance(output, tuple | list):
        parts = enumerate(output)
    elif _is_record(output):
        parts = ((field.name, getattr(output, field.name)) for field in dataclasses.fields(output))
    for key, value in parts if len(path) < DEPTH else ():
        yield from _tensors(value, (*path, key))


def _is_record(output: Any) -> bool:
    return dataclasses.is_dataclass(output) and not isinstance(output, Mapping)


def _label(path: tuple[Key, ...]) -> str:
    return "output" + "".join(f"[{key!r}]" for key in path)


def _misfit(first: Tensor, batch_size: int, num_classes: int) -> TeacherError:
    shape = tuple(first.shape)
    if shape in ((batch_size,), (batch_size, 1)):
        return TeacherError(
            f"arch: the network gives one logit an image (output {shape}), a binary head, of which "
            "cross-entropy is 0 whatever the image; return torch.stack([torch.zeros_like(z), z], 1) of that "
            "logit z (B,), which is the same classifier, and set teacher.num_classes to 2"
        )
    if len(shape) == 2 and shape[0] == batch_size:
        return TeacherError(f"teacher.num_classes: the network gives {shape[1]} logits, not {num_classes}")
    return TeacherError(
        f"arch: {batch_size} images give an output of {shape}; it must be ({batch_size}, classes)"
    )
