"""The classes that a network chooses for images, and its accuracy; every accuracy is computed here."""

import torch
from torch import Tensor, nn

from nisynth.images import Normalization
from nisynth.teachers.logits import Exit
from nisynth.teachers.operations import first_tensor

BATCH_SIZE = 500


@torch.no_grad()
def predict(
    network: nn.Module,
    pixels: Tensor,
    normalization: Normalization,
    batch_size: int = BATCH_SIZE,
    exit_: Exit | None = None,
) -> Tensor:
    """Returns the class, `(N,)` int64 on the CPU, that a network in eval mode chooses for each of N images.

    pixels: `(N, 3, H, W)` uint8, on any device. exit_: where the logits are in the network's output; None
    takes its first tensor.
    """
    device = next(network.parameters()).device
    chosen = []
    for part in torch.split(pixels, batch_size):
        output = network(normalization.normalize(part.to(device)))
        logits = first_tensor(output) if exit_ is None else exit_.of(output)
        assert logits is not None
        chosen.append(logits.argmax(1).cpu())
    return torch.cat(chosen)


def accuracy(
    network: nn.Module,
    pixels: Tensor,
    labels: Tensor,
    normalization: Normalization,
    batch_size: int = BATCH_SIZE,
) -> float:
    """Returns the fraction, 0..1, of uint8 images `(N, 3, H, W)` that are classified as `labels` `(N,)`."""
    return share(predict(network, pixels, normalization, batch_size) == labels.cpu())


def share(hits: Tensor) -> float:
    """Returns the fraction, 0..1, of true values."""
    return int(hits.sum()) / len(hits)
