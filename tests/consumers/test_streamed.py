"""Training on a set that is read as it is needed, and on a run that grows meanwhile."""

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from nisynth.commits import Run
from nisynth.commits.seal import seal
from nisynth.config_loader import load_as
from nisynth.consumers import student
from nisynth.consumers.distill import DistillConfig, distill
from nisynth.consumers.streamed import StreamedSet, source_of
from nisynth.consumers.training_log import TrainingLog, silent
from nisynth.errors import ConfigError, IncompleteRun
from nisynth.reader import FollowConfig, SyntheticDataset, open_dataset
from nisynth.training import BatchSource, Place, TrainConfig, WholeSet
from tests.reader.runs import make_run
from tests.tiny import commit_all, tiny_config

CPU = torch.device("cpu")
PLAIN = TrainConfig(epochs=3, batch_size=12, lr=0.05, crop_pad_px=2)
MIXED = replace(PLAIN, padding="reflect", mixup=0.4, cutmix=1.0)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> SyntheticDataset:
    folder = tmp_path_factory.mktemp("run")
    return open_dataset(make_run(folder).store.url, cache=folder / "cache")


def batches(
    source: BatchSource, config: TrainConfig, place: Place, first: int = 0
) -> list[tuple[Tensor, Tensor]]:
    return list(source.open(config, place).rest_of_epoch(1, first))


@pytest.mark.parametrize("config", [PLAIN, MIXED], ids=["plain", "mixed"])
@pytest.mark.parametrize("first", [0, 5])
def test_batches_are_those_of_the_set_in_memory_for_any_number_of_workers(
    images: SyntheticDataset, config: TrainConfig, first: int
) -> None:
    whole = source_of(images, replace(config, stream="never"), CPU, silent)
    stream = source_of(images, replace(config, stream="always"), CPU, silent)
    assert isinstance(whole, WholeSet)
    assert isinstance(stream, StreamedSet)
    expected = batches(whole, config, Place(CPU), first)
    assert len(expected) == 8 - first
    for num_workers in (1, 3):
        parts = [batches(stream, config, Place(CPU, rank, num_workers), first) for rank in range(num_workers)]
        for one, *shares in zip(expected, *parts, strict=True):
            for of_one, *of_shares in zip(one, *shares, strict=True):
                assert torch.equal(of_one, torch.cat(of_shares))


def test_an_epoch_of_a_stream_and_of_a_training_show_the_same_images_to_each_rank(
    images: SyntheticDataset,
) -> None:
    order = images.sequence(0, 12, seed=4).view(-1, 3, 4)
    for rank in range(3):
        shown = images.stream(12, seed=4, rank=rank, world_size=3)
        for step, (pixels, _) in enumerate(shown):
            assert torch.equal(pixels, images.__getitems__(order[step, rank].tolist()).pixels)
    assert len(set(order.flatten().tolist())) == 96


def test_auto_holds_a_set_that_fits_and_streams_one_that_does_not(images: SyntheticDataset) -> None:
    said: list[str] = []
    for free_bytes, kind in ((2 * 100 * 768, WholeSet), (2 * 100 * 768 - 2, StreamedSet)):
        source = source_of(images, PLAIN, CPU, said.append, lambda device, free=free_bytes: free)  # type: ignore[misc]
        assert type(source) is kind
    assert said == ["0.0 GB of images are read as they are needed"]


def config(folder: Path, name: str, **changes: Any) -> DistillConfig:
    values = {
        "data": str(folder / "run"),
        "output": str(folder / name),
        "teacher": tiny_config(folder).to_dict()["teacher"],
        "student": {"arch": "tests.tiny:TinyNet"},
        "train": {"epochs": 3, "batch_size": 12, "lr": 0.05, **changes.pop("train", {})},
        **changes,
    }
    return load_as(DistillConfig, values, kind="distill")


def weights(folder: Path, name: str) -> dict[str, Tensor]:
    return load_file(folder / name / "student.safetensors")


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def test_the_student_is_the_same_bit_for_bit_and_resumes_in_either_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in mid-epoch while it streams, and resumed in memory, as on a larger machine."""
    make_run(tmp_path)
    held = distill(config(tmp_path, "held"))
    streams = {"train": {"stream": "always"}, "checkpoint_minutes": 0}
    shown = distill(config(tmp_path, "shown", **streams))
    assert_same(weights(tmp_path, "held"), weights(tmp_path, "shown"))
    assert held.identity == shown.identity

    with monkeypatch.context() as patch:
        patch.setattr(TrainingLog, "on_step", stop_at(13))
        with pytest.raises(KeyboardInterrupt):
            distill(config(tmp_path, "killed", **streams))
    said: list[str] = []
    distill(config(tmp_path, "killed"), say=said.append)
    assert "continuing from the checkpoint at step 12 of 24" in said
    assert_same(weights(tmp_path, "held"), weights(tmp_path, "killed"))


def stop_at(step: int) -> Any:
    def on_step(log: Any, done: int, total: int) -> None:
        if done == step:
            raise KeyboardInterrupt

    return on_step


def grows(run: Run, monkeypatch: pytest.MonkeyPatch, events: dict[int, Any]) -> None:
    """Does something to a run after each of these steps of a training."""
    told = TrainingLog.on_step

    def on_step(log: Any, done: int, total: int) -> None:
        events.get(done, lambda: None)()
        told(log, done, total)

    monkeypatch.setattr(TrainingLog, "on_step", on_step)


def test_a_student_that_follows_takes_the_same_steps_and_ends_on_the_whole_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path, tasks=[0, 1, 2])
    rest = list(range(5, 13))
    grows(
        run, monkeypatch, {1: lambda: commit_all(run, [3, 4]), 9: lambda: (commit_all(run, rest), seal(run))}
    )
    report = distill(config(tmp_path, "out", follow=True, follow_min_images=24))
    assert (len(report.history), report.num_images, report.complete) == (3, 100, True)
    # Passes: 2 steps of 24 images; 3 and 3 of 40 in the first epoch; 3 of 40, 5 of the 100; 8 of 100.
    assert report.passes is not None
    assert [report.passes[str(task)] for task in (0, 3, 5, 12)] == [6, 5, 2, 2]
    assert json.loads((tmp_path / "out/result.json").read_text())["passes"]["12"] == 2
    said: list[str] = []
    distill(config(tmp_path, "out", follow=True, follow_min_images=24), say=said.append)
    assert said == [f"{tmp_path / 'out'}: done already; nothing to train"]


def test_a_student_that_follows_resumes_inside_a_view(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in a pass over five shards; the run is complete when it goes on, in that same pass."""
    rest = list(range(5, 13))
    for name, killed in (("whole", False), ("killed", True)):
        folder = tmp_path / name
        folder.mkdir()
        run = make_run(folder, tasks=[0, 1, 2, 3, 4])
        follows = {"follow": True, "follow_min_images": 24, "checkpoint_minutes": 0}
        with monkeypatch.context() as patch:
            if killed:
                patch.setattr(TrainingLog, "on_step", stop_at(3))
                with pytest.raises(KeyboardInterrupt):
                    distill(config(folder, "out", **follows))
        with monkeypatch.context() as patch:
            finish = {2 if not killed else 3: lambda run=run: (commit_all(run, rest), seal(run))}
            grows(run, patch, finish)
            distill(config(folder, "out", **follows))
    assert_same(weights(tmp_path / "whole", "out"), weights(tmp_path / "killed", "out"))


def test_a_student_keeps_every_step_when_the_run_stops_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No checkpoint is due when the last epoch finds a run that grows no more; what is done is saved."""
    monkeypatch.setattr(student, "FollowConfig", partial(FollowConfig, stall_s=0, sleep=lambda seconds: None))
    rest = list(range(5, 13))
    follows = {"follow": True, "follow_min_images": 24, "checkpoint_minutes": 60}
    for name in ("whole", "stopped"):
        folder = tmp_path / name
        folder.mkdir()
        run, said = make_run(folder, tasks=[0, 1, 2, 3, 4]), list[str]()
        with monkeypatch.context() as patch:
            if name == "whole":
                grows(run, patch, {16: lambda run=run: (commit_all(run, rest), seal(run))})
            else:
                with pytest.raises(IncompleteRun, match="resume it, then run this again to go on"):
                    distill(config(folder, "out", **follows))
                commit_all(run, rest)
                seal(run)
            distill(config(folder, "out", **follows), say=said.append)
    assert "continuing from the checkpoint at step 16 of 24" in said
    assert_same(weights(tmp_path / "whole", "out"), weights(tmp_path / "stopped", "out"))


def test_the_last_epoch_waits_for_the_whole_run(tmp_path: Path) -> None:
    run = make_run(tmp_path, tasks=[0, 1, 2])
    waiting, go = threading.Event(), threading.Event()

    def sleep(seconds: float) -> None:
        waiting.set()
        assert go.wait(60)

    images = open_dataset(
        run.store.url, cache=tmp_path / "cache", follow=FollowConfig(min_images=24, sleep=sleep)
    )

    def complete() -> None:
        assert waiting.wait(60)
        commit_all(run, range(3, 13))
        seal(run)
        go.set()

    other = threading.Thread(target=complete)
    other.start()
    source = StreamedSet(images).open(replace(PLAIN, epochs=1), Place(CPU))
    assert len(list(source.rest_of_epoch(0, 0))) == 8
    other.join()
    assert images.complete


def test_a_run_that_stops_short_ends_a_student_that_follows_in_one_line(tmp_path: Path) -> None:
    run = make_run(tmp_path, tasks=[0, 1, 2])

    def moments() -> Iterator[float]:
        yield from range(0, 100_000, 1000)

    clock = moments()
    follow = FollowConfig(min_images=24, clock=lambda: next(clock), sleep=lambda seconds: None)
    images = open_dataset(run.store.url, cache=tmp_path / "cache", follow=follow)
    source = StreamedSet(images).open(replace(PLAIN, epochs=1), Place(CPU))
    with pytest.raises(IncompleteRun, match=r"no commit within 3600 s.*resume it, then run this again"):
        next(source.rest_of_epoch(0, 0))


def test_following_fixed_images_is_refused(tmp_path: Path) -> None:
    for changes in ({"allow_partial": True}, {"rounds": 1}, {"train": {"stream": "never"}}):
        with pytest.raises(ConfigError, match=r"follow: cannot be combined with allow_partial or rounds"):
            config(tmp_path, "out", follow=True, **changes)
