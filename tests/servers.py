"""A real S3 server on loopback: SeaweedFS, started, killed and started again on the same directory.

`start_weed(folder)` gives a running server with one bucket; `server.environment()` is what a process
needs to reach it by `s3://` URLs, with nothing of this machine's own AWS settings in it.
"""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import botocore.exceptions
from botocore.config import Config

BUCKET = "nisynth-test"
ACCESS_KEY = "TESTACCESSKEY"
SECRET_KEY = "test-secret-that-no-message-may-show"
READER_KEY = "TESTREADERKEY"
READER_SECRET = "reader-secret-that-no-message-may-show"
ROLES = ("reader", "writer", "operator")
"""Users of the server who may do nothing but what a bucket's policy lets them."""
START_LIMIT_S = 60.0
# Each of weed's parts listens on its port and, for gRPC, on the one 10000 above.
_GRPC_OFFSET = 10000
_PORTS = ("master", "volume", "filer", "s3", "admin")


@dataclass(eq=False)
class WeedServer:
    """One SeaweedFS process; `kill` and `start` in turn act on the same directory and ports."""

    folder: Path
    ports: dict[str, int]
    bucket: str = BUCKET
    certificate: tuple[Path, Path] | None = None
    address: str = "127.0.0.1"
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def endpoint(self) -> str:
        scheme = "https" if self.certificate else "http"
        return f"{scheme}://{self.address}:{self.ports['s3']}"

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}"

    def environment(self, endpoint: str | None = None) -> dict[str, str]:
        """Returns the variables that point any S3 client at this server (or at a proxy before it)."""
        return s3_environment(endpoint or self.endpoint)

    def put_object(self, name: str, data: bytes) -> None:
        """Writes an object as any other program would, under any name."""
        with closing(_client(self.endpoint, self._trusted())) as client:
            client.put_object(Bucket=self.bucket, Key=name, Body=data)

    def new_bucket(self, name: str, policy: str) -> None:
        """Makes another bucket, with a policy."""
        with closing(_client(self.endpoint, self._trusted())) as client:
            client.create_bucket(Bucket=name)
            client.put_bucket_policy(Bucket=name, Policy=policy)

    def start(self) -> None:
        """Starts the process and returns when the bucket takes objects. Raises RuntimeError."""
        (self.folder / "data").mkdir(parents=True, exist_ok=True)
        (self.folder / "s3.json").write_text(json.dumps(_identities()))
        with open(self.folder / "log.txt", "ab") as log:
            self.process = subprocess.Popen(
                self._command(), stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=self.folder
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.kill()
            raise

    def kill(self) -> None:
        """Ends the process as a power cut would (SIGKILL)."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def restart(self) -> None:
        self.kill()
        self.start()

    def _end(self, how: signal.Signals) -> None:
        if self.process is None:
            return
        self.process.send_signal(how)
        try:
            self.process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None
        for port in self.ports.values():
            for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                left.unlink(missing_ok=True)
            for left in Path("/tmp").glob(f"seaweedfs-*-{port + _GRPC_OFFSET}.sock"):
                left.unlink(missing_ok=True)

    def _command(self) -> list[str]:
        options = {
            "dir": self.folder / "data",
            "ip": self.address,
            "ip.bind": self.address,
            "s3.config": self.folder / "s3.json",
            "s3.localSocket": self.folder / "s3.sock",
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            "s3.autoCreateBucket": "false",
            "admin.ui": "false",
            "webdav": "false",
            "master.telemetry": "false",
            "bucket": self.bucket,
        }
        options |= {f"{name}.port": port for name, port in self.ports.items()}
        if self.certificate:
            options["s3.cert.file"], options["s3.key.file"] = self.certificate
        weed = Path(sys.executable).with_name("weed")
        return [str(weed), "mini", *(f"-{name}={value}" for name, value in options.items())]

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_LIMIT_S
        with closing(_client(self.endpoint, self._trusted())) as client:
            while True:
                assert self.process is not None
                if self.process.poll() is not None:
                    raise RuntimeError(f"weed exited with {self.process.returncode}: {self._log_tail()}")
                try:
                    client.put_object(Bucket=self.bucket, Key=".ready", Body=b"ready")
                    return
                except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
                    if time.monotonic() > deadline:
                        raise RuntimeError(f"weed is not ready: {error}: {self._log_tail()}") from error
                    time.sleep(0.05)

    def _trusted(self) -> str | None:
        return str(self.certificate[0]) if self.certificate else None

    def _log_tail(self) -> str:
        return (self.folder / "log.txt").read_text(errors="replace")[-2000:]


def weed_is_installed() -> bool:
    return Path(sys.executable).with_name("weed").exists()


def start_weed(
    folder: Path, *, certificate: tuple[Path, Path] | None = None, address: str = "127.0.0.1"
) -> WeedServer:
    """Returns a running server that keeps its data below `folder`. Raises RuntimeError.

    `certificate` (certificate file, key file) makes it speak https. address: where it listens.
    """
    shutil.rmtree(folder, ignore_errors=True)
    for attempt in range(3):
        server = WeedServer(
            folder,
            dict(zip(_PORTS, free_ports(len(_PORTS)), strict=True)),
            certificate=certificate,
            address=address,
        )
        try:
            server.start()
        except RuntimeError:
            # Another process can take a port between our look and weed's bind.
            if attempt == 2:
                raise
        else:
            return server
    raise AssertionError


def s3_environment(
    endpoint: str, access_key: str = ACCESS_KEY, secret_key: str = SECRET_KEY
) -> dict[str, str]:
    """Returns AWS variables that name one endpoint and one user, and shut out this machine's own settings."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": access_key,
        "AWS_SECRET_ACCESS_KEY": secret_key,
        "AWS_SESSION_TOKEN": "",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }


def role_credentials(role: str) -> tuple[str, str]:
    """Returns the access key and the secret key of one of ROLES."""
    return f"TESTKEYOF{role.upper()}", f"{role}-secret-that-no-message-may-show"


def free_port() -> int:
    """Returns a loopback port that nothing listens on, nor on the one that weed pairs with it.

    Both lie below 32768, where the ports of outgoing connections begin.
    """
    while True:
        port = random.SystemRandom().randrange(20000, 22700)
        if _is_free(port) and _is_free(port + _GRPC_OFFSET):
            return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_ports(count: int) -> list[int]:
    """Returns as many different ports as `free_port` gives."""
    ports: set[int] = set()
    while len(ports) < count:
        ports.add(free_port())
    return list(ports)


def _identities() -> dict[str, Any]:
    def identity(name: str, access_key: str, secret_key: str, actions: list[str]) -> dict[str, Any]:
        return {
            "name": name,
            "credentials": [{"accessKey": access_key, "secretKey": secret_key}],
            "actions": actions,
        }

    return {
        "identities": [
            identity("owner", ACCESS_KEY, SECRET_KEY, ["Admin", "Read", "Write", "List", "Tagging"]),
            identity("reader", READER_KEY, READER_SECRET, [f"Read:{BUCKET}", f"List:{BUCKET}"]),
            *(identity(f"nisynth-{role}", *role_credentials(role), actions=[]) for role in ROLES),
        ]
    }


def _client(endpoint: str, verify: str | None) -> Any:  # type: ignore[no-untyped-def]
    return boto3.session.Session().client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        verify=verify,
        config=Config(
            proxies={},
            connect_timeout=2,
            read_timeout=10,
            retries={"total_max_attempts": 1, "mode": "standard"},
            request_checksum_calculation="when_required",
        ),
    )
