"""Runs as jobs of a real head: each way for a job, or for the client that waits for it, to end.

The tests of the second half tell one story in order: one run at one URL, submitted until it is complete.
"""

import io
import os
import re
import shlex
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from nisynth import cli
from nisynth.commits import Run
from nisynth.config import load_config
from nisynth.errors import ConnectionLost
from nisynth.execution.jobs_api import JobsApi, RayJob, UnknownJob
from nisynth.execution.submit import Submitted, follow, pack, submit
from nisynth.storage import open_store
from tests.clients import Screen, Work, jobs_of, make_work, nisynth
from tests.head import RayHead, Relay

REPO = Path(__file__).resolve().parents[2]

# Ray's client opens its log connections with an argument that aiohttp is about to change, and leaves it to
# the session to close those that it does not read to the end.
pytestmark = [
    pytest.mark.usefixtures("ray_client"),
    pytest.mark.filterwarnings("ignore:ssl=None is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Unclosed connection:ResourceWarning"),
]


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

    def one() -> tuple[Submitted, RayJob, str]:
        api, screen = JobsApi(ray_head.address), Screen()
        start.wait()
        submitted = submit(api, shipment)
        return submitted, follow(api, submitted, screen.write, screen.write), screen.getvalue()

    with ThreadPoolExecutor(2) as pool:
        outcomes: list[Future[tuple[Submitted, RayJob, str]]] = [pool.submit(one) for _ in range(2)]
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
        read, notes = follow_to_the_end_of_the_line(relay, submitted, lambda: story.hold(2, url))
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
    assert len(Run.open(open_store(str(url))).committed()) == 2


def follow_to_the_end_of_the_line(
    relay: Relay, submitted: Submitted, go_on: Callable[[], None]
) -> tuple[str, list[str]]:
    """Follows a job through a line that breaks once, and for good at the task that follows `go_on`."""
    read, notes = io.StringIO(), []
    actions: list[tuple[str, Callable[[], None]]] = [
        ("task 0 done", lambda: (relay.cut(), go_on())),
        ("2/4 tasks", relay.close),
    ]

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
    assert f"complete: 4 of 4 tasks, 16 images at {url}; 2 tasks run now" in said
    assert [job_id[-2:] for job_id in jobs_of(ray_head, url)] == ["-1", "-2", "-3"]
    used = Path((story.folder / "nisynth").read_text())
    assert used.is_relative_to(ray_head.folder)  # the package that was shipped, not the one installed


def test_a_job_that_the_cluster_does_not_know(ray_head: RayHead) -> None:
    gone = Submitted("nisynth-000000000000-00000000-1", attached=True)
    with pytest.raises(UnknownJob, match=r"has no such job, .*; submit again to resume") as caught:
        follow(JobsApi(ray_head.address), gone, print, print)
    assert caught.value.exit_code == 7


def test_the_job_file_run_by_ray_itself(ray_head: RayHead, story: Work, url: Path) -> None:
    job = ["python", REPO / "jobs" / "synthesize.py", story.file, "--store", url]
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
