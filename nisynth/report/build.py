"""From a URL to its page: facts, images, quality and map gathered, and put together."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from nisynth.commits import Run
from nisynth.consumers.student_report import RESULT_KEY
from nisynth.errors import ConfigError, DataError, IncompleteRun, one_line
from nisynth.evaluation.embedding import embed, pick
from nisynth.evaluation.measure import Opened, Yardstick, open_for_measuring
from nisynth.evaluation.networks import POOL
from nisynth.evaluation.quality import Quality
from nisynth.evaluation.tsne import map_layers
from nisynth.report.facts import gather, public_name
from nisynth.report.inline import MOST_PER_CLASS, Pictures
from nisynth.report.maps import draw_small_map
from nisynth.report.page import RunPage
from nisynth.report.preview import sample_images
from nisynth.report.training_page import render_training
from nisynth.storage import NotFound, open_store

MAP_POINTS = 1000
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
) -> bytes:
    """Returns the page of a run, at any time of it, or of a student's or pruning sweep's folder.

    Raises PlanMismatch where there is neither, ConfigError for what cannot be used, DataError for damaged
    images, StorageError.
    """
    result = read_result(url)
    if result is not None:
        return render_training(result, public_name(url))
    run = Run.open(open_store(url))
    say("reading the commits")
    facts = gather(run)
    trained = None if student is None else read_result(student)
    if student is not None and trained is None:
        raise ConfigError(f"--student {student}: no student there (no {RESULT_KEY}); name a student's folder")
    page = RunPage(facts, student=trained, hour_price=hour_price)
    if not facts.tasks and facts.rejected is None:
        return replace(page, quality_note="no image is committed yet").render()
    pixels, labels = sample_images(run, MOST_PER_CLASS)
    pictures = Pictures(pixels, labels)
    if not facts.tasks:  # the images are the refused canary's
        return replace(page, pictures=pictures, quality_note="no image is committed yet").render()
    try:
        opened = open_for_measuring(url, replace(by, allow_partial=True))
    except IncompleteRun:  # emptied meanwhile
        return replace(page, pictures=pictures).render()
    say("measuring the images")
    quality = opened.measure(on_images)
    pictures = replace(pictures, **_compared(opened, quality, facts.classes, say))
    return replace(page, pictures=pictures, quality=quality, content_sha256=opened.synthetic.content).render()


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
