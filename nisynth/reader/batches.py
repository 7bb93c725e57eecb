"""What a DataLoader makes of images that were asked for together."""

from typing import Any

from torch.utils.data import default_collate

from nisynth.images import LabelledImages


def collate(batch: Any) -> Any:
    """Returns (pixels, labels) of a batch, for `DataLoader(..., collate_fn=nisynth.collate)`."""
    if isinstance(batch, LabelledImages):
        return batch.pixels, batch.labels
    return default_collate(batch)
