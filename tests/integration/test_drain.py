"""jobs/drain.py, which a head runs before its node goes, on a real Ray head."""

import os
import subprocess
import sys
import time
from pathlib import Path

from tests.head import RayHead
from tests.servers import free_port

DRAIN = Path(__file__).resolve().parents[2] / "jobs" / "drain.py"
DRIVER = """
import signal, sys
signal.signal(signal.SIGTERM, lambda *_: (print("drained", flush=True), sys.exit(7)))
print("at work", flush=True)
while True:
    signal.pause()
"""


def test_a_drain_stops_the_jobs_and_waits_for_their_drivers(ray_head: RayHead, tmp_path: Path) -> None:
    (tmp_path / "driver.py").write_text(DRIVER)
    environment = {**os.environ, **ray_head.environment()}
    submit = ["ray", "job", "submit", "--no-wait", "--submission-id", "to-drain", "--address"]
    driver = [ray_head.address, "--", sys.executable, str(tmp_path / "driver.py")]
    subprocess.run([*submit, *driver], env=environment, capture_output=True, timeout=300, check=True)
    deadline = time.monotonic() + 300
    while "at work" not in ray_head.get("/api/jobs/to-drain/logs")["logs"]:
        assert time.monotonic() < deadline, ray_head.get("/api/jobs/to-drain")
        time.sleep(0.1)

    elsewhere = environment | {"RAY_ADDRESS": f"http://127.0.0.1:{free_port()}"}
    words = [sys.executable, DRAIN, "--address", ray_head.address, "--seconds", "60"]
    done = subprocess.run(words, env=elsewhere, capture_output=True, text=True, timeout=300, check=False)

    assert done.returncode == 0, done.stderr
    assert ray_head.get("/api/jobs/to-drain")["status"] == "STOPPED"
    assert "drained" in ray_head.get("/api/jobs/to-drain/logs")["logs"]
