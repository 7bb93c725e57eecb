"""The loop that trains a network on images: every student, pruned network and rival goes through it.

loop.py         the steps: SGD, resumable to the bit, by one process or several
config.py       how a network is trained: rate, schedule, batch, augmentation
student.py      the network that a training begins with
source.py       where its batches come from: a whole set on the device; a stream and a generator fit the seam
batch_norm.py   BatchNorm over the global batch of several workers
checkpoints.py  a loop's state in a store
device.py       on which device, in which arithmetic

Nothing here knows of runs or of where images come from.
"""

from nisynth.training.config import TrainConfig
from nisynth.training.loop import Loss, OnEpoch, OnStep, TrainResult, hard_label_loss, train
from nisynth.training.source import Batches, BatchSource, Place, WholeSet

__all__ = [
    "BatchSource",
    "Batches",
    "Loss",
    "OnEpoch",
    "OnStep",
    "Place",
    "TrainConfig",
    "TrainResult",
    "WholeSet",
    "hard_label_loss",
    "train",
]
