"""What a new inversion method costs: a config, a model of one batch's images, and a row of METHODS."""

from importlib import import_module
from pathlib import Path

import pytest
import torch

import nisynth
from nisynth.synthesis import METHODS
from tests.guides.pages import follow, run_code, write_files
from tests.tiny import TinyNet

TINY_RUN = ["--set", "run.num_images=8", "--set", "run.batch_size=4", "--set", "method.iterations=2"]
TINY = {"run": [*TINY_RUN, "--set", "execution.quality_gate=0"]}


def test_a_method_is_added_and_runs_in_the_plain_loop_the_engine_and_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    write_files("add-a-method", tmp_path)
    monkeypatch.setitem(METHODS, "pixels", import_module("pixels").ROW)

    batch = run_code("add-a-method")["batch"]
    assert batch.curve[-1]["total"] < batch.curve[0]["total"]

    said = follow("add-a-method", TINY, {})
    assert "pixels optimized directly, and nothing else" in " ".join(said["methods"].split())
    assert nisynth.status("pixels-run").complete

    described = {"num_classes": 4, "input_px": 16, "mean": (0.5,) * 3, "std": (0.25,) * 3}
    teacher = nisynth.load_teacher(TinyNet(), **described)
    for select in ("best", "last"):
        method = {"name": "pixels", "iterations": 5, "select": select}
        plain, fast = (
            nisynth.synthesize(teacher, 4, method=method, engine=engine, log_every=1)
            for engine in ({"name": "plain"}, {"name": "fast", "precision": "float32"})
        )
        assert fast.figures["engine"] == "fast, float32"
        totals = [point["total"] for point in plain.curve]
        assert totals[-1] < totals[0]
        assert [point["total"] for point in fast.curve] == pytest.approx(totals, rel=1e-2)
        torch.testing.assert_close(fast.images, plain.images, rtol=0.1, atol=0.05)
