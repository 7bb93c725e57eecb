"""What an actor decides before it has a worker."""

import types
from typing import Any

import pytest
import ray

from nisynth import __version__
from nisynth.errors import TeacherError
from nisynth.execution import actors


@pytest.mark.parametrize(("gpus", "device"), [([], "cpu"), (["0"], None)])
def test_a_worker_that_was_given_no_gpu_computes_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch, gpus: Any, device: str | None
) -> None:
    """Ray lets a process that asks for no GPU see those of its node; all would share the first."""
    asked = []

    def worker(config: Any, fingerprint: Any, store_url: Any, device: Any) -> None:
        asked.append(device)
        raise TeacherError("enough")

    context = types.SimpleNamespace(get_node_id=lambda: "a1", get_accelerator_ids=lambda: {"GPU": gpus})
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(actors, "Worker", worker)
    monkeypatch.setattr(actors, "load_config", lambda config: config)
    assert isinstance(actors.Actor(0).start(__version__, {}, "f", "s3://b/run"), TeacherError)
    assert asked == [device]
