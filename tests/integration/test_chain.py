"""The reason for it all: a teacher, images on S3 by Ray actors, a student and a pruned network; all real."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from torch import nn

from nisynth import load_teacher, open_dataset, run
from nisynth.config import load_config
from nisynth.config_loader import load_as
from nisynth.consumers.distill import DistillConfig, distill
from nisynth.consumers.prune import PruneConfig, prune
from nisynth.execution import RunReport
from tests.servers import WeedServer

IMAGES = 64


class SmallNet(nn.Sequential):
    """A student of 94,000 parameters that learns in seconds on a CPU."""

    def __init__(self, num_classes: int = 10) -> None:
        layers: list[nn.Module] = []
        for before, after in ((3, 32), (32, 64), (64, 128)):
            convolution = nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(after), nn.ReLU()]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, num_classes))


@pytest.fixture(scope="module")
def s3(s3_server: WeedServer) -> Iterator[str]:
    """A prefix of the real server, and this process's environment to reach it."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_server.environment().items():
            patch.setenv(name, value)
        yield f"s3://{s3_server.bucket}/chain"


@pytest.fixture(scope="module")
def report(ray_cluster: str, s3: str) -> RunReport:
    """The demo's run, half as large, by two Ray actors on S3."""
    config = load_config("demo", [f"run.num_images={IMAGES}"])
    return run(config, f"{s3}/run", executor="ray", address=ray_cluster)


@pytest.fixture(scope="module")
def test_set(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The first 1,000 real test images."""
    path = tmp_path_factory.mktemp("real") / "cifar10-test-1000.parquet"
    pq.write_table(pq.read_table(shared / "data" / "cifar10-test.parquet").slice(0, 1000), path)
    return str(path)


def test_the_images_are_recognised_also_by_a_network_that_had_no_part_in_them(
    report: RunReport, s3: str, shared: Path, tmp_path: Path
) -> None:
    dataset = open_dataset(f"{s3}/run", cache=tmp_path)
    images = dataset.load()
    pixels, labels = images.pixels, images.labels
    assert len(dataset) == IMAGES
    accuracy = load_teacher(arch="resnet20").accuracy(pixels, labels)
    assert accuracy >= 0.9
    assert report.teacher_accuracy == pytest.approx(accuracy)
    independent = load_teacher(arch="vgg11", weights=str(shared / "teachers" / "cifar10_vgg11.safetensors"))
    assert independent.accuracy(pixels, labels) >= 0.4
    # Images of one class differ from each other: the mean distance is far from zero.
    airplanes = pixels[labels == 0].float()
    assert (airplanes[0] - airplanes[1]).abs().mean() > 20


def test_a_student_that_saw_no_real_image_knows_real_images(
    report: RunReport, s3: str, test_set: str
) -> None:
    values = {
        "data": f"{s3}/run",
        "output": f"{s3}/student",
        "teacher": {"arch": "resnet20"},
        "student": {"arch": "tests.integration.test_chain:SmallNet"},
        "train": {"epochs": 60, "batch_size": 32, "lr": 0.1},
        "test_set": test_set,
        "evaluate_every": 60,
    }
    student = distill(load_as(DistillConfig, values, kind="distill"))
    assert student.fingerprint == report.fingerprint
    assert student.test_accuracy is not None
    assert student.test_accuracy >= 0.14  # chance is 0.1 with a standard deviation of 0.01


def test_a_pruned_network_recovers_on_the_synthetic_images(report: RunReport, s3: str, test_set: str) -> None:
    values = {
        "data": f"{s3}/run",
        "output": f"{s3}/pruned",
        "teacher": {"arch": "resnet20"},
        "ratios": [0.3],
        "train": {"epochs": 8, "batch_size": 32},
        "test_set": test_set,
    }
    pruned = prune(load_as(PruneConfig, values, kind="prune"))
    (point,) = pruned.points
    assert point.parameters < pruned.parameters
    assert pruned.fingerprint == report.fingerprint
    assert point.accuracy_pruned + 0.05 < point.accuracy_fine_tuned < pruned.accuracy
