"""Small CIFAR-10 classifiers that differ in what R_BN's scale depends on, and how each is trained.

    python benchmarks/zoo.py --data TRAIN.parquet --test TEST.parquet --out DIR [NAME ...]

writes NAME.safetensors for each that is not there yet: minutes each on one CPU core. They are not good
classifiers; they are other people's: another architecture, initialization, weight decay, normalization or
size. What is measured with them stands in `results/`.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nisynth.images import LabelledImages, Normalization
from nisynth.images.real import load_real_set
from nisynth.teachers.mobilenet import InvertedResidual
from nisynth.teachers.predict import accuracy
from nisynth.teachers.resnet import ResNet
from nisynth.teachers.save import network_bytes
from nisynth.training import TrainConfig, WholeSet, hard_label_loss, train

CIFAR10 = Normalization((0.4914, 0.482158, 0.446531), (0.247032, 0.243485, 0.261588))
IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALVES = Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
PIXELS = Normalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class DenseNet(nn.Module):
    """DenseNet (Huang et al., CVPR-17) of three blocks without bottlenecks; each convolution is last."""

    def __init__(self, layers: int = 4, growth: int = 12) -> None:
        super().__init__()
        channels = 2 * growth
        stages: list[nn.Module] = [nn.Conv2d(3, channels, 3, padding=1, bias=False)]
        for block in range(3):
            for _ in range(layers):
                stages.append(DenseLayer(channels, growth))
                channels += growth
            if block < 2:
                narrow = nn.Conv2d(channels, channels // 2, 1, bias=False)
                stages += [nn.BatchNorm2d(channels), nn.ReLU(), narrow, nn.AvgPool2d(2)]
                channels //= 2
        self.features = nn.Sequential(*stages, nn.BatchNorm2d(channels), nn.ReLU())
        self.linear = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(F.adaptive_avg_pool2d(self.features(x), 1).flatten(1))
        return logits


class DenseLayer(nn.Module):
    """`growth` new channels beside those that came in."""

    def __init__(self, in_channels: int, growth: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(in_channels)
        self.conv = nn.Conv2d(in_channels, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x, self.conv(F.relu(self.norm(x)))), 1)


class PaddedShortcut(nn.Module):
    """The parameter-free shortcut of the CIFAR ResNets (He et al., CVPR-16, option A)."""

    def forward(self, x: Tensor) -> Tensor:
        added = x.shape[1] // 2
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, added, added))


def resnet20_option_a() -> nn.Module:
    """Returns ResNet-20 with parameter-free shortcuts, the form of github.com/akamaster's checkpoints."""
    network = ResNet((3, 3, 3), 16, 10)
    for block in (network.layer2[0], network.layer3[0]):
        block.shortcut = PaddedShortcut()
    return network


def narrow_resnet(affine: bool = True, gain: float = 1.0) -> nn.Module:
    """Returns a ResNet-20 of half the width; `gain` multiplies what its convolutions start from."""
    network = ResNet((3, 3, 3), 8, 10)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            module.weight.data *= gain
        if isinstance(module, nn.BatchNorm2d) and not affine:
            module.affine, module.weight, module.bias = False, None, None
    return network


def small_vgg() -> nn.Module:
    """Returns a plain network of six convolutions with bias."""
    layers: list[nn.Module] = []
    channels = 3
    for width in (16, 16, 32, 32, 64, 64):
        stride = 2 if width > channels > 3 else 1
        layers += [nn.Conv2d(channels, width, 3, stride, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


class NarrowMobileNet(nn.Module):
    """MobileNetV2 (the registry's blocks) at a fraction of its width and depth."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        stages = ((1, 8, 1), (4, 16, 2), (4, 16, 1), (4, 32, 2), (4, 32, 1), (4, 48, 1))
        blocks, channels = [], 16
        for expansion, width, stride in stages:
            blocks.append(InvertedResidual(channels, width, expansion, stride))
            channels = width
        self.layers = nn.Sequential(*blocks)
        self.head = nn.Sequential(nn.Conv2d(channels, 192, 1, bias=False), nn.BatchNorm2d(192), nn.ReLU())
        self.linear = nn.Linear(192, 10)

    def forward(self, x: Tensor) -> Tensor:
        out = self.head(self.layers(self.stem(x)))
        logits: Tensor = self.linear(F.adaptive_avg_pool2d(out, 1).flatten(1))
        return logits


def no_affine() -> nn.Module:
    """Returns a narrow ResNet-20 whose BatchNorms learn nothing."""
    return narrow_resnet(affine=False)


def large_init() -> nn.Module:
    """Returns a narrow ResNet-20 whose convolutions start four times larger."""
    return narrow_resnet(gain=4.0)


def resnet_64px() -> nn.Module:
    """Returns a ResNet-8 whose first convolution halves the image."""
    network = ResNet((1, 1, 1), 16, 10)
    network.conv1.stride = (2, 2)
    return network


@dataclass(frozen=True)
class Recipe:
    """How one of them is built and trained; input_px: real images are enlarged to that side."""

    build: Callable[[], nn.Module]
    normalization: Normalization = CIFAR10
    input_px: int = 32
    lr: float = 0.1
    weight_decay: float = 5e-4

    def config(self, epochs: int) -> TrainConfig:
        """Returns the settings of its training."""
        return TrainConfig(
            epochs=epochs, lr=self.lr, weight_decay=self.weight_decay, schedule="cosine", precision="bfloat16"
        )


ZOO = {
    "no_affine": Recipe(no_affine, weight_decay=1e-4),
    "large_init": Recipe(large_init, IMAGENET, lr=0.4, weight_decay=0.0),
    "small_vgg": Recipe(small_vgg, PIXELS, weight_decay=5e-3),
    "densenet": Recipe(DenseNet, HALVES),
    "mobilenet": Recipe(NarrowMobileNet),
    "resnet_64px": Recipe(resnet_64px, IMAGENET, input_px=64),
}


def main() -> None:
    """Trains what is missing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(ZOO), metavar="NAME")
    parser.add_argument("--data", required=True, help="real images to train on")
    parser.add_argument("--test", required=True, help="real images to measure on")
    parser.add_argument("--out", required=True, help="a folder")
    parser.add_argument("--epochs", type=int, default=16)
    options = parser.parse_args()
    torch.set_num_threads(1)
    real, test = load_real_set(options.data), load_real_set(options.test)
    for name in options.names:
        place = Path(options.out) / f"{name}.safetensors"
        if place.exists():
            continue
        recipe, began = ZOO[name], time.perf_counter()
        torch.manual_seed(0)
        network = recipe.build()
        pixels = enlarged(real.pixels, recipe.input_px)
        train(
            network,
            WholeSet(LabelledImages(pixels, real.labels), recipe.normalization),
            hard_label_loss,
            recipe.config(options.epochs),
            num_classes=len(CLASSES),
            device="cpu",
        )
        judged = enlarged(test.pixels[:2000], recipe.input_px)
        recognised = accuracy(network, judged, test.labels[:2000], recipe.normalization, len(CLASSES))
        data = network_bytes(
            network, arch=f"benchmarks.zoo:{recipe.build.__name__}", normalization=recipe.normalization,
            classes=CLASSES, input_px=recipe.input_px, more={"test_accuracy": f"{100 * recognised:.2f}"},
        )  # fmt: skip
        place.write_bytes(data)
        print(
            f"{name}: {recognised:.1%} of 2,000 test images, {time.perf_counter() - began:.0f} s", flush=True
        )


def enlarged(pixels: Tensor, side_px: int) -> Tensor:
    """Returns uint8 images at another size, by bilinear interpolation."""
    if pixels.shape[-1] == side_px:
        return pixels
    parts = [
        F.interpolate(part.float(), size=(side_px, side_px), mode="bilinear").round().to(torch.uint8)
        for part in pixels.split(1000)
    ]
    return torch.cat(parts)


if __name__ == "__main__":
    main()
