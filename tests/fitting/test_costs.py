"""The costs that `nisynth methods` lists, against the multiplications that torch counts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from nisynth.cli import execute
from nisynth.config import load_config
from nisynth.fitting import FITS, load_fit_config
from nisynth.plan import make_plan
from nisynth.synthesis import METHODS, make_synthesizer
from nisynth.teachers import Teacher, build_network, load_teacher

IMAGES = 2
"""Counted at a time: the count of an iteration is proportional to them."""
SET_SIZE = 256_000
PUBLISHED_BATCH = {"dafl": 1024, "wgan_gp": 64}


class Multiplications(TorchDispatchMode):
    """Counts also what FlopCounterMode refuses: a gradient of a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        operation = func._overloadpacket
        if operation in flop_registry:
            self.count += flop_registry[operation](*args, **(kwargs or {}), out_val=out) // 2
        return out


def multiplications(of: Callable[[], object]) -> int:
    with Multiplications() as counted:
        of()
    return counted.count


def of_256_images(name: str, teacher: Teacher) -> float:
    """Returns the multiplications that 256 images take by a method of METHODS."""
    iterations = load_config(values(name)).method.iterations
    counts = []
    for number in (2, 3):
        config = load_config(values(name, iterations=number))
        task = make_plan(config, teacher.identity)[0]
        synthesizer = make_synthesizer(config.method, config.engine, teacher)
        counts.append(multiplications(lambda s=synthesizer, t=task: s.synthesize(t)))
    return (counts[1] - counts[0]) * iterations * 256 / IMAGES


def values(name: str, **method: Any) -> dict[str, Any]:
    return {
        "run": {"num_images": IMAGES, "batch_size": IMAGES},
        "teacher": {"arch": "resnet34"},
        "method": {"name": name, **method},
        "engine": {"name": "plain"},
    }


def test_the_list_shows_every_cost(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["methods"]) == 0
    rows = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines() if line.strip()}
    costs = {name: row.cost for name, row in METHODS.items()} | {name: row.cost for name, row in FITS.items()}
    for name, cost in costs.items():
        assert rows[name][1] == f"{cost:.2g}"


@pytest.mark.slow
def test_costs_are_counted_multiplications(tmp_path: Path) -> None:
    for label in range(10):
        (tmp_path / str(label)).mkdir()
        Image.new("RGB", (32, 32)).save(tmp_path / str(label) / "0.png")
    options: dict[str, Any] = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "num_classes": 10, "input_px": 32}
    teacher = load_teacher(build_network("resnet34", 10), **options)
    one = of_256_images("naturalinversion", teacher)
    assert of_256_images("deepinversion", teacher) / one == pytest.approx(METHODS["deepinversion"].cost, 0.02)
    for name, row in FITS.items():
        method = {"name": name, **({"data": str(tmp_path)} if name == "wgan_gp" else {})}
        document = {"teacher": {"arch": "resnet34"}, "method": method, "output": "there"}
        config = load_fit_config(document, [f"batch_size={IMAGES}"])
        torch.manual_seed(0)
        fitting = row.make(config, teacher)
        iteration = multiplications(lambda f=fitting: f.step(0))
        whole = iteration * config.method.iterations * PUBLISHED_BATCH.get(name, 256) / IMAGES
        assert whole / (SET_SIZE / 256) / one == pytest.approx(row.cost, 0.02), name
