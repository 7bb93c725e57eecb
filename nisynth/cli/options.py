"""The arguments and options that several verbs take."""

from typing import Annotated

import typer

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
