"""Drivers of a run: in this process, where a Ray connection is shared, or in one of their own, to be killed.

Processes are forked from a server that has imported everything, so that one costs a fraction of a second.
What they run is the command line, so their exit codes are the product's own.
"""

import io
import multiprocessing
import os
import re
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, Literal, NoReturn
from unittest.mock import patch

FOREIGN = ("AWS_PROFILE", "RAY_ADDRESS")
LIMIT_S = 1800.0
"""Only a driver that hangs reaches it: on a machine with a hundred busy processes a run takes minutes."""
_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(
    # torch imports _inductor, all of it, when it is told to be deterministic.
    [
        "nisynth.cli.runs",
        "nisynth.execution.run",
        "nisynth.worker",
        "nisynth.storage.s3",
        "tests.chaos.teacher",
        "torch._inductor",
    ]
)


@dataclass(frozen=True)
class Death:
    """A moment of a driver's life: its `nth` call of a store's `verb` on a key that matches.

    when: `before` the call, `after` it, or `inside`: the bytes are on the disk, the name is not
    (a local store's create only).
    """

    verb: Literal["create", "delete"]
    key: str
    when: Literal["before", "inside", "after"]
    nth: int = 1


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, minus the signal where one killed it, and all it printed."""

    code: int
    words: str


def run_here(
    config: Path, url: str, overrides: Sequence[str], environment: Mapping[str, str], rules: Mapping[str, Any]
) -> Ended:
    """Runs in this process, with its connection to Ray, on Ray actors, with other limits than the usual."""
    from nisynth.config import load_config
    from nisynth.errors import NisynthError
    from nisynth.execution.run import run
    from nisynth.execution.schedule import Rules
    from nisynth.progress import PlainLines

    words = io.StringIO()
    with surrounded(environment):
        try:
            report = run(
                load_config(config, overrides),
                url,
                executor="ray",
                listeners=[PlainLines(words)],
                rules=Rules(**rules),
            )
            code = report.exit_code
        except NisynthError as error:
            print(f"nisynth: error: {error}", file=words)
            code = error.exit_code
    return Ended(code, words.getvalue())


def run_apart(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    log: Path,
    death: Death | None = None,
    on_start: Callable[[int], None] = lambda pid: None,
) -> Ended:
    """Runs one command line in a process of its own. Raises TimeoutError after half an hour."""
    log.unlink(missing_ok=True)
    process: ForkServerProcess = _forks.Process(
        target=_live, args=(list(arguments), dict(environment), str(log), death)
    )
    process.start()
    on_start(process.pid or 0)
    process.join(LIMIT_S)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise TimeoutError(f"{arguments}: not ended after {LIMIT_S:.0f} s: {log.read_text()[-2000:]}")
    code = process.exitcode
    process.close()
    return Ended(code, log.read_text())


@contextmanager
def surrounded(environment: Mapping[str, str]) -> Iterator[None]:
    """Sets variables of this process for a while, with none of a user's own AWS or Ray settings."""
    with patch.dict(os.environ, environment):
        for name in FOREIGN:
            os.environ.pop(name, None)
        yield


def _live(arguments: list[str], environment: dict[str, str], log: str, death: Death | None) -> NoReturn:
    import sys

    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    for name in FOREIGN:
        os.environ.pop(name, None)
    os.environ.update(environment)
    if death is not None:
        _prepare(death)
    sys.argv = ["nisynth", *arguments]
    from nisynth.cli import main

    main()
    raise AssertionError("main() exits")


def _prepare(death: Death) -> None:
    """Makes this process kill itself at the moment described: nobody else is as punctual."""
    from nisynth.storage.local import LocalStore
    from nisynth.storage.s3 import S3Store

    calls = count(1)

    def dying(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(store: Any, key: str, *rest: Any) -> Any:
            if re.fullmatch(death.key, key) is None or next(calls) != death.nth:
                return real(store, key, *rest)
            if death.when == "before":
                _die()
            if death.when == "inside":
                os.link = _die
            try:
                real(store, key, *rest)
            finally:
                _die()

        return call

    for kind in (LocalStore, S3Store):
        setattr(kind, death.verb, dying(getattr(kind, death.verb)))


def _die(*_: object) -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("nobody survives SIGKILL")
