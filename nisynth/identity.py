"""What tells one thing from another: versions of the software, the hash of an identity, where two differ."""

import hashlib
import json
import platform
from collections.abc import Mapping
from typing import Any


def versions() -> dict[str, str]:
    """Returns the versions of the software that a plan, a commit or a report was made with."""
    import torch

    from nisynth import __version__

    return {"nisynth": __version__, "torch": torch.__version__, "python": platform.python_version()}


def fingerprint(identity: Mapping[str, Any]) -> str:
    """Returns the sha256, in hex, of an identity in JSON with sorted keys and without spaces."""
    canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def differing_fields(ours: Mapping[str, Any], theirs: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Returns `section.key: theirs there, ours here` for every leaf in which two identities differ."""
    lines: list[str] = []
    for key in sorted(set(ours) | set(theirs)):
        a, b = ours.get(key), theirs.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += differing_fields(a, b, f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key}: {_short(b)} there, {_short(a)} here")
    return lines


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
