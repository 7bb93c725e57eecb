"""The frozen classifier that is inverted: its logits, its taps, its BatchNorm inputs, its classes."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nisynth.batch import Normalization
from nisynth.errors import TeacherError, one_line
from nisynth.teachers.checkpoint import hash_weights
from nisynth.teachers.predict import BATCH_SIZE, accuracy
from nisynth.teachers.trace import Site, Tap, Trace, find_taps, first_tensor, name_taps, reading, trace


class Teacher:
    """A network in eval mode whose weights take no gradient.

    taps: where features are read, shallow to deep: the last 4-D output of each spatial size with side
        >= 4 px in execution order (method.md), or the named modules.
    batch_norms, batch_norm_names: every BatchNorm2d that a forward pass runs, in module order.
    identity: what a run's fingerprint takes, JSON-able.
    Raises TeacherError for a network that cannot be inverted: no BatchNorm2d, BatchNorm2d without
    running statistics, a forward that fails, output that is no finite `(B, C)`, taps that do not exist.
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
    ) -> None:
        self.device = torch.device(device)
        self.network = network.to(self.device).eval().requires_grad_(False)
        passed = _forward(self.network, input_px, self.device)
        self.tap_sites = find_taps(passed.outputs) if taps is None else name_taps(passed.outputs, taps)
        self.batch_norm_sites = passed.batch_norms
        self.taps: tuple[Tap, ...] = tuple(site.tap for site in self.tap_sites)
        self.batch_norms = _check_batch_norms(passed.batch_norms)
        self.batch_norm_names = tuple(site.name for site in self.batch_norm_sites)
        self.normalization = normalization
        self.num_classes = passed.logits.shape[1]
        self.classes = _check_classes(tuple(classes), self.num_classes)
        self.input_px = input_px
        self.identity: dict[str, Any] = {
            "arch": arch or type(network).__name__,
            "kwargs": dict(kwargs or {}),
            "weights_sha256": hash_weights(network),
            "mean": list(normalization.mean),
            "std": list(normalization.std),
            "classes": list(self.classes),
            "taps": [tap.name for tap in self.taps],
            "input_px": input_px,
            "num_classes": self.num_classes,
        }

    def logits(self, x: Tensor) -> Tensor:
        """Returns `(B, C)` logits of normalized images `(B, 3, H, W)`: the output, or its first tensor."""
        logits = first_tensor(self.network(x))
        assert logits is not None
        return logits

    def features(self, x: Tensor) -> list[Tensor]:
        """Returns the taps' outputs, shallow to deep, each `(B, channels, side, side)`.

        Gradient as the caller's context says. A tap that the network overwrites in place later on is
        returned as it was at its point.
        """
        with reading(self.tap_sites, "output") as values:
            self.network(x)
        return values

    def observe(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Returns the logits `(B, C)` and the input of every BatchNorm2d, in the order of `batch_norms`."""
        with reading(self.batch_norm_sites, "input") as values:
            logits = self.logits(x)
        return logits, values

    def accuracy(self, pixels: Tensor, labels: Tensor, batch_size: int = BATCH_SIZE) -> float:
        """Returns the fraction, 0 to 1, of uint8 images `(N, 3, H, W)` classified as `labels` `(N,)`."""
        return accuracy(self.network, pixels, labels, self.normalization, batch_size)


def _forward(network: nn.Module, input_px: int, device: torch.device) -> Trace:
    size = f"(2, 3, {input_px}, {input_px})"
    try:
        passed = trace(network, torch.zeros(2, 3, input_px, input_px, device=device))
    except TeacherError:
        raise
    except Exception as error:  # the user's network may raise anything
        raise TeacherError(
            f"arch: the network's forward of {size} RGB images raised {one_line(error)}; see teacher.input_px"
        ) from error
    logits = passed.logits
    if logits.ndim != 2 or logits.shape[0] != 2:
        raise TeacherError(
            f"arch: {size} images give an output of {tuple(logits.shape)}; it must be (2, classes)"
        )
    if not bool(torch.isfinite(logits).all()):
        raise TeacherError("teacher.weights: the logits of a black image are not finite")
    return passed


def _check_batch_norms(sites: tuple[Site, ...]) -> tuple[nn.BatchNorm2d, ...]:
    modules = tuple(site.module for site in sites if isinstance(site.module, nn.BatchNorm2d))
    if not modules:
        raise TeacherError(
            "arch: the network has no BatchNorm2d, whose statistics the inversion matches (R_BN)"
        )
    for site, module in zip(sites, modules, strict=True):
        if module.running_mean is None or module.running_var is None:
            raise TeacherError(
                f"arch: BatchNorm2d {site.name!r} keeps no running statistics, which the inversion matches; "
                "build it with track_running_stats=True"
            )
    return modules


def _check_classes(classes: tuple[str, ...], num_logits: int) -> tuple[str, ...]:
    if len(classes) != num_logits:
        raise TeacherError(f"teacher.num_classes: the network gives {num_logits} logits, not {len(classes)}")
    name, times = Counter(classes).most_common(1)[0]
    if times > 1:
        raise TeacherError(f"teacher.classes names {name!r} {times} times; every class needs its own name")
    return classes
