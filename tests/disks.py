"""Disks that are full or read-only: tests run as root, for whom permissions mean nothing.

A command runs in a mount namespace of its own, where a small tmpfs lies over a folder; nothing outside
sees it, and it goes when the command ends.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

_MOUNT = 'mount -t tmpfs -o "size=$0" tmpfs "$1" && shift && exec "$@"'


def run_on_small_disk(
    command: list[str], folder: Path, size: str = "256k", timeout_s: float = 120
) -> subprocess.CompletedProcess[str]:
    """Runs a command that finds an empty disk of this size at `folder`, or skips the test.

    The command may make the disk read-only with `mount -o remount,ro FOLDER`.
    """
    _require_mounts(folder)
    return subprocess.run(
        ["unshare", "-m", "sh", "-c", _MOUNT, size, str(folder), *command],
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )


def forbid_links(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """Makes every hard link fail with this errno: EPERM as on exFAT, EOPNOTSUPP as on some network disks."""

    def fail(source: Path, target: Path) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", fail)


def _require_mounts(folder: Path) -> None:
    if shutil.which("unshare") is None:
        pytest.skip("unshare is not installed: no full or read-only disk can be made")
    folder.mkdir(parents=True, exist_ok=True)
    trial = subprocess.run(
        ["unshare", "-m", "sh", "-c", _MOUNT, "64k", str(folder), "true"], capture_output=True, text=True
    )
    if trial.returncode:
        pytest.skip(
            f"this user may not mount: no full or read-only disk can be made ({trial.stderr.strip()})"
        )
