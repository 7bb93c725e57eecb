"""How fast a set is read, beside the readers that are used for such sets, on the same images.

    python benchmarks/reading.py --images cifar10-test.parquet --output benchmarks/results/reading.md

A run is made of 2,560 images of a real set and exported as an image folder, as WebDataset tars and as Hugging
Face Parquet, PNG at level 6 everywhere. Every reader then gives all of them as uint8 (3, H, W) in batches of
256, in one process; the readers take turns, round by round. A figure is images a CPU second of the process,
all of its threads together: wall time says little on a machine that others use. Ratios are of the same round.
Cold is without a cache of decoded shards; the files are in the page cache for every reader. nisynth compares
each shard with its sha256 besides, which no other reader here does.
"""

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from uuid import uuid4

import datasets
import torch
import webdataset
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms.functional import pil_to_tensor

import nisynth
from nisynth.batch import ImageBatch
from nisynth.commits import Commit, Run
from nisynth.commits.records import shard_key
from nisynth.commits.seal import seal
from nisynth.config import load_config
from nisynth.consumers.export import export
from nisynth.execution.run import plan_run
from nisynth.images import LabelledImages
from nisynth.images.real import load_real_set
from nisynth.png import Png
from nisynth.shards import OutputConfig, encode
from nisynth.storage import open_store

BATCH = 256
TASKS = 10
STREAM_EPOCHS = 20  # one warm epoch takes milliseconds
GOALS = {
    "nisynth, cold": "13,000 and 3",
    "nisynth, cold, stored PNG": "50,000",
    "nisynth, epoch 2 of a Stream": "300,000",
}
Read = Callable[[], Iterator[Any]]


def main() -> None:
    """Prints the page, or writes it to --output."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", required=True, help="a real set of 32 px, as `--test-set` takes it")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="a Markdown file; standard output by default")
    options = parser.parse_args()
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        readers = prepare(Path(folder), load_real_set(options.images))
        speeds: dict[str, list[float]] = {name: [] for name in readers}
        for name, read in readers.items():  # what is imported and compiled on the first call
            images_per_cpu_s(name, read)
        for _ in range(options.rounds):
            for name, read in readers.items():
                speeds[name].append(images_per_cpu_s(name, read))
        page = describe(speeds, resume_s(Path(folder), options.rounds), options)
    if options.output:
        options.output.write_text(page)
    else:
        print(page)


def prepare(folder: Path, real: LabelledImages) -> dict[str, Read]:
    """Makes the set in every form and returns what reads each, by the name of its row."""
    compressed, stored = (make_run(folder / png, real, png) for png in ("compressed", "stored"))
    images = nisynth.open_dataset(compressed, cache=False)
    for form in ("imagefolder", "webdataset", "hf"):
        export(images, str(folder / form), form)
    warm = nisynth.open_dataset(compressed, cache=folder / "cache")
    warm.warm()
    stream = warm.stream(BATCH)
    hf = datasets.load_dataset(str(folder / "hf"), split="train", cache_dir=str(folder / "hf-cache"))
    hf = hf.with_format("torch")
    image_folder = ImageFolder(str(folder / "imagefolder"), transform=pil_to_tensor)
    tars = sorted(str(path) for path in (folder / "webdataset").glob("*.tar"))

    def cold(url: str) -> Iterator[Any]:
        opened = nisynth.open_dataset(url, cache=False)
        return iter(opened.stream(BATCH))

    def from_tars() -> Iterator[Any]:
        samples = webdataset.WebDataset(tars, shardshuffle=False).decode("pil").to_tuple("png", "cls")
        return iter(DataLoader(samples.map_tuple(pil_to_tensor, int), BATCH))

    return {
        "nisynth, cold": lambda: cold(compressed),
        "nisynth, cold, stored PNG": lambda: cold(stored),
        "nisynth, epoch 2 of a Stream": lambda: (batch for _ in range(STREAM_EPOCHS) for batch in stream),
        "torchvision ImageFolder": lambda: iter(DataLoader(image_folder, BATCH, shuffle=True)),
        "HF datasets": lambda: iter(DataLoader(hf, BATCH, shuffle=True)),
        "WebDataset": from_tars,
    }


def make_run(folder: Path, real: LabelledImages, png: Png) -> str:
    """Returns the URL of a sealed run whose images are real ones of the labels that its tasks ask for."""
    run = begin_run(folder, png)
    for _ in commit_tasks(run, real, png):
        pass
    seal(run)
    return str(folder)


def begin_run(folder: Path, png: Png) -> Run:
    """Returns a run of which nothing is committed yet."""
    plan = plan_run(
        load_config(
            {
                "run": {"num_images": BATCH * TASKS, "batch_size": BATCH},
                "teacher": {"arch": "resnet20"},
                "method": {"name": "noise"},
                "output": {"png": png},
            }
        )
    )
    return Run.join(open_store(str(folder)), plan)


def commit_tasks(run: Run, real: LabelledImages, png: Png) -> Iterator[list[int]]:
    """Commits the tasks one by one; yields which images of the real set each has taken."""
    plan = run.plan
    unused = {label: torch.nonzero(real.labels == label).flatten().tolist() for label in range(10)}
    for task in range(plan.num_tasks):
        chosen = [unused[label].pop() for label in plan[task].labels.tolist()]
        normalized = plan.normalization.normalize(real.pixels[chosen])
        batch = ImageBatch(task=plan[task], images=normalized, labels=real.labels[chosen])
        data = encode(batch, OutputConfig(png=png), plan.normalization, plan.classes)
        attempt = str(uuid4())
        run.put_shard(task, attempt, data)
        key = shard_key(plan.fp12, task, attempt, plan.format)
        digest, seed = sha256(data).hexdigest(), plan[task].seed
        run.commit(Commit(task, attempt, key, len(data), len(chosen), digest, seed, plan.fingerprint))
        yield chosen


def images_per_cpu_s(name: str, read: Read) -> float:
    """Returns how fast a reader gives the whole set; checks that it gave all of it, as uint8."""
    began_s, count = time.process_time(), 0
    for batch in read():
        pixels = batch["image"] if isinstance(batch, Mapping) else batch[0]
        assert isinstance(pixels, Tensor)
        assert (pixels.dtype, tuple(pixels.shape[1:])) == (torch.uint8, (3, 32, 32)), (name, pixels.shape)
        count += len(pixels)
    assert count % (BATCH * TASKS) == 0, (name, count)
    return count / (time.process_time() - began_s)


def resume_s(folder: Path, rounds: int) -> list[float]:
    """Returns the wall time from opening the set to the first batch of a stream that resumes, cache warm."""
    url, found = str(folder / "compressed"), []
    stream = nisynth.open_dataset(url, cache=folder / "cache").stream(BATCH)
    next(iter(stream))
    state = stream.state_dict()
    for _ in range(rounds):
        began_s = time.perf_counter()
        resumed = nisynth.open_dataset(url, cache=folder / "cache").stream(BATCH)
        resumed.load_state_dict(state)
        next(iter(resumed))
        found.append(time.perf_counter() - began_s)
    return found


def describe(speeds: Mapping[str, list[float]], resumed_s: list[float], options: argparse.Namespace) -> str:
    """Returns the page."""
    peers = [name for name in speeds if not name.startswith("nisynth")]
    best = max(peers, key=lambda name: statistics.median(speeds[name]))
    rows = []
    for name, found in speeds.items():
        ratios = [one / other for one, other in zip(found, speeds[best], strict=True)]
        rows.append(f"| {name} | {spread(found, ',.0f')} | {spread(ratios, '.2f')} | {GOALS.get(name, '')} |")
    libraries = ("torch", "torchvision", "datasets", "webdataset", "pillow", "pyarrow", "kornia-rs")
    return f"""# Reading

    python {" ".join(sys.argv)}

{BATCH * TASKS:,} images of 32 px, batches of {BATCH}; {options.rounds} rounds in turn, in one process.
Images a CPU second of the process, all threads: median [least..most]; ratios to {best},
the fastest of the others, round by round. Cold is without a cache of decoded shards; files are in the page
cache for all. nisynth compares each shard with its sha256 besides. Goals are the least wanted.

| reader | images a CPU second | ratio | goal |
| --- | --- | --- | --- |
{chr(10).join(rows)}

Opening the set and resuming in mid-epoch, cache warm, to the first batch (goal: below 0.1 s of wall time):
{spread(resumed_s, ".3f")} s.

{os.cpu_count()} CPUs, {platform.machine()}, which others used too; load {os.getloadavg()[0]:.1f} at the end.
Python {platform.python_version()}; {", ".join(f"{name} {installed(name)}" for name in libraries)}.
"""


def spread(values: list[float], form: str) -> str:
    """Returns median and range."""
    return f"{statistics.median(values):{form}} [{min(values):{form}}..{max(values):{form}}]"


def installed(name: str) -> str:
    """Returns a distribution's version, `-` where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "-"


if __name__ == "__main__":
    main()
