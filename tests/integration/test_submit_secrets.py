"""A job in a bucket, seen from outside: clients come and go, secrets show nowhere, the head is private."""

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nisynth.commits import Run
from nisynth.storage import open_store
from tests.clients import TASKS, Screen, Work, jobs_of, nisynth
from tests.head import RayHead
from tests.servers import READER_SECRET, SECRET_KEY
from tests.tiny import keys

pytestmark = [
    pytest.mark.usefixtures("ray_client"),
    pytest.mark.filterwarnings("ignore:ssl=None is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Unclosed connection:ResourceWarning"),
]


def test_a_lost_client_a_second_one_and_no_secrets(
    ray_head: RayHead, s3_url: str, work: Work, tmp_path: Path
) -> None:
    work.hold(0, tmp_path / "none")
    arguments = work.arguments(ray_head, s3_url, "--workers", "2")
    first = subprocess.Popen(
        [sys.executable, "-m", "nisynth", *arguments],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert first.stdout is not None
    lines = []
    for line in first.stdout:
        lines.append(line)
        if "0 done before" in line:
            break
    first.kill()
    first.wait()
    first.stdout.close()

    screen = Screen()
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(nisynth, *arguments, screen=screen)
        screen.expect("is under way; attached to it")
        commands = list(command_lines(ray_head))
        work.release()
        exit_code, said = second.result()
    assert exit_code == 0, said
    assert "complete: 4 of 4 tasks" in said
    [job_id] = jobs_of(ray_head, s3_url)
    assert f"job {job_id} succeeded, exit code 0" in said

    store = open_store(s3_url)
    assert Run.open(store).committed() == set(range(TASKS))
    places = {
        "clients": "".join(lines) + said,
        "processes": "\n".join(commands),
        "metadata": json.dumps(ray_head.get("/api/jobs/")),
        "store": "\n".join(f"{key}\n{store.get(key).decode('latin-1')}" for key in keys(store)),
        "logs": "\n".join(logs(ray_head)),
    }
    for place, text in places.items():
        assert len(text) > 200, place
        for secret in (SECRET_KEY, READER_SECRET, ray_head.token):
            assert secret not in text, place
    for place in ("clients", "processes", "metadata", "logs"):
        assert s3_url in places[place], place  # what is no secret is found, so the search can find


def command_lines(head: RayHead) -> Iterator[str]:
    for pid in head.processes():
        with contextlib.suppress(OSError):
            yield Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")


def logs(head: RayHead) -> Iterator[str]:
    for path in head.folder.rglob("*"):
        if path.suffix in (".log", ".out", ".err") and path.is_file():
            yield path.read_text(errors="replace")


def test_the_head_listens_on_loopback_only(ray_head: RayHead) -> None:
    inodes = set()
    for pid in ray_head.processes():
        for descriptor in Path(f"/proc/{pid}/fd").glob("*"):
            with contextlib.suppress(OSError):
                inodes.add(os.readlink(descriptor))
    heard = []
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and f"socket:[{words[9]}]" in inodes:
                heard.append(_address(words[1].partition(":")[0], family))
    assert len(heard) >= 5  # dashboard, agent, GCS, raylet
    assert set(heard) <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def _address(text: str, family: socket.AddressFamily) -> str:
    """Decodes the kernel's hexadecimal words, each in the byte order of the machine."""
    words = [bytes.fromhex(text[i : i + 8])[::-1] for i in range(0, len(text), 8)]
    return socket.inet_ntop(family, b"".join(words))
