"""A connection to a Ray cluster: joined where one answers, else one of this machine's own."""

import logging
import os
import resource
import secrets
import shutil
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants, services
from ray._private import worker as ray_worker

from nisynth.config import ExecutionConfig
from nisynth.errors import ConfigError, NisynthError, NotStarted, Stopped

ANSWER_S = 5.0
OBJECT_STORE_BYTES = 100 * 2**20
FILE_HANDLES = 1024


@contextmanager
def connected(address: str | None, execution: ExecutionConfig) -> Iterator[None]:
    """Joins or starts a cluster, and leaves or ends it; keeps a connection that is there already.

    Raises ConfigError when nothing answers at the address, or when a cluster of this machine's own lacks the
    GPUs that a worker shall have; NotStarted, naming what the machine lacks; Stopped on SIGTERM meanwhile.
    """
    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    # Ray prints every death of a worker to stdout, which is the command's own; the driver tells of them.
    said, ray_worker.print_to_stdstream = ray_worker.print_to_stdstream, _say_nothing
    try:
        with _sigterm_stops():
            if address == "local":
                _start_local(execution)
            else:
                _join(address)
        yield
    finally:
        ray.shutdown()
        ray_worker.print_to_stdstream = said


@contextmanager
def _sigterm_stops() -> Iterator[None]:
    """Ends a start of Ray that SIGTERM interrupts by Stopped, and puts back the handler that was there.

    What is raised in a handler may come out of Ray as a SystemError, or not at all, and Ray puts a handler
    of its own that ends the process without a word: so the signal is also noted.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    noted, handler = threading.Event(), signal.getsignal(signal.SIGTERM)

    def stop(*_: object) -> None:
        noted.set()
        raise SystemExit  # which no `except Exception` of Ray's catches

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except BaseException as error:
        if not noted.is_set() and not isinstance(error, SystemExit):
            raise
        noted.set()
    finally:
        signal.signal(signal.SIGTERM, handler)
    if noted.is_set():
        raise Stopped("stopped by SIGTERM while Ray started; run again to resume")


@contextmanager
def sigterm_noted() -> Iterator[threading.Event]:
    """Gives an event that SIGTERM sets; a second SIGTERM acts as it did before.

    A handler that raises would do so inside Ray's own code, which turns it into a SystemError.
    """
    noted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return
    handler = signal.getsignal(signal.SIGTERM)

    def note(*_: object) -> None:
        noted.set()
        signal.signal(signal.SIGTERM, handler)

    signal.signal(signal.SIGTERM, note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGTERM, handler)


def _say_nothing(*_: object, **__: object) -> None:
    pass


def _reachable(address: str) -> str:
    """Returns `host:port` of a head that answers; Ray itself would try for minutes, line after line."""
    hint = "give the head's host:port, as `ray start --head` prints it, or send the run with `nisynth submit`"
    if address == "auto":
        address = services.get_ray_address_from_environment("auto", None) or "auto"
    host, _, port = address.rpartition(":")
    if "/" in address or not host or not port.isdigit():
        raise ConfigError(f"address {address!r}: not the address of a Ray cluster; {hint}")
    try:
        socket.create_connection((host, int(port)), timeout=ANSWER_S).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(f"address {address!r}: nothing answers there ({error}); {hint}") from None
    if host in ("127.0.0.1", "localhost"):
        _stay_on_loopback()
    return address


def _stay_on_loopback() -> None:
    """Makes Ray take 127.0.0.1 for a node's address, as it does on laptops; else it looks for another.

    Only then does it bind its ports there alone. The variable is for the processes that Ray starts, the
    constant for this one, which has read the variable on import.
    """
    os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"
    ray_constants.ENABLE_RAY_CLUSTER = False


def _join(address: str) -> None:
    address = _reachable(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        line = " ".join(str(error).split())[:200]
        raise ConfigError(f"address {address!r}: no Ray cluster can be joined there: {line}") from None


def _start_local(execution: ExecutionConfig) -> None:
    """Starts a cluster of this machine's own that listens on 127.0.0.1 alone."""
    _stay_on_loopback()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        with private_token():
            ray.init(
                address="local",
                # As many CPUs as the workers ask for, also where the machine has fewer: the user chose.
                num_cpus=execution.workers * execution.cpu_threads,
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except Exception as error:  # Ray raises a different type for each thing that a machine lacks
        raise _not_started(error) from None
    gpus, asked = resources()["GPU"], execution.gpus_per_worker or 0.0
    if asked > gpus:
        raise ConfigError(
            f"execution.gpus_per_worker: {asked:g}, and this machine has {gpus:g} GPUs; set it to 0 for the"
            " CPU, or give the --address of a cluster that has some"
        )


@contextmanager
def private_token() -> Iterator[None]:
    """Keeps the token that gives access to the cluster unreadable for other users of this machine.

    Ray's own file in the home folder is readable by all. Where that folder cannot be written, the processes
    of the cluster take a token from their environment.
    """
    given = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    if os.environ.get("RAY_AUTH_MODE") == "disabled" or any(os.environ.get(name) for name in given):
        yield
        return
    token, path = secrets.token_hex(32), Path.home() / ".ray" / "auth_token"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileExistsError):
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
            with open(descriptor, "w") as file:
                file.write(token)
        if path.stat().st_uid == os.getuid():
            path.chmod(0o600)
    except OSError:
        os.environ["RAY_AUTH_TOKEN"] = token
    yield


def _not_started(error: Exception) -> NisynthError:
    """Returns what kept Ray from starting on this machine, in one line that names it."""
    line = " ".join(str(error).split())[:200]
    folder = os.environ.get("RAY_TMPDIR") or "/tmp"
    if "AF_UNIX path length" in line:
        return ConfigError(
            f"RAY_TMPDIR {folder}: too long for the names of sockets below it, which may have 107 bytes;"
            " name a shorter folder"
        )
    if not os.access(folder, os.W_OK):
        return ConfigError(f"RAY_TMPDIR {folder}: cannot be written, and Ray keeps its session there")
    handles, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if handles < FILE_HANDLES:
        why = f"a process here may open {handles} files (`ulimit -n`), Ray wants {FILE_HANDLES}"
    elif shutil.disk_usage(folder).free < OBJECT_STORE_BYTES:
        why = f"the disk of {folder} is full, or nearly"
    else:
        why = f"the machine may be too busy (load {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs)"
    return NotStarted(f"Ray did not start on this machine: {why}; then try again ({line})")


def live_nodes() -> set[str]:
    """Returns the ids of the nodes that the cluster takes to be alive."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return {node["NodeID"] for node in nodes if node["Alive"]}


def resources() -> dict[str, float]:
    """Returns the CPUs and GPUs of all nodes, in use and free."""
    total: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return {name: total.get(name, 0.0) for name in ("CPU", "GPU")}


def free_resources() -> dict[str, float]:
    """Returns the free CPUs and GPUs of all nodes."""
    free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
    return {name: free.get(name, 0.0) for name in ("CPU", "GPU")}
