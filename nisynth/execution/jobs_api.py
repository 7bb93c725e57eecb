"""The Jobs API of a Ray cluster, as far as a run needs it, with its errors in our words.

Facts of Ray 2.60 that this file absorbs: RAY_ADDRESS and RAY_API_SERVER_ADDRESS silently beat the address
that a client is given; a name that is taken comes back as HTTP 500; a job's exit code is told only when
its command ended by itself, not when the job was stopped; a client takes the cluster's token from the
usual places only with RAY_AUTH_MODE=token set.
"""

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from ray.exceptions import AuthenticationError, RayError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from nisynth.errors import ConfigError, ConnectionLost, Stalled, Stopped, first_line, last_line, one_line

# After so many seconds without output, ask whether the cluster still answers.
IDLE_S = 30.0

_TALKATIVE = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
_OVERRIDES = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
_ENDS_WITHOUT_A_COMMAND = {
    "RUNTIME_ENV_SETUP_FAILURE": ConfigError.exit_code,
    "JOB_SUPERVISOR_ACTOR_START_TIMEOUT": Stalled.exit_code,
    "JOB_SUPERVISOR_ACTOR_START_FAILURE": Stalled.exit_code,
    "JOB_SUPERVISOR_ACTOR_UNSCHEDULABLE": Stalled.exit_code,
}


class UnknownJob(Stopped):
    """The cluster has no job of this id, as after a restart of its head."""


@dataclass(frozen=True)
class RayJob:
    """One submission. exit_code: None while it is pending or running. reason: Ray's words, one line."""

    id: str
    status: str
    exit_code: int | None
    reason: str

    @property
    def ended(self) -> bool:
        return self.exit_code is not None


class JobsApi:
    """The jobs of the cluster whose dashboard answers at an http(s) address, such as http://head:8265.

    Raises ConfigError when no Ray cluster answers there or it refuses the token; every method raises
    ConnectionLost when the cluster cannot be reached any more.
    """

    def __init__(self, address: str) -> None:
        self.address = _http(address)
        # They log which package is uploaded and why a log's connection closed: of no use to a user.
        for module in _TALKATIVE:
            logging.getLogger(module).setLevel(logging.WARNING)
        try:
            with _without(_OVERRIDES):
                self._client = JobSubmissionClient(self.address, headers=_token())
        except AuthenticationError:
            raise ConfigError(
                f"address {self.address}: the cluster refuses the token; give its own in RAY_AUTH_TOKEN,"
                " RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token"
            ) from None
        except (OSError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"address {self.address}: no Ray dashboard answers there ({one_line(error)});"
                " check that the head node runs, that its name resolves here, and its dashboard's port (8265)"
            ) from None

    def named(self, name: str) -> list[RayJob]:
        """Returns the jobs called `name`-1, `name`-2 and so on, oldest first."""
        with _reaching(self.address):
            found = [details for details in self._client.list_jobs() if _number(details, name)]
        return [_job(details) for details in sorted(found, key=lambda details: _number(details, name))]

    def info(self, job_id: str) -> RayJob:
        """Returns the job as it is now. Raises UnknownJob."""
        with _reaching(self.address):
            try:
                return _job(self._client.get_job_info(job_id))
            except RuntimeError as error:
                if "status code 404" not in str(error):
                    raise
        raise UnknownJob(
            f"job {job_id}: the cluster at {self.address} has no such job, as after a restart of its head;"
            " submit again to resume"
        )

    def send(
        self, job_id: str, entrypoint: str, runtime_env: dict[str, Any], metadata: dict[str, str]
    ) -> bool:
        """Submits a job; returns False when there is one of this id already, another submitter's."""
        with _reaching(self.address):
            try:
                self._client.submit_job(
                    submission_id=job_id, entrypoint=entrypoint, runtime_env=runtime_env, metadata=metadata
                )
            except RuntimeError as error:
                if "already exists" not in str(error):
                    raise
                return False
            except OSError:
                # The answer was lost, and the request may not have been: look before giving up.
                with suppress(UnknownJob):
                    self.info(job_id)
                    return True
                raise
        return True

    def log(self, job_id: str) -> str:
        """Returns what the job has printed so far."""
        with _reaching(self.address):
            return self._client.get_job_logs(job_id)

    async def tail(self, job_id: str, skip: int = 0) -> AsyncGenerator[str, None]:
        """Yields what the job prints, from its character `skip` on, until it ends."""
        position = 0
        with _reaching(self.address):
            tail: Any = self._client.tail_job_logs(job_id)
            async with aclosing(tail), aclosing(self._watched(tail, job_id)) as chunks:
                async for chunk in chunks:
                    fresh = chunk[max(0, skip - position) :]
                    position += len(chunk)
                    if fresh:
                        yield fresh

    async def _watched(self, chunks: AsyncIterator[str], job_id: str) -> AsyncGenerator[str, None]:
        """Yields the chunks; while none comes, asks every IDLE_S whether the cluster still answers."""
        while True:
            chunk = asyncio.ensure_future(anext(chunks))
            try:
                while not (await asyncio.wait({chunk}, timeout=IDLE_S))[0]:
                    await asyncio.to_thread(self.info, job_id)
                yield await chunk
            except StopAsyncIteration:
                return
            finally:
                # A generator that is still running could not be closed.
                if chunk.cancel():
                    await asyncio.wait({chunk})


def _http(address: str) -> str:
    scheme, separator, _ = address.partition("://")
    if separator and scheme not in ("http", "https"):
        raise ConfigError(f"address {address!r}: jobs go to the head's dashboard, as in http://head:8265")
    return address if separator else f"http://{address}"


def _token() -> dict[str, str]:
    """Returns the header with the cluster's token, from the places that Ray documents, in their order."""
    if os.environ.get("RAY_AUTH_MODE") == "disabled":
        return {}
    token = os.environ.get("RAY_AUTH_TOKEN", "")
    if not token:
        path = os.environ.get("RAY_AUTH_TOKEN_PATH")
        with suppress(OSError):
            token = (Path(path) if path else Path.home() / ".ray" / "auth_token").read_text().strip()
    return {"Authorization": f"Bearer {token}"} if token else {}


@contextmanager
def _without(variables: tuple[str, ...]) -> Iterator[None]:
    removed = {name: os.environ.pop(name) for name in variables if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(removed)


@contextmanager
def _reaching(address: str) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, ValueError, RayError, aiohttp.ClientError) as error:
        raise ConnectionLost(f"address {address}: {_line(error)}") from None


def _line(error: Exception) -> str:
    """Returns the error in a line; the dashboard sends tracebacks, whose last line tells."""
    text = str(error)
    return last_line(text.rstrip(" .\n"))[:200] if "Traceback" in text else one_line(error)


def _number(details: JobDetails, name: str) -> int:
    """Returns n of the submission `name`-n, 0 for every other job."""
    head, _, tail = (details.submission_id or "").rpartition("-")
    return int(tail) if head == name and tail.isdecimal() else 0


def _job(details: JobDetails) -> RayJob:
    reason = first_line(details.message or "")
    reason = reason.removesuffix(", last available logs (truncated to 20,000 chars):")
    return RayJob(details.submission_id or "", str(details.status), _exit_code(details), reason)


def _exit_code(details: JobDetails) -> int | None:
    """Returns the code of the job's command, or of what ended it, as the command line documents them."""
    if not details.status.is_terminal():
        return None
    if details.status == JobStatus.SUCCEEDED:
        return 0
    code = details.driver_exit_code
    if details.status == JobStatus.STOPPED or code is None:
        return _ENDS_WITHOUT_A_COMMAND.get(details.error_type or "", Stopped.exit_code)
    # As a shell tells that a signal ended a command.
    return code if code >= 0 else 128 - code
