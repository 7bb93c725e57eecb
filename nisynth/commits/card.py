"""The dataset card: what a hub and its visitors need to know of the set.

Sealing writes it from the plan and the commits alone. `nisynth card` writes it again with what was measured
and a contact sheet; nothing reads it for a decision, so it may be edited by hand.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from nisynth.errors import counted
from nisynth.plan import Plan
from nisynth.shards import features

SHEET = "contact_sheet.png"
LOADER_KEY = ".huggingface.yaml"


@dataclass(frozen=True)
class Extras:
    """What can be added to a card.

    quality: rows of (figure, value, measured on). sheet: it lies beside the card. real_images: a sentence
    that says which the figures were measured on.
    """

    quality: Sequence[tuple[str, str, str]] = ()
    sheet: bool = False
    real_images: str = ""


def write_card(
    plan: Plan, shard_bytes: Sequence[int], accuracies: Sequence[float], extras: Extras = Extras()
) -> str:
    """Returns README.md. shard_bytes, accuracies: of every shard, the teacher's on its images, 0..1."""
    teacher, method = plan.identity["teacher"], plan.identity["method"]
    size = f"{plan.input_px}x{plan.input_px}"
    median = sorted(accuracies)[len(accuracies) // 2] if accuracies else 0.0
    rows = [
        ("teacher accuracy, median over shards", f"{median:.1%}", f"{plan.num_images:,} decoded images"),
        ("teacher accuracy, worst shard", f"{min(accuracies, default=0.0):.1%}", "its decoded images"),
        *extras.quality,
    ]
    iterations = f", {method['iterations']:,} iterations" if "iterations" in method else ""
    metadata = _metadata(plan, sum(shard_bytes))
    table = "\n".join(f"| {_cell(name)} | {_cell(value)} | {_cell(on)} |" for name, value, on in rows)
    sheet = f"\n![One class per column, images of shards all over the set]({SHEET})\n" if extras.sheet else ""
    real = _real_images(plan, extras)
    return f"""---
{yaml.dump(metadata, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10**9).rstrip()}
---
# {counted(plan.num_images, "synthetic image")}, {size}, {counted(plan.num_classes, "class")}
{sheet}
{_origin(plan)}

## Quality

| figure | value | measured on |
| --- | --- | --- |
{table}

## How it was made

| | |
| --- | --- |
| fingerprint | `{plan.fingerprint}` |
| teacher | {_cell(teacher["arch"])}, weights sha256 `{teacher["weights_sha256"]}` |
| method | {_cell(method["name"])}{iterations}, batch {plan.batch_size}, seed {plan.seed} |
| shards | {len(shard_bytes):,} {plan.format} files, {sum(shard_bytes):,} bytes |
| normalization | mean {teacher["mean"]}, std {teacher["std"]} |

{_what_lies_beside(plan)} {_how_to_read(plan)}

## Real images

{real}

## Licence and limits

Whoever publishes the set has to choose the licence: rights in the classifier's training data may extend to
what it learnt. The images show what one classifier takes for its classes. They inherit its errors and biases,
and are not evidence of anything in the world.
"""


def loader_config(plan: Plan) -> str:
    """Returns what the object `LOADER_KEY` holds: the files that `datasets.load_dataset` takes for the set.

    It is there from a run's beginning, and no tool but `datasets` looks at it. Without it and without a
    card, that library loads whatever kind of file there are most of: the commits.
    """
    return (
        f"configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: {plan.shard_files}\n"
    )


class _Dumper(yaml.SafeDumper):
    """Keeps every text on one line: a name with a line of dashes in it would end the metadata."""


def _one_line(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    style = '"' if "\n" in text or "\r" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _one_line)


def _metadata(plan: Plan, num_bytes: int) -> dict[str, Any]:
    teacher, method = plan.identity["teacher"], plan.identity["method"]
    found: dict[str, Any] = {
        "license": "unknown",
        "pretty_name": f"{method['name']} images of {teacher['arch']}",
        "task_categories": ["image-classification"],
        "size_categories": [_size_category(plan.num_images)],
        "annotations_creators": ["machine-generated"],
        "source_datasets": ["original"],
        "tags": ["synthetic"] if plan.num_real_images else ["synthetic", "data-free", "model-inversion"],
    }
    if plan.format != "parquet":
        return {**found, "viewer": False}  # the hub reads no such shards
    files = {"split": "train", "path": plan.shard_files}
    return {
        **found,
        "configs": [{"config_name": "default", "data_files": [files]}],
        "dataset_info": _dataset_info(plan, num_bytes),
    }


def _dataset_info(plan: Plan, num_bytes: int) -> dict[str, Any]:
    names = {str(label): name for label, name in enumerate(plan.classes)}
    dtypes = {"image": "image", "label": {"class_label": {"names": names}}}
    return {
        "features": [{"name": name, "dtype": dtypes.get(name, "int64")} for name in features(plan.classes)],
        "splits": [{"name": "train", "num_bytes": num_bytes, "num_examples": plan.num_images}],
        "download_size": num_bytes,
        "dataset_size": num_bytes,
    }


def _origin(plan: Plan) -> str:
    labels = " Each label is what the classifier says of the finished image." if plan.observes_labels else ""
    if plan.num_real_images:
        return f"Sampled from a generator that was fitted to real images.{labels}"
    return f"Synthesized from a pre-trained classifier alone; no image of its training data was read.{labels}"


def _real_images(plan: Plan, extras: Extras) -> str:
    if plan.num_real_images:
        sha256 = _cell(plan.identity["method"]["real_images"].get("sha256", ""))
        used = (
            f"The generator was fitted to {counted(plan.num_real_images, 'real image')} (sha256 `{sha256}`)."
        )
        return f"{used} {extras.real_images}".strip()
    if extras.real_images:
        return f"None was used to make the set. {extras.real_images}"
    return (
        "None was used: the images were synthesized from the classifier's weights alone, and no figure here"
        " is measured on real images."
    )


def _size_category(count: int) -> str:
    if count < 1000:
        return "n<1K"
    limits = (10**3, 10**4, 10**5, 10**6, 10**7, 10**8, 10**9)
    names = ("1K", "10K", "100K", "1M", "10M", "100M", "1B")
    place = sum(count >= limit for limit in limits[1:-1])
    return f"{names[place]}<n<{names[place + 1]}"


def _what_lies_beside(plan: Plan) -> str:
    below = "" if plan.KEY == Plan.KEY else "of each round, "
    return (
        f"`{plan.KEY}` holds the whole config; {below}`commits/` the provenance of every shard (seed,\n"
        "losses, timings, versions), `_MANIFEST`, a Parquet file, the list of shards with their sha256."
    )


def _how_to_read(plan: Plan) -> str:
    if plan.format == "parquet":
        return "It opens with `datasets.load_dataset` and with `nisynth.open_dataset`."
    return (
        "The shards hold normalized float32 images and int64 labels as NPZ; they open with\n"
        "`nisynth.open_dataset` and `numpy.load`, where `images * std + mean`, for each channel, are pixels\n"
        "in 0..1, and `classes[label]` is a name."
    )


def _cell(text: object) -> str:
    """Returns a text escaped for a cell of a Markdown table: it may come from anyone."""
    line = " ".join(str(text).split())
    return "".join(f"\\{character}" if character in "\\|<>`[]*_#" else character for character in line)
