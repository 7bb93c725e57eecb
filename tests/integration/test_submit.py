"""Runs as jobs of a real head: each way for a job, or for the client that waits for it, to end.

The tests of the second half tell one story in order: one run at one URL, submitted until it is complete.
"""

import contextlib
import gc
import io
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from nisynth import cli
from nisynth.commits import Run
from nisynth.config import load_config
from nisynth.errors import ConnectionLost
from nisynth.execution.jobs_api import Job, JobsApi, UnknownJob
from nisynth.execution.submit import Submitted, follow, pack, submit
from nisynth.storage import open_store
from tests.head import RayHead, Relay
from tests.servers import READER_SECRET, SECRET_KEY, free_port
from tests.tiny import keys, tiny_config

TESTS = Path(__file__).resolve().parents[1]
TASKS = 4

# Ray's client opens its log connections with an argument that aiohttp is about to change, and leaves it to
# the session to close those that it does not read to the end.
pytestmark = [
    pytest.mark.filterwarnings("ignore:ssl=None is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Unclosed connection:ResourceWarning"),
]


@pytest.fixture(autouse=True)
def client(ray_head: RayHead, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process may talk to the head, and its environment names another cluster, which must not matter."""
    for name, value in ray_head.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RAY_ADDRESS", f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    yield
    gc.collect()  # here, where what Ray leaves behind may be warned of


@dataclass
class Work:
    """A config file whose network lies beside it, and a gate that holds the network's computation."""

    folder: Path
    config: dict[str, dict[str, object]] = field(default_factory=dict)

    @property
    def module(self) -> Path:
        return self.folder / "gated_net.py"

    @property
    def file(self) -> Path:
        return self.folder / "config.yaml"

    def write(self, **sections: dict[str, object]) -> "Work":
        teacher = {"arch": "gated_net:GatedNet", "kwargs": {"gate": str(self.folder / "gate")}}
        resolved = tiny_config(self.folder, run={"num_images": 4 * TASKS}, **sections).to_dict()
        resolved["teacher"] |= teacher
        self.file.write_text(yaml.safe_dump(resolved))
        return self

    def hold(self, commits: int, url: Path) -> None:
        """Lets no task begin once the run has so many commits; needs a URL that is a folder."""
        (self.folder / "gate").write_text(f"{commits} {url / 'commits'}")

    def release(self) -> None:
        (self.folder / "gate").unlink()

    def arguments(self, head: RayHead, url: object, *more: str) -> list[str]:
        words = ["submit", self.file, "--store", url, "--module", self.module, "--address", head.address]
        return [*map(str, words), *more]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Work:
    return make_work(tmp_path, monkeypatch)


def make_work(folder: Path, patch: pytest.MonkeyPatch) -> Work:
    shutil.copy(TESTS / "gated_net.py", folder)
    patch.syspath_prepend(str(folder))
    return Work(folder).write()


class Screen(io.StringIO):
    """A terminal of one client; `expect` waits for a text to appear on it."""

    def __init__(self) -> None:
        super().__init__()
        self._changed = threading.Condition()

    def write(self, text: str) -> int:
        with self._changed:
            self._changed.notify_all()
            return super().write(text)

    def expect(self, text: str, limit_s: float = 120.0) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: text in self.getvalue(), limit_s), self.getvalue()


def nisynth(*arguments: str, screen: Screen | None = None) -> tuple[int, str]:
    """Runs one command line in this process; returns its exit code and what it printed."""
    screen = screen or Screen()
    with contextlib.redirect_stdout(screen), contextlib.redirect_stderr(screen):
        return cli.execute(list(arguments)), screen.getvalue()


def jobs_of(head: RayHead, url: object) -> list[str]:
    found = [job["submission_id"] for job in head.get("/api/jobs/") if url_of(job) == str(url)]
    return sorted(found)


def url_of(job: dict[str, dict[str, str]]) -> str | None:
    return (job["metadata"] or {}).get("store")


# What is wrong before anything is sent.


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--set", "method.iterations=many"], "method.iterations: 'many'"),
        (["--set", "teacher.weights=nowhere.safetensors"], "nowhere.safetensors"),
        (["--address", "ray://127.0.0.1:10001"], "jobs go to the head's dashboard, as in http://head:8265"),
        (["--address", "http://127.0.0.1:1"], "no Ray dashboard answers there"),
        (["--env", "AWS_SECRET_ACCESS_KEY"], "AWS_SECRET_ACCESS_KEY: looks like a secret"),
        (["--module", "nowhere.py"], "'nowhere.py': neither a .py file nor the folder of a package"),
    ],
)
def test_what_is_wrong_here_is_exit_2_and_nothing_is_sent(
    ray_head: RayHead, work: Work, tmp_path: Path, more: list[str], message: str
) -> None:
    exit_code, said = nisynth(*work.arguments(ray_head, tmp_path / "run", *more))
    errors = [line for line in said.splitlines() if line.startswith("nisynth: error: ")]
    assert exit_code == 2, said
    assert len(errors) == 1, said
    assert message in errors[0]
    assert "Traceback" not in said
    assert jobs_of(ray_head, tmp_path / "run") == []


@pytest.mark.parametrize("token", ["", "0" * 64])
def test_a_token_that_the_cluster_refuses(
    ray_head: RayHead, work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    (tmp_path / "token").write_text(token)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("RAY_AUTH_MODE", "token" if token else "disabled")
    exit_code, said = nisynth(*work.arguments(ray_head, tmp_path / "run"))
    assert exit_code == 2
    assert "the cluster refuses the token; give its own in RAY_AUTH_TOKEN" in said
    assert ray_head.token not in said


def test_the_head_listens_on_loopback_only(ray_head: RayHead) -> None:
    inodes = set()
    for pid in ray_head.processes():
        for descriptor in Path(f"/proc/{pid}/fd").glob("*"):
            with contextlib.suppress(OSError):
                inodes.add(os.readlink(descriptor))
    heard = []
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and f"socket:[{words[9]}]" in inodes:
                heard.append(_address(words[1].partition(":")[0], family))
    assert len(heard) >= 5  # dashboard, agent, GCS, raylet
    assert set(heard) <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def _address(text: str, family: socket.AddressFamily) -> str:
    """Decodes the kernel's hexadecimal words, each in the byte order of the machine."""
    words = [bytes.fromhex(text[i : i + 8])[::-1] for i in range(0, len(text), 8)]
    return socket.inet_ntop(family, b"".join(words))


# One run in a bucket: its first client dies, a second one sees it through, and no secret shows anywhere.


def test_a_lost_client_a_second_one_and_no_secrets(
    ray_head: RayHead, s3_url: str, work: Work, tmp_path: Path
) -> None:
    work.hold(0, tmp_path / "none")
    arguments = work.arguments(ray_head, s3_url, "--workers", "2")
    first = subprocess.Popen(
        [sys.executable, "-m", "nisynth", *arguments],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert first.stdout is not None
    lines = []
    for line in first.stdout:
        lines.append(line)
        if "0 done before" in line:
            break
    first.kill()
    first.wait()
    first.stdout.close()

    screen = Screen()
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(nisynth, *arguments, screen=screen)
        screen.expect("is under way; attached to it")
        commands = list(command_lines(ray_head))
        work.release()
        exit_code, said = second.result()
    assert exit_code == 0, said
    assert "complete: 4 of 4 tasks" in said
    [job_id] = jobs_of(ray_head, s3_url)
    assert f"job {job_id} succeeded, exit code 0" in said

    store = open_store(s3_url)
    assert Run.open(store).committed() == set(range(TASKS))
    places = {
        "clients": "".join(lines) + said,
        "processes": "\n".join(commands),
        "metadata": json.dumps(ray_head.get("/api/jobs/")),
        "store": "\n".join(f"{key}\n{store.get(key).decode('latin-1')}" for key in keys(store)),
        "logs": "\n".join(logs(ray_head)),
    }
    for place, text in places.items():
        assert len(text) > 200, place
        for secret in (SECRET_KEY, READER_SECRET, ray_head.token):
            assert secret not in text, place
    for place in ("clients", "processes", "metadata", "logs"):
        assert s3_url in places[place], place  # what is no secret is found, so the search can find


def command_lines(head: RayHead) -> Iterator[str]:
    for pid in head.processes():
        with contextlib.suppress(OSError):
            yield Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")


def logs(head: RayHead) -> Iterator[str]:
    for path in head.folder.rglob("*"):
        if path.suffix in (".log", ".out", ".err") and path.is_file():
            yield path.read_text(errors="replace")


# One run in a folder, in order: it fails, it is left by one client after another and stopped, it completes.


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Work]:
    with pytest.MonkeyPatch.context() as patch:
        yield make_work(tmp_path_factory.mktemp("story"), patch)


@pytest.fixture
def url(story: Work) -> Path:
    return story.folder / "run"


def test_two_submit_at_once_and_see_the_one_job_fail(ray_head: RayHead, story: Work, url: Path) -> None:
    # No network recognises everything: the run stops at its first task.
    story.write(execution={"quality_gate": 1.0})
    shipment = pack(load_config(story.file), str(url), modules=[story.module])
    start = threading.Barrier(2)

    def one() -> tuple[Submitted, Job, str]:
        api, screen = JobsApi(ray_head.address), Screen()
        start.wait()
        submitted = submit(api, shipment)
        return submitted, follow(api, submitted, screen.write, screen.write), screen.getvalue()

    with ThreadPoolExecutor(2) as pool:
        outcomes: list[Future[tuple[Submitted, Job, str]]] = [pool.submit(one) for _ in range(2)]
        (mine, job, said), (other, same, _) = sorted(
            (o.result() for o in outcomes), key=lambda o: o[0].attached
        )
    assert (mine.attached, other.attached) == (False, True)
    assert jobs_of(ray_head, url) == [f"{shipment.name}-1"] == [job.id] == [same.id]
    assert (job.status, job.exit_code) == (same.status, same.exit_code) == ("FAILED", 4)
    assert "under execution.quality_gate 100.0%" in said
    assert job.reason == "Job entrypoint command failed with exit code 4"


@pytest.mark.parametrize(
    ("how", "exit_code", "message"),
    [(signal.SIGINT, 130, "goes on; submit again"), (signal.SIGTERM, 75, "stopped by SIGTERM, job nisynth-")],
)
def test_a_client_that_is_interrupted_leaves_its_job(
    ray_head: RayHead,
    story: Work,
    url: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: signal.Signals,
    exit_code: int,
    message: str,
) -> None:
    story.write()
    story.hold(1, url)
    before = signal.signal(signal.SIGTERM, cli._terminated)
    screen = Screen()
    try:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(lambda: (screen.expect("Running entrypoint"), os.kill(os.getpid(), how)))
            ended, said = nisynth(*story.arguments(ray_head, url), screen=screen)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended == exit_code, said
    assert message in said
    assert "Traceback" not in said
    # The first of them sent the second job of this run, which resumes the first; the other attached to it.
    assert len(jobs_of(ray_head, url)) == 2
    assert (" sent to " in said) == (how == signal.SIGINT)


def test_a_line_that_is_cut_and_then_dead_and_a_job_that_is_stopped(
    ray_head: RayHead, story: Work, url: Path
) -> None:
    api, screen = JobsApi(ray_head.address), Screen()
    shipment = pack(load_config(story.file), str(url), modules=[story.module])
    submitted = submit(api, shipment)
    assert submitted == Submitted(f"{shipment.name}-2", attached=True)
    with ThreadPoolExecutor(1) as pool, Relay(ray_head.port) as relay:
        watching = pool.submit(follow, api, submitted, screen.write, screen.write)
        read, notes = follow_to_the_end_of_the_line(relay, submitted)
        assert read.count("Running entrypoint") == 1  # what was read before the cut is not read again
        assert read.count("task 0 done") == 1
        assert notes[0].startswith("connection to the cluster lost, the job goes on; trying again in 0.1 s")
        assert not watching.done()
        _, said = nisynth(*story.arguments(ray_head, url, "--no-wait"))
        stop = re.search(r"`(ray job stop .*?)`", said)
        assert stop is not None, said
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        subprocess.run(shlex.split(stop[1]), check=True, capture_output=True, env=environment)
        job = watching.result()
    assert (job.status, job.exit_code) == ("STOPPED", 7)
    assert "stopped by SIGTERM; run again to resume" in screen.getvalue()
    assert Run.open(open_store(str(url))).committed() == {0}


def follow_to_the_end_of_the_line(relay: Relay, submitted: Submitted) -> tuple[str, list[str]]:
    """Follows a job through a line that breaks once at its first words, and for good at the first task."""
    read, notes = io.StringIO(), []
    actions: list[tuple[str, Callable[[], None]]] = [("entrypoint", relay.cut), ("task 0 done", relay.close)]

    def write(text: str) -> None:
        read.write(text)
        if actions and actions[0][0] in read.getvalue():
            actions.pop(0)[1]()

    as_its_sender = Submitted(submitted.job_id, attached=False)
    with pytest.raises(ConnectionLost, match=f"job {submitted.job_id} goes on; submit again to attach"):
        follow(JobsApi(relay.address), as_its_sender, write, notes.append, (0.1, 0.1, 0.1))
    assert ConnectionLost.exit_code == 75
    return read.getvalue(), notes


def test_what_is_submitted_again_is_resumed_and_completes(ray_head: RayHead, story: Work, url: Path) -> None:
    story.release()
    exit_code, said = nisynth(*story.arguments(ray_head, url, "--ship"))
    assert exit_code == 0, said
    assert f"complete: 4 of 4 tasks, 16 images at {url}; 3 tasks run now" in said
    assert [job_id[-2:] for job_id in jobs_of(ray_head, url)] == ["-1", "-2", "-3"]
    used = Path((story.folder / "nisynth").read_text())
    assert used.is_relative_to(ray_head.folder)  # the package that was shipped, not the one installed


def test_a_job_that_the_cluster_does_not_know(ray_head: RayHead) -> None:
    gone = Submitted("nisynth-000000000000-00000000-1", attached=True)
    with pytest.raises(UnknownJob, match=r"has no such job, .*; submit again to resume") as caught:
        follow(JobsApi(ray_head.address), gone, print, print)
    assert caught.value.exit_code == 7


def test_the_job_file_run_by_ray_itself(ray_head: RayHead, story: Work, url: Path) -> None:
    job = ["python", TESTS.parent / "jobs" / "synthesize.py", story.file, "--store", url]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        ["ray", "job", "submit", "--address", ray_head.address, "--working-dir", story.folder, "--", *job],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"complete: 4 of 4 tasks, 16 images at {url}; 0 tasks run now" in done.stdout
