"""Weights from the web: only with their hash, once, and from a server that may say anything."""

import hashlib
import io
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from nisynth.errors import ConfigError, NisynthError, StorageError, TeacherError
from nisynth.teachers import build_network, load_teacher


class Site(ThreadingHTTPServer):
    """A web server on this machine that serves one file, and remembers what it was asked."""

    def __init__(self, data: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.data = data
        self.asked: list[tuple[str, str | None]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Site

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers.get("Authorization")))
        status = {"/private.pt": 403, "/none.pt": 404, "/broken.pt": 503}.get(self.path, 200)
        if "/resolve/" in self.path:  # as hubs do
            self.send_response(302)
            self.send_header("Location", f"{self.server.url}/weights.pt")
            self.end_headers()
            return
        self.send_response(status)
        self.end_headers()
        self.wfile.write(self.server.data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "secret")
    stream = io.BytesIO()
    torch.manual_seed(0)
    torch.save(build_network("resnet20", 10).state_dict(), stream)
    with Site(stream.getvalue()) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def load(weights: str) -> str:
    half = (0.5, 0.5, 0.5)
    teacher = load_teacher(arch="resnet20", weights=weights, num_classes=10, mean=half, std=half)
    return str(teacher.identity["weights_sha256"])


def test_weights_from_the_web_are_fetched_once(site: Site, tmp_path: Path) -> None:
    sha256 = hashlib.sha256(site.data).hexdigest()
    (tmp_path / "weights.pt").write_bytes(site.data)
    expected = load(str(tmp_path / "weights.pt"))
    for source in (
        f"{site.url}/weights.pt#sha256={sha256}",
        f"hf://owner/repo@v1/folder/weights.pt#sha256={sha256.upper()}",
    ):
        assert load(source) == expected
    assert site.asked == [("/weights.pt", None)]


def test_a_hub_is_asked_with_a_token_that_goes_no_further(site: Site) -> None:
    load(f"hf://owner/repo@v1/folder/weights.pt#sha256={hashlib.sha256(site.data).hexdigest()}")
    assert site.asked == [
        ("/owner/repo/resolve/v1/folder/weights.pt", "Bearer secret"),
        ("/weights.pt", None),
    ]


@pytest.mark.parametrize(
    ("source", "kind", "message"),
    [
        ("{}/weights.pt", ConfigError, "a file from the web needs its hash"),
        ("{}/weights.pt#sha256=12", ConfigError, "a file from the web needs its hash"),
        ("hf://weights.pt#sha256=" + 64 * "0", ConfigError, "write hf://owner/repo/file"),
        ("{}/weights.pt#sha256=" + 64 * "0", TeacherError, "the sha256 of what is there is "),
        ("{}/none.pt#sha256=" + 64 * "0", TeacherError, "cannot be found (HTTP 404)"),
        ("{}/private.pt#sha256=" + 64 * "0", TeacherError, "access denied (HTTP 403)"),
        ("{}/broken.pt#sha256=" + 64 * "0", StorageError, "HTTP 503"),
        ("http://127.0.0.1:1/weights.pt#sha256=" + 64 * "0", StorageError, "cannot be fetched: "),
    ],
)
def test_what_cannot_be_fetched(site: Site, source: str, kind: type[NisynthError], message: str) -> None:
    with pytest.raises(kind) as caught:
        load(source.format(site.url))
    assert message in str(caught.value)
    assert "teacher.weights" in str(caught.value)
    assert "\n" not in str(caught.value)
