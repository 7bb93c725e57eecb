"""What chaos happens to: one S3 server behind a proxy and one Ray cluster, shared by all scenarios."""

import contextlib
import os
import shutil
import signal
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nisynth.storage import Store
from nisynth.storage.local import LocalStore
from nisynth.storage.s3 import S3Store
from nisynth.storage.s3_client import Limits
from tests.chaos.drivers import surrounded
from tests.faults import FaultProxy
from tests.head import MISSES_NODES_SOON
from tests.processes import actors, alive, descendants, kill_9, wait_until
from tests.servers import WeedServer, start_weed

REPO = Path(__file__).resolve().parents[2]
ATTEMPTS = "5"


@dataclass
class World:
    """folder: for everything local. address: of the Ray cluster that this process is connected to.

    nodes: where nodes of that cluster can be lost; None on a cluster of one node.
    """

    folder: Path
    server: WeedServer
    proxy: FaultProxy
    address: str
    nodes: "Nodes | None" = None

    @property
    def environment(self) -> dict[str, str]:
        """What a driver or worker needs: S3 through the proxy, the tests on its path."""
        return {**self.proxy.environment(), "PYTHONPATH": str(REPO), "AWS_MAX_ATTEMPTS": ATTEMPTS}

    def new_url(self, store: str, folder: Path) -> str:
        """Returns the URL of a run that is not there yet."""
        return f"{self.server.url}/{uuid.uuid4().hex[:12]}" if store == "s3" else str(folder / "run")

    def store(self, url: str, attempts: int = 8) -> Store:
        """Returns a store that no fault of the proxy reaches: for those who look on."""
        if not url.startswith("s3://"):
            return LocalStore(url)
        store = S3Store(url, Limits(attempts=attempts))
        with surrounded(self.server.environment()):
            next(iter(store.list("commits/")), None)  # the first request fixes the endpoint
        return store


class Nodes:
    """A Ray cluster on loopback: a head without CPUs, a node that stays, and nodes that come to be lost."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        options = {"num_cpus": 0, "include_dashboard": False}
        self._cluster: Any = Cluster(initialize_head=True, head_node_args=options)
        self._cluster.add_node(num_cpus=2)

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def add(self) -> Any:
        """Returns a new node with room for one actor."""
        return self._cluster.add_node(num_cpus=1)

    def actors(self, node: Any) -> set[int]:
        """Returns the processes of nisynth's actors on the node."""
        return actors() & self._processes(node)

    def kill(self, node: Any) -> None:
        """Ends the raylet and all its workers, as a power cut would."""
        kill_9(self._processes(node))

    def freeze(self, node: Any) -> set[int]:
        """Stops the raylet and all its workers where they are; returns them."""
        pids = self._processes(node)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        return pids

    def thaw(self, pids: set[int], limit_s: float = 30.0) -> None:
        """Lets stopped processes go on, with whatever they were about to do, until they have ended."""
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        with contextlib.suppress(TimeoutError):
            wait_until(lambda: not alive(pids), limit_s)
        kill_9(alive(pids))

    def close(self) -> None:
        self._cluster.shutdown()

    @staticmethod
    def _processes(node: Any) -> set[int]:
        (raylet,) = node.all_processes["raylet"]
        return descendants(raylet.process.pid)


@contextlib.contextmanager
def opened() -> Iterator[World]:
    """Starts everything, on loopback, and ends everything. Raises RuntimeError, ConfigError."""
    # Unix sockets below it must have short names.
    folder = Path(tempfile.mkdtemp(prefix="chaos-", dir="/tmp"))
    # Only so does every node listen on 127.0.0.1; Ray reads it on import, so nothing above imports Ray.
    settings = {
        **MISSES_NODES_SOON,
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        server = start_weed(folder / "s3")
        stack.callback(server.kill)
        proxy = stack.enter_context(FaultProxy(server.endpoint))
        world = World(folder, server, proxy, "")
        stack.enter_context(surrounded({**settings, **world.environment, "RAY_TMPDIR": str(folder)}))
        from nisynth.config import ExecutionConfig
        from nisynth.execution.cluster import connected

        world.nodes = Nodes()
        stack.callback(world.nodes.close)
        world.address = world.nodes.address
        stack.enter_context(connected(world.address, ExecutionConfig()))
        yield world
