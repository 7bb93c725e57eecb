"""Where a verb prints: its result on standard output, how far it is on standard error."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import typer
from rich.console import Console

from nisynth.progress import shown_shards

out = Console(highlight=False, markup=False, soft_wrap=True)


def narrator(quiet: bool) -> Callable[[str], None]:
    """Returns what prints a line of progress, and nothing where it is to be quiet."""
    return _silent if quiet else _say


def shards_shown(quiet: bool) -> AbstractContextManager[Callable[[int, int], None]]:
    """Returns `shown_shards()`, or what shows nothing where it is to be quiet."""
    return nullcontext(_show_nothing) if quiet else shown_shards()


def _say(line: str) -> None:
    typer.echo(line, err=True)


def _silent(line: str) -> None:
    pass


def _show_nothing(number: int, total: int) -> None:
    pass
