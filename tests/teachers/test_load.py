"""What load_teacher takes from the config, from the weights' metadata, and what it refuses."""

import argparse
import json
import sys
import types
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nisynth.errors import ConfigError, NisynthError, TeacherError
from nisynth.teachers import Tap, Teacher, TeacherConfig, build_network, load_teacher

METADATA = {"mean": "[0.4, 0.5, 0.6]", "std": "[0.2, 0.25, 0.3]", "num_classes": "6", "input_size": "24"}


class ThreeStages(nn.Module):
    """A network of no known family: three stages of odd widths, and an argument of its own."""

    def __init__(self, num_classes: int, width: int = 5) -> None:
        super().__init__()
        widths = [3, width, 2 * width + 1, 3 * width + 2]
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(i, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU(inplace=True))
            for i, o in pairwise(widths)
        )
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        for i, stage in enumerate(self.stages):
            x = stage(F.max_pool2d(x, 2) if i else x)
        return {"logits": self.head(x.mean((2, 3)))}


@pytest.fixture(autouse=True)
def homemade(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = types.ModuleType("homemade")
    module.build = ThreeStages
    module.ten_logits = lambda: ThreeStages(10)
    monkeypatch.setitem(sys.modules, "homemade", module)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A `module.`-prefixed torch.save checkpoint of ThreeStages(6, width=7)."""
    torch.manual_seed(0)
    state = ThreeStages(6, width=7).state_dict()
    torch.save(
        {"state_dict": {f"module.{n}": t for n, t in state.items()}, "epoch": 9}, tmp_path / "three.pth"
    )
    return tmp_path / "three.pth"


def tagged(folder: Path, **changes: str | None) -> Path:
    """Safetensors weights of ThreeStages(6) with metadata."""
    torch.manual_seed(0)
    metadata = {key: value for key, value in {**METADATA, **changes}.items() if value is not None}
    path = folder / "three.safetensors"
    path.write_bytes(safetensors.torch.save(ThreeStages(6).state_dict(), metadata))
    return path


def test_a_homemade_network_from_a_prefixed_checkpoint(checkpoint: Path) -> None:
    config = TeacherConfig(
        arch="homemade:build",
        weights=str(checkpoint),
        kwargs={"width": 7},
        num_classes=6,
        input_px=40,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        classes=("ant", "bee", "cow", "dog", "elk", "fox"),
    )
    teacher = load_teacher(config)
    assert teacher.taps == (Tap("stages.0", 7, 40), Tap("stages.1", 15, 20), Tap("stages.2", 23, 10))
    assert teacher.batch_norm_names == ("stages.0.1", "stages.1.1", "stages.2.1")
    assert teacher.classes[5] == "fox"
    assert teacher.logits(torch.zeros(2, 3, 40, 40)).shape == (2, 6)
    assert json.loads(json.dumps(teacher.identity)) == {
        "arch": "homemade:build",
        "kwargs": {"width": 7},
        "weights_sha256": teacher.identity["weights_sha256"],
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.25],
        "classes": ["ant", "bee", "cow", "dog", "elk", "fox"],
        "taps": ["stages.0", "stages.1", "stages.2"],
        "input_px": 40,
        "num_classes": 6,
    }
    assert len(teacher.identity["weights_sha256"]) == 64
    named = load_teacher(replace(config, taps=("stages.1.0", "stages.2")))
    assert [tap.name for tap in named.taps] == ["stages.1.0", "stages.2"]


def test_a_network_from_torchvision(tmp_path: Path) -> None:
    from torchvision.models import resnet18

    torch.save(resnet18(num_classes=6).state_dict(), tmp_path / "weights.pt")
    teacher = load_teacher(
        arch="torchvision.models:resnet18",
        weights=str(tmp_path / "weights.pt"),
        num_classes=6,
        input_px=64,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )
    # A strided stem and a pooling come before the first stage.
    assert teacher.taps == (
        Tap("relu", 64, 32),
        Tap("layer1", 64, 16),
        Tap("layer2", 128, 8),
        Tap("layer3", 256, 4),
    )
    assert len(teacher.batch_norms) == 20
    assert len(teacher.logits_and_bn_inputs(torch.zeros(2, 3, 64, 64))[1]) == 20


def test_the_shipped_teacher() -> None:
    teacher = load_teacher(arch="resnet20")
    assert teacher.taps == (Tap("layer1", 16, 32), Tap("layer2", 32, 16), Tap("layer3", 64, 8))
    assert (teacher.classes[0], teacher.classes[9]) == ("airplane", "truck")
    assert teacher.normalization.mean == (0.4914, 0.482158, 0.446531)
    assert teacher.normalization.std == (0.247032, 0.243485, 0.261588)
    assert (teacher.num_classes, teacher.input_px, len(teacher.batch_norms)) == (10, 32, 21)
    assert teacher.identity == load_teacher(TeacherConfig(arch="resnet20")).identity


def test_metadata_fills_what_the_config_leaves_open(tmp_path: Path) -> None:
    teacher = load_teacher(arch="homemade:build", weights=str(tagged(tmp_path)))
    assert teacher.normalization.mean == (0.4, 0.5, 0.6)
    assert teacher.normalization.std == (0.2, 0.25, 0.3)
    assert (teacher.num_classes, teacher.input_px) == (6, 24)
    assert teacher.classes == ("0", "1", "2", "3", "4", "5")


def test_the_config_overrides_metadata(tmp_path: Path) -> None:
    path = tagged(tmp_path, classes='["a", "b", "c", "d", "e", "f"]')
    config = TeacherConfig(arch="homemade:build", weights=str(path))
    assert load_teacher(config).classes == ("a", "b", "c", "d", "e", "f")
    teacher = load_teacher(config, mean=[0, 0, 0], std=[1, 1, 1], input_px=16, classes=list("uvwxyz"))
    assert teacher.normalization.mean == (0.0, 0.0, 0.0)
    assert (teacher.input_px, teacher.classes) == (16, tuple("uvwxyz"))


@pytest.mark.parametrize(
    ("metadata", "padding"),
    [
        ({"padding": "reflect"}, "reflect"),
        ({"padding": "zero", "recipe": "crop(4, reflect)+flip"}, "zero"),
        ({"recipe": "60 epochs, crop(4, reflect)+flip, bfloat16"}, "reflect"),
        ({"recipe": "crop(4, symmetric)"}, None),
        ({}, None),
    ],
)
def test_the_metadata_may_say_how_random_crops_were_padded(
    tmp_path: Path, metadata: dict[str, str], padding: str | None
) -> None:
    teacher = load_teacher(arch=f"{__name__}:ThreeStages", weights=str(tagged(tmp_path, **metadata)))
    assert teacher.padding == padding


def test_a_dataset_names_classes_only_where_their_number_fits(tmp_path: Path) -> None:
    path = tagged(tmp_path, dataset="cifar10")
    assert load_teacher(arch="homemade:build", weights=str(path)).classes == tuple("012345")


def test_class_count_comes_from_names_or_dataset(tmp_path: Path) -> None:
    path = str(tagged(tmp_path, num_classes=None))
    assert load_teacher(arch="homemade:build", weights=path, classes=tuple("abcdef")).num_classes == 6
    path = str(tagged(tmp_path, num_classes=None, dataset="cifar10"))
    with pytest.raises(TeacherError, match=r"is built with 10 classes, but weights .* have 6"):
        load_teacher(arch="homemade:build", weights=path)


@pytest.mark.parametrize(
    ("changes", "fields", "message"),
    [
        ({"mean": None}, {}, "teacher.mean is not given, and weights {path} do not say it"),
        ({"std": None}, {}, "teacher.std is not given, and weights {path} do not say it"),
        ({"mean": "many"}, {}, "teacher.mean is many ({path}); it must be three numbers from 0 to 1"),
        ({}, {"mean": (125.3, 123.0, 113.9)}, "teacher.mean is (125.3, 123.0, 113.9) (config)"),
        (
            {},
            {"std": (0.2, 0.0, 0.2)},
            "teacher.std is (0.2, 0.0, 0.2) (config); it must be three numbers above 0",
        ),
        ({}, {"std": (0.2, 0.2)}, "teacher.std is (0.2, 0.2) (config)"),
        ({}, {"mean": (0.5, float("nan"), 0.5)}, "teacher.mean is (0.5, nan, 0.5) (config)"),
        ({"num_classes": None}, {}, "teacher.num_classes is not given, and weights {path} do not say it"),
        ({"num_classes": "ten"}, {}, "teacher.num_classes is 'ten'"),
        ({}, {"num_classes": 0}, "teacher.num_classes is 0"),
        (
            {},
            {"kwargs": {"num_classes": 6}},
            "teacher.kwargs names 'num_classes'; give it as teacher.num_classes",
        ),
        ({}, {"classes": ("a", "b")}, "teacher.classes has 2 names, but teacher.num_classes is 6"),
        ({"classes": "cats and dogs"}, {}, "teacher.classes is 'cats and dogs'; it must be a list of names"),
        ({"input_size": "32x32"}, {}, "teacher.input_px is '32x32'"),
        ({}, {"input_px": 0}, "teacher.input_px is 0"),
    ],
)
def test_fields_that_cannot_be_used(
    changes: dict[str, str | None], fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = tagged(tmp_path, **changes)
    with pytest.raises(ConfigError) as caught:
        load_teacher(arch="homemade:build", weights=str(path), **fields)
    assert message.format(path=path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_are_needed_unless_they_ship() -> None:
    for arch in ("resnet34", "homemade:build"):
        with pytest.raises(ConfigError, match=f"teacher.weights is not given, and arch '{arch}' has none"):
            load_teacher(arch=arch)
    with pytest.raises(ConfigError, match="arch 'resnet43' is unknown; did you mean 'resnet34'"):
        load_teacher(arch="resnet43")
    with pytest.raises(
        TeacherError, match=r"built with 100 classes, but weights cifar10_resnet20.safetensors"
    ):
        load_teacher(arch="resnet20", num_classes=100)


def test_a_factory_of_a_fixed_class_count_must_have_the_right_one(tmp_path: Path) -> None:
    with pytest.raises(
        TeacherError, match="arch 'homemade:ten_logits' is built with 10 classes, but weights"
    ):
        load_teacher(arch="homemade:ten_logits", weights=str(tagged(tmp_path)))
    torch.save(ThreeStages(10).state_dict(), tmp_path / "ten.pt")
    statistics = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    with pytest.raises(TeacherError, match=r"teacher\.num_classes: the network gives 10 logits, not 6"):
        load_teacher(
            arch="homemade:ten_logits",
            weights=str(tmp_path / "ten.pt"),
            num_classes=6,
            input_px=32,
            **statistics,
        )


def of_file(path: Path, arch: str, **fields: object) -> Teacher:
    half = (0.5, 0.5, 0.5)
    fields = {"num_classes": 6, "mean": half, "std": half, "input_px": 16, **fields}
    return load_teacher(arch=arch, weights=str(path), **fields)


def test_the_size_of_a_foreign_networks_images_must_be_said(tmp_path: Path) -> None:
    path = tagged(tmp_path, input_size=None)
    with pytest.raises(
        ConfigError, match=r"teacher\.input_px is not given, and weights .* do not say it; give"
    ):
        load_teacher(arch="homemade:build", weights=str(path))
    assert load_teacher(arch="homemade:build", weights=str(path), input_px=48).input_px == 48
    torch.save(build_network("resnet20", 10).state_dict(), tmp_path / "ours.pt")
    assert of_file(tmp_path / "ours.pt", "resnet20", num_classes=10, input_px=None).input_px == 32


# A network in memory.


def test_a_network_in_memory_is_copied_and_frozen() -> None:
    network = ThreeStages(6).train()
    half = (0.5, 0.5, 0.5)
    teacher = load_teacher(network, num_classes=6, mean=half, std=half, input_px=24)
    assert teacher.identity["arch"] == "ThreeStages"
    assert (teacher.num_classes, teacher.input_px) == (6, 24)
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())
    teacher.network.head.weight.zero_()
    assert network.head.weight.abs().sum() > 0
    assert (
        load_teacher(network.half(), num_classes=6, mean=half, std=half, input_px=24)
        .logits(torch.zeros(1, 3, 24, 24))
        .dtype
        is torch.float32
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mean": None}, "teacher.mean is not given"),
        ({"num_classes": None}, "teacher.num_classes is not given"),
        ({"input_px": None}, "teacher.input_px is not given"),
        ({"weights": "w.pt"}, "weights: a network in memory has its own"),
    ],
)
def test_a_network_in_memory_still_needs_to_be_described(fields: dict[str, Any], message: str) -> None:
    half = (0.5, 0.5, 0.5)
    with pytest.raises(ConfigError, match=message):
        load_teacher(
            ThreeStages(6), **{"num_classes": 6, "mean": half, "std": half, "input_px": 16, **fields}
        )


# Models of libraries, by name.


def test_models_of_torchvision_by_name(tmp_path: Path) -> None:
    from torchvision.models import mnasnet0_5

    # Its modules ask for the version of the file, which safetensors does not say.
    state = mnasnet0_5(num_classes=6).state_dict()
    torch.save(state, tmp_path / "weights.pt")
    (tmp_path / "weights.safetensors").write_bytes(safetensors.torch.save(dict(state)))
    hashes = {
        of_file(tmp_path / f"weights.{kind}", "torchvision:mnasnet0_5", input_px=64).identity[
            "weights_sha256"
        ]
        for kind in ("pt", "safetensors")
    }
    assert len(hashes) == 1
    with pytest.raises(ConfigError, match=r"torchvision has no model 'resnet_18'; nearest: resnet18"):
        of_file(tmp_path / "weights.pt", "torchvision:resnet_18")


def test_models_of_timm_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    timm: Any = types.ModuleType("timm")
    timm.list_models = lambda: ["three_stages"]
    timm.create_model = lambda name, num_classes, **kwargs: ThreeStages(num_classes, **kwargs)
    monkeypatch.setitem(sys.modules, "timm", timm)
    torch.save(ThreeStages(6, width=7).state_dict(), tmp_path / "weights.pt")
    for arch, kwargs in (
        ("timm:three_stages", {"width": 7}),
        ("timm:create_model", {"name": "three_stages", "width": 7}),
    ):
        teacher = of_file(tmp_path / "weights.pt", arch, kwargs=kwargs)
        assert (teacher.identity["arch"], teacher.taps[0].channels) == (arch, 7)
    with pytest.raises(ConfigError, match="timm has no model 'three'"):
        of_file(tmp_path / "weights.pt", "timm:three")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match="timm is not installed; pip install timm"):
        of_file(tmp_path / "weights.pt", "timm:three_stages")


# Factories that do more than build.


class Lazy(nn.Sequential):
    def __init__(self, num_classes: int) -> None:
        super().__init__(
            nn.LazyConv2d(7, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.LazyLinear(num_classes),
        )  # fmt: skip


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_lazy_layers_get_their_shapes(tmp_path: Path) -> None:
    network = Lazy(6)
    network(torch.zeros(2, 3, 16, 16))
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    setattr(sys.modules["homemade"], "lazy", Lazy)  # noqa: B010
    teacher = of_file(tmp_path / "weights.pt", "homemade:lazy")
    torch.testing.assert_close(
        teacher.logits(torch.ones(1, 3, 16, 16)), network.eval()(torch.ones(1, 3, 16, 16))
    )


def on_meta(num_classes: int) -> nn.Module:
    with torch.device("meta"):
        return ThreeStages(num_classes)


def exiting(num_classes: int) -> nn.Module:
    argparse.ArgumentParser().parse_args(["--unknown"])
    return ThreeStages(num_classes)


@pytest.mark.parametrize(
    ("factory", "kind", "message"),
    [
        (on_meta, TeacherError, "is on the meta device, without values; build the network on the CPU"),
        (exiting, ConfigError, "the factory ended the program (by sys.exit, or by argparse"),
    ],
)
def test_factories_that_give_no_network(
    factory: object, kind: type[NisynthError], message: str, tmp_path: Path
) -> None:
    setattr(sys.modules["homemade"], "odd", factory)  # noqa: B010
    torch.save(ThreeStages(6).state_dict(), tmp_path / "weights.pt")
    with pytest.raises(kind) as caught:
        of_file(tmp_path / "weights.pt", "homemade:odd")
    assert message in str(caught.value)


def test_a_factory_cannot_change_what_is_global(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def changing(num_classes: int) -> nn.Module:
        print("building")
        torch.set_grad_enabled(False)
        torch.set_default_dtype(torch.float64)
        return ThreeStages(num_classes)

    setattr(sys.modules["homemade"], "changing", changing)  # noqa: B010
    torch.save(ThreeStages(6).state_dict(), tmp_path / "weights.pt")
    teacher = of_file(tmp_path / "weights.pt", "homemade:changing")
    assert torch.is_grad_enabled()
    assert torch.get_default_dtype() is torch.float32
    assert teacher.logits(torch.zeros(1, 3, 16, 16)).dtype is torch.float32
    assert capsys.readouterr() == ("", "building\n")
