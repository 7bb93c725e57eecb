"""What uses the images: each consumer makes a model or a measurement of a dataset, with a teacher or without.

A consumer reads images through `nisynth.reader` alone and knows nothing of what lies behind it.

distill.py         a student learns a teacher's answers; scratch.py: a network learns the labels
student.py         what the two have in common; student_report.py: what that leaves
streamed.py        where their images come from: a set in memory, or read as it is needed
ray_train.py       the same by several workers
prune.py           filters out, fine-tune, ratio by ratio (Figure 6); prune_report.py: what that leaves
filters.py         which filters go, and what the network costs after
evaluate.py        accuracy, confusion, agreement, on real images or a run's
training_log.py    a training's progress in lines
"""
