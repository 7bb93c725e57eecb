"""Networks with fewer channels than their architecture names: what filter pruning leaves behind.

A pruned network is its architecture's code with narrower layers, so the shapes of its weights describe it
fully. Its file is marked (metadata `pruned`): in any other file, a shape that does not fit is an error.
"""

from collections.abc import Mapping

from torch import Tensor, nn

PRUNED = "pruned"
"""The metadata key that marks a pruned network's file; its value is JSON, the ratio and the widths."""


def narrow_to(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Gives every convolution, BatchNorm2d and linear layer the shape that its tensors have, if smaller.

    Values stay uninitialized until the tensors are loaded. A layer whose tensors do not fit even so is left
    as it is, for the loading to refuse; so is a linear layer's number of outputs, since filters were pruned.
    """
    for name, layer in network.named_modules():
        weight = tensors.get(f"{name}.weight")
        own = getattr(layer, "weight", None)
        if weight is None or own is None or weight.ndim != own.ndim or weight.shape == own.shape:
            continue
        if any(new > old for new, old in zip(weight.shape, own.shape, strict=True)):
            continue
        if isinstance(layer, nn.Conv2d):
            depthwise = layer.groups > 1 and layer.groups == layer.out_channels
            layer.out_channels = weight.shape[0]
            layer.groups = weight.shape[0] if depthwise else layer.groups
            layer.in_channels = weight.shape[1] * layer.groups
        elif isinstance(layer, nn.BatchNorm2d):
            layer.num_features = weight.shape[0]
        elif isinstance(layer, nn.Linear) and weight.shape[0] == layer.out_features:
            layer.in_features = weight.shape[1]
        else:
            continue
        _shrink(layer, weight.shape[0])
        layer.weight = nn.Parameter(own.new_empty(weight.shape))


def _shrink(layer: nn.Module, channels: int) -> None:
    """Cuts what a layer keeps one number a channel of: bias, and BatchNorm's running statistics."""
    if isinstance(bias := getattr(layer, "bias", None), nn.Parameter):
        layer.bias = nn.Parameter(bias.new_empty(channels))
    for name in ("running_mean", "running_var"):
        if isinstance(statistic := getattr(layer, name, None), Tensor):
            setattr(layer, name, statistic.new_empty(channels))
