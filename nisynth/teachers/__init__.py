"""The classifiers: a frozen network with named taps, BatchNorm layers, normalization and class names.

load.py        TeacherConfig -> Teacher
teacher.py     Teacher: what synthesis and consumers see
trace.py       taps and BatchNorm inputs, found and read through hooks
predict.py     what a network makes of images
checkpoint.py  weights from files and URLs, safely
narrow.py      fewer channels than the architecture's, for the files of pruned networks
save.py        a network as a file that load_teacher reads
registry.py    architectures by name; resnet.py, vgg.py, mobilenet.py hold them
weights/       the CIFAR-10 ResNet-20 that ships

Imports torch, numpy and safetensors, and of nisynth only errors, batch and storage.
"""

from nisynth.teachers.load import TeacherConfig, load_teacher
from nisynth.teachers.registry import ArchitectureInfo, architectures, build_network
from nisynth.teachers.teacher import Teacher
from nisynth.teachers.trace import Tap

__all__ = [
    "ArchitectureInfo",
    "Tap",
    "Teacher",
    "TeacherConfig",
    "architectures",
    "build_network",
    "load_teacher",
]
