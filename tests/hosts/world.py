"""A cluster over hosts: a head, two nodes and an S3 server, each with an address of its own."""

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from nisynth.storage import Store
from nisynth.storage.s3 import S3Store
from nisynth.storage.s3_client import Limits
from tests.chaos.drivers import surrounded
from tests.head import MISSES_NODES_SOON
from tests.hosts.network import Network, opened
from tests.processes import wait_until
from tests.servers import WeedServer, start_weed

REPO = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
HOSTS = ("desk", "head", "node1", "node2", "s3")
GCS_PORT = 6379
FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")


@dataclass
class World:
    """desk is where the harness itself is; the driver runs on the head, as a submitted job does."""

    folder: Path
    network: Network
    server: WeedServer
    nodes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def address(self) -> str:
        return f"{self.network.addresses['head']}:{GCS_PORT}"

    @property
    def environment(self) -> dict[str, str]:
        """What every process on every host knows."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "AWS_"))}
        return {
            **inherited,
            **self.server.environment(),
            **MISSES_NODES_SOON,
            "AWS_MAX_ATTEMPTS": "5",
            "NO_PROXY": "*",
            "no_proxy": "*",
            "OMP_NUM_THREADS": "1",
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(REPO),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.folder / "token"),
            "RAY_TMPDIR": str(self.folder / "ray"),
            "RAY_USAGE_STATS_ENABLED": "0",
        }

    def start_cluster(self, skewed: str = "", skew: str = "+1h") -> None:
        """Starts head and nodes; the clock of the node `skewed` is off by `skew`."""
        shutil.rmtree(self.folder / "ray", ignore_errors=True)
        (self.folder / "ray").mkdir()
        self._start("head", "--head", f"--port={GCS_PORT}", "--num-cpus=0", "--include-dashboard=false")
        for name in ("node1", "node2"):
            self.start_node(name, skew if name == skewed else "")

    def start_node(self, name: str, skew: str = "") -> None:
        """Starts a node with room for one actor."""
        self._start(name, f"--address={self.address}", "--num-cpus=1", skew=skew)

    def stop_cluster(self) -> None:
        for name in ("head", "node1", "node2"):
            self.network.crash(name)
            if name in self.nodes:
                self.nodes.pop(name).wait()

    def store(self, url: str) -> Store:
        """Returns the run's store as seen from the desk."""
        return S3Store(url, Limits(attempts=8))

    def _start(self, name: str, *options: str, skew: str = "") -> None:
        environment = self.environment
        if skew:
            environment |= {
                "LD_PRELOAD": str(FAKETIME),
                "FAKETIME": skew,
            }
        words = [str(BIN / "ray"), "start", "--block", f"--node-ip-address={self.network.addresses[name]}"]
        log = self.folder / f"{name}.log"
        log.unlink(missing_ok=True)
        memory = f"--object-store-memory={100 * 2**20}"
        self.nodes[name] = self.network.spawn(name, [*words, memory, *options], environment, log)

        def ready() -> bool:
            assert self.nodes[name].poll() is None, log.read_text()[-2000:]
            return "Ray runtime started" in log.read_text()

        wait_until(ready)


@contextlib.contextmanager
def opened_world() -> Iterator[World]:
    """Starts network and S3 server, and ends everything. Raises RuntimeError."""
    folder = Path(tempfile.mkdtemp(prefix="hosts-", dir="/tmp"))
    (folder / "token").write_text(secrets.token_hex(32))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        network = stack.enter_context(opened(HOSTS))
        network.join("s3")
        server = start_weed(folder / "s3", address=network.addresses["s3"])
        stack.callback(server.kill)
        network.join("desk")
        world = World(folder, network, server)
        stack.callback(world.stop_cluster)
        stack.enter_context(surrounded({**server.environment(), "NO_PROXY": "*", "no_proxy": "*"}))
        yield world
