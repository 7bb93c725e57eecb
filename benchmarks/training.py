"""How much of a bare loop's speed the training loop keeps: shuffle, crop, flip and accounts included.

    python benchmarks/training.py              on this machine's GPU, or a small case on the CPU
    python benchmarks/training.py --teacher resnet34 --student resnet18 --images 51200 --rounds 4

Bare is the same step (forward, teacher, loss, backward, SGD; the same precision and compilation) on one
normalized batch that lies on the device already. The two take turns, round by round, in one process; the
first round compiles and is left out. Weights are random: they change no time.
"""

import argparse
import statistics
import time
from collections.abc import Mapping

import torch
from torch import nn

from nisynth.consumers.distill import LossConfig, distillation_loss
from nisynth.device import default_device
from nisynth.images import LabelledImages, Normalization
from nisynth.teachers import Teacher, build_network
from nisynth.training import Loss, TrainConfig, WholeSet, train
from nisynth.training.device import arithmetic

NORMALIZATION = Normalization((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))


class Bare:
    """The same steps on one batch, without any of what the training loop adds."""

    def __init__(self, arch: str, loss: Loss, config: TrainConfig) -> None:
        self.device, self.config = default_device(), config
        self.network: nn.Module = build_network(arch, 10).to(self.device)
        on_gpu = self.device.type == "cuda"
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(config.batch_size, 3, 32, 32, generator=generator).to(self.device)
        self.network = self.network.to(memory_format=torch.channels_last)
        self.images = self.images.contiguous(memory_format=torch.channels_last)
        self.labels = (torch.arange(config.batch_size) % 10).to(self.device)
        self.optimizer = torch.optim.SGD(
            self.network.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4, fused=on_gpu
        )
        self.forward = torch.compile(self.network) if on_gpu else self.network
        self.loss = torch.compile(loss) if on_gpu else loss

    def images_per_s(self, steps: int) -> float:
        """Returns the speed of so many steps."""
        self.network.train()
        began_s = time.perf_counter()
        with arithmetic(self.config.precision, self.device) as autocast:
            for _ in range(steps):
                with autocast():
                    logits = self.forward(self.images).float()
                    loss = self.loss(logits, self.images, self.labels)
                self.optimizer.zero_grad(set_to_none=True)
                loss.backward()
                self.optimizer.step()
        loss.item()  # waits for the device
        return steps * self.config.batch_size / (time.perf_counter() - began_s)


def main() -> None:
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", default="resnet34" if on_gpu else "resnet20")
    parser.add_argument("--student", default="resnet18" if on_gpu else "resnet20")
    parser.add_argument("--images", type=int, default=51_200 if on_gpu else 1024)
    parser.add_argument("--batch", type=int, default=128 if on_gpu else 64)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if not on_gpu:
        torch.set_num_threads(1)
    config = TrainConfig(epochs=arguments.rounds, batch_size=arguments.batch, lr=1e-3, schedule="constant")
    teacher = Teacher(
        build_network(arguments.teacher, 10),
        normalization=NORMALIZATION,
        classes=[str(label) for label in range(10)],
        device=default_device(),
    )
    loss = distillation_loss(teacher, LossConfig())
    bare, pairs = Bare(arguments.student, loss, config), []

    def on_epoch(record: Mapping[str, float], network: nn.Module) -> dict[str, float]:
        pairs.append((record["images_per_s"], bare.images_per_s(arguments.images // arguments.batch)))
        return {}

    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (arguments.images, 3, 32, 32), generator=generator).to(torch.uint8)
    labels = torch.arange(arguments.images) % 10
    network = build_network(arguments.student, 10)
    source = WholeSet(LabelledImages(pixels, labels), NORMALIZATION)
    train(network, source, loss, config, num_classes=10, on_epoch=on_epoch)
    where = torch.cuda.get_device_name() if on_gpu else "CPU, 1 thread"
    print(f"{arguments.teacher} -> {arguments.student}, batch {arguments.batch}, {where}")
    print(f"{'round':>6} {'loop images/s':>14} {'bare images/s':>14} {'kept':>7}")
    for number, (loop, alone) in enumerate(pairs[1:], 1):
        print(f"{number:>6} {loop:>14,.1f} {alone:>14,.1f} {loop / alone:>7.1%}")
    print(f"median kept {statistics.median(loop / alone for loop, alone in pairs[1:]):.1%} (goal: 95 %)")


if __name__ == "__main__":
    main()
