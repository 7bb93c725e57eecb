"""What only a folder can do wrong: disks, crashes between two steps, links, names."""

import errno
import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from nisynth.errors import StorageError
from nisynth.storage import AlreadyExists, OutcomeUnknown, Unconditional, open_store
from nisynth.storage.local import LocalStore
from tests.disks import forbid_links, run_on_small_disk

FULL_DISK = """
import sys
from nisynth.errors import StorageError
from nisynth.storage import open_store
store = open_store(sys.argv[1] + "/run")
store.create("commits/0", b"kept")
for write in (store.create, store.put):
    try:
        write("data/large", b"x" * 2**20)
    except StorageError as error:
        print(error)
print([info.key for info in store.list()])
store.create("commits/1", b"there is room for this")
print(store.get("commits/0"), store.get("commits/1"))
"""

READ_ONLY_DISK = """
import subprocess, sys
from nisynth.errors import StorageError
from nisynth.storage import open_store
store = open_store(sys.argv[1] + "/run")
store.create("commits/0", b"kept")
subprocess.run(["mount", "-o", "remount,ro", sys.argv[1]], check=True)
for use in (
    lambda: store.create("commits/1", b""),
    lambda: store.create("other/1", b""),
    lambda: store.put("commits/0", b""),
    lambda: store.delete("commits/0"),
    lambda: open_store(sys.argv[1] + "/new").create("commits/1", b""),
):
    try:
        use()
    except StorageError as error:
        print(error)
print(store.get("commits/0"), [info.key for info in store.list()])
"""

NO_PERMISSION = """
import os, sys
from nisynth.errors import StorageError
from nisynth.storage import open_store
store = open_store(sys.argv[1] + "/run")
if os.geteuid() == 0:
    os.setgroups([])
    os.setegid(65534)
    os.seteuid(65534)
for use in (
    lambda: store.create("key", b""),
    lambda: store.put("key", b""),
    lambda: store.get("key"),
    lambda: list(store.list()),
):
    try:
        use()
    except StorageError as error:
        print(error)
"""

KILLED = """
import os, signal, sys
from nisynth.storage import open_store
def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)
setattr(os, sys.argv[2], die)
open_store(sys.argv[1]).create("commits/1", b"first")
"""


SWEEP = """
import sys
from nisynth.storage import open_store
print(open_store(sys.argv[1]).sweep())
"""


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=120
    )


def test_a_full_disk(tmp_path: Path) -> None:
    done = run_on_small_disk([sys.executable, "-c", FULL_DISK, str(tmp_path)], tmp_path)
    assert done.returncode == 0, done.stderr
    large = f"{tmp_path}/run/data/large: the disk is full; free space there or use another store"
    assert done.stdout.splitlines() == [
        large,
        large,
        "['commits/0']",
        "b'kept' b'there is room for this'",
    ]


def test_a_read_only_disk(tmp_path: Path) -> None:
    done = run_on_small_disk([sys.executable, "-c", READ_ONLY_DISK, str(tmp_path)], tmp_path)
    assert done.returncode == 0, done.stderr
    *errors, kept = done.stdout.splitlines()
    where = ["run/commits/1", "run/other/1", "run/commits/0", "run/commits/0", "new/commits/1"]
    assert errors == [
        f"{tmp_path}/{key}: the file system is read-only; mount it writable or use another store"
        for key in where
    ]
    assert kept == "b'kept' ['commits/0']"


def test_no_permission(tmp_path: Path) -> None:
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o700)
    if os.geteuid() != 0:
        folder.chmod(0o000)
    done = run(NO_PERMISSION, str(folder))
    folder.chmod(0o700)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 4
    assert all(line.startswith(f"{folder}/run") for line in lines)
    assert all(
        line.endswith(": permission denied; grant this user access or use another store") for line in lines
    )


def test_a_crash_before_the_name_is_given_leaves_no_object(tmp_path: Path) -> None:
    assert run(KILLED, str(tmp_path), "link").returncode == -9
    store = open_store(str(tmp_path))
    assert list(store.list()) == []
    assert len(list((tmp_path / ".tmp").iterdir())) == 1
    store.create("commits/1", b"second")
    assert store.get("commits/1") == b"second"


def test_a_crash_after_the_name_is_given_leaves_the_whole_object(tmp_path: Path) -> None:
    assert run(KILLED, str(tmp_path), "unlink").returncode == -9
    store = open_store(str(tmp_path))
    assert [info.key for info in store.list()] == ["commits/1"]
    assert store.get("commits/1") == b"first"
    with pytest.raises(AlreadyExists):
        store.create("commits/1", b"second")


def test_a_sweep_removes_what_killed_writers_left_and_nothing_else(tmp_path: Path) -> None:
    for step in ("link", "unlink"):
        assert run(KILLED, str(tmp_path), step).returncode == -9
    (tmp_path / ".tmp/notes").write_bytes(b"somebody's")
    (tmp_path / ".tmp" / str(uuid.uuid4())).mkdir()
    assert open_store(str(tmp_path)).sweep() == 2
    assert len(list((tmp_path / ".tmp").iterdir())) == 2
    assert open_store(str(tmp_path)).get("commits/1") == b"first"
    assert open_store(str(tmp_path / "nowhere")).sweep() == 0


@pytest.mark.parametrize("verb", ["create", "put"])
def test_a_sweep_leaves_what_a_live_writer_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    step = {"create": "link", "put": "replace"}[verb]
    give_name, swept = getattr(os, step), []

    def sweep_first(source: Path, target: Path) -> None:
        swept.append(run(SWEEP, str(tmp_path)).stdout)
        give_name(source, target)

    monkeypatch.setattr(os, step, sweep_first)
    getattr(open_store(str(tmp_path)), verb)("commits/1", b"mine")
    assert swept == ["0\n"]
    assert open_store(str(tmp_path)).get("commits/1") == b"mine"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs Linux's /proc")
def test_a_place_where_no_folder_can_be_made_is_named() -> None:
    with pytest.raises(StorageError, match=r"^/proc/nisynth: no folder can be made in /proc; name another"):
        open_store("/proc/nisynth").create("plan.json", b"{}")


def test_a_writer_whose_locks_nobody_sees_fails_and_may_try_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def swept_by_another_machine(source: Path, target: Path) -> None:
        source.unlink()
        link(source, target)

    store = open_store(str(tmp_path))
    monkeypatch.setattr(os, "link", swept_by_another_machine)
    with pytest.raises(StorageError, match="commits/1: the folder went away while it was being written"):
        store.create("commits/1", b"mine")
    monkeypatch.setattr(os, "link", link)
    store.create("commits/1", b"mine")
    assert store.get("commits/1") == b"mine"


def test_an_object_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, link = os.fsync, os.link

    def seen_fsync(descriptor: int) -> None:
        steps.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    def seen_link(source: Path, target: Path) -> None:
        steps.append(f"link {target}")
        link(source, target)

    monkeypatch.setattr(os, "fsync", seen_fsync)
    monkeypatch.setattr(os, "link", seen_link)
    open_store(f"{tmp_path}/new/run").create("commits/1", b"x")
    linked = steps.index(f"link {tmp_path}/new/run/commits/1")
    assert steps[linked - 1].startswith(f"{tmp_path}/new/run/.tmp/")
    # Every new folder's own name, then the object's.
    assert {str(tmp_path), f"{tmp_path}/new", f"{tmp_path}/new/run"} <= set(steps[:linked])
    assert steps[linked + 1 :] == [f"{tmp_path}/new/run/commits"]


@pytest.mark.parametrize("code", [errno.EEXIST, errno.EIO, errno.ESTALE])
def test_a_link_that_was_made_counts_whatever_the_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    link = os.link

    def answer_lost(source: Path, target: Path) -> None:
        link(source, target)
        raise OSError(code, os.strerror(code))

    store = open_store(str(tmp_path))
    monkeypatch.setattr(os, "link", answer_lost)
    store.create("key", b"mine")
    assert store.get("key") == b"mine"
    with pytest.raises(AlreadyExists):
        store.create("key", b"mine")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "the disk quota is used up"),
        (errno.EROFS, "the file system is read-only"),
        (errno.EACCES, "permission denied"),
        (errno.ENOTTY, "check the disk"),
    ],
)
def test_a_link_that_fails_is_an_error_with_a_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, words: str
) -> None:
    store = open_store(str(tmp_path))
    forbid_links(monkeypatch, code)
    with pytest.raises(StorageError, match=f"{tmp_path}/key: .*{words}") as caught:
        store.create("key", b"")
    assert type(caught.value) is StorageError
    assert list(store.list()) == []


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP])
def test_a_disk_without_hard_links_serves_one_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    forbid_links(monkeypatch, code)
    with pytest.raises(Unconditional, match=r"no hard links.*or set execution\.single_writer: true"):
        open_store(str(tmp_path)).create("key", b"")
    store = open_store(str(tmp_path), single_writer=True)
    store.create("key", b"mine")
    with pytest.raises(AlreadyExists):
        store.create("key", b"other")
    assert store.get("key") == b"mine"
    assert [info.key for info in store.list()] == ["key"]
    assert not list((tmp_path / ".tmp").iterdir())


def test_one_writer_meets_every_other_error_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forbid_links(monkeypatch, errno.ENOSPC)
    store = open_store(str(tmp_path), single_writer=True)
    with pytest.raises(StorageError, match="the disk is full"):
        store.create("key", b"")
    assert list(store.list()) == []


def test_a_name_that_may_not_be_on_the_disk_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(str(tmp_path))
    store.create("first", b"")
    link, fsync = os.link, os.fsync

    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def link_then_fail(source: Path, target: Path) -> None:
        link(source, target)
        monkeypatch.setattr(os, "fsync", fail)

    monkeypatch.setattr(os, "link", link_then_fail)
    with pytest.raises(OutcomeUnknown, match="key"):
        store.create("key", b"")
    monkeypatch.setattr(os, "fsync", fsync)


def test_nothing_is_left_beside_the_objects(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    for n in range(3):
        store.create(f"data/{n}", b"x")
        store.put("plan.json", b"y")
    with pytest.raises(AlreadyExists):
        store.create("data/0", b"z")
    assert list((tmp_path / ".tmp").iterdir()) == []


def test_what_is_no_object_is_not_listed(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "run"))
    store.create("data/1", b"")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "secret").write_bytes(b"")
    (tmp_path / "run" / "data" / "out").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "run" / "data" / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "run" / "data" / "a b").write_bytes(b"")
    (tmp_path / "run" / ".tmp" / "left").write_bytes(b"")
    (tmp_path / "run" / "empty").mkdir()
    os.mkfifo(tmp_path / "run" / "data" / "pipe")
    assert [info.key for info in store.list()] == ["data/1"]


def test_the_whole_tree_is_listed_in_key_order(tmp_path: Path) -> None:
    keys = ["a-c", "a.b", "a/b", "a/b-/c", "a/b/c.d", "ab", "b"]
    store = open_store(str(tmp_path))
    for key in reversed(keys):
        if key != "a/b":
            store.put(key, b"")
    assert [info.key for info in store.list()] == sorted(set(keys) - {"a/b"})
    assert [info.key for info in store.list("a/b")] == ["a/b-/c", "a/b/c.d"]


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    store = open_store(str(tmp_path / "file"))
    for use in (lambda: store.create("key", b""), lambda: store.put("key", b""), lambda: list(store.list())):
        with pytest.raises(StorageError, match="a file stands where a folder should be"):
            use()


def test_the_url_is_an_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_store("run").url == open_store("~/run").url == str(tmp_path / "run")
    assert isinstance(open_store((tmp_path / "run").as_uri()), LocalStore)
