"""What makes the engine fast, each part by name, so that a benchmark can leave one out."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class Shortcuts:
    """Which shortcuts an engine takes.

    folded: the feature pass without BatchNorms, ended at the deepest tap (`fused`).
    activations: its ReLUs and residual sums inside cuDNN's convolutions (`activations`), in 16 bits.
    identities: the method's exact rewrites (NaturalInversion: `identities`).
    statistics: R_BN's in one pass, and all layers' at once (`statistics`).
    normalization: the loss pass's BatchNorms, with the sums and ReLUs behind them and R_BN's moments, in one
        read of a map (`normalization`); for maps with the channels innermost.
    channels_last: every map of teacher, generator and pyramid laid out with the channels innermost.
    compiled: torch.compile of everything up to the loss, with its backward pass.
    captured: the whole step as one CUDA graph.
    """

    folded: bool = True
    activations: bool = True
    identities: bool = True
    statistics: bool = True
    normalization: bool = True
    channels_last: bool = True
    compiled: bool = True
    captured: bool = True

    @property
    def layout(self) -> torch.memory_format:
        """Returns the layout of the maps."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    @classmethod
    def on(cls, device: torch.device) -> "Shortcuts":
        """Returns the shortcuts that save time on a device of this type.

        On a CPU, torch.compile gains less in a run than the minutes that it costs, and channels_last
        makes narrow teachers faster and wide ones slower.
        """
        gpu = device.type == "cuda"
        return cls(activations=gpu, normalization=gpu, channels_last=gpu, compiled=gpu, captured=gpu)
