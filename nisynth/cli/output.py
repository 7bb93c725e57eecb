"""Where a verb prints: its result on standard output, how far it is on standard error."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import typer
from rich.console import Console

from nisynth.progress import printable, shown_shards

out = Console(highlight=False, markup=False, soft_wrap=True)


def narrator(quiet: bool) -> Callable[[str], None]:
    """Returns what prints a line of progress, and nothing where it is to be quiet."""
    return _silent if quiet else _say


def shards_shown(quiet: bool) -> AbstractContextManager[Callable[[int, int], None]]:
    """Returns `shown_shards()`, or what shows nothing where it is to be quiet."""
    return nullcontext(_show_nothing) if quiet else shown_shards()


def show_training(url: str, as_json: bool) -> bool:
    """Prints what a finished training at the URL made, a student, a sweep or a generator; False without one.

    Raises DataError for a damaged `result.json`, StorageError.
    """
    from nisynth.report.build import read_result
    from nisynth.report.training_page import summary

    result = read_result(url)
    if result is None:
        return False
    head, numbers = summary(result, url)
    if as_json:
        out.print_json(json.dumps(numbers))
    else:
        shown = (f"{name} {_figure(value)}" for name, value in numbers.items())
        out.out(printable(f"{head}: {', '.join(shown)}"), highlight=False)
    return True


def _figure(value: object) -> str:
    if value is None:
        return "not measured"
    return f"{value:.2%}" if isinstance(value, float) else f"{value:,}"


def _say(line: str) -> None:
    typer.echo(line, err=True)


def _silent(line: str) -> None:
    pass


def _show_nothing(number: int, total: int) -> None:
    pass
