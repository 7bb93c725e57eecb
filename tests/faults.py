"""A loopback proxy in front of an S3 server that goes wrong on demand, one request at a time.

`proxy.inject(Fault(...))` arms a fault; each request takes the first armed one that fits it. The proxy
passes everything else through unchanged, `Host` header included, so the client's signature stays valid;
where it has to change signed headers it signs the request again with the test credentials.
"""

import gzip
import http.client
import random
import re
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Literal
from urllib.parse import parse_qs, urlsplit

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from tests.servers import ACCESS_KEY, SECRET_KEY, free_port, s3_environment

Kind = Literal[
    "status",
    "lost",
    "dropped",
    "truncated",
    "shortened",
    "corrupted",
    "unconditional",
    "hang",
    "drip",
    "unsized",
    "gzip",
    "page",
    "repeated",
]
_HOP_BY_HOP = ("connection", "keep-alive", "transfer-encoding", "expect", "content-length")


@dataclass(frozen=True)
class Fault:
    """What goes wrong, for which requests, how often.

    kind: `status` answers with `status` and S3 error `code`, and only with `forward` does the server
    see the request; `lost` forwards and closes without an answer; `dropped` closes without forwarding;
    `truncated` breaks off the body; `shortened` and `corrupted` send a whole answer with a wrong body;
    `unconditional` takes If-None-Match away; `hang` gives no answer until the proxy closes; `drip` sends
    a byte of the body now and then, and never its last; `unsized` leaves Content-Length out; `gzip`
    compresses the body, `page` answers with a web page, both as a proxy on the way does; `repeated` gives
    the first answer to such a request again and again.
    verb: PUT, GET, HEAD, DELETE, LIST or None for all. key: pattern searched in the object's name.
    times: how many requests it hits, None for all. probability: of each fitting request.
    """

    kind: Kind
    verb: str | None = None
    key: str = ""
    times: int | None = 1
    probability: float = 1.0
    status: int = 500
    code: str = "InternalError"
    forward: bool = False


@dataclass(frozen=True)
class Seen:
    """One request that reached the proxy; `fault` is what happened to it."""

    verb: str
    key: str
    fault: str | None
    headers: dict[str, str]


class FaultProxy:
    """Listens on a loopback port while the `with` block runs; `environment()` leads S3 clients to it."""

    def __init__(self, upstream: str, seed: int = 0) -> None:
        self.upstream = urlsplit(upstream).netloc
        self.seen: list[Seen] = []
        self.closing = threading.Event()
        self.first: dict[str, _Answer] = {}
        self.refuse_conditions = False  # a server without If-None-Match: 501
        self._faults: list[list[object]] = []
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", free_port()), _Handler)
        self._server.daemon_threads = True
        self._server.proxy = self  # type: ignore[attr-defined]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def environment(self) -> dict[str, str]:
        return s3_environment(self.endpoint)

    def inject(self, *faults: Fault) -> None:
        with self._lock:
            self._faults += [[fault, fault.times] for fault in faults]

    def clear(self) -> None:
        """Disarms every fault and forgets the requests seen."""
        with self._lock:
            self._faults.clear()
            self.seen.clear()

    def count(self, verb: str, fault: str | None = None) -> int:
        """Returns how many requests of this verb came in (and met this fault)."""
        with self._lock:
            return sum(s.verb == verb and fault in (None, s.fault) for s in self.seen)

    def take(self, verb: str, key: str, headers: dict[str, str]) -> Fault | None:
        """Returns the fault that this request meets, and uses it up once."""
        with self._lock:
            chosen = None
            for entry in self._faults:
                fault, left = entry
                assert isinstance(fault, Fault)
                fits = fault.verb in (None, verb) and re.search(fault.key, key) and left != 0
                if fits and self._random.random() < fault.probability:
                    entry[1] = left if left is None else int(str(left)) - 1
                    chosen = fault
                    break
            self.seen.append(Seen(verb, key, chosen and chosen.kind, headers))
            return chosen

    def __enter__(self) -> "FaultProxy":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@dataclass
class _Answer:
    status: int
    headers: list[tuple[str, str]]
    body: bytes


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # An idle client must not keep a thread for ever.
    timeout = 30
    # Small answers would otherwise wait 40 ms for an acknowledgement.
    disable_nagle_algorithm = True

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except OSError:
            # The client gave up, which is what many faults are for.
            self.close_connection = True

    def _serve(self) -> None:
        proxy: FaultProxy = self.server.proxy  # type: ignore[attr-defined]
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        parts = urlsplit(self.path)
        key = parts.path.split("/", 2)[2] if parts.path.count("/") > 1 else ""
        verb = "LIST" if "list-type" in parse_qs(parts.query) else self.command
        fault = proxy.take(verb, key, {k.lower(): v for k, v in self.headers.items()})
        if fault is None:
            refused = proxy.refuse_conditions and "If-None-Match" in self.headers
            missing = Fault("status", status=501, code="NotImplemented")
            self._answer(_error(missing) if refused else self._forward(proxy, body))
        else:
            self._fail(proxy, fault, body)

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _serve  # noqa: N815

    def _fail(self, proxy: FaultProxy, fault: Fault, body: bytes) -> None:
        match fault.kind:
            case "status":
                if fault.forward:
                    self._forward(proxy, body)
                self._answer(_error(fault))
            case "lost":
                self._forward(proxy, body)
                self.close_connection = True
            case "dropped":
                self.close_connection = True
            case "hang":
                proxy.closing.wait()
                self.close_connection = True
            case "unconditional":
                self._answer(self._forward(proxy, body, without=("if-none-match",)))
            case "drip":
                self._drip(proxy, self._forward(proxy, body))
            case "unsized":
                self._answer(self._forward(proxy, body), sized=False)
            case "gzip":
                answer = self._forward(proxy, body)
                headers = [*_unsized(answer.headers), ("Content-Encoding", "gzip")]
                self._answer(_Answer(answer.status, headers, gzip.compress(answer.body)))
            case "page":
                self._answer(
                    _Answer(200, [("Content-Type", "text/html; charset=utf-8")], b"<html>Log in</html>")
                )
            case "repeated":
                answer = self._forward(proxy, body)
                self._answer(proxy.first.setdefault(self.command, answer))
            case "truncated" | "shortened" | "corrupted":
                self._spoil(fault.kind, self._forward(proxy, body))

    def _spoil(self, kind: str, answer: _Answer) -> None:
        half = answer.body[: len(answer.body) // 2]
        if kind == "truncated":
            self._answer(answer, sent=half)
            self.close_connection = True
        elif kind == "shortened":
            self._answer(_Answer(answer.status, answer.headers, half))
        else:
            flipped = bytes([answer.body[0] ^ 1]) + answer.body[1:] if answer.body else b""
            self._answer(_Answer(answer.status, answer.headers, flipped))

    def _drip(self, proxy: FaultProxy, answer: _Answer) -> None:
        self._answer(answer, sent=b"")
        while not proxy.closing.wait(0.02):
            self.wfile.write(b"x")  # an OSError, once the client has given up, ends the request

    def _forward(self, proxy: FaultProxy, body: bytes, without: tuple[str, ...] = ()) -> _Answer:
        headers = {k: v for k, v in self.headers.items() if k.lower() not in (*_HOP_BY_HOP, *without)}
        if without:
            headers = self._signed_again(headers, body)
        if self.command in ("PUT", "POST"):
            headers["Content-Length"] = str(len(body))
        connection = http.client.HTTPConnection(proxy.upstream, timeout=60)
        try:
            connection.request(self.command, self.path, body or None, headers)
            answer = connection.getresponse()
            kept = [(k, v) for k, v in answer.getheaders() if k.lower() not in _HOP_BY_HOP]
            if self.command == "HEAD":
                # The one answer whose length is not that of its body.
                kept.append(("Content-Length", answer.getheader("Content-Length") or "0"))
            return _Answer(answer.status, kept, answer.read())
        except OSError:
            # What a load balancer says while the server behind it is down.
            return _error(Fault("status", status=502, code="BadGateway"))
        finally:
            connection.close()

    def _signed_again(self, headers: dict[str, str], body: bytes) -> dict[str, str]:
        plain = {k: v for k, v in headers.items() if k.lower() not in ("authorization", "x-amz-date")}
        url = f"http://{self.headers['Host']}{self.path}"
        request = AWSRequest(method=self.command, url=url, data=body, headers=plain)
        S3SigV4Auth(Credentials(ACCESS_KEY, SECRET_KEY), "s3", "us-east-1").add_auth(request)
        return dict(request.headers.items())

    def _answer(self, answer: _Answer, sent: bytes | None = None, sized: bool = True) -> None:
        self.send_response_only(answer.status)
        for name, value in answer.headers if sized else _unsized(answer.headers):
            self.send_header(name, value)
        if not sized:
            self.send_header("Connection", "close")
            self.close_connection = True
        elif self.command != "HEAD" and answer.status != 204:
            self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body if sent is None else sent)

    def log_message(self, format: str, *args: object) -> None:
        pass


def _unsized(headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(name, value) for name, value in headers if name.lower() != "content-length"]


def _error(fault: Fault) -> _Answer:
    text = (
        '<?xml version="1.0" encoding="UTF-8"?>'
        f"<Error><Code>{fault.code}</Code><Message>injected by the proxy</Message></Error>"
    )
    return _Answer(fault.status, [("Content-Type", "application/xml")], text.encode())
