"""What the images are for: each consumer takes a dataset, and a teacher where it needs one, to a model.

A consumer reads images through `nisynth.reader` alone and knows nothing of what lies behind it.

distill.py         a student learns a teacher's answers; scratch.py: a network learns the labels
student.py         what the two have in common; student_report.py: what that leaves
ray_train.py       the same by several workers
prune.py           filters out, fine-tune, ratio by ratio (Figure 6); prune_report.py: what that leaves
filters.py         which filters go, and what the network costs after
evaluate.py        accuracy, confusion, agreement, on real images or a run's
realset.py         real test sets, decoded once
training.py        the loop that all of them train with, on the device, resumable to the bit
batch_norm.py      BatchNorm over the global batch of several workers
checkpoints.py     a loop's state in a store
device.py          where, in which arithmetic, and what a report says of it
narration.py       a training told in lines
augment.py         shuffles, crops and flips as pure functions of (seed, epoch)
"""
