"""Experiment trackers hear of a run, import nothing until then, and cost the run nothing where absent."""

import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from nisynth import run
from nisynth.execution.events import Note
from nisynth.progress.trackers import mlflow_tracker, tensorboard_tracker, wandb_tracker
from tests.tiny import tiny_config

Logged = list[tuple[str, Any]]


def fake_wandb(logged: Logged) -> types.ModuleType:
    module = types.ModuleType("wandb")

    def init(**options: Any) -> types.SimpleNamespace:
        logged.append(("init", options))
        return types.SimpleNamespace(
            log=lambda figures, step: logged.append((str(step), figures)),
            finish=lambda: logged.append(("finish", None)),
        )

    module.init = init  # type: ignore[attr-defined]
    return module


def fake_mlflow(logged: Logged) -> types.ModuleType:
    module = types.ModuleType("mlflow")
    module.start_run = lambda **options: logged.append(("init", options))  # type: ignore[attr-defined]
    module.log_metrics = lambda figures, step: logged.append((str(step), figures))  # type: ignore[attr-defined]
    module.end_run = lambda: logged.append(("finish", None))  # type: ignore[attr-defined]
    return module


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_tracker_gets_the_figures_of_every_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    logged: Logged = []
    fake = {"wandb": fake_wandb, "mlflow": fake_mlflow}[name](logged)
    monkeypatch.setitem(sys.modules, name, fake)
    track = {"wandb": wandb_tracker, "mlflow": mlflow_tracker}[name]
    assert run(tiny_config(tmp_path), str(tmp_path / "run"), listeners=[track(tags={"a": "b"})]).complete
    assert [what for what, _ in logged] == ["init", "1", "2", "3", "4", "finish"]
    assert logged[0][1] == {"tags": {"a": "b"}}
    figures = logged[4][1]
    assert figures["images"] == 16
    assert {"failures", "seconds/synthesize", "seconds/put", "quality/teacher_accuracy"} <= figures.keys()
    assert all(isinstance(value, int | float) for value in figures.values())


@pytest.mark.parametrize("track", [wandb_tracker, mlflow_tracker])
def test_a_tracker_that_is_not_installed_is_one_note_and_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, track: Any
) -> None:
    for name in ("wandb", "mlflow"):
        monkeypatch.setitem(sys.modules, name, None)
    notes: list[str] = []
    report = run(
        tiny_config(tmp_path),
        str(tmp_path / "run"),
        listeners=[track(), lambda event: notes.append(event.text) if isinstance(event, Note) else None],
    )
    assert report.complete
    assert [note for note in notes if "listener Tracker failed and hears no more of the run" in note]


def test_tensorboard_gets_event_files(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    listeners = [tensorboard_tracker(str(tmp_path / "board"))]
    assert run(tiny_config(tmp_path), str(tmp_path / "run"), listeners=listeners).complete
    assert list((tmp_path / "board").glob("events.out.tfevents.*"))


def test_trackers_import_nothing_until_they_hear_something() -> None:
    code = (
        "import sys\n"
        "from nisynth.progress.trackers import *\n"
        "trackers = wandb_tracker(), mlflow_tracker(), tensorboard_tracker('x')\n"
        "print([name for name in ('wandb', 'mlflow', 'tensorboard') if name in sys.modules])\n"
    )
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert said.stdout == "[]\n"
