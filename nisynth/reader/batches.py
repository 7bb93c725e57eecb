"""Images asked for together, and the tensors that a DataLoader makes of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

from torch import Tensor
from torch.utils.data import default_collate


@dataclass(frozen=True, eq=False)
class Images(Sequence[tuple[Tensor, int]]):
    """Images that were asked for together: pixels uint8 `(n, 3, H, W)`, labels int64 `(n,)`.

    A sequence of (image, label) as well, which is what torch's own collate function takes.
    """

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @overload
    def __getitem__(self, index: int) -> tuple[Tensor, int]: ...
    @overload
    def __getitem__(self, index: slice) -> "Images": ...
    def __getitem__(self, index: int | slice) -> "tuple[Tensor, int] | Images":
        if isinstance(index, slice):
            return Images(self.pixels[index], self.labels[index])
        return self.pixels[index], int(self.labels[index])


def collate(batch: Any) -> Any:
    """Returns (pixels, labels) of a batch, for `DataLoader(..., collate_fn=nisynth.collate)`."""
    if isinstance(batch, Images):
        return batch.pixels, batch.labels
    return default_collate(batch)
