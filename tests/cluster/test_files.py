"""The files of cluster/ and docker/ agree with each other, and Ray's own check takes the launcher's."""

import re
import shlex
from pathlib import Path
from typing import Any

import yaml
from packaging.requirements import Requirement

from nisynth import __version__
from nisynth.config import load_config

REPO = Path(__file__).resolve().parents[2]
CLUSTER = REPO / "cluster"


def rayjob() -> dict[str, dict[str, Any]]:
    documents = yaml.safe_load_all((CLUSTER / "rayjob.yaml").read_text())
    return {document["kind"]: document for document in documents}


def launcher() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((CLUSTER / "launcher.yaml").read_text())
    return content


def test_one_image_of_this_version_everywhere() -> None:
    text = "".join((CLUSTER / name).read_text() for name in ("rayjob.yaml", "launcher.yaml", "README.md"))
    text += (REPO / "docker" / "Dockerfile").read_text()
    images = re.findall(r"\S+/nisynth:[\w.]+", text)
    assert len(images) == 5
    assert set(images) == {f"registry.example.com/nisynth:{__version__}"}


def test_one_version_of_ray_within_what_nisynth_takes() -> None:
    stated = re.search(r"ARG RAY_VERSION=(\S+)", (REPO / "docker" / "Dockerfile").read_text())
    assert stated is not None
    assert rayjob()["RayJob"]["spec"]["rayClusterSpec"]["rayVersion"] == stated[1]
    wanted = re.search(r'"(ray\[.*?)"', (REPO / "pyproject.toml").read_text())
    assert wanted is not None
    assert stated[1] in Requirement(wanted[1]).specifier


def test_the_job_names_a_file_of_the_image_and_a_config_that_is_mounted() -> None:
    spec = rayjob()["RayJob"]["spec"]
    python, script, config, option, url = shlex.split(spec["entrypoint"])
    assert (python, option) == ("python", "--store")
    assert url.startswith("s3://")
    dockerfile = (REPO / "docker" / "Dockerfile").read_text()
    workdir = re.search(r"WORKDIR (\S+)\nCOPY", dockerfile)
    assert workdir is not None
    assert (REPO / Path(script).relative_to(workdir[1])).is_file()
    head = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    [mount] = head["containers"][0]["volumeMounts"]
    assert Path(config).parent == Path(mount["mountPath"])
    loaded = load_config(yaml.safe_load(rayjob()["ConfigMap"]["data"][Path(config).name]))
    groups = spec["rayClusterSpec"]["workerGroupSpecs"]
    assert loaded.execution.workers == sum(group["maxReplicas"] for group in groups)


def test_no_container_is_root() -> None:
    cluster = rayjob()["RayJob"]["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        for container in group["template"]["spec"]["containers"]:
            assert container["securityContext"]["runAsUser"] == 1000
    lines = (REPO / "docker" / "Dockerfile").read_text().splitlines()
    assert [line for line in lines if line.startswith("USER")] == ["USER ray"]
    assert "useradd --create-home --uid 1000 ray" in "\n".join(lines)


def test_ray_takes_the_launchers_file() -> None:
    from ray.autoscaler._private.util import fillout_defaults, validate_config

    validate_config(fillout_defaults(launcher()))


def test_the_heads_dashboard_is_not_for_everybody() -> None:
    [start] = [line for line in launcher()["head_start_ray_commands"] if "--head" in line]
    assert "--dashboard-host=127.0.0.1" in start
    for line in (*launcher()["head_start_ray_commands"], *launcher()["worker_start_ray_commands"]):
        assert "ray start" not in line or line.startswith("RAY_AUTH_MODE=token ")
    assert rayjob()["RayJob"]["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}
