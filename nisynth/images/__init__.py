"""Labelled images in memory and their normalization: the type that all rooms exchange.

real.py     real image sets, decoded once
augment.py  random crops and mirrored images, as pure functions of (seed, epoch)
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol, overload

from nisynth.errors import ConfigError

if TYPE_CHECKING:  # what only reads plans and commits does not wait for torch
    import torch
    from torch import Tensor

Pixels = Literal["clamp", "minmax"]
MAX_PX = 4096
"""The side of an image at most: far above any classifier's, and far below what fills a machine's memory."""


@dataclass(frozen=True)
class Normalization:
    """Per-channel mean and std, in units of pixel value / 255, that a teacher was trained with."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def normalize(self, pixels: "Tensor") -> "Tensor":
        """Returns `(B, 3, H, W)` float32, normalized, from uint8 pixels of the same shape."""
        mean, std = self.columns(pixels.device)
        return (pixels.float() / 255.0 - mean) / std

    def to_pixels(self, images: "Tensor", how: Pixels = "clamp") -> "Tensor":
        """Returns `(B, 3, H, W)` uint8 from normalized float32 images.

        `clamp` undoes the normalization and clips to [0, 255]; `minmax` stretches every image to its
        own range (published code).
        """
        import torch

        if how == "minmax":
            low = images.amin(dim=(1, 2, 3), keepdim=True)
            high = images.amax(dim=(1, 2, 3), keepdim=True)
            unit = (images - low) / (high - low).clamp_min(1e-5)
        else:
            mean, std = self.columns(images.device)
            unit = images.float() * std + mean
        return (unit.clamp(0.0, 1.0) * 255.0).round().to(torch.uint8)

    def columns(self, device: "torch.device") -> tuple["Tensor", "Tensor"]:
        """Returns mean and std as `(1, 3, 1, 1)` float32 on a device."""
        import torch

        mean = torch.tensor(self.mean, device=device).view(1, 3, 1, 1)
        std = torch.tensor(self.std, device=device).view(1, 3, 1, 1)
        return mean, std


class Classifier(Protocol):
    """What images must fit: a network, or a run that was made for one."""

    @property
    def num_classes(self) -> int: ...
    @property
    def classes(self) -> Sequence[str]: ...
    @property
    def input_px(self) -> int: ...


@dataclass(frozen=True, eq=False)
class LabelledImages(Sequence["tuple[Tensor, int]"]):
    """N images with their labels; also a sequence of (image, label), as torch's own datasets are.

    pixels: `(N, 3, H, W)` uint8. labels: `(N,)` int64. classes: names in label order, empty where the
    source has none. source, split: what they were read from, for every figure that is measured on them.
    """

    pixels: "Tensor"
    labels: "Tensor"
    classes: tuple[str, ...] = ()
    source: str = ""
    split: str = ""

    def __len__(self) -> int:
        return len(self.labels)

    @overload
    def __getitem__(self, index: int) -> "tuple[Tensor, int]": ...
    @overload
    def __getitem__(self, index: slice) -> "LabelledImages": ...
    def __getitem__(self, index: int | slice) -> "tuple[Tensor, int] | LabelledImages":
        if isinstance(index, slice):
            return replace(self, pixels=self.pixels[index], labels=self.labels[index])
        return self.pixels[index], int(self.labels[index])

    def __repr__(self) -> str:
        height_px, width_px = self.pixels.shape[2:]
        named = " ".join(part for part in (self.split, self.source) if part)
        return f"LabelledImages({len(self):,} of {width_px}x{height_px} px{', ' if named else ''}{named})"

    def check_fits(self, judged: Classifier, name: str = "teacher") -> None:
        """Raises ConfigError where a network, or one made from a run, cannot be judged on these images."""
        num_classes = len(self.classes) or max(judged.num_classes, int(self.labels.max()) + 1)
        check_fits(judged, name, f"data {self.source}", self.classes, num_classes, self.pixels.shape[2:])


def check_fits(
    judged: Classifier,
    name: str,
    what: str,
    classes: Sequence[str],
    num_classes: int,
    size_px: Sequence[int],
) -> None:
    """Raises ConfigError where the classes, their order, or the image size of `judged` are not the images'.

    name: what a message calls `judged`. what: what it calls the images. size_px: their (height, width).
    """
    if num_classes != judged.num_classes:
        raise ConfigError(
            f"{what}: has {num_classes} classes, the {name} {judged.num_classes}; they must be the same"
        )
    if tuple(size_px) != (judged.input_px, judged.input_px):
        raise ConfigError(
            f"{what}: images are {size_px[1]}x{size_px[0]} px, {name}.input_px is {judged.input_px};"
            " they must be the same"
        )
    check_class_names(classes, judged.classes, what, f"the {name}")


def check_class_names(ours: Sequence[str], theirs: Sequence[str], us: str, them: str) -> None:
    """Raises ConfigError where two lists of class names differ in a place.

    A list of numbers alone holds no names and fits every other list.
    """
    if not (_are_names(ours) and _are_names(theirs)):
        return
    for label, (one, other) in enumerate(zip(ours, theirs, strict=False)):
        if _plain(one) != _plain(other):
            raise ConfigError(
                f"{us}: label {label} is {one!r}, for {them} it is {other!r}; the classes must have one order"
            )


def _are_names(classes: Sequence[str]) -> bool:
    return any(not name.isdecimal() for name in classes)


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().lower()
