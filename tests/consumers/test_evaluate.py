"""Accuracy, confusion and agreement, on real images and on a run's, each with what it was measured on."""

from pathlib import Path

import pytest
import torch

from nisynth.commits import Run
from nisynth.commits.seal import seal
from nisynth.consumers.evaluate import evaluate, read_images
from nisynth.errors import ConfigError, IncompleteRun
from nisynth.images import LabelledImages
from nisynth.storage import open_store
from nisynth.teachers import Teacher, load_teacher
from tests.tiny import commit_all, tiny_config, tiny_plan, tiny_weights


def tiny_teacher(folder: Path, seed: int = 0) -> Teacher:
    return load_teacher(tiny_config(folder).teacher, weights=tiny_weights(folder, seed))


def random_images(count: int, seed: int = 0) -> LabelledImages:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 3, 16, 16), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 3, (count,), generator=generator)  # class 3 has no images
    return LabelledImages(pixels, labels, (), "somewhere", "test")


def test_every_figure_against_a_plain_count(tmp_path: Path) -> None:
    network, other, images = tiny_teacher(tmp_path), tiny_teacher(tmp_path, 1), random_images(700)
    found = evaluate(network, images, against=other)
    chosen, theirs = ([predict_one(n, image) for image in images.pixels] for n in (network, other))
    labels = images.labels.tolist()
    assert found.num_images == 700
    assert found.accuracy == sum(a == b for a, b in zip(chosen, labels, strict=True)) / 700
    assert found.accuracy == network.accuracy(images.pixels, images.labels)
    expected = [[0] * 4 for _ in range(4)]
    for label, choice in zip(labels, chosen, strict=True):
        expected[label][choice] += 1
    assert found.confusion == expected
    assert found.class_accuracy == {
        str(c): expected[c][c] / sum(expected[c]) if sum(expected[c]) else None for c in range(4)
    }
    assert found.class_accuracy["3"] is None
    assert found.against is not None
    assert found.against.agreement == sum(a == b for a, b in zip(chosen, theirs, strict=True)) / 700
    assert found.against.accuracy == other.accuracy(images.pixels, images.labels)
    worst = next(found.confused())
    assert worst[2] == max(expected[a][b] for a in range(4) for b in range(4) if a != b)
    assert found.measured_on == "test, N=700 (somewhere)"
    assert found.to_dict()["against"]["agreement"] == found.against.agreement


def predict_one(network: Teacher, image: torch.Tensor) -> int:
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([0.5] * 3, [0.25] * 3))
    with torch.no_grad():
        return int(network.network(((image / 255 - mean) / std)[None]).argmax())


def test_a_network_agrees_with_itself(tmp_path: Path) -> None:
    network, images = tiny_teacher(tmp_path), random_images(10)
    found = evaluate(network, images, against=network)
    assert found.against is not None
    assert found.against.agreement == 1.0


def test_networks_with_other_classes_cannot_be_compared(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"against: has 10 classes, the network 4"):
        evaluate(tiny_teacher(tmp_path), random_images(2), against=load_teacher(arch="resnet20"))


def test_a_run_is_images_too(tmp_path: Path) -> None:
    plan = tiny_plan(tmp_path)
    run = Run.join(open_store(str(tmp_path / "run")), plan)
    commit_all(run, [0, 2])
    network = tiny_teacher(tmp_path)
    with pytest.raises(IncompleteRun, match="not complete"):
        read_images(run.store.url, network)
    some = read_images(run.store.url, network, allow_partial=True)
    assert (len(some.labels), some.split) == (8, f"synthetic images of run {plan.fp12} so far")
    commit_all(run, [1, 3])
    seal(run)
    images = read_images(run.store.url, network)
    assert (len(images.labels), images.split) == (16, f"synthetic images of run {plan.fp12}")
    assert evaluate(network, images).num_images == 16
    with pytest.raises(ConfigError, match=r"has 4 classes, the network 10"):
        read_images(run.store.url, load_teacher(arch="resnet20"))


def test_the_shipped_teacher_on_real_images(shared: Path) -> None:
    teacher = load_teacher(arch="resnet20")
    images = read_images(str(shared / "data" / "cifar10-test.parquet"), teacher)
    assert images.split == "cifar10-test"
    part = images[:1000]
    found = evaluate(teacher, part)
    assert 0.90 < found.accuracy < 0.94
    assert {"cat", "dog"} == set(next(found.confused())[:2])
    with pytest.raises(ConfigError, match=r"has 100 classes, the network 10"):
        read_images(str(shared / "data" / "cifar100-test.parquet"), teacher)
