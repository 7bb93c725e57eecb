"""A small world for tests: a tiny teacher anyone may construct, and runs that take a fraction of a second."""

import hashlib
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from nisynth.batch import ImageBatch, Task
from nisynth.commits import Commit, Run
from nisynth.commits.records import shard_key
from nisynth.config import RunConfig, load_config
from nisynth.execution.run import plan_run
from nisynth.plan import Plan
from nisynth.shards import OutputConfig, encode
from nisynth.storage import Store


class TinyNet(nn.Module):
    """Two stages, 8x16² and 12x8², on 16 px images."""

    def __init__(self, num_classes: int = 4) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.down = nn.Sequential(
            nn.Conv2d(8, 12, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU()
        )
        self.linear = nn.Linear(12, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.down(self.stem(x)).mean(dim=(2, 3)))


class FeaturesFirst(TinyNet):
    """A network that returns (pooled features, logits); its weights are TinyNet's."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        features = self.down(self.stem(x)).mean(dim=(2, 3))
        return features, self.linear(features)


def tiny_weights(folder: Path, seed: int = 0) -> str:
    """Writes the tiny teacher's checkpoint and returns its path."""
    path = folder / f"tiny-{seed}.safetensors"
    if not path.exists():
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            save_file(TinyNet().state_dict(), path)
    return str(path)


def tiny_config(folder: Path, **sections: dict[str, Any]) -> RunConfig:
    """Returns the config of 4 tasks of 4 images, 2 iterations each; sections are merged over it."""
    values: dict[str, dict[str, Any]] = {
        "run": {"num_images": 16, "batch_size": 4, "seed": 0},
        "teacher": {
            "arch": "tests.tiny:TinyNet",
            "weights": tiny_weights(folder),
            "num_classes": 4,
            "input_px": 16,
            "mean": [0.5, 0.5, 0.5],
            "std": [0.25, 0.25, 0.25],
        },
        "method": {"name": "naturalinversion", "iterations": 2, "latent_dim": 8},
        "output": {},
        "engine": {},
        "execution": {"quality_gate": 0.0, "log_every": 1},
    }
    for name, changes in sections.items():
        values[name] = {**values[name], **changes}
    return load_config(values)


def tiny_plan(folder: Path, **sections: dict[str, Any]) -> Plan:
    """Returns the plan of `tiny_config`."""
    return plan_run(tiny_config(folder, **sections))


def fake_batch(plan: Plan, index: int) -> ImageBatch:
    """Returns a batch of random images with the right labels: what a method would give."""
    task: Task = plan[index]
    rng = torch.Generator().manual_seed(index)
    images = torch.randn(len(task.labels), 3, plan.input_px, plan.input_px, generator=rng)
    return ImageBatch(task=task, images=images, labels=torch.from_numpy(task.labels.copy()))


def fake_commit(run: Run, index: int, attempt: str, *, put: bool = True) -> Commit:
    """Puts a fake shard of task `index` and returns its commit record, not yet committed."""
    output = OutputConfig(format=run.plan.format)
    data = encode(fake_batch(run.plan, index), output, run.plan.normalization, run.plan.classes)
    key = shard_key(run.plan.fp12, index, attempt, run.plan.format)
    if put:
        assert run.put_shard(index, attempt, data) == key
    return Commit(
        task=index,
        attempt=attempt,
        shard=key,
        bytes=len(data),
        rows=run.plan.rows(index),
        sha256=hashlib.sha256(data).hexdigest(),
        seed=run.plan[index].seed,
        fingerprint=run.plan.fingerprint,
        figures={"teacher_accuracy": 0.5, "r_bn_in_y": 0.4},
        finished_at=1000.0 + index,
    )


def commit_all(run: Run, tasks: Any = None) -> dict[int, str]:
    """Commits fake shards of `tasks` (default: all) and returns the winning attempts."""
    winners = {}
    for index in range(run.plan.num_tasks) if tasks is None else tasks:
        record = fake_commit(run, index, str(uuid4()))
        assert run.commit(record) == "mine"
        winners[index] = record.attempt
    return winners


def keys(store: Store, prefix: str = "") -> list[str]:
    """Returns every key of the store under the prefix."""
    return [info.key for info in store.list(prefix)]
