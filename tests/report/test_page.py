"""The page as bytes: the same each time, within its size, with nothing in it that could get out."""

import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from PIL import Image

from nisynth.commits import Run
from nisynth.commits.records import commit_key, shard_key
from nisynth.commits.rejected import reject
from nisynth.commits.seal import seal
from nisynth.evaluation.measure import Yardstick
from nisynth.report.build import build_page
from nisynth.report.facts import gather, public_name
from nisynth.report.page import MOST_BYTES
from nisynth.report.sections import losses
from nisynth.report.training_page import render_training
from nisynth.storage import open_store
from tests.command_line import nisynth
from tests.report.pages import HOSTILE, facts, hostile_page, page, pictures, quality, real_folder
from tests.tiny import commit_all, fake_commit, tiny_plan

STUDENT = {
    "kind": "distill",
    "student": "resnet18",
    "num_images": 128,
    "fingerprint": "cd" * 32,
    "complete": True,
    "test_accuracy": 0.81,
    "teacher_accuracy": 0.92,
    "num_test_images": 10000,
    "num_parameters": 11_173_962,
    "images_per_s": 1234.5,
    "device": "x86_64",
    "versions": {},
    "identity": {"train": {"epochs": 300}},
    "test_set": "/home/someone/test.parquet",
    "history": [
        {"epoch": epoch, "loss": 1.0 / epoch, **({"test_accuracy": 0.8} if epoch % 10 == 0 else {})}
        for epoch in range(1, 301)
    ],
}


def data(text: bytes) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text.decode(), re.DOTALL)
    assert found is not None
    document: dict[str, Any] = json.loads(found[1])
    return document


def webp() -> bytes:
    """Returns a picture of noise of about the 150 kB that a map may have."""
    noise = np.random.default_rng(0).integers(0, 256, (450, 450, 3), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(noise).save(sink, "WEBP", quality=75)
    assert 90_000 < sink.tell() < 150_000
    return sink.getvalue()


def begin(tmp_path: Path) -> Run:
    return Run.join(open_store(str(tmp_path / "run")), tiny_plan(tmp_path))


@pytest.mark.parametrize(("num_tasks", "num_classes"), [(1000, 100), (10_000, 100), (1000, 1000)])
def test_large_runs_stay_within_two_megabytes(num_tasks: int, num_classes: int) -> None:
    images = pictures(num_classes)
    assert images.pixels is not None
    pairs = [(image, image) for image in images.pixels[:20]]
    whole = replace(images, pairs=pairs, map=webp(), map_points=1000, map_accuracy=0.7)
    full = replace(
        page(num_tasks, num_classes), pictures=whole, quality=quality(num_classes), student=STUDENT
    )
    text = full.render()
    assert len(text) <= MOST_BYTES
    assert text.count(b"data:image/webp") >= 50
    document = data(text)
    rows = 1000 if num_tasks == 1000 else 100
    assert len(document["tasks"]["rows"]) == rows  # type: ignore[index,call-overload]


def test_r_bn_stands_in_units_of_y_beside_what_real_images_have() -> None:
    text = page().render().decode()
    assert "median over tasks: 0.41 Y" in text
    assert "Real images have 0.3\u20130.7;" in text
    old = facts()
    old = replace(old, tasks=tuple(replace(task, r_bn_in_y=None) for task in old.tasks))
    assert losses(old)["r_bn_in_y"] is None


def test_images_larger_than_the_budget_are_shown_small() -> None:
    large = replace(page(), pictures=pictures(4, 2, side_px=224)).render()
    assert len(large) < MOST_BYTES
    assert b"shown at 64 px, stored at" in large


def test_two_renders_are_equal_in_bytes(tmp_path: Path) -> None:
    run = begin(tmp_path)
    commit_all(run)
    url = str(tmp_path / "run")
    assert build_page(url, Yardstick()) == build_page(url, Yardstick())
    measured = replace(page(), quality=quality(4))
    assert measured.render() == measured.render()


def test_nothing_hostile_is_anything_but_text() -> None:
    text = hostile_page().render().decode()
    assert "<img src=x" not in text
    assert text.count("<script") == 2
    assert HOSTILE in json.dumps(data(text.encode())).replace('\\"', '"')


def test_a_page_tells_no_path_and_no_secret(tmp_path: Path) -> None:
    run = begin(tmp_path)
    commit_all(run)
    text = build_page(str(tmp_path / "run"), Yardstick()).html.decode()
    assert str(tmp_path) not in text
    assert public_name("s3://key:secret@host/bucket/run?token=1") == "s3://host/bucket/run"
    assert public_name("/home/someone/runs/demo/") == "demo"
    assert "/home" not in render_training(STUDENT, "student").decode()


def test_a_run_without_a_commit_and_one_at_work(tmp_path: Path) -> None:
    run = begin(tmp_path)
    empty = build_page(str(tmp_path / "run"), Yardstick()).html.decode()
    assert ">Partial<" in empty
    assert "No image is committed yet" in empty
    commit_all(run, [1])
    growing = build_page(str(tmp_path / "run"), Yardstick()).html.decode()
    assert "missing: 3 of 4 tasks" in growing
    assert "4 images by naturalinversion" in growing


def test_what_storage_does_not_know_is_said_to_be_unknown(tmp_path: Path) -> None:
    run = begin(tmp_path)
    commit_all(run)  # commits of an earlier version: no worker, no start
    text = build_page(str(tmp_path / "run"), Yardstick()).html.decode()
    assert "Timeline: not recorded." in text
    assert "committed later: not recorded" in text
    assert "Not recorded: no commit holds a loss curve." in text


def test_a_damaged_commit_is_counted_and_the_rest_shown(tmp_path: Path) -> None:
    run = begin(tmp_path)
    commit_all(run)
    run.store.put(commit_key(run.plan.fp12, 2), b"{")
    found = gather(run)
    assert len(found.damage) == 1
    assert "not a commit (damaged JSON); `nisynth redo URL --bad`" in found.damage[0]
    assert len(found.tasks) == 3


def test_the_table_of_classes_has_no_column_that_nobody_measured(tmp_path: Path) -> None:
    run = begin(tmp_path)
    commit_all(run)
    text = build_page(str(tmp_path / "run"), Yardstick()).html.decode()
    table = text.partition('id="classes"')[2].partition("</section>")[0]
    assert "<button" in table
    for column in ("independent", "compared", "precision", "n/a"):
        assert column not in table
    assert "Labels, copies, pixels</h2>" in text


def test_loss_terms_stand_under_their_names_the_total_first() -> None:
    text = page().render().decode()
    assert re.findall(r'<th scope="row">(.*?)</th>', text.partition('id="losses"')[2])[:3] == [
        "total loss",
        "cross-entropy (CE)",
        "R_BN",
    ]


def test_images_the_teacher_does_not_know_are_doubtful() -> None:
    poor = [replace(task, teacher_accuracy=0.2) for task in facts().tasks]
    text = page(tasks=tuple(poor)).render().decode()
    assert ">Doubtful<" in text
    assert "The teacher recognises 20.0% of the images of the median task." in text


def test_cost_adds_up() -> None:
    costs = data(replace(page(num_tasks=36), hour_price=2.5).render())["cost"]
    hours = sum(700 + number % 13 for number in range(36)) / 3600
    assert costs["hours"] == pytest.approx(hours)  # type: ignore[index,call-overload]
    assert costs["price"] == pytest.approx(2.5 * hours)  # type: ignore[index,call-overload]
    assert costs["unit"] == "GPU-hours"  # type: ignore[index,call-overload]


def test_a_student_has_a_page_and_a_place_on_its_runs(tmp_path: Path) -> None:
    text = render_training(STUDENT, "student").decode()
    assert "test accuracy 81.00%, the teacher&#39;s 92.00%" in text
    assert "88.0%" in text  # student / teacher
    assert text.count("<tr><th scope") <= 201  # of 300 epochs
    both = replace(page(), student=STUDENT).render().decode()
    assert 'id="student"' in both
    assert 'id="tasks"' in both
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "result.json").write_text(json.dumps(STUDENT))
    assert b"resnet18 trained on 128" in build_page(str(tmp_path / "student"), Yardstick()).html


def test_the_command_writes_the_page(tmp_path: Path) -> None:
    run = begin(tmp_path)
    commit_all(run)
    ended = nisynth("report", tmp_path / "run", "-o", tmp_path / "page.html")
    assert ended.returncode == 0
    assert "bytes" in ended.stdout
    assert (tmp_path / "page.html").read_bytes().startswith(b"<!doctype html>")


def test_a_place_with_nothing_in_it(tmp_path: Path) -> None:
    ended = nisynth("report", tmp_path / "none", "-o", tmp_path / "page.html")
    assert ended.returncode == 2
    assert "no run there" in ended.stderr


def test_failed_attempts_come_from_what_drivers_wrote_down(tmp_path: Path) -> None:
    run = begin(tmp_path)
    commit_all(run)
    lost = {"event": "worker_lost", "worker": "a/1", "kind": "node_died", "at": 1500.0}
    lines = [
        {"event": "started", "tasks": 4, "at": 1000.0},
        {
            "event": "attempt_failed",
            "task": 1,
            "worker": "a/1",
            "seconds": 7.0,
            "kind": "raised",
            "at": 1100.0,
        },
        {**lost, "attempts": [{"task": 2, "worker": "a/1", "seconds": 3.0}]},
        {**lost, "attempts": [{"task": "2", "seconds": float("nan")}, 7]},
        {"event": "attempt_failed", "task": 2, "seconds": -1, "at": "now"},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    run.store.put(f"events/{'0' * 32}.jsonl", text.encode())
    document: Any = data(build_page(str(tmp_path / "run"), Yardstick()).html)
    assert document["failures"]["made_good"] == 2
    assert document["failures"]["made_good_kinds"] == {"raised": 1, "node_died": 1}
    assert document["cost"]["lost_hours"] == pytest.approx(10 / 3600)
    (row,) = document["workers"]["rows"]
    assert (row["worker"], row["failed"], row["tasks"]) == ("a/1", 2, 0)


def test_a_refused_canary_is_shown(tmp_path: Path) -> None:
    run = begin(tmp_path)
    batch = replace(fake_commit(run, 0, str(uuid4())), curve=[{"iteration": 1, "ce": 2.0}])
    reject(run, batch, "task 0: the teacher recognises 1.0%")
    text = build_page(str(tmp_path / "run"), Yardstick()).html.decode()
    assert ">Stopped<" in text
    assert "The canary failed: task 0: the teacher recognises 1.0%" in text
    assert text.count("data:image/webp") == 4
    assert "cross-entropy (CE) by iteration" in text


def test_a_pruning_sweep_has_a_page(tmp_path: Path) -> None:
    point = {"ratio": 0.5, "parameters": 10, "macs": 20, "accuracy_pruned": 0.2, "accuracy_fine_tuned": 0.7}
    sweep = {
        "teacher": "resnet34",
        "num_images": 128,
        "fingerprint": "cd" * 32,
        "complete": True,
        "accuracy": 0.9,
        "parameters": 100,
        "macs": 200,
        "test_split": "test",
        "num_test_images": 10_000,
        "points": [{**point, "ratio": 0.9, "accuracy_fine_tuned": 0.4}, point],
    }
    text = render_training(sweep, "pruned").decode()
    assert "accuracy 90.00% not pruned, 70.00% at best" in text
    assert text.index(">0.5<") < text.index(">0.9<")


@pytest.mark.parametrize("result", [{}, {"points": 7}, {"student": "x", "num_images": "many"}])
def test_a_result_that_no_training_wrote(result: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(json.dumps(result))
    ended = nisynth("report", tmp_path, "-o", tmp_path / "page.html")
    assert ended.returncode == 1
    assert "no result of a training of ours" in ended.stderr


@pytest.mark.parametrize("size", ["another", "the same"])
def test_a_damaged_shard_is_said_on_the_page(size: str, tmp_path: Path) -> None:
    run = begin(tmp_path)
    attempts = commit_all(run)
    seal(run)
    for task, attempt in attempts.items():
        key = shard_key(run.plan.fp12, task, attempt, "parquet")
        run.store.put(key, bytes(run.store.size_bytes(key)) if size == "the same" else b"no shard")
    built = build_page(str(tmp_path / "run"), Yardstick())
    text = built.html.decode()
    assert len(built.damage) == 4
    assert ">Damaged<" in text
    assert ">Complete<" not in text
    assert "<p>Damaged: run/data/" in text
    assert "An image cannot be read; see Failures." in text
    assert str(tmp_path) not in text
    ended = nisynth("report", tmp_path / "run", "-o", tmp_path / "page.html")
    assert (ended.returncode, "the run is damaged: run/data/" in ended.stdout) == (1, True)


def test_images_of_the_sound_shards_are_shown_beside_a_damaged_one(tmp_path: Path) -> None:
    run = begin(tmp_path)
    attempts = commit_all(run)
    key = shard_key(run.plan.fp12, 2, attempts[2], "parquet")
    run.store.put(key, bytes(run.store.size_bytes(key)))
    built = build_page(str(tmp_path / "run"), Yardstick())
    text = built.html.decode()
    assert len(built.damage) == 1
    assert text.count("data:image/webp") == 4
    assert "Not measured: an image cannot be read; see Failures." in text
    assert "<code>nisynth redo run --task 2</code>" in text


@pytest.mark.parametrize("verb", ["quality", "status"])
def test_quality_and_status_of_a_student_are_its_accuracy(tmp_path: Path, verb: str) -> None:
    (tmp_path / "result.json").write_text(json.dumps(STUDENT))
    shown = nisynth(verb, tmp_path)
    assert shown.stdout == (
        "resnet18 trained on 128 synthetic images: test accuracy 81.00%, teacher accuracy 92.00%\n"
    )
    assert json.loads(nisynth(verb, tmp_path, "--json").stdout)["test accuracy"] == 0.81
    (tmp_path / "result.json").write_text(json.dumps({**STUDENT, "num_images": 1, "teacher_accuracy": None}))
    shown = nisynth(verb, tmp_path)
    assert "trained on 1 synthetic image: " in shown.stdout
    assert shown.stdout.endswith("teacher accuracy not measured\n")
    (tmp_path / "result.json").write_text(json.dumps({**STUDENT, "test_accuracy": "most"}))
    assert nisynth(verb, tmp_path).returncode == 1


def test_a_real_set_gives_figures_pairs_and_a_map(tmp_path: Path) -> None:
    pytest.importorskip("openTSNE")
    run = begin(tmp_path)
    commit_all(run)
    by = Yardstick(real=real_folder(tmp_path / "real", run.plan.classes))
    text = build_page(str(tmp_path / "run"), by).html.decode()
    assert "precision alone misleads" in text
    assert "Fréchet distance (FD)" in text
    assert text.count("beside real image ") == 16
    assert "a 10-nearest-neighbour classifier tells the two sets apart" in text
    assert "not measured: sajjadi, which needs 20 images of each set" in text
    assert str(tmp_path) not in text
    document: Any = data(text.encode())
    assert document["quality"]["real"] == "real"
    assert document["quality"]["num_real"] == 24
    assert len(text) < MOST_BYTES


def test_a_fitted_generator_has_a_page() -> None:
    curve = [{"iteration": i, "ce": 2.0 / (i + 1)} for i in range(5)]
    identity = {"fit": "one_to_many", "teacher": {"arch": "resnet34"}, "seed": 0}
    fit = {"identity": identity, "sha256": "ab" * 32, "iterations": 5, "curve": curve}
    text = render_training(fit, "generator").decode()
    assert "A generator fitted by one_to_many to resnet34" in text
    assert "cross-entropy (CE) by iteration" in text
    assert "ab" * 32 in text
