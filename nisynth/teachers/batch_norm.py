"""Other classes that compute what a BatchNorm2d computes, put in its place.

SyncBatchNorm, and the frozen BatchNorms that detection libraries define, remember the same four tensors.
With a BatchNorm2d in their place, R_BN, the folding into convolutions and the kernels hold for them too.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nisynth.teachers.trace import Site

EPSILONS = ("eps", "epsilon", "variance_epsilon")
LARGEST_ERROR = 1e-4


def replace_by_batch_norm2d(network: nn.Module, norms: Sequence[Site]) -> bool:
    """Puts a BatchNorm2d in the place of each module that computes the same; tells whether any was.

    norms: the calls of modules that normalize by running statistics and are no BatchNorm2d. The names in
    the network's state dict stay as they are. Modules that normalize otherwise are left alone.
    """
    maps = {site.module for site in norms if len(site.shape) == 4}
    stand_ins = {module: stand_in for module in maps if (stand_in := _stand_in(module)) is not None}
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if child in stand_ins:
                setattr(parent, name, stand_ins[child])
    return bool(stand_ins)


@torch.no_grad()
def _stand_in(module: nn.Module) -> nn.BatchNorm2d | None:
    """Returns the BatchNorm2d of the same tensors, if that gives what the module gives."""
    mean = module.running_mean
    # The variances that an InstanceNorm remembers are of single images, R_BN's are of the batch.
    if isinstance(module, nn.modules.instancenorm._InstanceNorm) or not isinstance(mean, Tensor):
        return None
    rng = torch.Generator().manual_seed(0)
    x = torch.randn((2, len(mean), 5, 5), generator=rng).to(mean)
    named = [getattr(module, name) for name in EPSILONS if hasattr(module, name)]
    for eps in (*named, 1e-5, 0.0):
        norm = nn.BatchNorm2d(len(mean), eps=float(eps)).to(mean).eval().requires_grad_(False)
        norm.load_state_dict(module.state_dict(), strict=False)
        try:
            wanted = module(x.clone())
        except Exception:  # it is no normalization of (B, C, H, W) alone
            return None
        if isinstance(wanted, Tensor) and torch.allclose(norm(x), wanted, LARGEST_ERROR, LARGEST_ERROR):
            return norm
    return None
