"""A fit through its public door, and a run over what it leaves."""

from pathlib import Path
from typing import Any

import pytest
import torch

from nisynth.config import load_config
from nisynth.errors import ConfigError, NisynthError, PlanMismatch
from nisynth.execution.run import plan_run, run
from nisynth.fitting import FitConfig, fit, load_fit_config
from nisynth.fitting.one_to_many import PRESETS, OneToManyConfig
from nisynth.reader import open_dataset
from nisynth.synthesis.sampling import load_generator
from nisynth.teachers import TeacherConfig, load_teacher
from tests.command_line import nisynth


def config(output: Path, **options: Any) -> FitConfig:
    method = {"iterations": 4, "latent_dim": 16}
    method |= options.pop("method", {})
    fields = {"batch_size": 4, "log_every": 1, "checkpoint_minutes": 0.0, **options}
    return FitConfig(
        output=str(output),
        teacher=TeacherConfig(arch="resnet20"),
        method=OneToManyConfig(**method),
        **fields,
    )


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fit")
    fit(config(folder))
    return folder


def test_a_fit_that_was_interrupted_goes_on_bit_for_bit(fitted: Path, tmp_path: Path) -> None:
    def stop(iteration: int, terms: dict[str, float]) -> None:
        if iteration == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(config(tmp_path), on_step=stop)
    assert (tmp_path / "checkpoint.safetensors").exists()
    assert not (tmp_path / "result.json").exists()
    resumed, whole = fit(config(tmp_path)), fit(config(fitted))
    assert resumed == whole
    assert [point["iteration"] for point in whole.curve] == [1, 2, 3, 4]
    stored = load_generator(str(tmp_path / "generator.safetensors"), load_teacher(arch="resnet20"))
    assert stored.sha256 == whole.sha256
    assert not (tmp_path / "checkpoint.safetensors").exists()


def test_a_finished_fit_is_not_done_again_and_not_taken_for_another(fitted: Path) -> None:
    def never(iteration: int, terms: dict[str, float]) -> None:
        raise AssertionError("the loop ran")

    assert fit(config(fitted), on_step=never).iterations == 4
    with pytest.raises(PlanMismatch, match="seed"):
        fit(config(fitted, seed=1))


def test_every_iteration_has_latents_and_labels_of_its_own(tmp_path: Path) -> None:
    report = fit(config(tmp_path, method={"lr_generator": 0.0, "jitter_px": 0, "flip": False}))
    assert len({point["ce"] for point in report.curve}) == 4


def test_the_loss_falls(tmp_path: Path) -> None:
    report = fit(config(tmp_path, batch_size=8, method={"iterations": 25}))
    assert report.curve[-1]["total"] < 0.6 * report.curve[0]["total"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": {"pyramid": True}}, "method.pyramid"),
        ({"batch_size": 1}, "batch_size: 1"),
        ({"output": ""}, "output: missing"),
    ],
)
def test_what_cannot_be_fitted_is_named(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(options.pop("output", tmp_path), **options)


def test_the_shipped_config_is_sound() -> None:
    loaded = load_fit_config("cifar100_one_to_many", given={"output": "there"})
    assert (loaded.method.iterations, loaded.method.bn_weight) == (4000, 3.0)


def sampling(generator: Path, **options: Any) -> dict[str, Any]:
    return {
        "run": {"num_images": 10, "batch_size": 4, "seed": 0},
        "teacher": {"arch": "resnet20"},
        "method": {"name": "sampling", "generator": str(generator)},
        "execution": {"quality_gate": 0.0},
        **options,
    }


def test_a_run_samples_the_generator_the_same_whoever_does_it(fitted: Path, tmp_path: Path) -> None:
    generator = fitted / "generator.safetensors"
    for name in ("a", "b"):
        assert run(load_config(sampling(generator)), str(tmp_path / name)).committed == 3
    one, other = (open_dataset(str(tmp_path / name)).load() for name in ("a", "b"))
    assert torch.equal(one.pixels, other.pixels)
    plan = plan_run(load_config(sampling(generator)))
    assert one.labels.tolist() == [int(label) for task in plan for label in task.labels[: task.rows]]
    assert len({image.numpy().tobytes() for image in one.pixels}) == 10


def test_the_fingerprint_holds_the_generators_hash_and_not_its_place(fitted: Path, tmp_path: Path) -> None:
    moved, other = tmp_path / "moved.safetensors", tmp_path / "other"
    moved.write_bytes((fitted / "generator.safetensors").read_bytes())
    fit(config(other, seed=5, method={"iterations": 1}))
    places = (fitted / "generator.safetensors", moved, other / "generator.safetensors")
    one, same, changed = (plan_run(load_config(sampling(place))).fingerprint for place in places)
    assert one == same != changed


def test_a_generator_that_does_not_fit_is_refused_in_one_line(fitted: Path, tmp_path: Path) -> None:
    teacher = load_teacher(arch="resnet20")
    text = tmp_path / "text"
    text.write_text("hello")
    student = tmp_path / "student.pt"
    torch.save(teacher.network.state_dict(), student)
    generator = fitted / "generator.safetensors"
    other = load_teacher(arch="resnet20", mean=(0.5, 0.5, 0.5))
    larger = load_teacher(arch="resnet20", input_px=64)
    for source, judge, message in (
        (tmp_path / "absent", teacher, "cannot be found"),
        (text, teacher, "method.generator"),
        (student, teacher, "not a generator"),
        (generator, other, r"fitted for mean \[0.49"),
        (generator, larger, "64 px"),
    ):
        with pytest.raises(NisynthError, match=message) as refusal:
            load_generator(str(source), judge)
        assert str(refusal.value).startswith("method.generator ")
        assert "\n" not in str(refusal.value)
    with pytest.raises(ConfigError, match=r"method\.generator: missing"):
        load_config(sampling(Path(), method={"name": "sampling"}))


def test_the_verb(tmp_path: Path) -> None:
    tiny = "method={iterations: 2, latent_dim: 8}"
    words = ("fit", "cifar100_one_to_many", "--output", tmp_path, "--set", "teacher={arch: resnet20}")
    done = nisynth(*words, "--set", tiny, "--set", "batch_size=4")
    assert done.returncode == 0, done.stderr
    assert "after 2 iterations" in done.stdout
    assert "iteration 2 of 2: total" in done.stderr


def test_a_fit_exchanges_nothing() -> None:
    with pytest.raises(ConfigError, match=r"^method\.exchange: a fit has no finished batch to mix"):
        OneToManyConfig(exchange=1)


def test_a_fit_keeps_the_teachers_units() -> None:
    with pytest.raises(ConfigError, match=r"^method\.normalization: a fitted generator's images"):
        OneToManyConfig(normalization="reference")
    assert OneToManyConfig(**PRESETS["short"]).alpha_mean == 2.0  # type: ignore[arg-type]
