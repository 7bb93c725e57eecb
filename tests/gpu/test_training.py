"""The training loop on a GPU: compiled bfloat16 learns, float32 continues exactly; skipped without one."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

from nisynth.images import LabelledImages, Normalization
from nisynth.storage import open_store
from nisynth.teachers import build_network
from nisynth.training import TrainConfig, TrainResult, WholeSet, hard_label_loss, train
from nisynth.training.checkpoints import Checkpoints

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
CONFIG = TrainConfig(epochs=4, batch_size=64, lr=0.05)


class Killed(Exception):
    pass


def images() -> LabelledImages:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(512) % 4
    noise = torch.randint(0, 128, (512, 3, 32, 32), generator=generator)
    return LabelledImages((noise + 32 * labels.view(-1, 1, 1, 1)).to(torch.uint8), labels)


def network() -> nn.Module:
    torch.manual_seed(0)
    return build_network("resnet20", 4)


def fit(net: nn.Module, config: TrainConfig, **options: object) -> TrainResult:
    normalization = Normalization((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    return train(
        net,
        WholeSet(images(), normalization),
        hard_label_loss,
        config,
        num_classes=4,
        device="cuda",
        **options,
    )  # type: ignore[arg-type]


@pytest.mark.parametrize(("precision", "compiled"), [("auto", True), ("bfloat16", False), ("float32", False)])
def test_it_learns(precision: str, compiled: bool) -> None:
    config = dataclasses.replace(CONFIG, precision=precision, compile=compiled)
    assert fit(network(), config).history[-1]["train_accuracy"] > 0.9


def test_a_killed_training_continues_to_the_same_bits(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, precision="float32", compile=False)
    whole, part, again = network(), network(), network()
    fit(whole, config)
    store = open_store(str(tmp_path))

    def stop(done: int, total: int) -> None:
        if done == 13:
            raise Killed

    with pytest.raises(Killed):
        fit(part, config, on_step=stop, checkpoints=Checkpoints(store, {}, every_s=0))
    assert fit(again, config, checkpoints=Checkpoints(store, {}, every_s=0)).resumed_step == 12
    pairs = zip(whole.state_dict().values(), again.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_a_batch_beyond_the_memory_is_one_line() -> None:
    from nisynth.errors import ConfigError

    pixels = torch.zeros(1, 3, 32, 32, dtype=torch.uint8).expand(2_000_000, -1, -1, -1)
    labels = torch.zeros(2_000_000, dtype=torch.int64)
    config = dataclasses.replace(CONFIG, batch_size=2_000_000, precision="float32", compile=False)
    with pytest.raises(ConfigError, match=r"train.batch_size: 2000000 images, .*lower it"):
        train(
            build_network("resnet34", 4),
            WholeSet(LabelledImages(pixels, labels), Normalization((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))),
            hard_label_loss,
            config,
            num_classes=4,
        )
