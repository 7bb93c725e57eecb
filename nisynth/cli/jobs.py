"""The verb that hands a run to a cluster: submit."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

import nisynth
from nisynth.cli.options import ConfigArgument, SetOption
from nisynth.errors import ConnectionLost, Stopped

if TYPE_CHECKING:
    from nisynth.execution.submit import Shipment

DEFAULT_ADDRESS = "http://127.0.0.1:8265"


def submit(
    config: ConfigArgument,
    store: Annotated[str, typer.Option(help="Where the run lives: s3://bucket/prefix.")],
    address: Annotated[
        str, typer.Option(envvar="RAY_API_SERVER_ADDRESS", help="The dashboard of the cluster's head.")
    ] = DEFAULT_ADDRESS,
    workers: Annotated[int | None, typer.Option(help="Actors (execution.workers).")] = None,
    set_: SetOption = [],  # noqa: B006  typer copies it
    module: Annotated[
        list[str],
        typer.Option(metavar="PATH", help="A .py file or package that travels along; may be repeated."),
    ] = [],  # noqa: B006
    ship: Annotated[
        bool, typer.Option("--ship", help="Run this nisynth there, not the one installed on the cluster.")
    ] = False,
    env: Annotated[
        list[str],
        typer.Option(metavar="NAME", help="A variable to forward, no secret; may be repeated."),
    ] = [],  # noqa: B006
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Print the job's id and leave it to itself.")
    ] = False,
) -> int:
    """Run on a Ray cluster, as a job that goes on without this terminal; exits with the job's own exit code.

    Submit the same run again to attach to its job, or to resume where the last one ended. Ctrl-C leaves the
    job running.
    """
    from nisynth.config import load_config
    from nisynth.execution.jobs_api import JobsApi, UnknownJob
    from nisynth.execution.submit import follow, pack
    from nisynth.execution.submit import submit as send

    sys.path[:0] = [str(Path(path).resolve().parent) for path in module]
    overrides = [*set_, *([f"execution.workers={workers}"] if workers is not None else [])]
    modules = [*module, *([str(Path(nisynth.__file__).parent)] if ship else [])]
    shipment = pack(load_config(config, overrides), store, environment=env, modules=modules)
    _warn(shipment)
    api = JobsApi(address)
    submitted = send(api, shipment)
    how = "is under way; attached to it" if submitted.attached else f"sent to {api.address}"
    _note(f"job {submitted.job_id} {how}; `ray job stop --address {api.address} {submitted.job_id}` ends it")
    if no_wait:
        print(submitted.job_id)
        return 0
    try:
        job = follow(api, submitted, _write, _note)
    except KeyboardInterrupt:
        _note(f"job {submitted.job_id} goes on; submit again to attach")
        return 130
    except UnknownJob:
        raise
    except Stopped:
        raise ConnectionLost(
            f"stopped by SIGTERM, job {submitted.job_id} goes on; submit again to attach"
        ) from None
    assert job.exit_code is not None
    _note(f"job {job.id} {job.status.lower()}, exit code {job.exit_code}: {job.reason}")
    return job.exit_code


def _warn(shipment: "Shipment") -> None:
    arch = shipment.config.teacher.arch
    package = arch.partition(":")[0].partition(".")[0]
    if ":" in arch and not {package, f"{package}.py"} & set(shipment.files):
        _note(f"teacher.arch {arch!r} has to be installed on every node, unless --module sends it along")
    if "://" not in shipment.store_url:
        _note(f"store {shipment.store_url} is a folder: every node has to share it under this path")
    if shipment.environment:
        names = ", ".join(shipment.environment)
        _note(f"whoever may look at the cluster sees the values of {names} in the job's metadata")


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _note(text: str) -> None:
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"nisynth: {text}", markup=False)
