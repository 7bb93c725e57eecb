"""What a head does before its node goes: stop its jobs and wait until their drivers have drained.

`python jobs/drain.py --seconds 45`, as KubeRay's preStop hook. A driver that is stopped lets the commits
under way finish and exits 7; the run resumes from what is committed. Exit code 0 when every job has ended,
1 when one is still at work after that many seconds.
"""

import argparse
import os
import sys
import time

from ray.job_submission import JobSubmissionClient


def drain(address: str, seconds: float) -> bool:
    """Stops every job of the cluster; returns whether all have ended within that many seconds."""
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):  # Ray prefers these to what it is given
        os.environ.pop(name, None)
    client = JobSubmissionClient(address)
    deadline = time.monotonic() + seconds
    ids = [job.submission_id for job in client.list_jobs() if not job.status.is_terminal()]
    open_jobs = [name for name in ids if name is not None]
    for name in open_jobs:
        client.stop_job(name)
    while open_jobs and time.monotonic() < deadline:
        open_jobs = [name for name in open_jobs if not client.get_job_status(name).is_terminal()]
        time.sleep(0.2 if open_jobs else 0.0)
    return not open_jobs


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", default="http://127.0.0.1:8265")
    parser.add_argument("--seconds", type=float, default=45.0)
    options = parser.parse_args()
    sys.exit(0 if drain(options.address, options.seconds) else 1)
