"""Are the demo's images any good? Judged by the teacher, and by a network that had no part in them."""

from pathlib import Path

from nisynth import load_teacher, open_dataset, run
from nisynth.config import load_config


def test_one_task_of_the_demo(tmp_path: Path, shared: Path) -> None:
    report = run(load_config("demo", ["run.num_images=32"]), str(tmp_path / "demo"))
    pixels, labels = open_dataset(str(tmp_path / "demo")).load()
    accuracy = load_teacher(arch="resnet20").accuracy(pixels, labels)
    assert accuracy >= 0.9
    assert report.teacher_accuracy == accuracy
    independent = load_teacher(arch="vgg11", weights=str(shared / "teachers" / "cifar10_vgg11.safetensors"))
    assert independent.accuracy(pixels, labels) >= 0.4
    # Images of one class differ from each other: the mean distance is far from zero.
    airplanes = pixels[labels == 0].float()
    assert len(airplanes) >= 3
    assert (airplanes[0] - airplanes[1]).abs().mean() > 20
