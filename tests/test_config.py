"""Config: precedence, exactness of types, and one clear line for every mistake."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from nisynth.config import load_config
from nisynth.config_loader import load_as, shipped_configs
from nisynth.consumers.scratch import ScratchConfig
from nisynth.errors import ConfigError
from nisynth.synthesis import DeepInversionConfig, NaturalInversionConfig
from nisynth.synthesis.naturalinversion.config import SHORT_RUN

TEACHER = {"arch": "resnet20"}


def test_defaults_are_the_papers() -> None:
    config = load_config({"teacher": TEACHER})
    assert (config.run.num_images, config.run.batch_size) == (256_000, 256)
    assert isinstance(config.method, NaturalInversionConfig)
    assert (config.method.iterations, config.method.bn_weight) == (2000, 10.0)


def test_precedence_is_defaults_preset_file_flags(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("teacher: {arch: resnet20}\nmethod: {preset: cifar100, tv_weight: 1e-3}\n")
    config = load_config(path, ["method.bn_weight=7", "run.num_images=512"])
    method = config.method
    assert isinstance(method, NaturalInversionConfig)
    assert method.iterations == 4000  # preset over default
    assert method.tv_weight == 1e-3  # file over preset, and 1e-3 is a number
    assert method.bn_weight == 7.0  # flag over preset
    assert config.run.num_images == 512


@pytest.mark.parametrize(
    ("method", "weights"),
    [
        ({"iterations": SHORT_RUN - 1}, (3.0, 2.0)),
        ({"iterations": SHORT_RUN}, (10.0, 5.0)),
        ({}, (10.0, 5.0)),
        ({"iterations": 150, "preset": "cifar10"}, (10.0, 5.0)),
        ({"iterations": 150, "bn_scale": "published"}, (10.0, 5.0)),
        ({"iterations": 150, "bn_weight": 7.0}, (7.0, 2.0)),
        ({"iterations": 600, "preset": "short"}, (3.0, 2.0)),
    ],
)
def test_a_short_run_that_names_no_preset_takes_short(
    method: dict[str, Any], weights: tuple[float, float]
) -> None:
    config = load_config({"teacher": TEACHER, "method": method})
    found = config.method
    assert isinstance(found, NaturalInversionConfig)
    assert (found.bn_weight, found.alpha_mean) == weights
    assert found.normalization == ("reference" if weights[1] == 2.0 else "teacher")
    assert found.iterations == method.get("iterations", 2000)
    assert load_config(config.to_dict()) == config


def test_other_methods_have_no_preset_for_short_runs() -> None:
    few = load_config({"teacher": TEACHER, "method": {"name": "deepinversion", "iterations": 150}})
    assert few.method == DeepInversionConfig(iterations=150)


@pytest.mark.parametrize("name", shipped_configs())
def test_shipped_configs_load_and_survive_a_round_trip(name: str) -> None:
    config = load_config(name)
    assert load_config(config.to_dict()) == config


def test_the_five_configs_of_the_design_ship() -> None:
    runs = {"demo", "smoke_cpu", "cifar10_resnet34", "cifar10_vgg11", "cifar100_resnet34"}
    assert runs <= set(shipped_configs())


@pytest.mark.parametrize(
    ("values", "overrides", "message"),
    [
        ({"run": {"num_image": 5}}, [], "run.num_image: unknown key; did you mean 'num_images'?"),
        ({"runs": {}}, [], "runs: unknown key; did you mean 'run'?"),
        ({"method": {"iteration": 3}}, [], "method.iteration: unknown key; did you mean 'iterations'?"),
        ({"run": {"num_images": "many"}}, [], "run.num_images: 'many': should be a valid integer"),
        ({"run": {"batch_size": True}}, [], "run.batch_size: True: should be a valid integer"),
        ({"run": {"batch_size": 0}}, [], "run.batch_size: 0 is not at least 2"),
        ({"output": {"format": "tar"}}, [], "output.format: 'tar': should be 'parquet' or 'npz'"),
        ({"method": {"name": "magic"}}, [], "method.name: unknown method 'magic'"),
        ({"method": {"preset": "cifar"}}, [], "method.preset: unknown preset 'cifar' of naturalinversion"),
        ({"execution": {"quality_gate": 2.0}}, [], "execution.quality_gate: 2.0 is not within 0..1"),
        ({"run": 7}, [], "run: 7 is not a section"),
        ({"method": "naturalinversion"}, [], "method: 'naturalinversion' is not a section; write `method: {"),
        ({"method": {"name": ["x"]}}, [], "method.name: ['x'] should be a name"),
        ({"method": {"preset": ["x"]}}, [], "method.preset: ['x'] should be a name"),
        ({}, ["method.flip=yes"], "method.flip: 'yes': write true or false"),
        ({}, ["execution.single_writer=1"], "execution.single_writer: 1: write true or false"),
        ({}, ["run.seed=2024-01-01"], "run.seed: '2024-01-01': should be a valid integer"),
        ({}, ["run.num_images"], "write section.key=value"),
        ({}, ["run.num_images.x=1", "run.num_images=3"], "run.num_images: {'x': 1}"),
        ({"teacher": {}}, [], "teacher.arch: missing"),
        ({"teacher": {"arch": "resnet20", "mean": [0.5]}}, [], "teacher.mean: [0.5] has too few values"),
    ],
)
def test_each_mistake_has_one_line(values: dict[str, Any], overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config({"teacher": TEACHER, **values}, overrides[:1])
    text = str(caught.value)
    assert message in text
    assert "\n" not in text


def test_words_that_yaml_1_1_takes_for_truth_values_stay_words(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("teacher: {arch: resnet20, classes: [yes, no, on, off, y]}\nmethod: {flip: True}\n")
    config = load_config(path)
    assert config.teacher.classes == ("yes", "no", "on", "off", "y")
    assert getattr(config.method, "flip") is True  # noqa: B009  of one method alone


def test_the_name_of_an_arch_in_the_place_of_a_config_is_told_what_it_is() -> None:
    with pytest.raises(ConfigError, match=r"the name of an arch, .* `teacher: \{arch: resnet34\}`"):
        load_config("resnet34")
    with pytest.raises(
        ConfigError, match=r"config 'resnet20': .* --set student\.arch=resnet20; shipped: mob"
    ):
        load_as(ScratchConfig, "resnet20", kind="scratch")


def test_no_teacher_is_a_mistake_too() -> None:
    with pytest.raises(ConfigError, match="teacher: missing; name the network"):
        load_config({"run": {"num_images": 4}})


def test_a_name_that_is_neither_file_nor_shipped_lists_what_ships() -> None:
    with pytest.raises(ConfigError, match=r"shipped: cifar.*cifar10_resnet34, .*demo"):
        load_config("dem")


@pytest.mark.parametrize("text", ["run: [", "- a\n- b\n", "\x00"])
def test_a_file_that_is_no_config(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        load_config(path)


def test_an_empty_file_is_called_so(tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text("# nothing\n")
    with pytest.raises(ConfigError, match=r"empty\.yaml: is empty; expected sections such as `run:`"):
        load_config(path)


TEN = ",".join(["*{0}"] * 10)
BOMBS = {
    "aliases": (
        "a: &a [1, 1]\n" + "".join(f"{n}: &{n} [{TEN.format(m)}]\n" for m, n in pairwise("abcdefghi")),
        "holds more than 100,000 values",
    ),
    "an alias of itself": ("run: &r {seed: *r}", "deeper than 50 levels"),
    "nesting": ("run: " + "[" * 5000 + "]" * 5000, "nested deeper than 50 levels"),
    "braces": ("run: " + "{a: " * 60 + "1" + "}" * 60, "deeper than 50 levels"),
    "bytes": ("run: {seed: !!binary aGk=}", "run.seed: bytes cannot stand in a config"),
    "a set": ("run: !!set {a, b}", "run: set cannot stand in a config"),
    "digits": ("run: {seed: " + "9" * 6000 + "}", "a value cannot be read"),
    "a large integer": ("run: {seed: " + "9" * 400 + "}", "run.seed: a number of 1329 bits is too large"),
    "a long word": ("run: {seed: " + "x" * 10**6 + "}", r"run.seed: 'x+... \(1,000,002 characters\)"),
    "not a number": ("run: {seed: .nan}", "run.seed: nan"),
    "tasks": ("run: {num_images: 1000000000000, batch_size: 2}", "run.num_images: .* 100000000 tasks"),
    "batch": ("run: {batch_size: 1000000001, num_images: 5}", "run.batch_size: 1000000001 is above"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_what_no_machine_can_hold_is_one_short_line(tmp_path: Path, name: str) -> None:
    text, line = BOMBS[name]
    path = tmp_path / "run.yaml"
    path.write_text(f"teacher: {{arch: resnet20}}\n{text}\n")
    with pytest.raises(ConfigError, match=line) as caught:
        load_config(path)
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["[" * 5000, "9" * 5000, "&a [*a]", "!!binary aGk="])
def test_an_override_that_no_machine_can_hold_is_one_short_line(value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config({"teacher": TEACHER}, [f"run.seed={value}"])
    assert "run.seed" in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("value", ["1:30", "010", "1:30.5", "0b11"])
def test_what_only_old_yaml_calls_a_number_is_none(value: str) -> None:
    with pytest.raises(ConfigError, match=f"run.num_images: '{value}'"):
        load_config({"teacher": TEACHER}, [f"run.num_images={value}"])


@pytest.mark.parametrize(("value", "number"), [("256_000", 256_000), ("0x10", 16), ("0", 0), ("+7", 7)])
def test_whole_numbers(value: str, number: int) -> None:
    assert load_config({"teacher": TEACHER}, [f"run.seed={value}"]).run.seed == number


@pytest.mark.parametrize(
    ("value", "number"), [("1e-3", 1e-3), (".5", 0.5), ("2.", 2.0), ("1", 1.0), ("1.5e+2", 150.0)]
)
def test_numbers(value: str, number: float) -> None:
    method: Any = load_config({"teacher": TEACHER}, [f"method.tv_weight={value}"]).method
    assert method.tv_weight == number


def test_an_alias_is_still_a_way_to_say_a_thing_once(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("teacher: {arch: resnet20, mean: &half [0.5, 0.5, 0.5], std: *half}\n")
    assert load_config(path).teacher.std == (0.5, 0.5, 0.5)
