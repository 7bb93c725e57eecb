"""Two noise images through a network: what an inversion needs to know of it, and what it cannot work with.

A network may run and still be inverted wrongly: without a gradient from its outputs to the image, with
probabilities in place of logits, or with other outputs each time. One gradient-free pass and one pass with
a gradient show all of that.
"""

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nisynth.errors import TeacherError, one_line
from nisynth.teachers.batch_norm import replace_by_batch_norm2d
from nisynth.teachers.logits import Exit, find_logits
from nisynth.teachers.trace import Trace, reading, trace

BATCH_SIZE = 2
LARGEST_DIFFERENCE = 1e-3
SIZE_WORDS = ("size", "shape", "dimension", "channels", "mat1", "too small")


@dataclass(frozen=True, eq=False)
class Probe:
    """What was seen: the pass itself, where the logits are, and notes for a person, a line each."""

    passed: Trace
    exit: Exit
    notes: tuple[str, ...]


def check_module(network: nn.Module) -> None:
    """Raises TeacherError for a module whose layers or weights cannot be read at all."""
    if isinstance(network, torch.jit.ScriptModule):
        raise TeacherError(
            "arch: the network is scripted or traced (TorchScript), and its layers cannot be read; "
            "name the factory that builds it in Python, and give its state dict as weights"
        )
    for name, value in network.state_dict().items():
        if name.endswith("_extra_state"):
            continue
        if not isinstance(value, Tensor) or value.is_quantized:
            raise TeacherError(
                f"arch: {name} is quantized; build the network in float, before its conversion"
            )
        if value.is_meta:
            raise TeacherError(
                f"arch: {name} is on the meta device, without values; build the network on the CPU"
            )
        if value.layout != torch.strided:
            raise TeacherError(f"arch: {name} is sparse; build the network with dense weights")


def freeze(network: nn.Module) -> None:
    """Sets eval mode, and excludes every weight from gradients."""
    network.eval()
    for parameter in network.parameters():
        parameter.detach_().requires_grad_(False)  # one may be the result of a computation, in some factories


def probe(network: nn.Module, input_px: int, num_classes: int) -> Probe:
    """Returns what a network in eval mode does with noise images `(2, 3, input_px, input_px)`.

    Other classes of BatchNorm are replaced by BatchNorm2d where that is the same.
    Raises TeacherError for a network that cannot be inverted.
    """
    device = next((tensor.device for tensor in network.state_dict().values()), torch.device("cpu"))
    rng = torch.Generator().manual_seed(0)
    # Noise, since a black image has no standard deviation to divide by, for networks that do.
    x = torch.randn((BATCH_SIZE, 3, max(0, input_px), max(0, input_px)), generator=rng).to(device)
    on_gpu = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=on_gpu), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the network warns of, it warns of again in use
        passed = _forward(network, x)
        if replace_by_batch_norm2d(network, passed.other_norms):
            passed = _forward(network, x)
        exit_ = find_logits(passed.output, BATCH_SIZE, num_classes)
        logits = exit_.of(passed.output)
        _check_logits(logits)
        _check_batch_norms(passed)
        again = _check_gradients(network, x, passed, exit_)
    notes = [*_missed_norms(passed), *_looks_odd(logits, again)]
    return Probe(passed, exit_, tuple(notes))


def _forward(network: nn.Module, x: Tensor) -> Trace:
    try:
        return trace(network, x)
    except TeacherError:
        raise
    except (Exception, SystemExit) as error:  # the user's network may raise anything
        told = one_line(error)
        cure = "; see teacher.input_px" if any(word in told for word in SIZE_WORDS) else ""
        cure = "; its images must be RGB" if "got 3 channels" in told else cure
        raise TeacherError(
            f"arch: the network's forward of {tuple(x.shape)} RGB images raised {told}{cure}"
        ) from error


def _check_logits(logits: Tensor) -> None:
    if not logits.is_floating_point():
        raise TeacherError(f"arch: the network gives {logits.dtype} classes; it must give float logits")
    if logits.shape[1] == 1:
        find_logits(logits, len(logits), 2)  # raises: a binary head
    if not bool(torch.isfinite(logits).all()):
        raise TeacherError("teacher.weights: the logits of noise images are not finite")
    if bool((logits >= 0).all()) and torch.allclose(logits.sum(1), torch.ones_like(logits[:, 0]), atol=1e-3):
        raise TeacherError(
            "arch: the network ends in a softmax (its outputs are positive and sum to 1), but the losses "
            "need the logits before it; return those, or replace the softmax by nn.Identity()"
        )


def _check_batch_norms(passed: Trace) -> None:
    if not passed.batch_norms:
        others = [f"{type(site.module).__name__} {site.name!r}" for site in passed.other_norms[:1]]
        if passed.functional_norms:
            others.append("BatchNorms by F.batch_norm, .forward() or scripted: call nn.BatchNorm2d modules")
        raise TeacherError(
            "arch: the network has no BatchNorm2d, whose statistics the inversion matches (R_BN)"
            + (f"; it has {', '.join(others)}" if others else "")
        )
    for site in passed.batch_norms:
        if site.module.running_mean is None or site.module.running_var is None:
            raise TeacherError(
                f"arch: BatchNorm2d {site.name!r} keeps no running statistics, which the inversion matches; "
                "build it with track_running_stats=True"
            )


def _check_gradients(network: nn.Module, x: Tensor, passed: Trace, exit_: Exit) -> Tensor:
    """Returns the logits of another pass, of which each loss was seen to have a gradient at the image."""
    x = x.clone().requires_grad_()
    with torch.enable_grad():
        with reading(passed.batch_norms, "input") as inputs:
            logits = exit_.of(network(x.clone()))
        read = {"the logits have": logits} | {
            f"the input of BatchNorm2d {site.name!r} has": value
            for site, value in zip(passed.batch_norms, inputs, strict=True)
        }
        for what, value in read.items():
            if not value.requires_grad:
                raise TeacherError(
                    f"arch: {what} no gradient path to the image, which the inversion follows; forward goes "
                    "through torch.no_grad(), .detach() or a checkpoint with use_reentrant=True: take it out"
                )
        try:
            # Of the logits first, and alone: a sum would hide that their gradient is zero.
            torch.autograd.backward(weighed_sum(logits), retain_graph=True)
            of_logits = x.grad
            torch.autograd.backward(sum(map(weighed_sum, inputs), torch.zeros((), device=x.device)))
        except Exception as error:  # the user's network may raise anything
            raise TeacherError(f"arch: the network's backward pass raised {one_line(error)}") from error
    if of_logits is None or not bool(of_logits.any()):
        raise TeacherError(
            "arch: the gradient of the logits at the image is zero everywhere (an operation such as round, "
            "sign or argmax on the way), so the inversion has nothing to follow"
        )
    if x.grad is None or not bool(torch.isfinite(x.grad).all()):
        raise TeacherError("arch: the gradients of the network at a noise image are not finite")
    return logits.detach()


def weighed_sum(value: Tensor) -> Tensor:
    """Returns a sum over the values in which no two weigh the same: some are constant in a plain sum."""
    value = value.float().flatten()
    return value @ torch.linspace(0.5, 1.5, len(value), device=value.device)


def _missed_norms(passed: Trace) -> list[str]:
    missed = [f"{type(site.module).__name__} {site.name!r}" for site in passed.other_norms]
    if passed.functional_norms:
        missed.append(
            f"{passed.functional_norms} by F.batch_norm, .forward() or scripted, which hooks cannot read"
        )
    if not missed:
        return []
    shown = ", ".join(missed[:3]) + (", ..." if len(missed) > 3 else "")
    return [f"R_BN matches {len(passed.batch_norms)} of {passed.num_norms} BatchNorms; it leaves out {shown}"]


def _looks_odd(logits: Tensor, again: Tensor) -> list[str]:
    notes = []
    difference = torch.linalg.vector_norm(logits - again) / torch.linalg.vector_norm(logits).clamp_min(1e-12)
    if not float(difference) < LARGEST_DIFFERENCE:
        notes.append(
            f"forward is not deterministic: two passes of the same images differ by {float(difference):.0%}; "
            "a dropout or noise that eval() does not switch off (F.dropout needs training=self.training)"
        )
    if bool(((logits >= 0) & (logits <= 1)).all()) and bool(logits.any()):
        notes.append(
            "all outputs lie within 0 to 1; if they are probabilities, return the logits before them"
        )
    return notes
