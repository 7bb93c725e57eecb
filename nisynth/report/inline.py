"""Images inside a page: lossless WebP as data, as many as its bytes allow."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor

MOST_CLASSES = 200
MOST_PER_CLASS = 10
SHOWN_PX = 64


@dataclass(frozen=True, eq=False)
class Pictures:
    """Images for a page. pixels `(N, 3, H, W)` uint8 with labels: of the run, class by class.

    pairs: synthetic and nearest real image, as in the quality's `closest`. map: a WebP, points, accuracy.
    """

    pixels: Tensor | None = None
    labels: Tensor | None = None
    pairs: Sequence[tuple[Tensor, Tensor]] = ()
    map: bytes | None = None
    map_points: int = 0
    map_accuracy: float = 0.0


def class_strips(
    pictures: Pictures, classes: Sequence[str], image_bytes: int
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Returns a strip per class, and what the page says of them: as many images as the bytes allow."""
    if pictures.pixels is None or pictures.labels is None or not len(pictures.labels):
        return [], {"classes": len(classes), "shown": 0, "left_out": 0, "scaled_px": 0, "per_class": 0}
    labels = sorted(set(pictures.labels.tolist()))
    chosen = (
        [labels[i * len(labels) // MOST_CLASSES] for i in range(MOST_CLASSES)]
        if len(labels) > MOST_CLASSES
        else labels
    )
    side = pictures.pixels.shape[-1]
    images = {
        label: [_thumbnail(image) for image in pictures.pixels[pictures.labels == label][:MOST_PER_CLASS]]
        for label in chosen
    }
    probe = [
        _encode([image]) for label in chosen[:: max(1, len(chosen) // 20)] for image in images[label][:1]
    ]
    mean_bytes = sum(map(len, probe)) / len(probe)
    per_class = int(image_bytes / (len(chosen) * mean_bytes * 1.34))
    if per_class < 1 and image_bytes > 0:
        chosen = chosen[:: -(-len(chosen) * int(mean_bytes * 1.34) // image_bytes)]
    per_class = min(max(per_class, 1), MOST_PER_CLASS)
    strips = []
    for label in chosen if image_bytes > 0 else []:
        part = images[label][:per_class]
        found = {"name": classes[label], "count": len(part), "shown_px": len(part) * SHOWN_PX}
        strips.append({**found, **inline(part)})
    said: dict[str, Any] = {
        "classes": len(classes),
        "shown": len(strips),
        "left_out": len(labels) - len(strips),
        "scaled_px": SHOWN_PX if side > SHOWN_PX else 0,
        "per_class": per_class,
        "fewer": per_class < max(map(len, images.values())),
    }
    if not strips:
        said["why_none"] = "Left out: the page would have exceeded its size."
    return strips, said


def _thumbnail(image: Tensor) -> Image.Image:
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    if picture.width > SHOWN_PX:
        return picture.resize((SHOWN_PX, SHOWN_PX), Image.Resampling.BOX)
    return picture


def inline(images: Sequence[Tensor | Image.Image]) -> dict[str, Any]:
    """Returns images side by side as one lossless WebP, inlined, with its size."""
    return embedded(_encode(images))


def _encode(images: Sequence[Tensor | Image.Image]) -> bytes:
    pictures = [_thumbnail(image) if isinstance(image, Tensor) else image for image in images]
    strip = Image.new("RGB", (sum(p.width for p in pictures), max(p.height for p in pictures)))
    left = 0
    for picture in pictures:
        strip.paste(picture, (left, 0))
        left += picture.width
    sink = io.BytesIO()
    strip.save(sink, "WEBP", lossless=True, quality=60, method=4)
    return sink.getvalue()


def embedded(data: bytes) -> dict[str, Any]:
    with Image.open(io.BytesIO(data)) as image:
        width, height = image.size
    return {
        "src": "data:image/webp;base64," + base64.b64encode(data).decode(),
        "width": width,
        "height": height,
    }
