"""What a user can get wrong with S3: one line each, with its cure, and never a secret in it."""

import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from nisynth.errors import ConfigError, NisynthError, StorageError
from nisynth.storage import NotFound, open_store, read_url
from nisynth.storage.s3 import S3Store
from tests.faults import Fault, FaultProxy
from tests.servers import (
    READER_KEY,
    READER_SECRET,
    SECRET_KEY,
    WeedServer,
    free_port,
    s3_environment,
    start_weed,
)

Quick = Callable[..., S3Store]
SECRETS = (SECRET_KEY, READER_SECRET, "wrong-secret", "session-token")


def message_of(kind: type[NisynthError], use: Callable[[], object]) -> str:
    """Returns what the user is told, once it is one line without secrets."""
    with pytest.raises(kind) as caught:
        use()
    error = caught.value
    assert type(error) is kind
    message = str(error)
    assert "\n" not in message
    assert len(message) < 400
    assert error.__cause__ is None
    for secret in SECRETS:
        assert secret not in message
    return message


def use_environment(patch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    for name, value in environment.items():
        patch.setenv(name, value)


@pytest.fixture
def dead(monkeypatch: pytest.MonkeyPatch) -> str:
    """An endpoint where nothing listens, and the environment that names it."""
    endpoint = f"http://127.0.0.1:{free_port()}"
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    use_environment(monkeypatch, s3_environment(endpoint))
    return endpoint


def test_a_wrong_secret(quick: Quick, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret")
    store = quick()
    for use in (lambda: store.get("key"), lambda: store.create("key", b""), lambda: list(store.list())):
        message = message_of(StorageError, use)
        assert message.startswith(store.url)
        assert message.endswith("correct AWS_SECRET_ACCESS_KEY")


def test_an_unknown_access_key(quick: Quick, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "UNKNOWN")
    assert "correct AWS_ACCESS_KEY_ID" in message_of(StorageError, lambda: quick().get("key"))


def test_wrong_credentials_where_the_answer_has_no_body(
    quick: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret")
    assert "wrong credentials" in message_of(StorageError, lambda: quick().size_bytes("key"))


def test_no_credentials(quick: Quick, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name)
    message = message_of(StorageError, lambda: quick().get("key"))
    assert "no credentials found; set AWS_ACCESS_KEY_ID" in message


def test_half_of_the_credentials(quick: Quick, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert "half of the credentials" in message_of(StorageError, lambda: quick().get("key"))


def test_a_missing_profile(quick: Quick, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    assert "correct AWS_PROFILE" in message_of(StorageError, lambda: quick().get("key"))


def test_a_region_that_is_no_name(quick: Quick, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "not a region")
    message = message_of(StorageError, lambda: quick().create("key", b""))
    assert "AWS_DEFAULT_REGION is not the name of a region" in message


def test_a_broken_config_file(quick: Quick, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "config").write_text("no section\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    message = message_of(StorageError, lambda: quick().create("key", b""))
    assert "correct it or AWS_CONFIG_FILE" in message


@pytest.mark.usefixtures("s3_url")
def test_a_missing_bucket() -> None:
    store = open_store("s3://no-such-bucket/run")
    for use in (lambda: store.get("key"), lambda: store.create("key", b""), lambda: list(store.list())):
        message = message_of(StorageError, use)
        assert message.startswith("s3://no-such-bucket/run")
        assert "the bucket does not exist; create it" in message


def test_no_permission_to_write(quick: Quick, monkeypatch: pytest.MonkeyPatch) -> None:
    quick().put("key", b"value")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", READER_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", READER_SECRET)
    store = quick()
    assert store.get("key") == b"value"
    assert "grant this user s3:PutObject" in message_of(StorageError, lambda: store.create("new", b""))
    assert "grant this user s3:PutObject" in message_of(StorageError, lambda: store.put("key", b""))
    assert "grant this user s3:DeleteObject" in message_of(StorageError, lambda: store.delete("key"))


def test_a_missing_object_without_the_right_to_list(proxy: FaultProxy, quick: Quick) -> None:
    proxy.inject(Fault("status", "GET", status=403, code="AccessDenied"))
    message = message_of(StorageError, lambda: quick().get("key"))
    assert "s3:GetObject, and s3:ListBucket without which a missing object is refused" in message


@pytest.mark.parametrize(
    ("status", "code", "cure"),
    [
        (403, "RequestTimeTooSkewed", "set this machine's clock (NTP)"),
        (400, "ExpiredToken", "renew the credentials"),
        (400, "InvalidBucketName", "correct the URL"),
        (400, "IllegalLocationConstraintException", "set AWS_DEFAULT_REGION"),
        (400, "KMS.DisabledException", "correct NISYNTH_S3_SSE_KMS_KEY_ID"),
        (501, "NotImplemented", "use another store"),
        (507, "XMinioStorageFull", "free space there"),
        (400, "SomethingNew", "SomethingNew (HTTP 400) (injected by the proxy)"),
    ],
)
def test_an_answer_that_names_its_cause(
    proxy: FaultProxy, quick: Quick, status: int, code: str, cure: str
) -> None:
    store = quick()
    proxy.inject(Fault("status", "GET", times=None, status=status, code=code))
    assert cure in message_of(StorageError, lambda: store.get("key"))


def test_a_busy_server(proxy: FaultProxy, quick: Quick) -> None:
    store = quick()
    proxy.inject(Fault("status", times=None, status=503, code="SlowDown"))
    assert "fewer workers" in message_of(StorageError, lambda: list(store.list()))


def test_a_dead_endpoint(dead: str) -> None:
    store = open_store("s3://bucket/run")
    message = message_of(StorageError, lambda: store.create("key", b""))
    assert f"s3://bucket/run/key: cannot connect to {dead}; check AWS_ENDPOINT_URL" in message


def test_a_server_that_was_never_reached_is_soon_given_up(
    quick: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    callers = 0

    def answer_plainly() -> None:
        nonlocal callers
        while True:
            caller, _ = listener.accept()
            with caller:
                if not caller.recv(1000):
                    return
                callers += 1
                caller.sendall(b"HTTP/1.1 400 plain text\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        answering = pool.submit(answer_plainly)
        address = listener.getsockname()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"https://127.0.0.1:{address[1]}")
        message_of(StorageError, lambda: quick(attempts=9).get("key"))
        socket.create_connection(address).close()
        answering.result(timeout=30)
    assert callers == 3


@pytest.mark.parametrize("endpoint", ["localhost:8333", "nonsense", "https://user:wrong-secret@127.0.0.1:1"])
@pytest.mark.usefixtures("dead")
def test_an_endpoint_that_is_no_url(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    message = message_of(ConfigError, lambda: open_store("s3://bucket/run").get("key"))
    assert "AWS_ENDPOINT_URL" in message


@pytest.mark.usefixtures("dead")
def test_a_token_with_a_line_break(proxy: FaultProxy, quick: Quick, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "session-token\n")
    for use in (lambda: quick().get("key"), lambda: quick().create("key", b"")):
        assert "line breaks in the credentials" in message_of(StorageError, use)


class _WebPage(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html><p>Welcome</html>")

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_a_server_that_is_no_s3_server(quick: Quick, monkeypatch: pytest.MonkeyPatch) -> None:
    with HTTPServer(("127.0.0.1", 0), _WebPage) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
            message = message_of(StorageError, lambda: list(quick(attempts=2).list()))
            assert "check AWS_ENDPOINT_URL" in message
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def tls_server(tmp_path_factory: pytest.TempPathFactory, s3_server: WeedServer) -> Iterator[WeedServer]:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl, which makes the certificate of the test server, is not installed")
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "ca.pem", folder / "key.pem"
    request = (
        "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1"
    )
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run([openssl, *request.split(), *files], check=True, capture_output=True)
    server = start_weed(folder / "weed", certificate=(certificate, key))
    yield server
    server.kill()


def test_a_private_ca(tls_server: WeedServer, quick: Quick, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", tls_server.endpoint)
    monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)
    for use in (lambda: quick().get("key"), lambda: quick().create("key", b"value")):
        assert "name its CA file in AWS_CA_BUNDLE" in message_of(StorageError, use)
    assert tls_server.certificate is not None
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tls_server.certificate[0]))
    store = quick()
    store.create("key", b"value")
    assert store.get("key") == b"value"


def test_a_ca_file_that_is_missing(
    tls_server: WeedServer, quick: Quick, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", tls_server.endpoint)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "missing.pem"))
    assert "AWS_CA_BUNDLE" in message_of(StorageError, lambda: quick().get("key"))


@pytest.mark.parametrize(
    "url",
    ["s3://", "s3://ab", "s3://Bucket/run", "s3://KEY:wrong-secret@bucket/run", "s3:///run",
     "s3://bucket/run?token=session-token", "s3://bucket/../run", "s3://bucket//run"],
)  # fmt: skip
def test_a_url_that_names_no_place_in_a_bucket(url: str) -> None:
    assert "use " in message_of(ConfigError, lambda: open_store(url))


def test_read_url_wants_an_object() -> None:
    assert "name an object" in message_of(ConfigError, lambda: read_url("s3://bucket"))


def test_read_url_reads_any_name_and_says_what_is_missing(s3_url: str, s3_server: WeedServer) -> None:
    s3_server.put_object(f"{s3_url.rpartition('/')[2]}/my weights+(1).pt", b"weights")
    assert read_url(f"{s3_url}/my weights+(1).pt") == b"weights"
    with pytest.raises(NotFound, match=r"other\.pt"):
        read_url(f"{s3_url}/other.pt")


def test_names_that_are_no_keys_are_not_listed(s3_url: str, s3_server: WeedServer) -> None:
    store = open_store(s3_url)
    store.put("data/1", b"")
    for name in ("data/a b", "data/..x/2", "data/ü"):
        s3_server.put_object(f"{s3_url.rpartition('/')[2]}/{name}", b"")
    assert [info.key for info in store.list()] == ["data/1"]


@pytest.mark.parametrize("variable", ["NISYNTH_S3_READ_TIMEOUT_S", "AWS_MAX_ATTEMPTS"])
@pytest.mark.parametrize("value", ["soon", "0", "nan", "-1"])
def test_a_limit_that_is_no_number(variable: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, value)
    assert f"{variable}={value!r}" in message_of(ConfigError, lambda: open_store("s3://bucket/run"))


def test_the_number_of_attempts_is_the_standard_setting(
    proxy: FaultProxy, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    proxy.inject(Fault("status", "GET", times=None))
    with pytest.raises(StorageError):
        open_store(s3_url).get("key")
    assert proxy.count("GET") == 2


def test_encryption_is_asked_for_where_the_environment_says_so(
    proxy: FaultProxy, quick: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy.inject(Fault("status", "PUT", times=2, status=403, code="AccessDenied"))
    monkeypatch.setenv("NISYNTH_S3_SSE", "aws:kms")
    monkeypatch.setenv("NISYNTH_S3_SSE_KMS_KEY_ID", "alias/images")
    store = quick()
    for write in (store.create, store.put):
        with pytest.raises(StorageError):
            write("key", b"")
        sent = proxy.seen[-1].headers
        assert sent["x-amz-server-side-encryption"] == "aws:kms"
        assert sent["x-amz-server-side-encryption-aws-kms-key-id"] == "alias/images"


def test_every_write_carries_its_checksum(proxy: FaultProxy, quick: Quick) -> None:
    store = quick()
    store.create("key", b"value")
    # printf value | openssl dgst -sha256 -binary | base64
    assert proxy.seen[-1].headers["x-amz-checksum-sha256"] == "zUJATVKtVcz6mspK3IKKpYAK2dOFoGcfvL9yQRgyBhk="
    assert proxy.seen[-1].headers["if-none-match"] == "*"
