"""From a URL to its page: facts, images, quality and map gathered, and put together."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from nisynth.commits import Run
from nisynth.consumers.student_report import RESULT_KEY
from nisynth.errors import ConfigError, DataError, IncompleteRun, one_line
from nisynth.evaluation.embedding import embed, pick
from nisynth.evaluation.measure import Opened, Yardstick, open_for_measuring
from nisynth.evaluation.networks import POOL
from nisynth.evaluation.quality import Quality
from nisynth.evaluation.tsne import map_layers
from nisynth.report.facts import gather, public_name, public_text
from nisynth.report.inline import MOST_PER_CLASS, Pictures
from nisynth.report.maps import draw_small_map
from nisynth.report.page import RunPage
from nisynth.report.preview import sample_images
from nisynth.report.training_page import render_training
from nisynth.series.run import open_run
from nisynth.storage import NotFound, open_store

MAP_POINTS = 1000


class Built(NamedTuple):
    """A page as UTF-8. damage: what it says is damaged, a line each."""

    html: bytes
    damage: tuple[str, ...] = ()


Say = Callable[[str], None]
OnImages = Callable[[int, int], None]


def build_page(
    url: str,
    by: Yardstick,
    *,
    student: str | None = None,
    hour_price: float | None = None,
    say: Say = lambda line: None,
    on_images: OnImages | None = None,
) -> Built:
    """Returns the page of a run, at any time of it, or of a student's or pruning sweep's folder.

    Raises PlanMismatch where there is neither, ConfigError for what cannot be used, DataError for a damaged
    plan or result, StorageError. Damaged images are said on the page.
    """
    result = read_result(url)
    if result is not None:
        return Built(render_training(result, public_name(url)))
    run = open_run(url)
    say("reading the commits")
    facts = gather(run)
    trained = None if student is None else read_result(student)
    if student is not None and trained is None:
        raise ConfigError(f"--student {student}: no student there (no {RESULT_KEY}); name a student's folder")
    page = RunPage(facts, student=trained, hour_price=hour_price)
    damage: list[str] = []
    try:
        page = _with_images(page, run, damage)
        page = _with_quality(page, run, by, say, on_images)
    except DataError as error:
        damage.append(str(error))
        page = replace(page, quality_note="an image cannot be read; see Failures")
    except IncompleteRun as error:  # a run emptied meanwhile
        page = replace(page, quality_note=public_text(str(error), run, facts))
    known = [*facts.damage, *(public_text(text, run, facts) for text in damage)]
    facts = replace(facts, damage=tuple(dict.fromkeys(known)))
    return Built(replace(page, facts=facts).render(), facts.damage)


def _with_images(page: RunPage, run: Run, damage: list[str]) -> RunPage:
    """Returns the page with images of the sound shards; `damage` takes a line for each other one.

    Raises DataError where none is sound, IncompleteRun.
    """
    if not page.facts.tasks and page.facts.rejected is None:
        return page
    return replace(page, pictures=Pictures(*sample_images(run, MOST_PER_CLASS, damage)))


def _with_quality(page: RunPage, run: Run, by: Yardstick, say: Say, on_images: OnImages | None) -> RunPage:
    """Returns the page with what was measured of all images. Raises DataError, IncompleteRun."""
    if not page.facts.tasks:  # the images, if there are any, are the refused canary's
        return replace(page, quality_note="no image is committed yet")
    opened = open_for_measuring(run.store.url, replace(by, allow_partial=True))
    say("measuring the images")
    quality = opened.measure(on_images)
    pictures = replace(page.pictures, **_compared(opened, quality, page.facts.classes, say))
    return replace(page, pictures=pictures, quality=quality, content_sha256=opened.synthetic.content)


def read_result(url: str) -> dict[str, Any] | None:
    """Returns a student's `result.json` as plain data, None where there is none. Raises DataError."""
    store = open_store(url)
    try:
        data = store.get(RESULT_KEY, 1 << 26)
    except NotFound:
        return None
    try:
        result = json.loads(data)
        if not isinstance(result, dict):
            raise TypeError("not an object")
        return result
    except (ValueError, TypeError, RecursionError) as error:
        raise DataError(f"{url}/{RESULT_KEY}: damaged ({one_line(error)})") from None


def _compared(opened: Opened, quality: Quality, classes: tuple[str, ...], say: Say) -> dict[str, Any]:
    """Returns the pictures that need a real set: nearest pairs, and a map where its libraries are there."""
    if opened.real is None:
        return {}
    mine = pick(opened.synthetic, [pair.synthetic for pair in quality.closest])
    theirs = pick(opened.real, [pair.real for pair in quality.closest])
    pairs = [(mine[pair.synthetic], theirs[pair.real]) for pair in quality.closest]
    try:
        say("drawing the map")
        found = map_layers(
            embed(opened.synthetic, opened.network), embed(opened.real, opened.network), [POOL], MAP_POINTS
        )[0]
    except (ConfigError, ValueError):  # the extra is not installed, or too few images
        return {"pairs": pairs}
    return {
        "pairs": pairs,
        "map": draw_small_map(found, classes),
        "map_points": found.num_each,
        "map_accuracy": found.accuracy,
    }
