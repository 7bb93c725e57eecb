"""Answers of an S3 server, read as if anyone had sent them: bounded in bytes and time, and held to be S3's.

Between this machine and a bucket there may be a proxy that compresses, a login page that answers every
request with 200, a server that leaves fields out, or one that sends a byte now and then. Each of these is
told apart from a damaged object: a wrong answer must never lead to the advice to make a good shard again.
"""

import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from nisynth.errors import DataError
from nisynth.storage.store import check_size

SLOWEST_BYTES_PER_S = 20_000
"""A body that comes more slowly than this, after the wait for an answer, is given up."""

_CHUNK_BYTES = 1 << 16
_MAX_EMPTY_PAGES = 100


class ForeignAnswer(Exception):
    """An answer with a status of success that no S3 server gives; s3_errors.py says what each kind means."""


class WebPageAnswer(ForeignAnswer):
    """A page for people, such as the login page of a network."""


class CompressedAnswer(ForeignAnswer):
    """The object's bytes were compressed on their way."""


class UnconfirmedWrite(ForeignAnswer):
    """The answer to a write names no ETag, as every S3 server does when it has the object."""


class SlowBody(ForeignAnswer):
    """The body did not end in the time that its size allows."""


class EndlessListing(ForeignAnswer):
    """A listing that repeats itself, or lacks the token of its next page."""


class UnknownSize(ForeignAnswer):
    """No answer says how large an object is."""


def check_answer(answer: Mapping[str, Any]) -> None:
    """Raises ForeignAnswer for an answer that came from something else than an S3 server."""
    headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    if str(headers.get("content-type", "")).lower().startswith("text/html"):
        raise WebPageAnswer
    if headers.get("content-encoding", "") not in ("", "identity", "aws-chunked"):
        raise CompressedAnswer


def check_written(answer: Mapping[str, Any]) -> None:
    """Raises UnconfirmedWrite for an answer that does not say that the object was stored."""
    if not answer.get("ETag"):
        raise UnconfirmedWrite


def read_body(answer: Mapping[str, Any], where: str, max_bytes: int | None, wait_s: float) -> bytes:
    """Returns the whole body of a GET. where: the object's name, for messages. wait_s: for its first byte.

    Raises DataError for more than `max_bytes`, which are not read; SlowBody. Reading to the end is what
    makes the client library check the length and, where the server keeps one, the checksum.
    """
    size = answer.get("ContentLength")
    check_size(where, size or 0, max_bytes)
    expected_bytes = size if size is not None else max_bytes or 0
    body = answer["Body"]
    late = threading.Event()
    with body as stream:  # the connection's own stream, whose shutdown may be called from another thread

        def give_up() -> None:
            late.set()
            with suppress(Exception):  # it ended at the same moment
                stream.shutdown()

        timer = threading.Timer(wait_s + expected_bytes / SLOWEST_BYTES_PER_S, give_up)
        timer.daemon = True
        timer.start()
        try:
            data = body.read() if size is not None else _read_unsized(body, where, max_bytes)
        except DataError:
            raise
        except Exception:
            if late.is_set():
                raise SlowBody from None
            raise
        finally:
            timer.cancel()
    if late.is_set():  # a body of unknown length ends where the connection does
        raise SlowBody
    return data


def _read_unsized(body: Any, where: str, max_bytes: int | None) -> bytes:
    parts: list[bytes] = []
    read_bytes = 0
    while part := body.read(_CHUNK_BYTES):
        parts.append(part)
        read_bytes += len(part)
        check_size(where, read_bytes, max_bytes)
    return b"".join(parts)


class Pages:
    """Walks through a listing's pages: says where the next one begins, and refuses to walk in a circle."""

    def __init__(self) -> None:
        self._tokens: set[str] = set()
        self._last: list[str] = []
        self._empty = 0

    def next_token(self, page: Mapping[str, Any]) -> str | None:
        """Returns the token of the page after this one, None after the last. Raises EndlessListing."""
        if not page.get("IsTruncated"):
            return None
        token = page.get("NextContinuationToken")
        keys = [str(entry.get("Key")) for entry in page.get("Contents", [])]
        self._empty = 0 if keys else self._empty + 1
        repeated = token in self._tokens or (keys and keys == self._last)
        if not token or repeated or self._empty > _MAX_EMPTY_PAGES:
            raise EndlessListing
        self._tokens.add(token)
        self._last = keys
        return str(token)
