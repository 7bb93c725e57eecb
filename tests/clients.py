"""Clients of a Ray head: the work that they submit, and the terminals on which it is followed."""

import contextlib
import io
import shutil
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from nisynth import cli
from tests.head import RayHead
from tests.tiny import tiny_config

TASKS = 4


@dataclass(frozen=True)
class Work:
    """A config file whose network lies beside it, and a gate that holds the network's computation."""

    folder: Path

    @property
    def module(self) -> Path:
        return self.folder / "gated_net.py"

    @property
    def file(self) -> Path:
        return self.folder / "config.yaml"

    def write(self, **sections: dict[str, Any]) -> "Work":
        teacher = {"arch": "gated_net:GatedNet", "kwargs": {"gate": str(self.folder / "gate")}}
        resolved = tiny_config(self.folder, run={"num_images": 4 * TASKS}, **sections).to_dict()
        resolved["teacher"] |= teacher
        self.file.write_text(yaml.safe_dump(resolved))
        return self

    def hold(self, commits: int, url: Path) -> None:
        """Lets no task begin once the run has so many commits; needs a URL that is a folder."""
        (self.folder / "gate").write_text(f"{commits} {url / 'commits'}")

    def release(self) -> None:
        (self.folder / "gate").unlink()

    def arguments(self, head: RayHead, url: object, *more: str) -> list[str]:
        words = ["submit", self.file, "--store", url, "--module", self.module, "--address", head.address]
        return [*map(str, words), *more]


def make_work(folder: Path, patch: pytest.MonkeyPatch) -> Work:
    """Returns the work of a folder, whose network this process may import too."""
    shutil.copy(Path(__file__).with_name("gated_net.py"), folder)
    patch.syspath_prepend(str(folder))
    return Work(folder).write()


class Screen(io.StringIO):
    """A terminal of one client; `expect` waits for a text to appear on it."""

    def __init__(self) -> None:
        super().__init__()
        self._changed = threading.Condition()

    def write(self, text: str) -> int:
        with self._changed:
            self._changed.notify_all()
            return super().write(text)

    def expect(self, text: str, limit_s: float = 120.0) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: text in self.getvalue(), limit_s), self.getvalue()


def nisynth(*arguments: str, screen: Screen | None = None) -> tuple[int, str]:
    """Runs one command line in this process; returns its exit code and what it printed."""
    screen = screen or Screen()
    with contextlib.redirect_stdout(screen), contextlib.redirect_stderr(screen):
        return cli.execute(list(arguments)), screen.getvalue()


def jobs_of(head: RayHead, url: object) -> list[str]:
    """Returns the ids of the jobs that were sent to do the run at the URL."""
    jobs = [job for job in head.get("/api/jobs/") if (job["metadata"] or {}).get("store") == str(url)]
    return sorted(job["submission_id"] for job in jobs)
