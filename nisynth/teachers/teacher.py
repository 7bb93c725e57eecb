"""The frozen classifier that is inverted: its logits, its taps, its BatchNorm inputs, its classes."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nisynth.errors import TeacherError
from nisynth.images import Normalization
from nisynth.images.augment import Padding
from nisynth.teachers.checkpoint import hash_weights
from nisynth.teachers.predict import BATCH_SIZE, predict, share
from nisynth.teachers.probe import BATCH_SIZE as PROBE_BATCH_SIZE
from nisynth.teachers.probe import check_module, freeze, probe
from nisynth.teachers.trace import Tap, find_taps, name_taps, reading


class Teacher:
    """A network in eval mode whose weights take no gradient.

    taps: where features are read, shallow to deep: the last feature map of each spatial size with side
        >= 4 px in execution order (method.md), or the named modules.
    batch_norms, batch_norm_names: every BatchNorm2d that a forward pass runs, in module order; other classes
        that compute the same (SyncBatchNorm, frozen ones) have been replaced by BatchNorm2d.
    exit: where in the network's output the logits are.
    padding: how the images it was trained on were padded for random crops; None where nothing says it.
    notes: what a person should know of this network before a long run, a line each.
    identity: what a run's fingerprint takes, JSON-able.
    Raises TeacherError for a network that cannot be inverted: no BatchNorm2d, BatchNorm2d without running
    statistics or in train mode, a forward that fails, output that is no finite `(B, C)` of logits, no
    gradient from logits or BatchNorm inputs to the image, taps that do not exist.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        normalization: Normalization,
        classes: Sequence[str],
        arch: str = "",
        kwargs: Mapping[str, Any] | None = None,
        input_px: int = 32,
        taps: Sequence[str] | None = None,
        device: str | torch.device = "cpu",
        padding: Padding | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        self.device = torch.device(device)
        check_module(network)
        freeze(network)
        self.network = network.to(self.device)
        weights_sha256 = hash_weights(network)
        self.classes = _check_classes(tuple(classes))
        seen = probe(self.network, input_px, len(self.classes))
        outputs, self.exit = seen.passed.outputs, seen.exit
        self.tap_sites = find_taps(outputs) if taps is None else name_taps(outputs, taps, PROBE_BATCH_SIZE)
        self.batch_norm_sites = seen.passed.batch_norms
        self.taps: tuple[Tap, ...] = tuple(site.tap for site in self.tap_sites)
        self.batch_norms = tuple(
            site.module for site in self.batch_norm_sites if isinstance(site.module, nn.BatchNorm2d)
        )
        self.batch_norm_names = tuple(site.name for site in self.batch_norm_sites)
        self.normalization = normalization
        self.num_classes = len(self.classes)
        self.input_px = input_px
        self.padding = padding
        self.notes = (*notes, *seen.notes)
        self._num_norms = seen.passed.num_norms
        self.identity: dict[str, Any] = {
            "arch": arch or type(network).__name__,
            "kwargs": dict(kwargs or {}),
            "weights_sha256": weights_sha256,
            "mean": list(normalization.mean),
            "std": list(normalization.std),
            "classes": list(self.classes),
            "taps": [tap.name for tap in self.taps],
            "input_px": input_px,
            "num_classes": self.num_classes,
        }

    def __repr__(self) -> str:
        shown = f"{self.identity['arch']}, {self.num_classes} classes, {self.input_px}x{self.input_px}"
        return f"Teacher({shown}, {self.device})"

    def describe(self) -> dict[str, str]:
        """Returns what was understood of the network, as words: a person sees there what is wrong."""
        of_exit = str(self.exit)
        if self.exit.alternatives:
            of_exit += f", not {', '.join(self.exit.alternatives)}, of the same shape"
        named = ", ".join(self.classes[:3]) + (", ..." if self.num_classes > 3 else "")
        parameters = sum(parameter.numel() for parameter in self.network.parameters())
        return {
            "network": f"{self.identity['arch']}, {parameters:,} parameters",
            "image size": f"{self.input_px}x{self.input_px} px",
            "classes": f"{self.num_classes} ({named})",
            "logits": of_exit,
            "taps": ", ".join(f"{tap.name} {tap.channels}x{tap.side_px}²" for tap in self.taps),
            "BatchNorms": f"{len(self.batch_norms)} of {self._num_norms}",
        }

    def logits(self, x: Tensor) -> Tensor:
        """Returns `(B, C)` logits of normalized images `(B, 3, H, W)`."""
        # Some networks write into their input, as by x.clamp_(); the losses are of the image before that.
        return self.exit.of(self.network(x.clone()))

    def features(self, x: Tensor) -> list[Tensor]:
        """Returns the taps' outputs, shallow to deep, each `(B, channels, side, side)`.

        Gradient as the caller's context says. A tap that the network overwrites in place later on is
        returned as it was at its point.
        """
        with reading(self.tap_sites, "output") as values:
            self.network(x.clone())
        return values

    def logits_and_bn_inputs(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Returns the logits `(B, C)` and the input of every BatchNorm2d, in the order of `batch_norms`."""
        with reading(self.batch_norm_sites, "input") as values:
            logits = self.logits(x)
        return logits, values

    def accuracy(self, pixels: Tensor, labels: Tensor, batch_size: int = BATCH_SIZE) -> float:
        """Returns the fraction, 0 to 1, of uint8 images `(N, 3, H, W)` classified as `labels` `(N,)`."""
        return share(self.predict(pixels, batch_size) == labels.cpu())

    def predict(self, pixels: Tensor, batch_size: int = BATCH_SIZE) -> Tensor:
        """Returns the class, `(N,)` int64 on the CPU, of each of N uint8 images `(N, 3, H, W)`."""
        return predict(self.network, pixels, self.normalization, self.num_classes, batch_size)


def _check_classes(classes: tuple[str, ...]) -> tuple[str, ...]:
    name, times = Counter(classes).most_common(1)[0]
    if times > 1:
        raise TeacherError(f"teacher.classes names {name!r} {times} times; every class needs its own name")
    for name in classes:
        if not name.isprintable():
            raise TeacherError(f"teacher.classes names {name!r}, which cannot be printed; use plain text")
    return classes
