"""Every page: its links lead somewhere, its Python runs or names what is there, its YAML is a config."""

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
PAGES = [
    *(REPO / name for name in ("README.md", "CHANGELOG.md", "DECISIONS.md", "cluster/README.md")),
    *sorted((REPO / "docs").rglob("*.md")),
    *sorted((REPO / "benchmarks").rglob("*.md")),
]


def anchors(page: Path) -> set[str]:
    """Returns the names that a page's headings have as links, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPO)))
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    prose = re.sub(r"^```.*?^```|`[^`\n]*`", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", prose):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_name_that_the_readmes_python_takes_from_nisynth_is_public() -> None:
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", PAGES[0].read_text(), re.MULTILINE | re.DOTALL))
    names = [
        node.attr
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "nisynth"
    ]
    assert {"open_dataset", "status", "load_teacher", "synthesize"} <= set(names)
    public = import_module("nisynth")
    for name in names:
        assert name in public.__all__, name
        assert callable(getattr(public, name))
