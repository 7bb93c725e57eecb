"""Committed shards -> images: the only door through which a consumer sees a run.

dataset.py  `open_dataset`: a run as a map-style torch dataset, whole in memory or image by image
stream.py   batches of a set of any size, read ahead by threads
sampler.py  the same batches as numbers, for a DataLoader
order.py    which images those are: a formula of seed, epoch and shards
cursor.py   where a reading stands: the state that stream and sampler save
view.py     the list of shards that an epoch reads
follow.py   views of a run that still grows
batches.py  images asked for together, as tensors
source.py   decoded shards from memory, disk or store
"""

from nisynth.reader.batches import collate
from nisynth.reader.dataset import SyntheticDataset, open_dataset
from nisynth.reader.follow import FollowConfig
from nisynth.reader.sampler import ElasticBatchSampler
from nisynth.reader.stream import Stream

__all__ = [
    "ElasticBatchSampler",
    "FollowConfig",
    "Stream",
    "SyntheticDataset",
    "collate",
    "open_dataset",
]
