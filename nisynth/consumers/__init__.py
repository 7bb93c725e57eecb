"""What the images are for: each consumer takes a dataset, and a teacher where it needs one, to a model.

A consumer reads images through `nisynth.dataset` alone and knows nothing of what lies behind it.

training.py        the loop that all of them train with, on the device, resumable to the bit
batch_norm.py      BatchNorm over the global batch of several workers
checkpoints.py     a loop's state in a store
device.py          where, and in which arithmetic
augment.py         shuffles, crops and flips as pure functions of (seed, epoch)
"""
