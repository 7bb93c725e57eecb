"""What the kernel says of processes: who descends from whom, and where they listen."""

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path


def descendants(pid: int) -> set[int]:
    """Returns the process, its children, theirs, and so on."""
    parents: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if fields[0] != "Z":
                parents.setdefault(int(fields[1]), []).append(int(folder.name))
    found, left = set(), [pid]
    while left:
        found.add(left[-1])
        left += parents.get(left.pop(), [])
    return found


def alive(pids: set[int]) -> set[int]:
    """Returns those that are neither gone nor zombies."""
    found = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                found.add(pid)
    return found


def actors() -> set[int]:
    """Returns the processes of nisynth's actors on clusters that this process started."""
    found = set()
    for pid in descendants(os.getpid()):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::Actor"):
                found.add(pid)
    return found


def listening(pids: set[int]) -> set[str]:
    """Returns the addresses that the processes accept TCP connections at."""
    inodes = set()
    for pid in pids:
        for descriptor in Path(f"/proc/{pid}/fd").glob("*"):
            with contextlib.suppress(OSError):
                inodes.add(os.readlink(descriptor))
    found = set()
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and f"socket:[{words[9]}]" in inodes:
                found.add(_address(words[1].partition(":")[0], family))
    return found


def kill_9(pids: set[int]) -> None:
    """Ends the processes as a power cut would."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def wait_until(condition: Callable[[], object], limit_s: float = 600.0) -> None:
    """Returns when the condition holds. Raises TimeoutError; the limit is for a very busy machine."""
    deadline_s = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"{condition} does not hold after {limit_s:.0f} s")
        time.sleep(0.05)


def _address(text: str, family: socket.AddressFamily) -> str:
    """Decodes the kernel's hexadecimal words, each in the byte order of the machine."""
    words = [bytes.fromhex(text[i : i + 8])[::-1] for i in range(0, len(text), 8)]
    return socket.inet_ntop(family, b"".join(words))
