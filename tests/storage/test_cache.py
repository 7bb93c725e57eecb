"""Cached shards: whole files or none, one maker, a cap over all processes, no trust in files."""

import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from nisynth.storage.cache import STALE_S, CacheFolder, DiskCache
from nisynth.storage.decoded import DecodedCache
from tests.disks import run_on_small_disk

PX, ROWS = 8, 5


def name(number: int) -> str:
    return hashlib.sha256(bytes([number])).hexdigest()


def shard(number: int) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(number)
    return torch.randint(0, 256, (ROWS, 3, PX, PX), dtype=torch.uint8, generator=rng), torch.arange(ROWS)


def used_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("u8/*/*"))


FILE_BYTES = 128 + ROWS * (3 * PX * PX + 8) + 32


def test_what_was_put_is_there_for_every_process_and_for_numpy(tmp_path: Path) -> None:
    pixels, labels = shard(1)
    assert DecodedCache(tmp_path).get(name(1), ROWS, PX) is None
    assert DecodedCache(tmp_path).put(name(1), pixels, labels)
    found = DecodedCache(tmp_path).get(name(1), ROWS, PX)
    assert found is not None
    assert torch.equal(found[0], pixels)
    assert torch.equal(found[1], labels)
    path = tmp_path / "u8" / name(1)[:2] / f"{name(1)}.npy"
    assert path.stat().st_size == FILE_BYTES
    for mode in (None, "r"):
        assert np.array_equal(np.load(path, mmap_mode=mode), pixels.numpy())


def test_a_map_outlives_its_file_and_takes_no_descriptor(tmp_path: Path) -> None:
    cache = DecodedCache(tmp_path)
    cache.put(name(1), *shard(1))
    before = len(os.listdir("/proc/self/fd"))
    found = cache.get(name(1), ROWS, PX)
    assert found is not None
    assert len(os.listdir("/proc/self/fd")) == before
    cache.files.path(f"{name(1)}.npy").unlink()
    assert torch.equal(found[0], shard(1)[0])


def flip(place: int) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[place] ^= 1
        path.write_bytes(data)

    return damage


def relink(path: Path) -> None:
    other = path.with_suffix(".other")
    path.rename(other)
    path.symlink_to(other)


def other_shape(path: Path) -> None:
    np.save(path, np.zeros((ROWS, 3, PX, PX + 1), np.uint8))


DAMAGES = {
    "pixel": flip(200),
    "label": flip(-40),
    "digest": flip(-1),
    "header": flip(60),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "empty": lambda path: path.write_bytes(b""),
    "other shape": other_shape,
    "symbolic link": relink,
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_file_is_removed_and_counted(tmp_path: Path, kind: str) -> None:
    DecodedCache(tmp_path).put(name(1), *shard(1))
    path = tmp_path / "u8" / name(1)[:2] / f"{name(1)}.npy"
    DAMAGES[kind](path)
    cache = DecodedCache(tmp_path)
    assert cache.get(name(1), ROWS, PX) is None
    assert cache.damaged == 1
    assert not path.is_symlink()
    assert not path.exists()
    assert cache.put(name(1), *shard(1))
    assert cache.get(name(1), ROWS, PX) is not None


def test_a_folder_in_a_files_place_is_left_alone(tmp_path: Path) -> None:
    cache = DecodedCache(tmp_path)
    cache.files.path(f"{name(1)}.npy").mkdir(parents=True)
    assert cache.get(name(1), ROWS, PX) is None
    assert not cache.put(name(1), *shard(1))
    assert cache.damaged == 1


def test_the_cap_holds_and_what_was_used_longest_ago_goes_first(tmp_path: Path) -> None:
    cache = DecodedCache(tmp_path, cap_bytes=5 * FILE_BYTES + 10)
    for number in range(5):
        cache.put(name(number), *shard(number))
        old = time.time() - 1000 + number
        os.utime(cache.files.path(f"{name(number)}.npy"), (old, old))
    assert cache.get(name(0), ROWS, PX) is not None  # used now, so no longer the oldest
    cache.put(name(5), *shard(5))
    held = {number for number in range(6) if cache.get(name(number), ROWS, PX) is not None}
    assert {0, 5} <= held
    assert 1 not in held
    assert used_bytes(tmp_path) <= 5 * FILE_BYTES


def test_the_cap_holds_over_processes_and_a_larger_file_is_not_kept(tmp_path: Path) -> None:
    caches = [DecodedCache(tmp_path, cap_bytes=10 * FILE_BYTES) for _ in range(3)]
    most = 0
    for number in range(60):
        caches[number % 3].put(name(number), *shard(number))
        most = max(most, used_bytes(tmp_path))
    assert 8 * FILE_BYTES <= most <= 10 * FILE_BYTES
    assert not DecodedCache(tmp_path, cap_bytes=FILE_BYTES - 1).put(name(99), *shard(99))


@pytest.mark.parametrize("content", [b"", b"no number", b"-5", b"9" * 30])
def test_a_count_that_is_wrong_is_corrected_from_the_files(tmp_path: Path, content: bytes) -> None:
    cache = DecodedCache(tmp_path, cap_bytes=10 * FILE_BYTES)
    cache.put(name(1), *shard(1))
    (tmp_path / "u8" / "used").write_bytes(content)
    assert cache.put(name(2), *shard(2))
    assert cache.get(name(1), ROWS, PX) is not None
    assert int((tmp_path / "u8" / "used").read_text()) == 2 * FILE_BYTES


def test_what_a_killed_writer_left_goes_after_a_day(tmp_path: Path) -> None:
    files = CacheFolder(tmp_path, cap_bytes=1000)
    (tmp_path / "ab").mkdir()
    old, new = tmp_path / "ab" / "old.tmp", tmp_path / "ab" / "new.tmp"
    for path, age_s in ((old, STALE_S + 60), (new, 60)):
        path.write_bytes(b"x" * 10)
        os.utime(path, (time.time() - age_s,) * 2)
    files.write("ab12", [b"x" * 900])
    files.write("ab34", [b"x" * 900])
    assert not old.exists()
    assert new.exists()


def test_one_maker_at_a_time(tmp_path: Path) -> None:
    inside, most, made = [0], [0], []
    guard = threading.Lock()

    def work(number: int) -> None:
        files = CacheFolder(tmp_path, cap_bytes=10_000)
        with files.making("ab12"):
            with guard:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
            if not files.path("ab12").exists():
                files.write("ab12", [b"content"])
                made.append(number)
            with guard:
                inside[0] -= 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(40)))
    assert most == [1]
    assert len(made) == 1
    assert not list(tmp_path.glob("**/*.lock"))


KILLED = """
import os, signal, sys
from pathlib import Path
from nisynth.storage.cache import CacheFolder
files = CacheFolder(Path(sys.argv[1]), 10_000)
with files.making("ab12"):
    if sys.argv[2] == "rename":
        os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        files.write("ab12", [b"half"])
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("moment", ["decode", "rename"])
def test_a_killed_maker_leaves_no_lock_and_no_half_file(tmp_path: Path, moment: str) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), moment])
    assert done.returncode == -9
    files = CacheFolder(tmp_path, 10_000)
    with files.making("ab12"):  # would wait for ever if the lock had stayed
        assert not files.path("ab12").exists()
        assert files.write("ab12", [b"whole"])
    assert files.path("ab12").read_bytes() == b"whole"


def test_writers_that_race_leave_whole_files(tmp_path: Path) -> None:
    caches = [DecodedCache(tmp_path, cap_bytes=7 * FILE_BYTES) for _ in range(4)]

    def work(number: int) -> bool:
        key = number % 10
        cache = caches[number % 4]
        cache.put(name(key), *shard(key))
        found = cache.get(name(key), ROWS, PX)
        return found is None or torch.equal(found[0], shard(key)[0])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(200)))
    assert not list(tmp_path.glob("**/*.tmp"))
    assert used_bytes(tmp_path) <= 7 * FILE_BYTES
    assert [cache.damaged for cache in caches] == [0, 0, 0, 0]


ON_SMALL_DISK = """
import subprocess, sys, torch
from pathlib import Path
from nisynth.storage.decoded import DecodedCache
folder = Path(sys.argv[1])
cache = DecodedCache(folder, 10**9)
pixels, labels = torch.zeros(10, 3, 32, 32, dtype=torch.uint8), torch.zeros(10, dtype=torch.int64)
stored = [cache.put(f"{n:064x}", pixels, labels) for n in range(12)]
assert stored[0] and not stored[-1], stored
assert cache.get("0" * 64, 10, 32) is not None
assert not list(folder.glob("**/*.tmp"))
subprocess.run(["mount", "-o", "remount,ro", sys.argv[1]], check=True)
read_only = DecodedCache(folder, 10**9)
with read_only.files.making("ab12"):
    assert not read_only.put("f" * 64, pixels, labels)
assert read_only.get("0" * 64, 10, 32) is not None
"""


def test_a_full_and_a_read_only_disk_are_no_errors(tmp_path: Path) -> None:
    done = run_on_small_disk([sys.executable, "-c", ON_SMALL_DISK, str(tmp_path / "disk")], tmp_path / "disk")
    assert done.returncode == 0, done.stderr


def test_the_default_cap_is_half_of_what_is_free(tmp_path: Path) -> None:
    free = os.statvfs(tmp_path)
    expected = min(50_000_000_000, free.f_bavail * free.f_frsize // 2)
    assert CacheFolder(tmp_path / "not" / "there").cap_bytes == pytest.approx(expected, rel=0.1)


def test_whole_objects_are_checked_by_their_hash(tmp_path: Path) -> None:
    data = b"weights" * 100
    sha256 = hashlib.sha256(data).hexdigest()
    cache = DiskCache(tmp_path)
    assert cache.get(sha256) is None
    cache.put(sha256, data)
    assert DiskCache(tmp_path).get(sha256) == data
    path = tmp_path / "sha256" / sha256[:2] / sha256
    path.write_bytes(data[:-1])
    assert cache.get(sha256) is None
    assert not path.exists()
