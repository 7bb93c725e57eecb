"""The public surface: what `nisynth.<Tab>` offers, what importing it costs, what a notebook shows of it."""

import inspect
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import nisynth
from nisynth import errors, storage
from nisynth.batch import ImageBatch
from nisynth.commits import Run
from nisynth.commits.audit import Problem, Verdict
from nisynth.consumers.evaluate import Evaluation
from nisynth.consumers.prune_report import PrunePoint, PruneReport
from nisynth.consumers.student_report import StudentReport
from nisynth.evaluation.figures import Figure
from nisynth.evaluation.networks import POOL
from nisynth.evaluation.quality import Quality
from nisynth.fitting import FitReport
from nisynth.in_memory import Probe
from nisynth.storage import open_store
from tests.tiny import commit_all, tiny_config, tiny_plan

FUNCTIONS = {
    *("adapt", "collate", "distill", "evaluate", "export", "fit", "load_config", "load_fit_config"),
    *("load_teacher", "open_dataset", "plan_run", "probe", "prune", "pull", "read_images", "run", "status"),
    *("synthesize", "train_from_scratch", "verify"),
}
CONFIGS = {"DistillConfig", "PruneConfig", "RunConfig", "ScratchConfig"}


def exceptions() -> set[str]:
    """The names of every exception that the package defines for its users."""
    return {
        name
        for module in (errors, storage)
        for name, value in vars(module).items()
        if inspect.isclass(value) and issubclass(value, errors.NisynthError)
    }


def test_the_public_names_are_these_and_complete_on_tab() -> None:
    assert set(nisynth.__all__) == FUNCTIONS | CONFIGS | exceptions() | {"__version__"}
    assert dir(nisynth) == sorted(nisynth.__all__)


def test_every_public_name_is_there_and_says_what_it_is() -> None:
    for name in FUNCTIONS | CONFIGS | exceptions():
        assert getattr(nisynth, name).__doc__, name
    with pytest.raises(AttributeError, match="has no attribute 'synthesise'"):
        nisynth.synthesise  # noqa: B018


def test_importing_the_package_and_its_exceptions_imports_no_heavy_library() -> None:
    code = (
        "import sys, nisynth; dir(nisynth); nisynth.NotFound; nisynth.StorageError;"
        "print({'torch', 'ray', 'numpy', 'pyarrow', 'matplotlib', 'boto3'} & set(sys.modules))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout == "set()\n"


def test_a_run_is_looked_at_verified_and_pulled_by_its_url(tmp_path: Path) -> None:
    run = Run.join(open_store(str(tmp_path / "run")), tiny_plan(tmp_path))
    commit_all(run)
    url = run.store.url
    assert nisynth.status(url).committed == nisynth.status(run).committed == run.plan.num_tasks
    assert nisynth.verify(url, deep=True).problems == ()
    pulled = nisynth.pull(url, str(tmp_path / "copy"), allow_partial=True)
    assert (pulled.shards, pulled.images) == (run.plan.num_tasks, run.plan.num_images)
    with pytest.raises(nisynth.PlanMismatch, match="no run there"):
        nisynth.status(str(tmp_path / "nothing"))


def test_what_a_notebook_shows_is_one_short_line(tmp_path: Path) -> None:
    plan = tiny_plan(tmp_path)
    run = Run.join(open_store(str(tmp_path / "run")), plan)
    assert repr(plan) == f"Plan({plan.fp12}: {plan.num_tasks} tasks, {plan.num_images} images)"
    assert repr(run) == f"Run({run.store.url!r}: {plan!r})"
    images = torch.zeros(plan.batch_size, 3, 8, 8)
    batch = ImageBatch(task=plan[0], images=images, labels=torch.zeros(plan.batch_size, dtype=torch.int64))
    assert repr(batch) == f"ImageBatch(task 0: {plan.batch_size} images, 8x8)"
    assert repr(Verdict(2, (Problem(1, "bad"),))) == "Verdict(2 tasks judged, 1 problem, not complete)"
    teacher = nisynth.load_teacher(tiny_config(tmp_path).teacher)
    arch, classes = teacher.identity["arch"], teacher.num_classes
    assert repr(teacher) == f"Teacher({arch}, {classes} classes, {teacher.input_px}x{teacher.input_px}, cpu)"
    fitted = FitReport({}, "ab" * 32, 1000, [{"total": 1.0}] * 1000)
    assert repr(fitted) == "FitReport(generator abababababab after 1,000 iterations)"
    found = Evaluation("vgg11", "cifar.parquet", "test", 4, 0.75, {"a": 0.75}, [[3, 1]] * 100)
    assert repr(found) == "Evaluation(vgg11: 75.00% on test, N=4 (cifar.parquet))"
    assert repr(plan[0]) == f"Task(0: {plan.batch_size} images)"


def filled(owner: type, **values: Any) -> Any:
    """Returns a dataclass with these values, the others None: what a repr does not read."""
    return owner(**(dict.fromkeys(field.name for field in fields(owner)) | values))


def test_what_a_notebook_shows_of_a_result_is_one_short_line() -> None:
    student = filled(StudentReport, kind="distill", output="out", student="resnet18", history=[{}] * 200)
    assert repr(student) == "StudentReport(distill at 'out': resnet18)"
    student = replace(student, test_accuracy=0.9, test_set="test.parquet")
    assert repr(student) == "StudentReport(distill at 'out': resnet18, 90.00% on test.parquet)"
    points = [filled(PrunePoint, ratio=ratio, accuracy_fine_tuned=0.75) for ratio in (0.5, 0.625)]
    pruned = filled(PruneReport, output="out", teacher="vgg11", accuracy=0.9, points=points)
    assert repr(pruned) == "PruneReport('out': vgg11, 90.00% unpruned, 0.5: 75.00%, 0.625: 75.00%)"
    probe = filled(Probe, labels=torch.zeros(32), iterations=20, planned=2000, verdict="the losses fall")
    assert repr(probe) == "Probe(32 images, 20 of 2,000 iterations: the losses fall)"
    quality = filled(Quality, synthetic="runs/demo", num_images=1000, figures=())
    assert repr(quality) == "Quality(runs/demo: 1,000 images)"
    distance = Figure("fd", POOL, 12.3456, 1000, 1000)
    quality = replace(quality, real="test.parquet", figures=(distance,))
    assert repr(quality) == "Quality(runs/demo: 1,000 images, FD 12.35 from test.parquet)"


def test_a_consumer_takes_a_mapping_as_the_run_does_and_names_a_wrong_field() -> None:
    for consume in (nisynth.distill, nisynth.train_from_scratch, nisynth.prune):
        with pytest.raises(nisynth.ConfigError, match="outpt"):
            consume({"data": "run", "outpt": "student"})
    with pytest.raises(nisynth.ConfigError, match="outpt"):
        nisynth.fit({"outpt": "fit"})
