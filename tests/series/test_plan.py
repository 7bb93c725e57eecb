"""The sizes of the rounds, and a plan that knows every label before the first round is made."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nisynth.errors import DataError
from nisynth.identity import fingerprint
from nisynth.randomness import key
from nisynth.series.config import load_adapt_config
from nisynth.series.plan import SeriesPlan, round_sizes
from nisynth.teachers import load_teacher
from tests.series.recipes import SIZES, recipe


def planned(folder: Path, **sections: dict[str, Any]) -> SeriesPlan:
    config = load_adapt_config(recipe(folder, **sections))
    return config.plan(load_teacher(config.run.teacher))


def test_rounds_grow_with_the_set() -> None:
    """The hand-computed sizes of 1,000 batches; growth 0 is the published loop."""
    assert round_sizes(1000, 200, 0.25) == [200, 50, 62, 78, 97, 121, 152, 190, 50]
    assert round_sizes(6, 3, 0.0) == [3, 1, 1, 1]
    assert round_sizes(3, 200, 0.25) == [3]
    assert round_sizes(200, 100, 0.29) == [100, 29, 37, 34]  # 0.29 * 100 is 28.999... in binary


def test_tasks_are_numbered_over_all_rounds(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    assert (plan.sizes, plan.num_tasks, len(plan), plan.num_images) == (SIZES, 5, 5, 19)
    assert [plan.rows(task) for task in range(5)] == [4, 4, 4, 4, 3]
    assert [plan.place(task) for task in range(5)] == [(0, 0), (0, 1), (0, 2), (1, 0), (2, 0)]
    assert plan[3].index == 3
    assert plan[3].seed == key(key(plan.seed, "round", 1) >> 1, 0)
    assert len({task.seed for task in plan}) == 5


def test_labels_are_balanced_within_each_round(tmp_path: Path) -> None:
    plan = planned(tmp_path, run={"num_images": 5 * 8, "batch_size": 8})
    for task in range(5):
        assert np.bincount(plan.labels(task), minlength=4).tolist() == [2, 2, 2, 2]
    assert len({tuple(plan.labels(task)) for task in (0, 3, 4)}) > 1  # each round has an order of its own


def test_the_first_rounds_are_a_plan_too(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    first = plan.first_rounds(2)
    assert (first.num_tasks, first.num_images, first.fingerprint) == (4, 16, plan.fingerprint)
    assert [first[task].seed for task in range(4)] == [plan[task].seed for task in range(4)]


def test_the_recipe_is_the_fingerprint_and_the_clusters_size_is_not(tmp_path: Path) -> None:
    whole = planned(tmp_path).fingerprint
    for name, value in {"base": 2, "growth": 0.5, "steps_per_batch": 2}.items():
        changed = recipe(tmp_path)["rounds"] | {name: value}
        assert planned(tmp_path, rounds=changed).fingerprint != whole
    rival = {"rival": {"arch": "tests.tiny:TinyNet", "weight": 3.0}}
    method = recipe(tmp_path)["method"] | rival
    assert planned(tmp_path, method=method).fingerprint != whole
    assert planned(tmp_path, train={"batch_size": 8, "lr": 0.1}).fingerprint != whole
    assert planned(tmp_path, execution={"workers": 7}).fingerprint == whole
    assert planned(tmp_path, rounds=recipe(tmp_path)["rounds"] | {"workers": 2}).fingerprint == whole


@pytest.mark.parametrize(
    ("section", "changes"),
    [
        ("rounds", {"base": 0}),
        ("rounds", {"base": 2.5}),
        ("rounds", {"growth": -1}),
        ("rounds", {"growth": "much"}),
        ("rounds", {"growth": 0, "base": 1}),
        ("rival", None),
    ],
)
def test_a_document_that_nobody_wrote_is_refused(tmp_path: Path, section: str, changes: Any) -> None:
    """Of a million tasks, one a round would be a million rounds."""
    document = json.loads(json.dumps(planned(tmp_path).document))
    series = document["identity"]["series"]
    series[section] = changes if changes is None else series[section] | changes
    document["identity"]["run"]["num_images"] = 4_000_000
    document["fingerprint"] = fingerprint(document["identity"])
    with pytest.raises(DataError, match=r"series.json: not a series of this version"):
        SeriesPlan(document)
