"""The competition with a rival: its losses by hand, its loading, and what it does to a batch."""

import math
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from nisynth.config import load_config
from nisynth.errors import ConfigError, NisynthError, PlanMismatch
from nisynth.execution.run import plan_run, run
from nisynth.images import Normalization
from nisynth.synthesis import (
    DeepInversionConfig,
    EngineConfig,
    NaturalInversionConfig,
    RivalConfig,
    make_synthesizer,
)
from nisynth.synthesis.inversion.rival import disagreement, load_rival, masked_divergence
from nisynth.teachers import Teacher, build_network, load_teacher
from nisynth.teachers.save import network_bytes
from nisynth.worker import Worker
from tests.engines import FLOAT32_ENGINE
from tests.synthesis.conftest import MakeTask


def logits(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


LN8 = math.log(8)


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        (logits([0, 0, 0]), logits([3 * LN8, 0, 0]), 0.1268280440),
        (logits([0, 0, 0]), logits([30, 0, 0]), 0.4526627644),
        (logits([300, 0, 0]), logits([0, 300, 0]), 1.6144630804),
        (logits([300, *[0] * 99]), logits([0, 300, *[0] * 98]), 1.6144630804),
        (logits([0] * 10), logits([3000, *[0] * 9]), 0.5133298072),
        (logits([0] * 100), logits([3000, *[0] * 99]), 0.8203287727),
        (logits([0, 0, 0], [300, 0, 0]), logits([3 * LN8, 0, 0], [0, 300, 0]), 0.8706455622),
    ],
)
def test_disagreement_by_hand(student: Tensor, teacher: Tensor, expected: float) -> None:
    assert float(disagreement(teacher, student)) == pytest.approx(expected, abs=1e-9)


def rival_config(**options: Any) -> RivalConfig:
    return RivalConfig(**{"weights": "nowhere", "arch": "resnet20", **options})


def test_the_gradient_of_the_term_reaches_both_networks() -> None:
    student = logits([0, 0, 0]).requires_grad_()
    teacher = logits([3 * LN8, 0, 0]).requires_grad_()
    loss = rival_config().value(teacher, student)
    assert float(loss.detach()) == pytest.approx(0.8731719560, abs=1e-9)
    of_teacher, of_student = torch.autograd.grad(loss, [teacher, student])
    wanted = logits([-0.0368006, 0.0184003, 0.0184003]), logits([0.0417892, -0.0208946, -0.0208946])
    torch.testing.assert_close((of_teacher, of_student), wanted, rtol=0, atol=1e-7)


def test_beyond_a_disagreement_of_1_neither_loss_nor_gradient_is_left() -> None:
    teacher = logits([0, 300, 0]).requires_grad_()
    loss = rival_config().value(teacher, logits([300, 0, 0]))
    assert float(loss.detach()) == 0
    assert not torch.autograd.grad(loss, teacher)[0].any()


def test_the_masked_divergence_counts_images_on_which_both_agree() -> None:
    student, teacher = logits([2, 0], [0, 2]), logits([1, 0], [1, 0])
    assert float(masked_divergence(teacher, student)) == pytest.approx(-0.0413039, abs=1e-7)
    alone = [float(masked_divergence(teacher[i : i + 1], student[i : i + 1])) for i in (0, 1)]
    assert alone == pytest.approx([-0.0826077, 0.0], abs=1e-7)
    assert float(rival_config(loss="masked_kl").value(teacher, student)) == pytest.approx(
        -0.0413039, abs=1e-7
    )


@pytest.mark.parametrize(
    ("field", "value"), [("weight", -1.0), ("weight", math.nan), ("temperature", 0.0), ("floor", 0.5)]
)
def test_a_value_that_cannot_be_used_is_named(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"method\.rival\.{field}: "):
        rival_config(**{field: value})


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory, shipped_teacher: Teacher) -> Path:
    """An untrained ResNet-20 with the normalization and the classes of the teacher that ships."""
    return save(tmp_path_factory.mktemp("rival") / "student.safetensors", shipped_teacher)


def save(
    path: Path, teacher: Teacher, seed: int = 0, num_classes: int = 10, mean: float | None = None
) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_network("resnet20", num_classes)
    normalization = teacher.normalization if mean is None else Normalization((mean,) * 3, (0.25,) * 3)
    classes = [str(c) for c in range(num_classes)]
    data = network_bytes(network, arch="resnet20", normalization=normalization, classes=classes, input_px=32)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("loss", ["js", "masked_kl"])
@pytest.mark.parametrize("method", [DeepInversionConfig, NaturalInversionConfig])
def test_the_engine_follows_the_plain_loop(
    shipped_teacher: Teacher,
    student: Path,
    make_task: MakeTask,
    loss: Literal["js", "masked_kl"],
    method: Any,
) -> None:
    config = method(iterations=3, rival=RivalConfig(weights=str(student), arch="resnet20", loss=loss))
    plain, fast = (
        make_synthesizer(config, engine, shipped_teacher, log_every=1).synthesize(
            make_task(4, num_classes=10)
        )
        for engine in (EngineConfig(), FLOAT32_ENGINE)
    )
    assert fast.figures["engine"] == "fast, float32"
    assert list(plain.curve[0]) == ["iteration", "total", "ce", "r_bn", "tv", "l2", "competition"]
    for ours, wanted in zip(fast.curve, plain.curve, strict=True):
        assert ours == pytest.approx(wanted, rel=2e-2)
    for point in plain.curve:
        rest = config.bn_weight * point["r_bn"] + config.tv_weight * point["tv"]
        rest += config.l2_weight * point["l2"]
        assert point["total"] == pytest.approx(point["ce"] + rest + 10 * point["competition"], rel=1e-5)
    assert 0 <= plain.figures["rival_accuracy"] <= 1
    assert 0 < plain.figures["disagreement"] < 1.62


def test_no_weight_of_either_network_takes_a_gradient(
    shipped_teacher: Teacher, student: Path, make_task: MakeTask
) -> None:
    rival = load_rival(RivalConfig(weights=str(student), arch="resnet20"), shipped_teacher)
    before = {name: value.clone() for name, value in rival.network.state_dict().items()}
    config = DeepInversionConfig(iterations=2, rival=RivalConfig(weights=str(student), arch="resnet20"))
    synthesizer = make_synthesizer(config, EngineConfig(), shipped_teacher, artefacts={"rival": rival})
    synthesizer.synthesize(make_task(4, num_classes=10))
    assert all(p.grad is None and not p.requires_grad for p in rival.network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in rival.network.state_dict().items())
    assert not rival.network.training


def test_a_rival_that_does_not_fit_is_refused_in_one_line(
    shipped_teacher: Teacher, tmp_path: Path, student: Path
) -> None:
    def refusal(**options: Any) -> str:
        with pytest.raises(NisynthError) as error:
            load_rival(
                RivalConfig(**{"arch": "resnet20", "weights": str(student), **options}), shipped_teacher
            )
        assert "\n" not in str(error.value)
        return str(error.value)

    other_classes = save(tmp_path / "classes.safetensors", shipped_teacher, num_classes=7)
    other_mean = save(tmp_path / "mean.safetensors", shipped_teacher, mean=0.5)
    (tmp_path / "text").write_text("hello")
    assert refusal(weights=str(other_classes)).startswith(
        "method.rival.weights: arch 'resnet20' is built with 10"
    )
    assert "trained with mean [0.5, 0.5, 0.5], the teacher with" in refusal(weights=str(other_mean))
    assert refusal(weights=str(tmp_path / "absent")).startswith("method.rival.weights ")
    assert refusal(weights=str(tmp_path / "text")).startswith("method.rival.weights ")
    assert "do not fit arch 'vgg11'" in refusal(arch="vgg11")
    assert refusal(arch="resnet21").startswith("method.rival.arch")


def overrides(weights: Path, *more: str) -> list[str]:
    shown = f"method.rival={{weights: {weights}, arch: resnet20}}"
    return [
        "method={name: deepinversion, iterations: 2}",
        "run.num_images=4",
        "run.batch_size=4",
        shown,
        *more,
    ]


def test_the_fingerprint_holds_the_hash_of_the_rival_and_not_its_place(
    shipped_teacher: Teacher, student: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(student.read_bytes())
    other = save(tmp_path / "other.safetensors", shipped_teacher, seed=1)
    one, same, changed = (
        plan_run(load_config("smoke_cpu", overrides(w))).fingerprint for w in (student, moved, other)
    )
    assert one == same != changed
    with pytest.raises(ConfigError, match=r"method\.rival\.weigth: unknown key; did you mean 'weight'"):
        load_config("smoke_cpu", overrides(student, "method.rival.weigth=2"))


def test_a_rival_that_changed_in_its_place_is_refused(
    shipped_teacher: Teacher, student: Path, tmp_path: Path
) -> None:
    place = tmp_path / "rival.safetensors"
    place.write_bytes(student.read_bytes())
    config = load_config("smoke_cpu", overrides(place))
    report = run(config, str(tmp_path / "run"))
    assert report.committed == 1
    save(place, shipped_teacher, seed=1)
    with pytest.raises(PlanMismatch, match="rival"):
        run(config, str(tmp_path / "run"))
    with pytest.raises(PlanMismatch, match="rival"):
        Worker(config, report.fingerprint, str(tmp_path / "run"))


@pytest.mark.slow  # 120 iterations of the shipped teacher with a second network: two minutes on one core
def test_disagreement_rises_with_a_rival_in_the_loss_and_stays_low_without(
    shipped_teacher: Teacher, shared: Path, make_task: MakeTask
) -> None:
    rival = {"weights": str(shared / "teachers/cifar10_vgg11.safetensors"), "arch": "vgg11"}
    curves, figures = {}, {}
    for weight in (0.0, 10.0):
        config = DeepInversionConfig(iterations=60, rival=RivalConfig(**rival, weight=weight))
        synthesizer = make_synthesizer(config, FLOAT32_ENGINE, shipped_teacher, log_every=1)
        batch = synthesizer.synthesize(make_task(32, num_classes=10, seed=3))
        curves[weight] = [1 - point["competition"] for point in batch.curve]
        figures[weight] = batch.figures
        pixels = shipped_teacher.normalization.to_pixels(batch.images)
        assert shipped_teacher.accuracy(pixels, batch.labels) >= 31 / 32
    assert curves[10.0][24] > 3 * curves[10.0][0]
    assert figures[10.0]["disagreement"] > 2 * figures[0.0]["disagreement"]
    assert figures[10.0]["rival_accuracy"] <= 0.05 < figures[0.0]["rival_accuracy"]


def test_a_rival_without_metadata_is_taken_to_see_what_the_teacher_sees(
    shipped_teacher: Teacher, tmp_path: Path
) -> None:
    network = load_teacher(arch="resnet20").network
    torch.save(network.state_dict(), tmp_path / "plain.pt")
    rival = load_rival(RivalConfig(weights=str(tmp_path / "plain.pt"), arch="resnet20"), shipped_teacher)
    assert rival.sha256 == shipped_teacher.identity["weights_sha256"]
