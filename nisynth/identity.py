"""What tells one thing from another: versions of the software, the hash of an identity, where two differ."""

import dataclasses
import hashlib
import json
import platform
from collections.abc import Mapping
from typing import Any

__version__ = "0.1.0"


def versions() -> dict[str, str]:
    """Returns the versions of the software that a plan, a commit or a report was made with."""
    import torch

    return {"nisynth": __version__, "torch": torch.__version__, "python": platform.python_version()}


def fingerprint(identity: Mapping[str, Any]) -> str:
    """Returns the sha256, in hex, of an identity in JSON with sorted keys and without spaces."""
    canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def counted_fields(section: Any, resolved: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Returns what of a config section, a dataclass, belongs to an identity.

    A field added after the first release, marked `metadata={"added_later": True}`, counts only when it
    leaves what everybody had before it (`"before"` in its metadata, else its default): a new field does not
    change the identity of an older run or student. One marked `metadata={"decides": False}` changes how a
    result is come by and not the result, and never counts. resolved: the section as plain JSON types, where
    the caller has it.
    """
    left_out = {
        f.name
        for f in dataclasses.fields(section)
        if not f.metadata.get("decides", True)
        or (f.metadata.get("added_later") and getattr(section, f.name) == f.metadata.get("before", f.default))
    }
    values = dataclasses.asdict(section) if resolved is None else resolved
    return {name: value for name, value in values.items() if name not in left_out}


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
