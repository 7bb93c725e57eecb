"""Several hosts on one machine: network namespaces with addresses of their own, joined by a switch of ours.

Needs root, `ip` (Debian's iproute2) and a kernel that has network namespaces and veth.
"""

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

CLONE_NEWNET = 0x40000000
SWITCH = Path(__file__).with_name("switch.py")


class Network:
    """Hosts by name, each at 10.77.0.N; `rules` says what becomes of frames between them."""

    def __init__(self, names: Sequence[str]) -> None:
        self._tag = f"nis{os.getpid()}"
        self.addresses = {name: f"10.77.0.{number}" for number, name in enumerate(names, 1)}
        self._processes: list[subprocess.Popen[bytes]] = []
        self._switch: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Makes the namespaces and joins them. Raises RuntimeError where that cannot be had."""
        self._ip("netns", "add", self._namespace("switch"))
        for name, address in self.addresses.items():
            space = self._namespace(name)
            self._ip("netns", "add", space)
            self._ip(
                *("link", "add", "e0", "netns", space, "type", "veth"),
                *("peer", "name", name, "netns", self._namespace("switch")),
            )
            self._ip("-n", self._namespace("switch"), "link", "set", "dev", name, "up")
            self._ip("-n", space, "addr", "add", f"{address}/24", "dev", "e0")
            for interface in ("lo", "e0"):
                self._ip("-n", space, "link", "set", "dev", interface, "up")
            plain = [*self._inside(name), sys.executable, str(SWITCH), "--plain", "e0"]
            subprocess.run(plain, check=True)
        self._switch = subprocess.Popen(
            [*self._inside("switch"), sys.executable, str(SWITCH), *self.addresses],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.rules()

    def rules(self, **rules: Any) -> None:
        """Replaces the switch's rules, see `switch`; none: every frame passes at once."""
        assert self._switch is not None
        assert self._switch.stdin is not None
        assert self._switch.stdout is not None
        self._switch.stdin.write(json.dumps(rules) + "\n")
        self._switch.stdin.flush()
        assert self._switch.stdout.readline() == "ok\n"

    def spawn(
        self, host: str, command: Sequence[str], environment: Mapping[str, str], log: Path
    ) -> subprocess.Popen[bytes]:
        """Returns a process of a host, the leader of a group of its own."""
        with open(log, "ab") as output:
            process = subprocess.Popen(
                [*self._inside(host), *command],
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._processes.append(process)
        return process

    def processes(self, host: str) -> set[int]:
        """Returns the ids of all processes of a host but this one."""
        command = ["ip", "netns", "pids", self._namespace(host)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as asking:
            words = asking.communicate()[0].split()
        return {int(word) for word in words} - {os.getpid(), asking.pid}

    def crash(self, host: str) -> None:
        """Ends all processes of a host, as a power cut would."""
        while left := self.processes(host):
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._reap()

    def stop(self) -> None:
        """Ends every process and takes the namespaces away."""
        for host in self.addresses:
            self.crash(host)
        if self._switch is not None:
            assert self._switch.stdin is not None
            assert self._switch.stdout is not None
            self._switch.stdin.close()
            self._switch.wait()
            self._switch.stdout.close()
        for name in ("switch", *self.addresses):
            subprocess.run(["ip", "netns", "del", self._namespace(name)], capture_output=True, check=False)

    def join(self, host: str) -> None:
        """Makes this thread, and the threads and processes that it starts, part of a host."""
        with open(f"/run/netns/{self._namespace(host)}", "rb") as space:
            if ctypes.CDLL(None, use_errno=True).setns(space.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), f"cannot join {host}")

    def _reap(self) -> None:
        self._processes = [process for process in self._processes if process.poll() is None]

    def _namespace(self, host: str) -> str:
        return f"{self._tag}-{host}"

    def _inside(self, host: str) -> list[str]:
        return ["ip", "netns", "exec", self._namespace(host)]

    @staticmethod
    def _ip(*words: str) -> None:
        done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"ip {' '.join(words)}: {done.stderr.strip()}")


def unavailable() -> str | None:
    """Returns why this machine cannot have such a network, None where it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "`ip` (Debian's iproute2) is not installed"
    try:
        with opened(["probe"]):
            return None
    except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
        return f"no network namespaces here: {error}"


@contextlib.contextmanager
def opened(names: Sequence[str]) -> Iterator[Network]:
    """Yields a network that stands; takes it away afterwards."""
    network = Network(names)
    try:
        network.start()
        yield network
    finally:
        network.stop()
