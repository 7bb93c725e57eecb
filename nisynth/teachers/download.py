"""Weights from the web: `https://...` and `hf://owner/repo[@revision]/file`, each with its sha256.

The hash is part of the URL, `#sha256=<64 hex digits>`, so that a run means the same file for ever, whoever
serves it; what was fetched once is kept in the cache by it. Nothing is fetched that no config names so.
"""

import hashlib
import logging
import os
import re
import urllib.error
import urllib.request
from typing import IO, Any

from nisynth.errors import ConfigError, StorageError, TeacherError, one_line
from nisynth.storage.cache import DiskCache, default_folder

SCHEMES = ("https://", "http://", "hf://")
TIMEOUT_S = 60
CHUNK_BYTES = 1 << 20
LARGEST_BYTES = 16 * 10**9

logger = logging.getLogger(__name__)


def is_remote(source: str) -> bool:
    """Returns whether weights are named by a URL that this module fetches."""
    return source.lower().startswith(SCHEMES)


def download(source: str) -> bytes:
    """Returns the bytes that a URL with a hash names, from the cache where they are.

    A token for hf:// comes from HF_TOKEN, another server than huggingface.co from HF_ENDPOINT. Raises
    ConfigError for a URL without a hash, TeacherError where there is no such file or another one,
    StorageError when the server cannot be reached.
    """
    url, _, fragment = source.partition("#")
    found = re.fullmatch(r"sha256=([0-9a-fA-F]{64})", fragment)
    if found is None:
        raise ConfigError(
            f"teacher.weights {source}: a file from the web needs its hash, so that it stays the same file; "
            "write #sha256=<64 hex digits> behind it (`sha256sum FILE` prints them)"
        )
    wanted, cache = found[1].lower(), DiskCache(default_folder())
    data = cache.get(wanted)
    if data is not None:
        return data
    data = _fetch(url)
    sha256 = hashlib.sha256(data).hexdigest()
    if sha256 != wanted:
        raise TeacherError(
            f"teacher.weights {url}: the sha256 of what is there is {sha256}, not {wanted}; it is another "
            "file, or damaged on its way"
        )
    cache.put(wanted, data)
    return data


def _fetch(url: str) -> bytes:
    request = urllib.request.Request(_address(url), headers={"User-Agent": "nisynth"})
    token = os.environ.get("HF_TOKEN", "")
    if token and url.startswith("hf://"):
        request.add_unredirected_header("Authorization", f"Bearer {token}")  # not for where it leads to
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            return _read(answer, url)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in (401, 403):
            cure = "; give a token in HF_TOKEN" if url.startswith("hf://") else ""
            raise TeacherError(f"teacher.weights {url}: access denied (HTTP {error.code}){cure}") from None
        if error.code in (404, 410):
            raise TeacherError(f"teacher.weights {url} cannot be found (HTTP {error.code})") from None
        raise StorageError(f"teacher.weights {url}: HTTP {error.code} {error.reason}; try again") from None
    except (OSError, ValueError) as error:
        raise StorageError(f"teacher.weights {url} cannot be fetched: {one_line(error)}") from None


def _address(url: str) -> str:
    if not url.startswith("hf://"):
        return url
    found = re.fullmatch(r"hf://([^/@]+/[^/@]+)(?:@([^/]+))?/(.+)", url)
    if found is None:
        raise ConfigError(
            f"teacher.weights {url}: write hf://owner/repo/file, or hf://owner/repo@revision/file"
        )
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    return f"{endpoint}/{found[1]}/resolve/{found[2] or 'main'}/{found[3]}"


def _read(answer: IO[bytes], url: str) -> bytes:
    headers: Any = getattr(answer, "headers", {})
    stated = headers.get("Content-Length")
    size = f"{int(stated) / 1e6:,.1f} MB" if stated and stated.isdecimal() else "a file of unknown size"
    logger.warning("teacher.weights: fetching %s from %s", size, url)
    data = bytearray()
    while chunk := answer.read(CHUNK_BYTES):
        data += chunk
        if len(data) > LARGEST_BYTES:
            raise TeacherError(f"teacher.weights {url}: over {LARGEST_BYTES / 1e9:g} GB; it was not read on")
    return bytes(data)
