"""A connection to a Ray cluster: joined where one answers, else one of this machine's own."""

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray._private import ray_constants, services
from ray._private import worker as ray_worker

from nisynth.errors import ConfigError
from nisynth.execution import ExecutionConfig

ANSWER_S = 5.0
OBJECT_STORE_BYTES = 100 * 2**20


@contextmanager
def connected(address: str | None, execution: ExecutionConfig) -> Iterator[None]:
    """Joins or starts a cluster, and leaves or ends it; keeps a connection that is there already.

    Raises ConfigError when nothing answers at the address.
    """
    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    handler = signal.getsignal(signal.SIGTERM)  # Ray puts one of its own, which ends without a word
    try:
        if address == "local":
            _start_local(execution)
        else:
            ray.init(address=_reachable(address), log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        line = " ".join(str(error).split())[:200]
        raise ConfigError(f"address {address!r}: no Ray cluster can be joined there: {line}") from None
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)
    # Ray prints every death of a worker to stdout, which is the command's own; the driver tells of them.
    said, ray_worker.print_to_stdstream = ray_worker.print_to_stdstream, _say_nothing
    try:
        yield
    finally:
        ray.shutdown()
        ray_worker.print_to_stdstream = said


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
        raise ConfigError(f"address {address!r}: no cluster's address; {hint}")
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


def _start_local(execution: ExecutionConfig) -> None:
    """Starts a cluster of this machine's own that listens on 127.0.0.1 alone."""
    _stay_on_loopback()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(
        address="local",
        # As many CPUs as the workers ask for, whatever this machine has: the user chose their number.
        num_cpus=execution.workers * execution.cpu_threads,
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )


def live_nodes() -> set[str]:
    """Returns the ids of the nodes that the cluster takes to be alive."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return {node["NodeID"] for node in nodes if node["Alive"]}


def resources() -> dict[str, float]:
    """Returns the CPUs and GPUs of all nodes, in use or not."""
    total: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return {name: total.get(name, 0.0) for name in ("CPU", "GPU")}
