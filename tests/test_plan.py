"""The plan: pure, lazy, balanced, and a fingerprint that sees what changes an image and nothing else."""

import copy
import hashlib
import json
import sys
from typing import Any

import numpy as np
import pytest

from nisynth.config import load_config
from nisynth.errors import DataError
from nisynth.identity import differing_fields
from nisynth.plan import Plan, make_plan

IDENTITY: dict[str, Any] = {
    "arch": "resnet20",
    "kwargs": {},
    "weights_sha256": "0" * 64,
    "mean": [0.5, 0.5, 0.5],
    "std": [0.25, 0.25, 0.25],
    "classes": [str(i) for i in range(10)],
    "num_classes": 10,
    "input_px": 32,
    "taps": ["layer1"],
}


def plan(*overrides: str, identity: dict[str, Any] = IDENTITY) -> Plan:
    return make_plan(load_config({"teacher": {"arch": "resnet20"}}, overrides), identity)


def test_the_papers_set_is_1000_tasks_of_256() -> None:
    planned = plan()
    assert len(planned) == 1000
    assert sum(planned.rows(i) for i in range(1000)) == 256_000


def test_the_plan_is_the_same_everywhere() -> None:
    """Literals, so that another machine, Python or numpy that plans otherwise is found out."""
    task = plan("run.seed=3")[7]
    assert task.seed == 14994404253413392726  # sha256("3/7"), first 8 bytes
    assert task.labels[:10].tolist() == [3, 5, 7, 8, 1, 4, 2, 0, 9, 6]


def test_a_field_added_later_counts_once_it_leaves_its_default() -> None:
    assert "png" not in plan().identity["output"]
    assert plan("output.png=compressed").fingerprint == plan().fingerprint
    assert plan("output.png=stored").identity["output"]["png"] == "stored"
    assert plan("output.png=stored").fingerprint != plan().fingerprint


def test_labels_are_balanced_to_within_one_in_every_batch_and_over_the_run() -> None:
    planned = plan("run.num_images=1000", "run.batch_size=96")
    total = np.zeros(10, dtype=np.int64)
    for task in planned:
        counts = np.bincount(task.labels, minlength=10)
        assert counts.max() - counts.min() <= 1
        total += np.bincount(task.labels[: task.rows], minlength=10)
    assert total.tolist() == [100] * 10


def test_the_last_task_synthesizes_a_full_batch_and_keeps_the_rest() -> None:
    last = plan("run.num_images=1000", "run.batch_size=96")[-1]
    assert (last.index, len(last.labels), last.rows) == (10, 96, 40)


def test_a_million_tasks_cost_no_memory() -> None:
    planned = plan("run.num_images=256000000")
    assert len(planned) == 1_000_000
    assert planned[999_999].index == 999_999
    assert sys.getsizeof(json.dumps(planned.document)) < 10_000


def test_seeds_differ_between_tasks_and_runs() -> None:
    seeds = {task.seed for seed in (0, 1) for task in plan(f"run.seed={seed}", "run.num_images=25600")}
    assert len(seeds) == 200


@pytest.mark.parametrize(
    "override",
    ["run.seed=1", "run.batch_size=128", "method.tv_weight=0.1", "output.format=npz", "engine.name=fast"],
)
def test_the_fingerprint_sees_what_changes_an_image(override: str) -> None:
    assert plan(override).fingerprint != plan().fingerprint


def test_the_fingerprint_sees_the_teacher() -> None:
    other = {**IDENTITY, "weights_sha256": "1" * 64}
    assert plan(identity=other).fingerprint != plan().fingerprint


@pytest.mark.parametrize("override", ["execution.workers=9", "method.preset=cifar10"])
def test_the_fingerprint_ignores_what_does_not(override: str) -> None:
    assert plan(override).fingerprint == plan().fingerprint


def test_a_plan_is_made_from_its_document_again() -> None:
    planned = plan("run.num_images=1000")
    again = Plan(json.loads(json.dumps(planned.document)))
    assert again.fingerprint == planned.fingerprint
    assert [t.seed for t in again] == [t.seed for t in planned]
    assert (again[3].labels == planned[3].labels).all()


def test_a_document_changed_by_hand_is_refused() -> None:
    document = copy.deepcopy(plan().document)
    document["identity"]["run"]["seed"] = 4
    with pytest.raises(DataError, match="changed by hand"):
        Plan(document)
    with pytest.raises(DataError, match="not a plan"):
        Plan({"hello": 1})


@pytest.mark.parametrize(
    ("section", "change"),
    [
        ("run", {"batch_size": 0}),
        ("run", {"batch_size": 10**15}),
        ("run", {"num_images": -1}),
        ("run", {"num_images": 10**30}),
        ("run", {"num_images": float("inf")}),
        ("output", {"format": "../../x"}),
        ("output", {"format": ["parquet"]}),
        ("teacher", {"input_px": 0}),
        ("teacher", {"input_px": 200_000}),
        ("teacher", {"arch": "x\x1b[2J"}),
        ("teacher", {"classes": [*"abcdefghi", "j\nk: v"]}),
        ("teacher", {"classes": ["a"]}),
        ("teacher", {"classes": list(range(10))}),
        ("teacher", {"mean": [0.5]}),
        ("teacher", {"mean": ["a", "b", "c"]}),
        ("teacher", {"weights_sha256": None}),
        ("method", {"iterations": "many"}),
        ("method", []),
    ],
)
def test_a_plan_that_no_config_gives_is_refused_whatever_its_fingerprint(section: str, change: Any) -> None:
    document = copy.deepcopy(plan().document)
    identity = document["identity"]
    identity[section] = {**identity[section], **change} if isinstance(change, dict) else change
    canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    document["fingerprint"] = hashlib.sha256(canonical.encode()).hexdigest()
    with pytest.raises(DataError, match=r"plan\.json: not a plan of this version"):
        Plan(document)


def test_differing_fields_are_named() -> None:
    lines = differing_fields(plan("run.seed=1", "method.tv_weight=0.5").identity, plan().identity)
    assert lines == ["method.tv_weight: 0.006 there, 0.5 here", "run.seed: 0 there, 1 here"]


def test_indices_outside_the_plan() -> None:
    with pytest.raises(IndexError, match=r"tasks 0\.\.999"):
        plan()[1000]


def test_a_field_that_was_added_later_is_left_out_while_nothing_differs_from_before() -> None:
    assert "bn_scale" not in plan("method.bn_scale=published").identity["method"]
    assert plan("method.bn_scale=teacher").identity["method"]["bn_scale"] == "teacher"
    assert "bn_slack" not in plan("method.bn_slack=0.0").identity["method"]
    assert plan("method.bn_slack=0.3").fingerprint != plan("method.bn_slack=0.0").fingerprint
