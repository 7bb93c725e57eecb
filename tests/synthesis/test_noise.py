"""The floor: normal noise from the task's seed."""

import torch

from nisynth.synthesis import EngineConfig, NoiseConfig, make_synthesizer
from tests.synthesis.conftest import MakeTask, MakeTeacher


def test_noise_is_normal_labelled_and_follows_the_seed(
    make_teacher: MakeTeacher, make_task: MakeTask
) -> None:
    noise = make_synthesizer(NoiseConfig(), EngineConfig(), make_teacher(input_px=64))
    batch = noise.synthesize(make_task(16, seed=1))
    assert batch.images.shape == (16, 3, 64, 64)
    assert abs(float(batch.images.mean())) < 0.02
    assert abs(float(batch.images.std()) - 1) < 0.02
    assert batch.labels.tolist() == [0, 1, 2, 3] * 4
    assert torch.equal(batch.images, noise.synthesize(make_task(16, seed=1)).images)
    assert not torch.equal(batch.images, noise.synthesize(make_task(16, seed=2)).images)
    assert batch.curve == []
