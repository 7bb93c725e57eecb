"""A run as a job of a Ray cluster: sent once, followed by anybody, and not ended by a lost connection.

The job is `python -m nisynth run` on the cluster's head. With it travels one small folder: the resolved
config, the teacher's weights where they are a file of this machine, the modules that the user names.
Credentials never do: workers take theirs from the standard chain of their own machine, since a job's
environment can be read by everybody, in its metadata and in the logs of every node.

A run's jobs are named by its fingerprint and its URL, so that everybody who submits the run finds the job
that is there: under way, it is followed; ended, the next one resumes it. Ray takes a name only once, which
settles the race of two submitters. Waiting for the job to end inside one long request was rejected: a
laptop that sleeps must not matter.
"""

import asyncio
import dataclasses
import hashlib
import json
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nisynth
from nisynth.config import RunConfig
from nisynth.errors import ConfigError, ConnectionLost
from nisynth.execution.jobs_api import JobsApi, RayJob
from nisynth.execution.run import plan_run
from nisynth.storage import open_store

CONFIG_NAME = "nisynth-run.json"
MAX_UPLOAD_BYTES = 99 * 2**20  # Ray takes no request above 100 MiB
RECONNECT_PAUSES_S = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
ATTACHED_LINES = 20

_SECRET_NAME = re.compile(r"SECRET|TOKEN|PASSW|CREDENTIAL|PRIVATE|ACCESS_?KEY|API_?KEY", re.IGNORECASE)
_SECRET_VALUE = re.compile(r"://[^/\s:@]+:[^/\s@]+@")
_NOT_SOURCE = shutil.ignore_patterns("__pycache__", ".git", ".gitignore")
# Ray kills a stopped job after 3 s by default; a driver may be waiting for an answer of the store.
_STOP_WAIT = {"RAY_JOB_STOP_WAIT_TIME_S": "30"}

Write = Callable[[str], object]


@dataclass(frozen=True, kw_only=True)
class Shipment:
    """What is sent for the job of one run. files: what travels, by its name in the job's folder."""

    name: str
    config: RunConfig
    store_url: str
    fingerprint: str
    files: Mapping[str, Path]
    environment: Mapping[str, str]

    @property
    def entrypoint(self) -> str:
        """The command that the head runs, in a folder that holds the config and the files."""
        words = ["run", CONFIG_NAME, "--store", self.store_url, "--executor", "ray", "--address", "auto"]
        return shlex.join(["python", "-m", "nisynth", *words])

    @property
    def metadata(self) -> dict[str, str]:
        """What `ray job list` shows beside the name."""
        return {
            "store": self.store_url,
            "fingerprint": self.fingerprint,
            "nisynth": nisynth.__version__,
        }

    def stage(self, folder: Path) -> None:
        """Writes the config and copies the files into an empty folder."""
        (folder / CONFIG_NAME).write_text(
            json.dumps(self.config.to_dict(), indent=1, ensure_ascii=False), encoding="utf-8"
        )
        for name, source in self.files.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, ignore=_NOT_SOURCE)
            else:
                shutil.copyfile(source, target)


@dataclass(frozen=True)
class Submitted:
    """The job that carries out the run now. attached: it existed before."""

    job_id: str
    attached: bool


def pack(
    config: RunConfig,
    store: str,
    *,
    environment: Sequence[str] = (),
    modules: Sequence[str | Path] = (),
) -> Shipment:
    """Returns the shipment of a run, planned here, so that a config no worker could use is never sent.

    environment: names of variables of this process that the job shall have; what looks like a secret is
    refused. modules: `.py` files and package folders that travel with the job and come first on its path.
    Raises ConfigError, TeacherError, StorageError (weights that cannot be read).
    """
    url = open_store(store).url
    if url.startswith("memory:"):
        raise ConfigError(
            f"store {url}: lives in one process; a job needs s3://bucket/prefix or a shared folder"
        )
    fingerprint = plan_run(config).fingerprint
    files = {path.name: path for path in map(_module, modules)}
    teacher = _with_shipped(config.teacher, "weights", "weights", files)
    method: Any = config.method
    if getattr(method, "rival", None) is not None:
        method = dataclasses.replace(method, rival=_with_shipped(method.rival, "weights", "rival", files))
    if hasattr(method, "generator"):
        method = _with_shipped(method, "generator", "generator", files)
    config = dataclasses.replace(config, teacher=teacher, method=method)
    shipment = Shipment(
        name=f"nisynth-{fingerprint[:12]}-{hashlib.sha256(url.encode()).hexdigest()[:8]}",
        config=config,
        store_url=url,
        fingerprint=fingerprint,
        files=files,
        environment={name: _forwarded(name) for name in environment},
    )
    _check_size(shipment)
    return shipment


def submit(api: JobsApi, shipment: Shipment) -> Submitted:
    """Returns the run's job that is pending or running, or else a new one. Raises ConnectionLost."""
    before = api.named(shipment.name)
    for job in before:
        if not job.ended:
            return Submitted(job.id, attached=True)
    number = int(before[-1].id.rpartition("-")[2]) + 1 if before else 1
    job_id = f"{shipment.name}-{number}"
    with tempfile.TemporaryDirectory(prefix="nisynth-") as folder:
        shipment.stage(Path(folder))
        runtime_env = {"working_dir": folder, "env_vars": {**_STOP_WAIT, **shipment.environment}}
        mine = api.send(job_id, shipment.entrypoint, runtime_env, shipment.metadata)
    return Submitted(job_id, attached=not mine)


def follow(
    api: JobsApi,
    submitted: Submitted,
    write: Write,
    note: Write,
    pauses_s: Sequence[float] = RECONNECT_PAUSES_S,
) -> RayJob:
    """Returns the job once it has ended; until then gives what it prints to `write`, piece by piece.

    Of a job that was there before, the last lines only. pauses_s: between attempts to reach a cluster
    that is lost; each is told to `note`. Raises ConnectionLost after the last, UnknownJob when the
    cluster came back without the job.
    """
    return asyncio.run(_follow(api, submitted, write, note, pauses_s))


async def _follow(
    api: JobsApi, submitted: Submitted, write: Write, note: Write, pauses_s: Sequence[float]
) -> RayJob:
    job_id = submitted.job_id
    shown = None if submitted.attached else 0
    failures = 0
    while True:
        try:
            await asyncio.to_thread(api.info, job_id)  # a cluster without the job is not waited for
            if shown is None:
                shown = _all_but_the_last_lines(await asyncio.to_thread(api.log, job_id))
            async with aclosing(api.tail(job_id, shown)) as pieces:
                async for piece in pieces:
                    shown += len(piece)
                    failures = 0
                    write(piece)
            job = await asyncio.to_thread(api.info, job_id)
            if job.ended:
                return job
            pause_s = pauses_s[0]
        except ConnectionLost as error:
            if failures == len(pauses_s):
                raise ConnectionLost(
                    f"connection to the cluster lost, job {job_id} goes on; submit again to attach ({error})"
                ) from None
            pause_s = pauses_s[failures]
            failures += 1
            note(f"connection to the cluster lost, the job goes on; trying again in {pause_s:g} s ({error})")
        await asyncio.sleep(pause_s)


def _all_but_the_last_lines(log: str) -> int:
    lines = log.splitlines(keepends=True)
    return sum(map(len, lines[:-ATTACHED_LINES]))


def _with_shipped(section: Any, field: str, folder: str, files: dict[str, Path]) -> Any:
    """Returns a config section whose `field`, if it names a local file, names one that travels along."""
    path = getattr(section, field)
    if path is None or "://" in path:
        return section
    name = f"{folder}/{Path(path).name}"
    files[name] = Path(path).expanduser()
    return dataclasses.replace(section, **{field: name})


def _module(path: str | Path) -> Path:
    found = Path(path).expanduser().resolve()
    if not found.is_dir() and not (found.is_file() and found.suffix == ".py"):
        raise ConfigError(f"module {str(path)!r}: neither a .py file nor the folder of a package")
    return found


def _forwarded(name: str) -> str:
    if _SECRET_NAME.search(name):
        raise ConfigError(
            f"environment variable {name}: looks like a secret, which the job's metadata would show;"
            " give the cluster's machines a role or a profile"
        )
    value = os.environ.get(name)
    if value is None:
        raise ConfigError(f"environment variable {name}: is not set here; set it, or do not forward it")
    if _SECRET_VALUE.search(value):
        raise ConfigError(
            f"environment variable {name}: its URL holds a password, which the job's metadata would show;"
            " set it on the cluster's machines"
        )
    return value


def _check_size(shipment: Shipment) -> None:
    sizes = {name: _size_bytes(path) for name, path in shipment.files.items()}
    if sum(sizes.values()) <= MAX_UPLOAD_BYTES:
        return
    largest = max(sizes, key=lambda name: sizes[name])
    raise ConfigError(
        f"{shipment.files[largest]}: {sizes[largest] / 2**20:.0f} MiB, and a job carries"
        f" {MAX_UPLOAD_BYTES // 2**20} MiB in all; put it in the bucket and name it by s3://, or as"
        " file:///path where every node has it"
    )


def _size_bytes(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
