import os
import resource
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nisynth.config import ExecutionConfig
from nisynth.errors import ConfigError
from nisynth.execution.cluster import connected, private_token
from tests.servers import free_port

REPO = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("address", ["ray://127.0.0.1:10001", "http://127.0.0.1:8265", "head", "head:", ":1"])
def test_what_is_no_clusters_address_is_refused(address: str) -> None:
    with (
        pytest.raises(ConfigError, match=r"not the address of a Ray cluster; give the head's host:port"),
        connected(address, ExecutionConfig()),
    ):
        pass


def test_an_address_where_nothing_listens_is_refused_at_once() -> None:
    address = f"127.0.0.1:{free_port()}"
    with (
        pytest.raises(ConfigError, match=rf"address '{address}': nothing answers there \(.*refused"),
        connected(address, ExecutionConfig()),
    ):
        pass


def test_ray_address_is_the_address_where_none_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    with pytest.raises(ConfigError, match=str(port)), connected(None, ExecutionConfig()):
        pass


START = """
import sys
from nisynth.errors import NisynthError
from nisynth.config import ExecutionConfig
from nisynth.execution.cluster import connected, private_token
try:
    with connected(None, ExecutionConfig(gpus_per_worker=float(sys.argv[1]))):
        print("up")
except NisynthError as error:
    print(error)
    sys.exit(error.exit_code)
"""


def start_own(gpus: str = "0", handles: int = 4096, **environment: str) -> subprocess.CompletedProcess[str]:
    """Starts and ends a cluster of a process's own."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (handles, handles))

    return subprocess.run(
        [sys.executable, "-c", START, gpus],
        env={**{n: v for n, v in os.environ.items() if not n.startswith("RAY_")}, **environment},
        cwd=REPO,
        preexec_fn=limit,
        capture_output=True,
        text=True,
    )


def test_a_token_that_ray_leaves_is_nobody_elses_to_read(tmp_path: Path) -> None:
    ended = start_own(HOME=str(tmp_path))
    assert ended.stdout == "up\n", ended.stderr
    token = tmp_path / ".ray" / "auth_token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert stat.S_IMODE(token.parent.stat().st_mode) == 0o700


def test_a_token_that_others_can_read_is_closed_to_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("kept")
    token.chmod(0o644)
    with private_token():
        assert (token.read_text(), stat.S_IMODE(token.stat().st_mode)) == ("kept", 0o600)


@pytest.mark.parametrize(
    ("environment", "code", "message"),
    [
        ({"RAY_TMPDIR": "long"}, 2, "too long for the names of sockets below it"),
        ({"RAY_TMPDIR": "/proc/nowhere"}, 2, "RAY_TMPDIR /proc/nowhere: cannot be written"),
        ({"gpus": "1"}, 2, "execution.gpus_per_worker: 1, and this machine has 0 GPUs"),
        # Ray itself gives up after half a minute.
        pytest.param({"handles": 40}, 75, "may open 40 files (`ulimit -n`)", marks=pytest.mark.slow),
    ],
)
def test_what_keeps_ray_from_starting_is_one_line_that_names_it(
    tmp_path: Path, environment: dict[str, Any], code: int, message: str
) -> None:
    if environment.get("RAY_TMPDIR") == "long":
        folder = tmp_path / ("x" * 100)
        folder.mkdir()
        environment = {"RAY_TMPDIR": str(folder)}
    ended = start_own(**environment)
    assert (ended.returncode, len(ended.stdout.splitlines())) == (code, 1), ended.stderr
    assert message in ended.stdout
    assert "Traceback" not in ended.stderr


def test_a_home_that_cannot_be_written_is_no_obstacle() -> None:
    assert start_own(HOME="/proc/nowhere").stdout == "up\n"
