"""The S3 client and its settings: all standard ones of the AWS SDKs, from the environment or a profile."""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError

from nisynth.errors import ConfigError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How long to wait and how often to try; 8 attempts take about 17 s, a restart of a server 2 to 6 s.

    A server that never answered yet is given up after 3 attempts to connect: its URL is likely wrong.
    """

    connect_s: float = 5.0
    read_s: float = 60.0
    attempts: int = 8
    first_pause_s: float = 0.2
    page_keys: int = 1000


def limits_from_environment() -> Limits:
    return Limits(
        read_s=_number("NISYNTH_S3_READ_TIMEOUT_S", Limits.read_s),
        attempts=int(_number("AWS_MAX_ATTEMPTS", Limits.attempts)),
    )


def _number(variable: str, default: float) -> float:
    text = os.environ.get(variable) or str(default)
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 1 <= number < 1e6:
        raise ConfigError(f"{variable}={text!r}: give a number of at least 1, such as {default}")
    return number


def encryption_from_environment() -> dict[str, Any]:
    settings = {
        "ServerSideEncryption": os.environ.get("NISYNTH_S3_SSE"),
        "SSEKMSKeyId": os.environ.get("NISYNTH_S3_SSE_KMS_KEY_ID"),
    }
    return {name: value for name, value in settings.items() if value}


def make_client(limits: Limits) -> "S3Client":
    # A session of its own: making clients from boto3's shared session is not thread-safe.
    config = Config(
        connect_timeout=limits.connect_s,
        read_timeout=limits.read_s,
        retries={"total_max_attempts": 1, "mode": "standard"},
        max_pool_connections=32,
        tcp_keepalive=True,
        # Every write carries its own SHA256; the library's extra CRC trailers confuse some servers.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_supported",
    )
    try:
        client = boto3.session.Session().client("s3", config=config)
        holds_credentials = urlsplit(client.meta.endpoint_url).username is not None
    except BotoCoreError:
        raise
    except ValueError:
        raise ConfigError("AWS_ENDPOINT_URL is not a URL; give one such as https://host:port") from None
    if holds_credentials:
        raise ConfigError(
            "AWS_ENDPOINT_URL holds credentials; give them as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    return client
