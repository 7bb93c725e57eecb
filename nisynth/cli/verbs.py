"""Which verbs there are, and where each is: its module is loaded once the verb is called."""

import ast
from functools import cache
from importlib import import_module, resources
from typing import Annotated, Any, cast

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from nisynth.identity import __version__

VERBS = {
    "plan": "runs:plan",
    "probe": "probe:probe",
    "run": "runs:run",
    "status": "runs:status",
    "verify": "runs:verify",
    "retry": "runs:retry",
    "redo": "runs:redo",
    "gc": "runs:gc",
    "preview": "runs:preview",
    "teachers": "runs:teachers",
    "evaluate": "compress:evaluate_network",
    "prune": "compress:prune_network",
    "distill": "distill:distill",
    "scratch": "distill:scratch",
    "adapt": "adapt:adapt",
    "fit": "fit:fit",
    "submit": "jobs:submit",
    "methods": "methods:methods",
    "config": "reference:config",
    "quality": "quality:quality",
    "tsne": "quality:tsne",
    "compare": "quality:compare",
    "report": "report:report",
    "card": "report:card",
    "pull": "storage:pull",
    "warm": "export:warm",
    "export": "export:export",
    "logs": "storage:logs",
}
"""Every verb, in the order of `nisynth --help`, and its function: module of this package, colon, name."""

RENAMED = {"distil": "distill"}
"""Verbs by their former names, which still work and say the new one."""


class Verb(TyperCommand):
    """A verb before it is called: its name and its help, which is read from the source of its module."""

    def __init__(self, name: str, home: str) -> None:
        self._module, _, self._function = home.partition(":")
        super().__init__(name, help=_docstrings(self._module)[self._function])

    def load(self) -> TyperCommand:
        """Returns the verb itself, with its options, from its module."""
        alone = typer.Typer(add_completion=False)
        alone.command(self.name)(getattr(import_module(f"nisynth.cli.{self._module}"), self._function))
        return cast(TyperCommand, get_command(alone))

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Returns the context of the loaded verb, which runs it, completes it or shows its help."""
        return self.load().make_context(info_name, args, parent, **extra)


class Renamed(Verb):
    """A verb under its former name: not in the help, and one line on stderr names the new one."""

    def __init__(self, former: str, name: str) -> None:
        super().__init__(name, VERBS[name])
        self.hidden = True
        self._former = former

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Returns the context of the verb under its new name, after saying it."""
        typer.echo(f"nisynth: `{self._former}` is now `{self.name}`; the old name will go", err=True)
        return super().make_context(self.name, args, parent, **extra)


def command_line(epilog: str) -> TyperGroup:
    """Returns the command line, of which no verb is loaded yet. epilog: stands under the help."""
    app = typer.Typer(epilog=epilog, context_settings={"help_option_names": ["--help", "-h"]})
    app.callback()(_nisynth)
    group = cast(TyperGroup, get_command(app))
    for name, home in VERBS.items():
        group.add_command(Verb(name, home))
    for former, name in RENAMED.items():
        group.add_command(Renamed(former, name), former)
    return group


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"nisynth {__version__}")
        raise typer.Exit


def _nisynth(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Synthesize a labelled image set from a pre-trained classifier alone, and compress a model with it."""


@cache
def _docstrings(module: str) -> dict[str, str | None]:
    source = resources.files("nisynth.cli").joinpath(f"{module}.py").read_text(encoding="utf-8")
    functions = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    return {function.name: ast.get_docstring(function) for function in functions}
