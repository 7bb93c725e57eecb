"""The teachers that lie beside the checkout, on real test images: their metadata is true."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from torch import Tensor

from nisynth.teachers import load_teacher
from nisynth.teachers.classes import CLASS_NAMES


def real_images(shared: Path, dataset: str, count: int) -> tuple[Tensor, Tensor]:
    """The first images of a test set: uint8 `(count, 3, 32, 32)`, and their labels."""
    table = pyarrow.parquet.read_table(shared / "data" / f"{dataset}-test.parquet").slice(0, count)
    rows = [np.array(Image.open(io.BytesIO(row["bytes"]))) for row in table["image"].to_pylist()]
    labels = torch.tensor(table["label"].to_pylist())
    return torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2).contiguous(), labels


# The band is three standard deviations of the accuracy over so many images.
@pytest.mark.parametrize(
    ("name", "arch", "dataset", "expected", "count", "band"),
    [
        ("cifar10_resnet20", "resnet20", "cifar10", 0.9171, 1000, 0.026),
        ("cifar10_vgg11", "vgg11", "cifar10", 0.9171, 1000, 0.026),
        ("cifar10_resnet34", "resnet34", "cifar10", 0.9468, 300, 0.039),
        ("cifar100_resnet34", "resnet34", "cifar100", 0.7614, 300, 0.074),
    ],
)
def test_real_teachers_reach_their_test_accuracy(
    shared: Path, name: str, arch: str, dataset: str, expected: float, count: int, band: float
) -> None:
    teacher = load_teacher(arch=arch, weights=str(shared / "teachers" / f"{name}.safetensors"))
    assert teacher.classes == CLASS_NAMES[dataset]
    accuracy = teacher.accuracy(*real_images(shared, dataset, count))
    assert abs(accuracy - expected) < band
    assert teacher.num_classes == len(CLASS_NAMES[dataset])


def test_the_shipped_teacher_is_the_one_beside_the_checkout(shared: Path) -> None:
    beside = load_teacher(arch="resnet20", weights=str(shared / "teachers" / "cifar10_resnet20.safetensors"))
    assert load_teacher(arch="resnet20").identity == beside.identity


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_class_names_are_those_of_the_data_sets(shared: Path, dataset: str) -> None:
    schema = pyarrow.parquet.read_schema(shared / "data" / f"{dataset}-test.parquet")
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert tuple(features["label"]["names"]) == CLASS_NAMES[dataset]
