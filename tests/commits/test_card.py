"""The card as a hub reads it: its metadata, for either format, and whatever the class names are."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from nisynth.commits import Run
from nisynth.commits.card import Extras, write_card
from nisynth.commits.seal import seal
from nisynth.storage import open_store
from tests.command_line import nisynth
from tests.tiny import commit_all, tiny_plan


def parts(card: str) -> tuple[dict[str, Any], str]:
    _, head, body = card.split("---\n", 2)
    metadata: dict[str, Any] = yaml.safe_load(head)
    return metadata, body


@pytest.mark.parametrize("format_", ["parquet", "npz"])
def test_a_hub_can_file_it(tmp_path: Path, format_: str) -> None:
    run = Run.join(open_store(str(tmp_path / "run")), tiny_plan(tmp_path, output={"format": format_}))
    commit_all(run)
    seal(run)
    metadata, body = parts(run.store.get("README.md").decode())
    assert metadata["license"] == "unknown"
    assert metadata["task_categories"] == ["image-classification"]
    assert metadata["size_categories"] == ["n<1K"]
    assert "| teacher accuracy, worst shard | 50.0% |" in body
    assert "None was used" in body
    if format_ == "npz":
        assert metadata["viewer"] is False
        assert "configs" not in metadata
    else:
        info = metadata["dataset_info"]
        assert info["splits"][0]["num_examples"] == 16
        assert info["features"][1]["dtype"]["class_label"]["names"]["3"] == "3"
    card_data = pytest.importorskip("huggingface_hub").DatasetCard(run.store.get("README.md").decode()).data
    assert card_data.size_categories == ["n<1K"]


@pytest.mark.parametrize(
    ("images", "category"),
    [(999, "n<1K"), (1000, "1K<n<10K"), (256_000, "100K<n<1M"), (10**6, "1M<n<10M"), (10**8, "100M<n<1B")],
)
def test_size_categories(tmp_path: Path, images: int, category: str) -> None:
    plan = tiny_plan(tmp_path, run={"num_images": images, "batch_size": 256})
    assert parts(write_card(plan, [], []))[0]["size_categories"] == [category]


def test_class_names_are_data_not_markup(tmp_path: Path) -> None:
    names = ["yes", "1", "a: [b", "--- license: mit"]
    plan = tiny_plan(tmp_path, teacher={"classes": names})
    quality = [("acc | <script>", "`x`", "a\nb")]
    metadata, body = parts(write_card(plan, [1], [0.5], Extras(quality=quality)))
    assert list(metadata["dataset_info"]["features"][1]["dtype"]["class_label"]["names"].values()) == names
    assert metadata["license"] == "unknown"
    assert r"| acc \| \<script\> | \`x\` | a b |" in body


def test_sealing_again_leaves_a_card_that_was_written_anew(tmp_path: Path) -> None:
    run = Run.join(open_store(str(tmp_path / "run")), tiny_plan(tmp_path))
    commit_all(run)
    seal(run)
    run.store.put("README.md", b"ours")
    assert seal(run)
    assert run.store.get("README.md") == b"ours"


def test_the_command_adds_what_it_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run = Run.join(open_store(str(tmp_path / "run")), tiny_plan(tmp_path))
    assert nisynth("card", tmp_path / "run", "-o", tmp_path).returncode == 2  # not complete
    commit_all(run)
    seal(run)
    (tmp_path / "README.md").write_text("of a project")
    refused = nisynth("card", tmp_path / "run", "-o", tmp_path)
    assert (refused.returncode, refused.stderr.count("is not this run's card")) == (2, 1)
    assert (tmp_path / "README.md").read_text() == "of a project"
    ended = nisynth("card", tmp_path / "run", "-o", tmp_path / "run")
    assert ended.returncode == 0, ended.stderr
    card = run.store.get("README.md").decode()
    assert "(contact_sheet.png)" in card
    assert "| near duplicates, cosine above 0.99 |" in card
    assert r"| R\_BN, median over shards | 0.40 Y (real images 0.3-0.7) |" in card
    assert (tmp_path / "run" / "contact_sheet.png").is_file()
    assert nisynth("verify", tmp_path / "run", "--deep").returncode == 0
