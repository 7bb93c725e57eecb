"""A set that takes more memory than its reader may: 4 GB of 224 px images."""

import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from uuid import uuid4

import pytest
import torch

from nisynth.batch import ImageBatch
from nisynth.commits import Commit, Run
from nisynth.commits.records import shard_key
from nisynth.commits.seal import seal
from nisynth.shards import OutputConfig, encode
from nisynth.storage import open_store
from tests.tiny import tiny_plan

PX, SHARD_ROWS, SHARDS = 224, 256, 104
STORED = OutputConfig(png="stored")
READ = """
import sys, torch
from pathlib import Path
from nisynth.reader import open_dataset
torch.set_num_threads(1)
url, cache = sys.argv[1:]
def anonymous_bytes():
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(lines["RssAnon"].split()[0])
images = open_dataset(url, cache=cache)
stream = images.stream(256, seed=1)
for _ in range(2):
    most_bytes = count = 0
    for pixels, labels in stream:
        most_bytes, count = max(most_bytes, anonymous_bytes()), count + len(labels)
    print(count, most_bytes)
"""


@pytest.mark.slow
def test_4_gb_are_read_within_memory_for_a_few_shards(tmp_path: Path) -> None:
    """RssAnon: what is mapped from the cache is the kernel's page cache, and given up when others want it."""
    url = large_run(tmp_path)
    words = [sys.executable, "-c", READ, url, str(tmp_path / "cache")]
    lines = subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()
    cold, warm = ([int(word) for word in line.split()] for line in lines)
    assert cold[0] == warm[0] == SHARDS * SHARD_ROWS
    assert SHARDS * SHARD_ROWS * 3 * PX**2 > 4_000_000_000
    assert cold[1] < 1_500_000_000, cold
    assert warm[1] < cold[1] + 100_000_000, (cold, warm)


def large_run(folder: Path) -> str:
    """Returns the URL of a sealed run whose shards are one shard's noise, shifted by a row each."""
    sizes = {"num_images": SHARDS * SHARD_ROWS, "batch_size": SHARD_ROWS}
    plan = tiny_plan(folder, run=sizes, teacher={"input_px": PX}, output={"png": "stored"})
    run = Run.join(open_store(str(folder / "run")), plan)
    draw = torch.Generator().manual_seed(0)
    noise = torch.randn(SHARD_ROWS, 3, PX, PX, generator=draw)
    for task in range(plan.num_tasks):
        labels = torch.from_numpy(plan[task].labels.copy())
        batch = ImageBatch(task=plan[task], images=noise.roll(task, dims=2), labels=labels)
        data = encode(batch, STORED, plan.normalization, plan.classes)
        attempt, digest = str(uuid4()), sha256(data).hexdigest()
        run.put_shard(task, attempt, data)
        key = shard_key(plan.fp12, task, attempt, plan.format)
        run.commit(
            Commit(task, attempt, key, len(data), SHARD_ROWS, digest, plan[task].seed, plan.fingerprint)
        )
    assert seal(run)
    return str(folder / "run")
