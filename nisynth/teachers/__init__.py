"""The classifiers: a frozen network with named taps, BatchNorm layers, normalization and class names.

load.py        TeacherConfig, or a module in memory -> Teacher
teacher.py     Teacher: what synthesis and consumers see
probe.py       what a network is seen to do with two images, and what keeps it from being inverted
trace.py       taps and BatchNorm inputs, found and read through hooks
operations.py  which operations a pass runs: what is a feature map
logits.py      where the logits are in what a network returns
batch_norm.py  other classes of BatchNorm, replaced by BatchNorm2d
predict.py     the classes that a network chooses for images
checkpoint.py  weights from files and URLs, fitted to a network
formats.py     the bytes of a weights file as tensors, safely
download.py    weights from the web, by their hash
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
