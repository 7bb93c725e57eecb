"""A store in an S3 bucket: AWS, or any server that honours `If-None-Match: *`.

All settings are the standard ones of the AWS SDKs, from the environment or a profile: credentials,
AWS_PROFILE, AWS_ENDPOINT_URL, AWS_DEFAULT_REGION, AWS_MAX_ATTEMPTS, and AWS_CA_BUNDLE (`ca_bundle`) for a
private CA. Encryption at rest is best the bucket's own default, SSE-KMS included; where a policy demands
the header on every write, NISYNTH_S3_SSE (`aws:kms`) and NISYNTH_S3_SSE_KMS_KEY_ID send it.
NISYNTH_S3_READ_TIMEOUT_S (60) bounds the wait for one answer.

The library's own retries are off. A conditional PUT whose answer was lost, sent again, gets 412 for its
own object, and the library would report that as another writer's. So all retries are made here, with
backoff and jitter, and `create` marks the object with an id of its own: after a 412 a look at the mark
tells mine (success) from another's (AlreadyExists) and from none (try again). Comparing contents instead
was rejected: equal bytes do not tell who wrote them, and a look costs a download. ETags are never trusted.
"""

import base64
import hashlib
import random
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING, Any, TypeVar

from botocore.exceptions import BotoCoreError, ClientError

from nisynth.errors import ConfigError, StorageError
from nisynth.storage.keys import check_key, check_prefix, is_key
from nisynth.storage.s3_answers import (
    ForeignAnswer,
    Pages,
    UnknownSize,
    check_answer,
    check_written,
    read_body,
)
from nisynth.storage.s3_client import (
    Limits,
    encryption_from_environment,
    limits_from_environment,
    make_client,
)
from nisynth.storage.s3_errors import RequestFailure, judge
from nisynth.storage.store import AlreadyExists, NotFound, ObjectInfo, OutcomeUnknown, Unconditional

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

T = TypeVar("T")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]")
_MARK = "nisynth-writer"
FAILURES = (ClientError, BotoCoreError, ForeignAnswer)
_LONGEST_PAUSE_S = 10.0
_FIRST_CONTACT_ATTEMPTS = 3
# Pauses must not draw from the generators that a run's results depend on.
_jitter = random.SystemRandom()


class S3Store:
    """Objects under `s3://bucket/prefix`. The first request makes the client; threads may share it."""

    def __init__(self, url: str, limits: Limits | None = None) -> None:
        self._bucket, prefix = _split(url)
        prefix = prefix.rstrip("/")
        if prefix and not is_key(prefix):
            raise ConfigError(
                f"store s3://{self._bucket}/...: the prefix is not plain names joined by '/'; "
                "use letters, digits and '._-'"
            )
        self.url = f"s3://{self._bucket}/{prefix}".rstrip("/")
        self._prefix = prefix and prefix + "/"
        self._limits = limits or limits_from_environment()
        self._encryption = encryption_from_environment()
        self._lock = threading.Lock()
        self._made_client: S3Client | None = None
        self._answered = False
        self.retries = 0

    def create(self, key: str, data: bytes) -> None:
        name = self._prefix + check_key(key)
        mark = uuid.uuid4().hex
        unclear = False
        for attempt in count(1):
            try:
                self._put(name, data, IfNoneMatch="*", Metadata={_MARK: mark})
                self._answered = True
                return
            except FAILURES as error:
                failure = self._judge(error, "s3:PutObject")
            if failure.status == 412 and self._is_mine(name, mark, self._limits.attempts):
                return
            unclear = unclear or failure.unclear
            if not self._pause(failure, attempt):
                break
        # An attempt without an answer may have written the object after all.
        if unclear and self._is_mine(name, mark, attempts=1):
            return
        kind = Unconditional if failure.unconditional else OutcomeUnknown if unclear else StorageError
        raise kind(f"{self._where(name)}: {failure.words}")

    def put(self, key: str, data: bytes) -> None:
        name = self._prefix + check_key(key)
        self._call(name, "s3:PutObject", lambda: self._put(name, data))

    def get(self, key: str, max_bytes: int | None = None) -> bytes:
        return self.get_any(self._prefix + check_key(key), max_bytes)

    def get_any(self, name: str, max_bytes: int | None = None) -> bytes:
        """Returns the bytes of an object by its full name in the bucket, which need not be a key."""

        def request() -> bytes:
            answer = self._client().get_object(Bucket=self._bucket, Key=name)
            check_answer(answer)
            return read_body(answer, self._where(name), max_bytes, self._limits.read_s)

        return self._call(
            name, "s3:GetObject, and s3:ListBucket without which a missing object is refused", request
        )

    def size_bytes(self, key: str) -> int:
        name = self._prefix + check_key(key)
        head = self._call(name, "s3:GetObject", lambda: self._head(name))
        size: int | None = head.get("ContentLength")
        return self._call(name, "s3:ListBucket", lambda: self._listed_size(name)) if size is None else size

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return self._walk(self._prefix + check_prefix(prefix))

    def delete(self, key: str) -> None:
        name = self._prefix + check_key(key)
        with suppress(NotFound):  # some servers say so, S3 does not
            self._call(name, "s3:DeleteObject", lambda: self._delete(name))

    def sweep(self) -> int:
        return 0  # a PUT is one request: it makes an object or leaves nothing

    def _walk(self, begin: str) -> Iterator[ObjectInfo]:
        asked: dict[str, Any] = {
            "Bucket": self._bucket,
            "Prefix": begin,
            "MaxKeys": self._limits.page_keys,
        }
        pages = Pages()

        def request() -> tuple[dict[str, Any], str | None]:
            page = self._list(**asked)
            return page, pages.next_token(page)

        while True:
            page, token = self._call(begin, "s3:ListBucket", request)
            for entry in page.get("Contents", []):
                key = entry["Key"][len(self._prefix) :]
                if entry["Key"].startswith(begin) and is_key(key):
                    yield ObjectInfo(key, entry["Size"])
            if token is None:
                return
            asked["ContinuationToken"] = token

    def _put(self, name: str, data: bytes, **conditions: Any) -> None:
        checksum = base64.b64encode(hashlib.sha256(data).digest()).decode()
        answer = self._client().put_object(
            Bucket=self._bucket,
            Key=name,
            Body=data,
            ChecksumSHA256=checksum,
            **self._encryption,
            **conditions,
        )
        check_answer(answer)
        check_written(answer)

    def _head(self, name: str) -> Any:
        answer = self._client().head_object(Bucket=self._bucket, Key=name)
        check_answer(answer)
        return answer

    def _list(self, **asked: Any) -> Any:
        """Returns a page of a listing whose entries have name and size."""
        page = self._client().list_objects_v2(**asked)
        check_answer(page)
        if not all("Key" in entry and "Size" in entry for entry in page.get("Contents", [])):
            raise UnknownSize
        return page

    def _listed_size(self, name: str) -> int:
        """Returns the size of an object that exists, from a listing: an object comes before longer names."""
        page = self._list(Bucket=self._bucket, Prefix=name, MaxKeys=1)
        sizes: list[int] = [entry["Size"] for entry in page.get("Contents", []) if entry["Key"] == name]
        if not sizes:
            raise UnknownSize
        return sizes[0]

    def _delete(self, name: str) -> None:
        check_answer(self._client().delete_object(Bucket=self._bucket, Key=name))

    def _is_mine(self, name: str, mark: str, attempts: int) -> bool:
        """Tells whether `create` wrote the object; False when there is none. Raises AlreadyExists."""
        try:
            found = self._call(name, "s3:GetObject", lambda: self._head(name), attempts)
        except NotFound:
            return False
        except StorageError as error:
            raise OutcomeUnknown(f"{error}; whether the object was written is unknown") from None
        # By value: some servers change the case of the name.
        if mark not in found.get("Metadata", {}).values():
            raise AlreadyExists(f"{self._where(name)}: the object exists already")
        return True

    def _call(self, name: str, action: str, request: Callable[[], T], attempts: int = 0) -> T:
        """Returns the answer of a request that may be sent any number of times."""
        for attempt in count(1):
            try:
                answer = request()
                self._answered = True
                return answer
            except FAILURES as error:
                failure = self._judge(error, action)
            if failure.not_found:
                raise NotFound(f"{self._where(name)}: no such object")
            if attempt == attempts or not self._pause(failure, attempt):
                break
        raise StorageError(f"{self._where(name)}: {failure.words}")

    def _pause(self, failure: RequestFailure, attempt: int) -> bool:
        """Waits before the next attempt, and tells whether there is to be one."""
        allowed = self._limits.attempts
        if failure.unreached and not self._answered:
            allowed = min(allowed, _FIRST_CONTACT_ATTEMPTS)
        if not failure.retry or attempt >= allowed:
            return False
        with self._lock:
            self.retries += 1
        longest = min(_LONGEST_PAUSE_S, self._limits.first_pause_s * 2 ** (attempt - 1))
        time.sleep(longest * _jitter.uniform(0.5, 1.0))
        return True

    def _judge(self, error: Exception, action: str) -> RequestFailure:
        endpoint = self._made_client.meta.endpoint_url if self._made_client else "the server"
        failure = judge(error, action=action, endpoint=endpoint)
        if failure.unreached and not self._answered:
            # Broken TLS or an unsendable request before any answer: the server has not seen it.
            failure = replace(failure, unclear=False)
        if failure.status > 0:  # set alone, never read and written back: threads share it
            self._answered = True
        return failure

    def _where(self, name: str) -> str:
        return f"s3://{self._bucket}/{name}"

    def _client(self) -> "S3Client":
        with self._lock:
            if self._made_client is None:
                self._made_client = make_client(self._limits)
            return self._made_client


def read_object(url: str) -> bytes:
    """Returns the bytes of the object that an `s3://` URL names. Raises as `read_url` does."""
    bucket, name = _split(url)
    if not name:
        raise ConfigError(f"s3://{bucket}: names a bucket; name an object in it")
    return S3Store(f"s3://{bucket}").get_any(name)


def _split(url: str) -> tuple[str, str]:
    """Returns the bucket and the rest of an `s3://` URL, of which no part is shown when it is wrong."""
    bucket, _, name = url.removeprefix("s3://").partition("/")
    if _BUCKET.fullmatch(bucket) is None:
        raise ConfigError(
            "store s3://...: no valid bucket name; use s3://bucket/prefix with a bucket of 3 to 63 small "
            "letters, digits and '.-', and credentials from the environment, never in the URL"
        )
    return bucket, name
