"""How much of a bare loop's speed the training loop keeps: shuffle, crop, flip and accounts included.

    python benchmarks/training.py              on this machine's GPU, or a small case on the CPU
    python benchmarks/training.py --teacher resnet34 --student resnet18 --images 51200 --rounds 4
    python benchmarks/training.py --data runs/demo       a set that is streamed beside the same set in memory

Bare is the same step (forward, teacher, loss, backward, SGD; the same precision and compilation) on one
normalized batch that lies on the device already. The two take turns, round by round, in one process; the
first round compiles and is left out. Weights are random: they change no time.

With --data, epochs over the set in memory and epochs of a stream take turns through the loop itself. On a CPU
their speed is images a CPU second of the process, reading threads included: others may use the machine. The
stream is warm: the set lies decoded in the cache, as it does from the second epoch on.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import nn

from nisynth.consumers.distill import LossConfig, distillation_loss
from nisynth.consumers.streamed import StreamedSet
from nisynth.device import default_device
from nisynth.images import LabelledImages, Normalization
from nisynth.reader import open_dataset
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


def streamed(arguments: argparse.Namespace, loss: Loss, config: TrainConfig) -> list[tuple[float, float]]:
    """Returns, for each round, the speed of an epoch of a stream and of one over the set in memory."""
    pairs = []
    with tempfile.TemporaryDirectory() as cache:
        images = open_dataset(arguments.data, cache=cache)
        images.warm()
        sources = [StreamedSet(images), WholeSet(images.load(), images.normalization, images.sequence)]
        one_epoch = replace(config, epochs=1)
        clock = time.perf_counter if torch.cuda.is_available() else time.process_time
        for number in range(arguments.rounds):
            speeds = {}
            for source in sources[:: 1 if number % 2 else -1]:
                network = build_network(arguments.student, 10)
                began_s = clock()
                train(network, source, loss, one_epoch, num_classes=10)
                speeds[type(source)] = len(images) / (clock() - began_s)
            pairs.append((speeds[StreamedSet], speeds[WholeSet]))
    return pairs


def main() -> None:
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", default="resnet34" if on_gpu else "resnet20")
    parser.add_argument("--student", default="resnet18" if on_gpu else "resnet20")
    parser.add_argument("--images", type=int, default=51_200 if on_gpu else 1024)
    parser.add_argument("--batch", type=int, default=128 if on_gpu else 64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data", help="the URL of a run of 32 px and 10 classes to stream")
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
    if arguments.data:
        names, pairs = ("stream", "memory"), streamed(arguments, loss, config)
    else:
        names, pairs = ("loop", "bare"), beside_bare(arguments, loss, config)
    where = torch.cuda.get_device_name() if on_gpu else "CPU, 1 thread"
    print(f"{arguments.teacher} -> {arguments.student}, batch {arguments.batch}, {where}")
    print(f"{'round':>6} {names[0] + ' images/s':>16} {names[1] + ' images/s':>16} {'kept':>7}")
    for number, (ours, other) in enumerate(pairs[1:], 1):
        print(f"{number:>6} {ours:>16,.1f} {other:>16,.1f} {ours / other:>7.1%}")
    print(f"median kept {statistics.median(ours / other for ours, other in pairs[1:]):.1%} (goal: 95 %)")


def beside_bare(arguments: argparse.Namespace, loss: Loss, config: TrainConfig) -> list[tuple[float, float]]:
    """Returns, for each round, the speed of the loop and of the bare steps."""
    bare, pairs = Bare(arguments.student, loss, config), list[tuple[float, float]]()

    def on_epoch(record: Mapping[str, float], network: nn.Module) -> dict[str, float]:
        pairs.append((record["images_per_s"], bare.images_per_s(arguments.images // arguments.batch)))
        return {}

    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (arguments.images, 3, 32, 32), generator=generator).to(torch.uint8)
    labels = torch.arange(arguments.images) % 10
    network = build_network(arguments.student, 10)
    source = WholeSet(LabelledImages(pixels, labels), NORMALIZATION)
    train(network, source, loss, config, num_classes=10, on_epoch=on_epoch)
    return pairs


if __name__ == "__main__":
    main()
