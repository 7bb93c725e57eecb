"""A series for tests: three rounds of 3, 1 and 1 tasks, four images each, in a few seconds."""

from pathlib import Path
from typing import Any

from nisynth.commits.seal import read_manifest
from nisynth.series.run import Series, open_run
from tests.tiny import keys, tiny_config

SIZES = [3, 1, 1]


def recipe(folder: Path, **sections: dict[str, Any]) -> dict[str, Any]:
    """Returns the mapping that `adapt` takes; sections are merged over it."""
    found = tiny_config(folder, run={"num_images": 19}).to_dict()
    found["method"]["rival"] = {"arch": "tests.tiny:TinyNet"}
    found["rounds"] = {"base": 3, "growth": 0.4, "steps_per_batch": 1, "checkpoint_minutes": 0}
    found["train"] = {"batch_size": 8, "lr": 0.05}
    for name, changes in sections.items():
        found[name] = {**found.get(name, {}), **changes}
    return found


def opened(url: str) -> Series:
    """Returns the series at a URL."""
    found = open_run(url)
    assert isinstance(found, Series)
    return found


def what_counts(url: str) -> dict[str, Any]:
    """Returns all that must not depend on how a complete series came about. Rivals are named by hash."""
    series = opened(url)
    rows = read_manifest(series)
    assert sorted(row.shard for row in rows) == sorted(
        key for key in keys(series.store, "rounds/") if "/data/" in key
    )
    return {
        "series": series.store.get("series.json"),
        "shards": {row.task: row.sha256 for row in rows},
        "rivals": [key for key in keys(series.store, "rivals/") if len(key) > len("rivals/0001/") + 64],
    }
