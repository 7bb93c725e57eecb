"""Conductors that end by kill -9 at a chosen write, and another after each: `python -m tests.series.killed`.

Every conductor is a process of its own, forked from this one, which has imported everything (torch._dynamo
alone takes a second and a half) and computed nothing.
"""

import json
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch._dynamo

import nisynth.execution.local
import nisynth.report.curves
import nisynth.series.conductor
from nisynth.storage.local import LocalStore

Write = Callable[[LocalStore, str, bytes], None]


@dataclass(frozen=True)
class Seam:
    """Where a conductor is killed: right before or after the first write of a key that matches.

    number: instead, before the write of this number, from 0; a series with fewer writes is not killed.
    """

    key: str = ""
    after: bool = True
    number: int = -1


def conduct(config: dict[str, Any], url: str, seam: Seam | None = None) -> int:
    """Returns how a conductor in a process of its own ended: an exit code, or minus a signal."""
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            torch.set_num_threads(1)
            if seam is not None:
                _die_at(seam, url)
            nisynth.adapt(config, url)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _die_at(seam: Seam, url: str) -> None:
    writes = [0]

    def wrapped(write: Write) -> Write:
        def dying(store: LocalStore, key: str, data: bytes) -> None:
            place = os.path.relpath(f"{store.url}/{key}", url)
            here = writes[0] == seam.number or (seam.key and re.fullmatch(seam.key, place))
            writes[0] += 1
            if here and not seam.after:
                os.kill(os.getpid(), signal.SIGKILL)
            write(store, key, data)
            if here:
                os.kill(os.getpid(), signal.SIGKILL)

        return dying

    LocalStore.create = wrapped(LocalStore.create)  # type: ignore[method-assign]
    LocalStore.put = wrapped(LocalStore.put)  # type: ignore[method-assign]


def main(config_path: str, folder: str, seams_json: str) -> None:
    """Prints, for each seam, how the killed conductor and the one after it ended, as a JSON line."""
    config = json.loads(Path(config_path).read_text())
    nisynth.report.curves.training_curves(
        [{"epoch": 1.0, "loss": 1.0, "train_accuracy": 0.0}], ""
    )  # loads fonts
    for name, fields in json.loads(seams_json).items():
        url = str(Path(folder) / name)
        ended = conduct(config, url, Seam(**fields))
        print(json.dumps([name, ended, conduct(config, url)]), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
