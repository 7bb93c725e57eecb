"""The verbs that read a run back from storage: pull a copy of it, and the logs of its tasks."""

import dataclasses
import json
import time
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from nisynth.cli.options import JsonOption, QuietOption, UrlArgument
from nisynth.cli.output import out, shards_shown
from nisynth.commits import Commit
from nisynth.commits.logs import Failed, TaskLog, quarantine_logs, task_log
from nisynth.commits.pull import WORKERS
from nisynth.commits.rejected import read_rejected
from nisynth.errors import ConfigError, counted
from nisynth.execution import COMPLETE, PARTIAL
from nisynth.progress import format_seconds, printable
from nisynth.progress.rates import format_failure
from nisynth.series.by_url import pull as pull_run
from nisynth.series.run import open_run

NOTHING_RECORDED = Failed("unknown", "no failure is recorded")
CURVE_POINTS = 12
CURVE_TERMS = 8


def pull(
    url: UrlArgument,
    folder: Annotated[
        str,
        typer.Argument(
            metavar="DIR", help="A local folder: new, empty, or the copy that an earlier pull began."
        ),
    ],
    workers: Annotated[
        int, typer.Option(min=1, max=32, help="Shards fetched at a time; memory holds as many.")
    ] = WORKERS,
    allow_partial: Annotated[
        bool,
        typer.Option("--allow-partial", help="Copy what is committed of an unfinished run; ends with 3."),
    ] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> int:
    """Copy a run into a local folder, each shard checked against its commit. Run it again to resume."""
    began_s = time.monotonic()
    source = open_run(url)
    with shards_shown(quiet) as show:
        done = pull_run(source, folder, workers=workers, allow_partial=allow_partial, on_checked=show)
    if as_json:
        out.print_json(json.dumps(dataclasses.asdict(done)), ensure_ascii=True)
    else:
        seconds = max(time.monotonic() - began_s, 1e-3)
        fetched_mb = done.fetched_bytes / 1e6
        _print(
            f"{done.folder}: {'a whole' if done.complete else 'a partial'} copy of {done.url},"
            f" {counted(done.shards, 'shard')}, {counted(done.images, 'image')}; fetched now"
            f" {counted(done.fetched, 'shard')},"
            f" {fetched_mb:,.1f} MB in {format_seconds(seconds)} ({fetched_mb / seconds:,.1f} MB/s)"
        )
    return COMPLETE if done.complete else PARTIAL


def logs(
    url: UrlArgument,
    task: Annotated[
        int | None, typer.Option("--task", help="One task; without it, every task that was given up on.")
    ] = None,
    curve: Annotated[
        str, typer.Option("--curve", metavar="PNG", help="With --task: draw its loss terms (Figure 5) there.")
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """Say who made a task, how long it took and how its losses fell, or how it failed."""
    opened = open_run(url)
    if curve and task is None:
        raise ConfigError("logs --curve: name the task with --task N")
    if task is not None:
        found = task_log(opened, task)
        if curve:
            _draw_curve(found, curve)
        if as_json:
            out.print_json(json.dumps(dataclasses.asdict(found)), ensure_ascii=True)
        else:
            _print_task(found)
        return
    quarantined = quarantine_logs(opened)
    if as_json:
        document = [{"task": log.task, "failures": _failures(log)} for log in quarantined]
        out.print_json(json.dumps({"quarantined": document}), ensure_ascii=True)
        return
    for log in quarantined:
        last = log.failures[-1] if log.failures else NOTHING_RECORDED
        _print(format_failure(log.task, last.kind, last.message))
    end = f"`nisynth logs {url} --task N` shows all of one; mend the cause, then `nisynth retry {url}`"
    _print(end if quarantined else "no task is quarantined")
    rejected = read_rejected(opened)
    if rejected is not None:
        _print(f"the canary failed: {rejected.message}; `nisynth logs {url} --task 0` shows its losses")


def _draw_curve(log: TaskLog, path: str) -> None:
    from nisynth.report.curves import loss_terms
    from nisynth.report.pictures import write_file

    batch = log.commit or (log.rejected and log.rejected.batch)
    if not batch or not batch.curve:
        raise ConfigError(
            f"logs --curve: task {log.task} has no loss curve; it is not committed, or logged none"
        )
    write_file(path, loss_terms(batch.curve, f"task {log.task}"))


def _failures(log: TaskLog) -> list[dict[str, str]]:
    return [dataclasses.asdict(failure) for failure in log.failures]


def _print_task(log: TaskLog) -> None:
    if log.commit is not None:
        _print_commit(log.commit)
    elif log.state == "open" and log.rejected is None:
        _print(f"task {log.task}: not committed, not quarantined yet")
    elif log.state == "quarantined":
        _print(f"task {log.task}: quarantined; failures recorded: {len(log.failures)}")
        for number, failure in enumerate(log.failures, 1):
            _print(f"failure {number}, {failure.kind}")
            for line in failure.message.splitlines():
                _print(f"  {line}")
    if log.rejected is not None:
        _print(f"failed the quality gate: {log.rejected.message}")
        _print_facts(log.rejected.batch)


def _print_commit(commit: Commit) -> None:
    _print(f"task {commit.task}: committed, {counted(commit.rows, 'image')}, {commit.bytes / 1e6:,.3f} MB")
    _print_facts(commit)


def _print_facts(commit: Commit) -> None:
    facts = {
        "attempt": commit.attempt,
        "shard": commit.shard,
        "worker": commit.worker,
        "started": _moment(commit.started_at),
        "finished": _moment(commit.finished_at),
        "device": commit.device or "unknown",
        "versions": _pairs(commit.versions),
        "figures": _pairs(commit.figures),
        "seconds": _pairs(commit.timings_s),
    }
    for name, value in facts.items():
        if value:
            _print(f"{name:9} {value}")
    if commit.curve:
        out.print(_curve_table(commit.curve))


def _curve_table(curve: list[dict[str, float]]) -> Table:
    """Returns the loss terms at a few iterations, first and last among them."""
    count = min(len(curve), CURVE_POINTS)
    chosen = [curve[i * (len(curve) - 1) // max(count - 1, 1)] for i in range(count)]
    names = sorted(curve[0], key=lambda name: (name != "iteration", name != "total"))[:CURVE_TERMS]
    table = Table(box=None)
    for name in names:
        table.add_column(Text(printable(name)), justify="right")
    for point in chosen:
        table.add_row(*(Text(f"{point[name]:.5g}" if name in point else "") for name in names))
    return table


def _moment(unix_s: float) -> str:
    """Returns a worker's clock as text, nothing where it was not recorded or is not a date."""
    if not 0 < unix_s < 1e11:
        return ""
    return f"{datetime.fromtimestamp(unix_s, UTC):%Y-%m-%d %H:%M:%S} UTC by the worker's clock"


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in values.items()
    )


def _print(line: str) -> None:
    """Prints one line as it is, but for what a terminal would obey: records are anyone's words."""
    out.out(printable(line), highlight=False)
