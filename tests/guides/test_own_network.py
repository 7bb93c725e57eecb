"""A network of one's own, for 48-px images of five classes, from nothing to a distilled and a pruned one."""

import re
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

import nisynth
from tests.guides.pages import blocks, follow, write_files

CLASSES = ("aster", "daisy", "lily", "rose", "tulip")
COLOURS = torch.tensor([[0.8, 0.2, 0.2], [0.2, 0.8, 0.2], [0.2, 0.2, 0.8], [0.8, 0.8, 0.2], [0.2, 0.8, 0.8]])
TINY_RUN = ["--set", "run.num_images=16", "--set", "run.batch_size=8", "--set", "engine.name=plain"]
TINY_RUN += ["--set", "method.iterations=40", "--set", "method.latent_dim=16"]
TINY = {
    "probe": [*TINY_RUN, "--seconds", "600"],  # all iterations, on a busy machine too
    "run": TINY_RUN,
    "distill": ["--set", "train.epochs=40", "--set", "train.batch_size=8", "--set", "train.lr=0.05"],
    "prune": ["--set", "train.epochs=1", "--set", "train.batch_size=8", "--set", "ratios=[0.3]"],
}


def flowers(number: int) -> tuple[Tensor, Tensor]:
    """Returns images `(number, 3, 48, 48)` of 0..1, each class of a colour, and their labels."""
    labels = torch.arange(number) % len(CLASSES)
    blotches = F.interpolate(0.15 * torch.randn(number, 3, 6, 6), 48, mode="bilinear")
    images = 0.15 + 0.6 * COLOURS[labels][:, :, None, None] + blotches
    return images.add(0.05 * torch.randn(number, 3, 48, 48)).clamp(0, 1), labels


def train(network: Any) -> None:
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(40):
        images, labels = flowers(50)
        loss = F.cross_entropy(network((images - 0.45) / 0.2), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def write_real(folder: Path) -> None:
    for number, (image, label) in enumerate(zip(*flowers(20), strict=True)):
        of_class = folder / CLASSES[label]
        of_class.mkdir(parents=True, exist_ok=True)
        pixels = (image.permute(1, 2, 0) * 255).round().numpy().astype(np.uint8)
        Image.fromarray(pixels).save(of_class / f"{number}.png")


def accuracy(said: str) -> float:
    return float(re.findall(r"accuracy ([\d.]+)%", said)[0])


def test_from_a_network_to_a_distilled_and_a_pruned_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    write_files("own-network", tmp_path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = import_module("mynet").FlowerNet(width=16)
        train(network)
        torch.save({"state_dict": network.state_dict(), "epoch": 40}, "flowers.pth")
        write_real(tmp_path / "real")

    said = follow("own-network", TINY, {})

    status = nisynth.status("flowers")
    assert status.complete
    images = nisynth.open_dataset("flowers").load()
    assert images.pixels.shape == (16, 3, 48, 48)
    assert images.classes == CLASSES
    assert "on its way" in said["probe"]
    assert "0.3" in said["prune"]
    assert accuracy(said["evaluate"]) > 100 / len(CLASSES)  # the student's; guessing is 20 %

    _, code = blocks("README", "python")
    for long, short in (("teacher, 64", "teacher, 4"), ('"iterations": 500', '"iterations": 2')):
        assert long in code
        code = code.replace(long, short)
    names = {"network": network}
    exec(code, names)
    assert names["pixels"].shape == (4, 3, 48, 48)
    assert names["student"].classes == CLASSES
