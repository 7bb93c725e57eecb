"""The arguments and options that several verbs take."""

from typing import Annotated, Literal

import typer

from nisynth.errors import ConfigError

ConfigArgument = Annotated[
    str, typer.Argument(metavar="CONFIG", help="A YAML file, or the name of a shipped config such as `demo`.")
]
UrlArgument = Annotated[str, typer.Argument(metavar="URL", help="The run: a folder or s3://bucket/prefix.")]
SetOption = Annotated[
    list[str],
    typer.Option("--set", metavar="A.B=C", help="Override a config value, e.g. run.num_images=1024."),
]
PartialOption = Annotated[
    bool | None,
    typer.Option("--allow-partial", help="Take a run that is not complete yet (allow_partial)."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document for a machine to read.")]
QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", help="No progress; results, notes and errors stay.")
]
ActorsOption = Annotated[int | None, typer.Option("--workers", help="Actors (execution.workers).")]
ClusterOption = Annotated[
    str | None, typer.Option("--address", help="A Ray cluster; none: one on this machine.")
]


def executor_of(named: str) -> Literal["local", "ray"]:
    """Returns what `--executor` names. Raises ConfigError."""
    if named not in ("local", "ray"):
        raise ConfigError(f"--executor {named!r}: use local or ray")
    return "ray" if named == "ray" else "local"


def with_workers(set_: list[str], workers: int | None) -> list[str]:
    """Returns the overrides of a config, with `--workers` among them where it was given."""
    return [*set_, *([f"execution.workers={workers}"] if workers is not None else [])]
