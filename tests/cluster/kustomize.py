"""The manifests of cluster/kuberay as `kubectl apply -k` would send them, and the fields that they use.

`python -m tests.cluster.kustomize CRD.yaml VERSION` writes rayjob_fields.json from KubeRay's own
ray.io_rayjobs.yaml: the type of every field that a manifest uses, and the version of KubeRay.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonpatch
import yaml

KUBERAY = Path(__file__).resolve().parents[2] / "cluster" / "kuberay"
FOLDERS = [KUBERAY / "base", *sorted((KUBERAY / "variants").iterdir())]
FIELDS = Path(__file__).with_name("rayjob_fields.json")

Manifest = dict[str, Any]


def rendered(folder: Path) -> dict[str, Manifest]:
    """Returns a kustomization's manifests by kind: the parts of kustomize that this repository uses."""
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    unknown = set(kustomization) - {
        *("apiVersion", "kind", "resources", "configMapGenerator", "generatorOptions", "patches"),
        *("configurations", "nameSuffix"),
    }
    assert not unknown, unknown
    manifests: dict[str, Manifest] = {}
    for name in kustomization["resources"]:
        path = folder / name
        if path.is_dir():
            manifests |= rendered(path.resolve())
        else:
            manifests |= {m["kind"]: m for m in yaml.safe_load_all(path.read_text())}
    for generator in kustomization.get("configMapGenerator", []):
        data = {name: (folder / name).read_text() for name in generator["files"]}
        assert ("ConfigMap" in manifests) == (generator.get("behavior") == "replace")
        manifests["ConfigMap"] = {"kind": "ConfigMap", "metadata": {"name": generator["name"]}, "data": data}
    for patch in kustomization.get("patches", []):
        kind = patch["target"]["kind"]
        operations = yaml.safe_load(patch["patch"])
        manifests[kind] = jsonpatch.apply_patch(manifests[kind], operations)
    _rename(manifests, kustomization.get("nameSuffix", ""))
    return manifests


def _rename(manifests: dict[str, Manifest], suffix: str) -> None:
    """Adds a suffix to the manifests' names, and to the references that kustomize was told of."""
    told = yaml.safe_load((KUBERAY / "base" / "name-references.yaml").read_text())["nameReference"]
    for reference in told:
        for field in reference["fieldSpecs"]:
            _refer(manifests[field["kind"]], field["path"].split("/"), suffix)
    for manifest in manifests.values():
        manifest["metadata"]["name"] += suffix


def _refer(value: Any, path: list[str], suffix: str) -> None:
    if isinstance(value, list):
        for item in value:
            _refer(item, path, suffix)
    elif path[0] in value:
        if len(path) == 1:
            value[path[0]] += suffix
        else:
            _refer(value[path[0]], path[1:], suffix)


def fields(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (path, value) of all inside a manifest; a path is names and, for items of a list, `[]`."""
    yield path, value
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from fields(inner, f"{path} {name}".strip())
    elif isinstance(value, list):
        for inner in value:
            yield from fields(inner, f"{path} []")


def schema_type(schema: dict[str, Any], path: str) -> str | None:
    """Returns the type that a CRD's schema gives to a path, None for one it does not know."""
    for part in path.split():
        if part == "[]":
            schema = schema.get("items", {})
        elif "additionalProperties" in schema:
            schema = schema["additionalProperties"]
        elif part in schema.get("properties", {}):
            schema = schema["properties"][part]
        else:
            return None
    return "int-or-string" if schema.get("x-kubernetes-int-or-string") else schema.get("type")


def main(crd: str, kuberay: str) -> None:
    """Writes the facts about the fields in use."""
    definition = yaml.safe_load(Path(crd).read_text())
    [version] = [v for v in definition["spec"]["versions"] if v["name"] == "v1"]
    spec = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
    used = sorted(
        {path for folder in FOLDERS for path, _ in fields(rendered(folder)["RayJob"]["spec"]) if path}
    )
    facts = {path: schema_type(spec, path) for path in used}
    unknown = [path for path, found in facts.items() if found is None]
    assert not unknown, f"not in the CRD: {unknown}"
    FIELDS.write_text(json.dumps({"kuberay": kuberay, "fields": facts}, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
