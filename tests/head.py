"""A real Ray head with its dashboard on loopback, to which jobs are submitted, and a line that can be cut.

`start_head(environment)` gives a running head; its nodes know the token and `environment`, and nothing of
this checkout but the installed package. `Relay` stands between a client and the head.
"""

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.servers import free_ports

START_LIMIT_S = 300.0
MISSES_NODES_SOON = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    # Not shorter: on a busy machine a node that lives may take a second to answer, and one that was missed
    # ends itself.
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "3",
}
"""For a head: a node that is killed is missed after 2 s, one that does not answer after 10 s."""
_BIN = Path(sys.executable).parent


@dataclass(eq=False)
class RayHead:
    """One `ray start --head --block` and what it started. folder: its session, logs included."""

    folder: Path
    port: int
    token: str
    process: subprocess.Popen[bytes]

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def environment(self) -> dict[str, str]:
        """Returns what a client needs to be let in, and a command to be found."""
        return {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.folder / "token"),
            "PATH": f"{_BIN}{os.pathsep}{os.environ['PATH']}",
        }

    def get(self, path: str) -> Any:
        """Returns what the dashboard answers, decoded."""
        headers = {"Authorization": f"Bearer {self.token}"}
        with urllib.request.urlopen(urllib.request.Request(self.address + path, headers=headers)) as answer:
            return json.load(answer)

    def processes(self) -> set[int]:
        """Returns the ids of all processes of the head: whatever it started has its environment."""
        mark = f"RAY_TMPDIR={self.folder}\0".encode()
        found = set()
        for environ in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if mark in environ.read_bytes():
                    found.add(int(environ.parent.name))
        return found

    def stop(self) -> None:
        """Ends the head and everything that it started; there is nothing to save."""
        while left := self.processes():
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def start_head(environment: dict[str, str]) -> RayHead:
    """Returns a running head with 4 CPUs. Raises RuntimeError.

    A port that was free may be another's by the time the head wants it; then it starts again with others.
    """
    for _ in range(2):
        with contextlib.suppress(RuntimeError):
            return _start_head(environment)
    return _start_head(environment)


def _start_head(environment: dict[str, str]) -> RayHead:
    # Unix sockets below it must have short names, so not pytest's folder.
    folder = Path(tempfile.mkdtemp(prefix="head-", dir="/tmp"))
    token = secrets.token_hex(32)
    (folder / "token").write_text(token)
    head_port, port, client_port, listen_port, grpc_port, scaler_port, metric_port = free_ports(7)
    options = {
        "node-ip-address": "127.0.0.1",
        "port": head_port,
        "dashboard-host": "127.0.0.1",
        "dashboard-port": port,
        "ray-client-server-port": client_port,
        "dashboard-agent-listen-port": listen_port,
        "dashboard-agent-grpc-port": grpc_port,
        "num-cpus": 4,
        "object-store-memory": 100 * 2**20,
    }
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_"))}
    settings = {
        "PATH": f"{_BIN}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "RAY_TMPDIR": str(folder),
        "RAY_USAGE_STATS_ENABLED": "0",
        # Idle workers would take the time of those that work.
        "RAY_prestart_worker_first_driver": "0",
        # Only so does every part of Ray listen on the loopback address alone.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "AUTOSCALER_METRIC_PORT": str(scaler_port),
        "DASHBOARD_METRIC_PORT": str(metric_port),
    }
    with open(folder / "head.log", "wb") as log:
        process = subprocess.Popen(
            [_BIN / "ray", "start", "--head", "--block", *(f"--{k}={v}" for k, v in options.items())],
            env={**inherited, **environment, **settings},
            cwd=folder,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
        )
    head = RayHead(folder, port, token, process)
    try:
        _wait_until_ready(head)
    except BaseException:
        head.stop()
        raise
    return head


def _wait_until_ready(head: RayHead) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while True:
        try:
            head.get("/api/jobs/")
            return
        except (OSError, ValueError) as error:  # a ValueError: what listens there is not the dashboard
            ended = isinstance(error, ValueError) or head.process.poll() is not None
            if ended or time.monotonic() > deadline:
                log = (head.folder / "head.log").read_text(errors="replace")[-2000:]
                raise RuntimeError(f"the head is not ready: {error}: {log}") from error
            time.sleep(0.1)


class Relay:
    """Passes bytes on to a port; `cut` drops the connections there are, `close` refuses new ones too."""

    def __init__(self, port: int) -> None:
        self._upstream = port
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def cut(self) -> None:
        for pair in self._pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def __enter__(self) -> "Relay":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        for thread in self._threads:
            thread.join()
        for pair in self._pairs:
            for end in pair:
                end.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._upstream))
            self._pairs.append((client, server))
            for source, target in ((client, server), (server, client)):
                self._threads.append(threading.Thread(target=self._pass, args=(source, target)))
                self._threads[-1].start()

    @staticmethod
    def _pass(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
