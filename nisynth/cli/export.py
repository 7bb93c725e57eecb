"""The verbs that bring a run's images to where they are read: into the cache, or into another format."""

import dataclasses
import json
from typing import Annotated

import typer

from nisynth.cli.options import JsonOption, QuietOption, UrlArgument
from nisynth.cli.output import out, shards_shown
from nisynth.errors import counted
from nisynth.execution import COMPLETE, PARTIAL

AllowPartialOption = Annotated[
    bool, typer.Option("--allow-partial", help="Take what is committed of an unfinished run; ends with 3.")
]


def warm(
    url: UrlArgument,
    cache: Annotated[
        str | None, typer.Option(metavar="DIR", help="The cache's folder; none: the one of every reader.")
    ] = None,
    allow_partial: AllowPartialOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> int:
    """Fetch and decode a run into this machine's cache, so that no training waits for it."""
    from nisynth.reader import open_dataset

    images = open_dataset(url, cache=cache, allow_partial=allow_partial)
    with shards_shown(quiet) as show:
        images.warm(show)
    stats = images.source.stats
    if as_json:
        told = {"url": images.url, "images": len(images), "shards": len(images.shards)}
        out.print_json(json.dumps(told | {"fetched_bytes": stats.fetched_bytes, "complete": images.complete}))
    else:
        out.print(
            f"{images.url}: {counted(len(images), 'image')} of {counted(len(images.shards), 'shard')} in the"
            f" cache; fetched now {stats.fetched_bytes / 1e6:,.1f} MB"
        )
    return COMPLETE if images.complete else PARTIAL


def export(
    url: UrlArgument,
    folder: Annotated[
        str, typer.Argument(metavar="DIR", help="A local folder: new, empty, or one that an export began.")
    ],
    format: Annotated[
        str, typer.Option("--format", help="imagefolder, webdataset (tar), hf (Parquet for datasets) or npz.")
    ],
    allow_partial: AllowPartialOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> int:
    """Write a run's images in a format that other tools read. Run it again to resume, or to verify."""
    from nisynth.consumers.export import export as export_images
    from nisynth.reader import open_dataset

    images = open_dataset(url, allow_partial=allow_partial)
    with shards_shown(quiet) as show:
        done = export_images(images, folder, format, on_part=show)
    if as_json:
        out.print_json(json.dumps(dataclasses.asdict(done)), ensure_ascii=True)
    else:
        out.print(
            f"{done.folder}: {counted(done.images, 'image')} as {done.format},"
            f" {counted(done.parts, 'part')}, each checked; written now {done.written:,}"
        )
    return COMPLETE if done.complete else PARTIAL
