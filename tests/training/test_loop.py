"""The training loop: the recipe by its numbers, one step by hand, and exact continuation."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from nisynth.errors import ConfigError, DataError, PlanMismatch
from nisynth.images import LabelledImages, Normalization
from nisynth.images.augment import draw_epoch, draw_mixture
from nisynth.storage import Store, open_store
from nisynth.training import TrainConfig, TrainResult, WholeSet, hard_label_loss, train
from nisynth.training.checkpoints import Checkpoints
from nisynth.training.source import Place
from tests.processes import wait_until
from tests.tiny import TinyNet

REPO = Path(__file__).resolve().parents[2]
NORMALIZATION = Normalization((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
SMALL = TrainConfig(epochs=3, batch_size=16, lr=0.05, crop_pad_px=2)
MIXED = replace(SMALL, padding="reflect", mixup=0.4, cutmix=1.0)


class Killed(Exception):
    """Stands for whatever ends a process between two steps."""


class WithDropout(nn.Module):
    """A network that draws random numbers while it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.dropout = TinyNet(), nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.dropout(x))


def images(count: int = 70) -> LabelledImages:
    """Four classes that differ in brightness."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 4
    noise = torch.randint(0, 128, (count, 3, 16, 16), generator=generator)
    return LabelledImages((noise + 32 * labels.view(-1, 1, 1, 1)).to(torch.uint8), labels)


SOURCE = WholeSet(images(), NORMALIZATION)


def network(dropout: bool = False) -> nn.Module:
    torch.manual_seed(0)
    return WithDropout() if dropout else TinyNet()


def fit(net: nn.Module, config: TrainConfig = SMALL, **options: Any) -> TrainResult:
    return train(net, SOURCE, hard_label_loss, config, num_classes=4, device="cpu", **options)


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def lasting(history: tuple[dict[str, float], ...]) -> list[dict[str, float]]:
    """The history without what a clock says."""
    return [{k: v for k, v in record.items() if k != "images_per_s"} for record in history]


def test_the_distillation_recipe_by_its_numbers() -> None:
    config = TrainConfig()
    assert (config.epochs, config.batch_size, config.momentum, config.weight_decay) == (200, 128, 0.9, 1e-4)
    rates = [config.lr_at(epoch) for epoch in (0, 119, 120, 149, 150, 179, 180, 199)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001, 0.0001, 0.0001])
    assert config.steps_per_epoch(256_000) == 2000
    assert config.steps_per_epoch(255) == 1


def test_the_cosine_and_the_constant_schedule() -> None:
    cosine = TrainConfig(lr=0.05, schedule="cosine")
    rates = [cosine.lr_at(epoch) for epoch in (0, 50, 100, 150, 199)]
    assert rates == pytest.approx([0.05, 0.0426777, 0.025, 0.0073223, 3.0843e-06], rel=1e-4)
    assert TrainConfig(schedule="constant").lr_at(199) == 0.1


def test_it_is_plain_sgd_on_shuffled_batches() -> None:
    """Two epochs of four batches against torch's own optimizer, by hand."""
    config = TrainConfig(
        epochs=2,
        batch_size=16,
        lr=0.1,
        weight_decay=0.01,
        milestones=(0.5,),
        crop_pad_px=0,
        flip=False,
        seed=5,
    )
    ours, theirs = network(), network().to(memory_format=torch.channels_last)
    fit(ours, config)
    pixels, labels = SOURCE.images.pixels, SOURCE.images.labels
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    theirs.train()
    for epoch in range(2):
        optimizer.param_groups[0]["lr"] = (0.1, 0.1 * 0.1)[epoch]
        order = draw_epoch(5, epoch, 70, 0, flip=False).order
        for step in range(4):
            part = order[16 * step : 16 * step + 16]
            loss = nn.functional.cross_entropy(
                theirs((pixels[part].float() / 255 - 0.5) / 0.25), labels[part]
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert same(ours, theirs)


def test_it_tells_of_steps_and_epochs_and_leaves_nothing_behind() -> None:
    net, heard, steps = network(), [], []

    def on_epoch(record: Mapping[str, float], trained: nn.Module) -> dict[str, float]:
        assert trained is net
        assert not trained.training
        heard.append(dict(record))
        return {"test_accuracy": 0.25}

    before = torch.get_rng_state()
    result = fit(net, on_epoch=on_epoch, on_step=lambda done, total: steps.append((done, total)))
    assert torch.equal(torch.get_rng_state(), before)
    assert not net.training
    assert steps == [(step, 12) for step in range(1, 13)]
    assert [record["epoch"] for record in result.history] == [1, 2, 3]
    assert [record["test_accuracy"] for record in result.history] == [0.25] * 3
    assert [{**record, "test_accuracy": 0.25} for record in heard] == list(result.history)
    assert result.resumed_step == 0
    assert result.images_per_s > 0


@pytest.mark.parametrize(
    ("dropout", "config"), [(False, SMALL), (True, SMALL), (False, MIXED)], ids=["plain", "dropout", "mixed"]
)
@pytest.mark.parametrize("killed_at", [1, 4, 7, 11])
def test_a_killed_training_continues_to_the_same_bits(
    tmp_path: Path, killed_at: int, dropout: bool, config: TrainConfig
) -> None:
    whole, part = network(dropout), network(dropout)
    uninterrupted = fit(whole, config)
    store = open_store(str(tmp_path))

    def stop(done: int, total: int) -> None:
        if done == killed_at:
            raise Killed

    with pytest.raises(Killed):
        fit(part, config, on_step=stop, checkpoints=Checkpoints(store, {"a": 1}, every_s=0))
    again = network(dropout)
    nn.init.zeros_(next(again.parameters()))  # whatever it starts from, the checkpoint decides
    resumed = fit(again, config, checkpoints=Checkpoints(store, {"a": 1}, every_s=0))
    assert resumed.resumed_step == max(killed_at - 1, 0)
    if killed_at > 1:
        assert same(whole, again)
        assert lasting(resumed.history) == lasting(uninterrupted.history)


def test_killed_between_the_last_step_and_its_record_it_loses_neither(tmp_path: Path) -> None:
    """6 steps, 4 of which are an epoch: the last epoch is cut short, and ends with the training."""
    config = replace(SMALL, epochs=1, steps=6, schedule="constant")
    whole, part, again = network(), network(), network()
    uninterrupted, store = fit(whole, config), open_store(str(tmp_path))

    def stop(record: Mapping[str, float], net: nn.Module) -> dict[str, float]:
        if record["epoch"] == 2:
            raise Killed
        return {}

    with pytest.raises(Killed):
        fit(part, config, on_epoch=stop, checkpoints=Checkpoints(store, {"a": 1}, every_s=0))
    resumed = fit(again, config, checkpoints=Checkpoints(store, {"a": 1}, every_s=0))
    assert resumed.resumed_step == 5
    assert lasting(resumed.history) == lasting(uninterrupted.history)
    assert same(whole, again)


def test_kill_9_in_the_middle_of_an_epoch_changes_no_bit(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys, torch; import tests.training.test_loop as t\n"
        "torch.set_num_threads(1)\n"
        "def stop(done, total):\n"
        "    if done == 6: os.kill(os.getpid(), signal.SIGKILL)\n"
        "kept = t.Checkpoints(t.open_store(sys.argv[1]), {}, every_s=0)\n"
        "t.fit(t.network(), on_step=stop, checkpoints=kept)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    whole, again = network(), network()
    fit(whole)
    assert fit(again, checkpoints=Checkpoints(open_store(str(tmp_path)), {}, every_s=0)).resumed_step == 5
    assert same(whole, again)


def worker(rank: int, folder: str, killed_at: int) -> None:
    """What each of two processes does; the first writes the history that it ends with."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet-{killed_at}", rank=rank, world_size=2)
    torch.set_num_threads(1)

    def stop(done: int, total: int) -> None:
        if done == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)

    result = fit(network(), on_step=stop, checkpoints=Checkpoints(open_store(folder), {}, every_s=0))
    if rank == 0:
        Path(folder, "history").write_text(json.dumps(result.history))
    leave(rank, Path(folder))


def leave(rank: int, folder: Path) -> None:
    """Ends this process once both are done with all sums.

    One that goes first takes the connection from the other, whose last sum may still be on its way, and the
    two destructors of torch's FileStore race for its file and may abort: none of them runs.
    """
    (folder / f"done-{rank}").touch()
    wait_until((folder / f"done-{1 - rank}").exists)
    os._exit(0)


def test_workers_that_resume_within_an_epoch_tell_its_metrics_over_all_its_images(tmp_path: Path) -> None:
    """Killed in step 7 of 12, the third of its epoch, and resumed: the records are one process's."""
    script = (
        "import sys; import tests.training.test_loop as t\n"
        "t.worker(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    for killed_at in (7, -1):
        pair = [
            subprocess.Popen(
                [sys.executable, "-c", script, str(rank), str(tmp_path), str(killed_at)],
                env=environment,
                stderr=subprocess.DEVNULL,
            )
            for rank in range(2)
        ]
        ends = [process.wait(120) for process in pair]
        assert ends[0] == (-signal.SIGKILL if killed_at > 0 else 0)
    assert ends == [0, 0]
    history = json.loads((tmp_path / "history").read_text())
    for ours, theirs in zip(history, fit(network()).history, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert ours["train_accuracy"] == pytest.approx(theirs["train_accuracy"], abs=0.5 / 64)


def test_a_finished_training_is_not_trained_again(tmp_path: Path) -> None:
    checkpoints = Checkpoints(open_store(str(tmp_path)), {}, every_s=0)
    first, second = network(), network()
    told = fit(first, checkpoints=checkpoints).history
    result = fit(second, checkpoints=checkpoints)
    assert (result.resumed_step, result.images_per_s, result.history) == (12, 0.0, told)
    assert same(first, second)


def saved(tmp_path: Path, identity: dict[str, Any]) -> Store:
    store = open_store(str(tmp_path))
    fit(network(), TrainConfig(epochs=1, batch_size=70), checkpoints=Checkpoints(store, identity, every_s=0))
    return store


def test_a_checkpoint_of_another_config_is_refused_with_the_differing_fields(tmp_path: Path) -> None:
    store = saved(tmp_path, {"train": {"lr": 0.1, "seed": 0}})
    with pytest.raises(
        PlanMismatch, match=r"checkpoint.safetensors: of another config: train.lr: 0.1 there, 0.2"
    ):
        fit(network(), checkpoints=Checkpoints(store, {"train": {"lr": 0.2, "seed": 0}}))


@pytest.mark.parametrize(
    "ruin",
    [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"<html>", lambda data: data[:300]],
    ids=["half", "empty", "html", "header"],
)
def test_a_damaged_checkpoint_is_one_line(tmp_path: Path, ruin: Any) -> None:
    store = saved(tmp_path, {})
    store.put("checkpoint.safetensors", ruin(store.get("checkpoint.safetensors")))
    with pytest.raises(DataError, match=r"checkpoint.safetensors: .*delete it to start over"):
        fit(network(), checkpoints=Checkpoints(store, {}))


def test_a_checkpoint_of_another_network_is_one_line(tmp_path: Path) -> None:
    store = saved(tmp_path, {})
    with pytest.raises(DataError, match="delete it to start over") as caught:
        fit(network(dropout=True), checkpoints=Checkpoints(store, {}))
    assert "\n" not in str(caught.value)


def test_a_checkpoint_holds_no_code(tmp_path: Path) -> None:
    data = saved(tmp_path, {"a": 1}).get("checkpoint.safetensors")
    assert data[8:9] == b"{"
    assert b"network.stem.0.weight" in data
    assert b"optimizer.0.momentum_buffer" in data


def test_saves_are_as_far_apart_as_asked_for(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    fit(network(), checkpoints=Checkpoints(store, {}, every_s=3600))
    assert list(store.list()) == []


@pytest.mark.parametrize("config", [SMALL, MIXED], ids=["plain", "mixed"])
def test_the_parts_of_three_workers_are_the_batches_of_one(config: TrainConfig) -> None:
    config = replace(config, batch_size=12)

    def epoch(place: Place) -> list[tuple[Tensor, Tensor]]:
        return list(SOURCE.open(config, place).rest_of_epoch(1, 2))

    device = torch.device("cpu")
    parts = [epoch(Place(device, rank, 3)) for rank in range(3)]
    for whole, *shares in zip(epoch(Place(device)), *parts, strict=True):
        for of_whole, *of_shares in zip(whole, *shares, strict=True):
            assert torch.equal(of_whole, torch.cat(of_shares))


def test_a_mixture_is_of_an_image_and_the_one_in_the_mirrored_place_of_its_batch() -> None:
    config = TrainConfig(epochs=1, batch_size=16, crop_pad_px=0, flip=False, mixup=0.4)
    place = Place(torch.device("cpu"))
    (plain, labels), *_ = SOURCE.open(replace(config, mixup=0.0), place).rest_of_epoch(0, 0)
    (mixed, seen), *_ = SOURCE.open(config, place).rest_of_epoch(0, 0)
    drawn = draw_mixture(config.seed, 0, 70, 0.4, 0.0)
    assert drawn is not None
    share = drawn.share[:16, None, None, None]
    torch.testing.assert_close(mixed, share * plain + (1 - share) * plain.flip(0))
    assert torch.equal(seen, torch.where(drawn.share[:16] >= 0.5, labels, labels.flip(0)))


def test_reflection_needs_a_padding_below_the_side_of_the_images() -> None:
    with pytest.raises(ConfigError, match=r"train.crop_pad_px: 16 is not below the 16 px of the images"):
        fit(network(), replace(SMALL, padding="reflect", crop_pad_px=16))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_it_learns(precision: Any) -> None:
    config = TrainConfig(epochs=12, batch_size=16, lr=0.1, crop_pad_px=1, precision=precision)
    history = fit(network(), config).history
    assert history[-1]["loss"] < history[0]["loss"] / 2
    assert history[-1]["train_accuracy"] > 0.8


def test_a_loss_that_is_not_finite_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"train.lr: 0.05: the loss is not finite in epoch 1; lower it"):
        train(
            network(),
            SOURCE,
            lambda logits, x, y: hard_label_loss(logits, x, y) * float("nan"),
            SMALL,
            num_classes=4,
            device="cpu",
        )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("batch_size", 1),
        ("lr", 0.0),
        ("momentum", 1.5),
        ("milestones", (120.0,)),
        ("seed", -1),
        ("mixup", -0.1),
        ("cutmix", float("inf")),
    ],
)
def test_values_that_cannot_be_used_name_their_field(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"train.{field}: "):
        TrainConfig(**{field: value})
