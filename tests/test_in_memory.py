"""A batch without a store: that of a run's task, from a teacher or a bare module."""

from pathlib import Path

import pytest
import torch

import nisynth
from nisynth.errors import ConfigError
from nisynth.synthesis import make_synthesizer
from nisynth.teachers import load_teacher
from tests.tiny import TinyNet, tiny_config, tiny_plan

METHOD = {"name": "naturalinversion", "iterations": 2, "latent_dim": 8}
DESCRIBED = {"num_classes": 4, "mean": (0.5,) * 3, "std": (0.25,) * 3, "input_px": 16}


def test_a_batch_is_that_of_a_runs_first_task(tmp_path: Path) -> None:
    config, plan = tiny_config(tmp_path), tiny_plan(tmp_path)
    teacher = load_teacher(config.teacher)
    expected = make_synthesizer(config.method, config.engine, teacher).synthesize(plan[0])
    steps: list[int] = []
    found = nisynth.synthesize(
        teacher,
        4,
        method=METHOD,
        engine={"name": "plain"},
        log_every=1,
        on_step=lambda step, _: steps.append(step),
    )
    assert torch.equal(found.images, expected.images)
    assert torch.equal(found.labels, expected.labels)
    assert steps == [1, 2]


def test_a_bare_module_is_described_by_arguments() -> None:
    torch.manual_seed(0)
    network = TinyNet().train()
    batch = nisynth.synthesize(network, 6, method=METHOD, **DESCRIBED)
    assert batch.images.shape == (6, 3, 16, 16)
    assert sorted(batch.labels.tolist())[:4] == [0, 0, 1, 1]
    assert batch.figures["engine"].startswith("fast")
    assert network.training


def test_what_cannot_be_used_is_said_as_for_a_run() -> None:
    with pytest.raises(ConfigError, match=r"method\.iteration: unknown key; did you mean 'iterations'"):
        nisynth.synthesize(TinyNet(), 4, method={**METHOD, "iteration": 3}, **DESCRIBED)
    with pytest.raises(ConfigError, match=r"run\.batch_size: 1 is not at least 2"):
        nisynth.synthesize(TinyNet(), 1, **DESCRIBED)
    with pytest.raises(ConfigError, match=r"teacher\.input_px is not given"):
        nisynth.synthesize(TinyNet(), 4, num_classes=4, mean=(0.5,) * 3, std=(0.25,) * 3)
