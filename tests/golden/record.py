"""What nisynth does, as values that a change of its structure must not alter.

`python -m tests.golden.record` writes them to golden.json beside this file. Record them anew only where
behaviour is meant to change, and say in the commit what changed and why.
"""

import hashlib
import json
import platform
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from nisynth.batch import ImageBatch, Task
from nisynth.config import load_config
from nisynth.execution.run import plan_run
from nisynth.images import Normalization
from nisynth.synthesis import EngineConfig, NaturalInversionConfig, make_synthesizer
from nisynth.teachers import Teacher, load_teacher
from tests.command_line import nisynth
from tests.tiny import TinyNet, tiny_config

GOLDEN = Path(__file__).with_name("golden.json")
SHARED = Path(__file__).resolve().parents[3] / "shared"

ITERATIONS = 3
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "defaults": {},
    "bn_weight": {"bn_weight": 3.0},
    "feature_gradient": {"feature_gradient": True},
    "first_bn_multiplier": {"first_bn_multiplier": 10.0},
    "flip": {"flip": False},
    "head": {"head": "sum"},
    "jitter_px": {"jitter_px": 0},
    "l2_weight": {"l2_weight": 0.1},
    "latent_dim": {"latent_dim": 8},
    "lr_alpha": {"lr_alpha": 0.1},
    "lr_generator": {"lr_generator": 1e-2},
    "lr_pyramid": {"lr_pyramid": 1e-2},
    "rescale_priors": {"rescale_priors": False},
    "select": {"select": "last"},
    "tv_weight": {"tv_weight": 0.1},
}
REAL_TEACHERS = {"vgg11": "cifar10_vgg11", "resnet34": "cifar10_resnet34"}
SHIPPED_CONFIGS = ("demo", "smoke_cpu")
BEFORE = "method.bn_scale=published"
"""What the default was when the golden values were recorded."""


def machine() -> dict[str, str]:
    """Returns what equal bits are promised for: equal versions, and arithmetic that gives equal bits."""
    rng = torch.Generator().manual_seed(0)
    x, w = torch.randn(4, 8, 16, 16, generator=rng), torch.randn(12, 8, 3, 3, generator=rng)
    y = torch.nn.functional.conv2d(x, w).tanh().flatten(1)
    return {
        "torch": torch.__version__,
        "cpu": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "arithmetic": _sha256((y @ y.T).numpy().tobytes()),
    }


def fingerprints() -> dict[str, str]:
    """Returns the fingerprints of the shipped configs whose teacher ships too."""
    return {name: plan_run(load_config(name, [BEFORE])).fingerprint for name in SHIPPED_CONFIGS}


def real_fingerprints(shared: Path) -> dict[str, str]:
    """Returns the fingerprints of the shipped configs whose weights lie in `shared`."""
    found = {}
    for name in ("cifar10_resnet34", "cifar10_vgg11", "cifar100_resnet34"):
        weights = shared / "teachers" / f"{name}.safetensors"
        found[name] = plan_run(load_config(name, [f"teacher.weights={weights}", BEFORE])).fingerprint
    return found


def plain_loop(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns pixels and losses of the plain loop on a tiny teacher."""
    return _synthesized(tiny_teacher(), EngineConfig(), options)


def engine(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the losses of the engine on a tiny teacher, in float32."""
    return _synthesized(tiny_teacher(), EngineConfig(name="fast", precision="float32"), options)


def shipped_teacher() -> dict[str, Any]:
    """Returns pixels and losses of both loops on the teacher that ships."""
    return _both_loops(load_teacher(arch="resnet20"))


def real_teacher(arch: str, shared: Path) -> dict[str, Any]:
    """Returns pixels and losses of both loops on a teacher of `shared`."""
    weights = shared / "teachers" / f"{REAL_TEACHERS[arch]}.safetensors"
    return _both_loops(load_teacher(arch=arch, weights=str(weights)))


def run_of_two_tasks(folder: Path) -> dict[str, Any]:
    """Returns plan, commits, manifest and pixels of a small run, less what differs from run to run."""
    config = tiny_config(
        folder,
        run={"num_images": 6, "batch_size": 4, "seed": 0},
        method={"bn_scale": "published"},
    )
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config.to_dict()))
    url = folder / "run"
    codes = {"run": nisynth("run", folder / "tiny.yaml", "--store", url).returncode}
    plan = json.loads((url / "plan.json").read_text())
    commits = [json.loads(path.read_text()) for path in sorted((url / "commits").glob("*.json"))]
    attempts = {commit["attempt"]: f"attempt of task {commit['task']}" for commit in commits}
    codes |= _exit_codes(folder, url)
    return {
        "plan": {name: value for name, value in plan.items() if name != "versions"},
        "plan_fields": sorted(plan),
        "commits": [_same_in_every_run(commit, attempts) for commit in commits],
        "manifest": [_same_in_every_run(row, attempts) for row in _manifest(url)],
        "files": sorted({path.relative_to(url).parts[0] for path in url.rglob("*") if path.is_file()}),
        "exit_codes": codes,
    }


def tiny_teacher() -> Teacher:
    """Returns an untrained teacher whose BatchNorms remember something."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        network = TinyNet()
        for layer in network.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                assert layer.running_mean is not None
                assert layer.running_var is not None
                layer.running_mean.normal_()
                layer.running_var.uniform_(0.5, 2.0)
    normalization = Normalization((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    return Teacher(network, normalization=normalization, classes=list("0123"), input_px=16)


def _both_loops(teacher: Teacher) -> dict[str, Any]:
    options = {"iterations": 2}
    return {
        "plain": _synthesized(teacher, EngineConfig(), options),
        "fast": _synthesized(teacher, EngineConfig(name="fast", precision="float32"), options),
    }


def _synthesized(teacher: Teacher, engine: EngineConfig, options: Mapping[str, Any]) -> dict[str, Any]:
    config = NaturalInversionConfig(
        **{"iterations": ITERATIONS, "latent_dim": 16, "bn_scale": "published", **options}
    )
    labels = np.arange(4, dtype=np.int64) % teacher.num_classes
    task = Task(index=0, seed=2**64 - 3, labels=labels, rows=4)
    batch = make_synthesizer(config, engine, teacher, log_every=1).synthesize(task)
    return {"pixels": _pixels(batch, teacher), "curve": batch.curve}


def _pixels(batch: ImageBatch, teacher: Teacher) -> str:
    return _sha256(teacher.normalization.to_pixels(batch.images).numpy().tobytes())


def _manifest(url: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = pq.read_table(url / "_MANIFEST").to_pylist()
    return rows


def _same_in_every_run(record: Mapping[str, Any], attempts: Mapping[str, str]) -> dict[str, Any]:
    """Returns a commit or a manifest's row less clock, host, timings, versions and random names."""
    differing = ("finished_at", "started_at", "timings_s", "device", "versions", "worker")
    text = json.dumps({name: value for name, value in record.items() if name not in differing})
    for attempt, name in attempts.items():
        text = text.replace(attempt, name)
    fields: dict[str, Any] = json.loads(text)
    fields.get("figures", {}).pop("r_bn_in_y", None)  # recorded since the golden values were
    return fields


def _exit_codes(folder: Path, url: Path) -> dict[str, int]:
    """Returns the exit codes of commands on a finished run and on a damaged copy of it."""
    config = folder / "tiny.yaml"
    commands = {
        "run again": ("run", config, "--store", url),
        "plan": ("plan", config),
        "plan with an unknown key": ("plan", config, "--set", "run.sed=1"),
        "plan without a file": ("plan", folder / "absent.yaml"),
        "status": ("status", url),
        "status of nothing": ("status", folder / "absent"),
        "verify": ("verify", url, "--deep"),
        "pull": ("pull", url, folder / "pulled"),
        "run another seed": ("run", config, "--store", url, "--set", "run.seed=1"),
        "gate": (
            *("run", config, "--store", folder / "gated"),
            *("--set", "execution.quality_gate=1.0", "--set", "run.seed=2"),
        ),
        "bad weights": ("plan", config, "--set", "teacher.weights=absent.safetensors"),
        "unwritable": ("run", config, "--store", config / "below-a-file"),
    }
    codes = {name: nisynth(*words).returncode for name, words in commands.items()}
    shard = next((folder / "pulled" / "data").iterdir())
    shard.write_bytes(b"damaged")
    codes["verify damaged"] = nisynth("verify", folder / "pulled", "--deep").returncode
    return codes


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def record() -> dict[str, Any]:
    """Returns all of it, from this tree."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        run = run_of_two_tasks(Path(folder))
    return {
        "machine": machine(),
        "fingerprints": fingerprints() | real_fingerprints(SHARED),
        "plain": {name: plain_loop(options) for name, options in OPTIONS.items()},
        "fast": {name: engine(options) for name, options in OPTIONS.items()},
        "resnet20": shipped_teacher(),
        **{arch: real_teacher(arch, SHARED) for arch in REAL_TEACHERS},
        "run": run,
    }


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(record(), indent=1) + "\n")
