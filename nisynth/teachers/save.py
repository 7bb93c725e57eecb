"""A network as the bytes of one safetensors file, with what `load_teacher` needs in its metadata."""

import json
from collections.abc import Mapping, Sequence

import safetensors.torch
from torch import Tensor, nn

from nisynth.images import Normalization


def network_bytes(
    network: nn.Module,
    *,
    arch: str,
    normalization: Normalization,
    classes: Sequence[str],
    input_px: int,
    more: Mapping[str, str] | None = None,
) -> bytes:
    """Returns the weights as they are, with what a teacher needs beside them in the file's metadata.

    more: further metadata, such as where the network comes from. Arguments of the architecture's factory
    are not stored: code is only ever called as the user's own config says.
    """
    metadata = {
        "arch": arch,
        "mean": json.dumps(normalization.mean),
        "std": json.dumps(normalization.std),
        "num_classes": str(len(classes)),
        "classes": json.dumps(list(classes)),
        "input_size": str(input_px),
        **(more or {}),
    }
    return tensors_bytes(network.state_dict(), metadata)


def tensors_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Returns tensors, wherever they lie, as one safetensors file with this metadata."""
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return safetensors.torch.save(stored, dict(metadata))
