"""The classes that a network chooses for images, and its accuracy; every accuracy is computed here."""

import torch
from torch import Tensor, nn

from nisynth.images import Normalization
from nisynth.teachers.logits import logits_of

BATCH_SIZE = 500


@torch.no_grad()
def predict(
    network: nn.Module,
    pixels: Tensor,
    normalization: Normalization,
    num_classes: int,
    batch_size: int = BATCH_SIZE,
) -> Tensor:
    """Returns the class, `(N,)` int64 on the CPU, that a network in eval mode chooses for each of N images.

    pixels: `(N, 3, H, W)` uint8, on any device. num_classes: C of the logits `(B, C)` in its output.
    """
    device = next(network.parameters()).device
    chosen = []
    for part in torch.split(pixels, batch_size):
        output = network(normalization.normalize(part.to(device)))
        chosen.append(logits_of(output, len(part), num_classes).argmax(1).cpu())
    return torch.cat(chosen)


def accuracy(
    network: nn.Module,
    pixels: Tensor,
    labels: Tensor,
    normalization: Normalization,
    num_classes: int,
    batch_size: int = BATCH_SIZE,
) -> float:
    """Returns the fraction, 0..1, of uint8 images `(N, 3, H, W)` that are classified as `labels` `(N,)`."""
    return share(predict(network, pixels, normalization, num_classes, batch_size) == labels.cpu())


def share(hits: Tensor) -> float:
    """Returns the fraction, 0..1, of true values."""
    return int(hits.sum()) / len(hits)
