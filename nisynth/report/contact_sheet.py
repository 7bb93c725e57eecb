"""A contact sheet: one class per column under its name, so that one sees whether classes differ.

Many classes wrap into bands of columns one below the other, each with its own names, so that the sheet
stays readable: at most 1,600 px wide, cells of 96 px a side and names of 14 px in one band, 64 px and
12 px in several. The hundred classes of CIFAR-100 make 5 bands of 20 columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

MAX_WIDTH_PX = 1600
CELL_PX = 96
CELL_IN_BANDS_PX = 64
GAP_PX = 8
BAND_GAP_PX = 18
FONT_PX = 14
FONT_IN_BANDS_PX = 12
LINE_PX = 17
MAX_NAME_LINES = 3

WHITE = (255, 255, 255)
INK = (32, 32, 32)
EMPTY = (244, 244, 244)
EMPTY_EDGE = (210, 210, 210)

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def contact_sheet(
    pixels: Tensor,
    labels: Tensor,
    classes: Sequence[str],
    rows: int = 10,
    row_names: Sequence[str] = (),
) -> Image.Image:
    """Returns an RGB picture with the first `rows` images of each class, class by class in columns.

    pixels: `(N, 3, H, W)` uint8. labels: `(N,)` int64. Small images are enlarged to the cell by a
    whole number (nearest neighbour), large ones reduced (area average). Classes short of images show empty
    cells; rows that no class fills are left out. row_names: stand at the left of their rows, in every band.
    Raises ValueError when the arguments do not fit together.
    """
    _check(pixels, labels, classes, rows)
    positions = [torch.nonzero(labels == label).flatten()[:rows].tolist() for label in range(len(classes))]
    layout = _lay_out(tuple(pixels.shape[2:]), len(classes), max(1, max(map(len, positions))))
    font = ImageFont.load_default(FONT_PX if layout.columns == len(classes) else FONT_IN_BANDS_PX)
    margin_px = max((round(font.getlength(name)) + GAP_PX for name in row_names), default=0)
    names = [_wrap(name, font, layout.width_px + GAP_PX - 2) for name in classes]
    bands = [
        range(first, min(first + layout.columns, len(classes)))
        for first in range(0, len(classes), layout.columns)
    ]
    headers_px = [LINE_PX * max(len(names[label]) for label in band) for band in bands]
    body_px = layout.rows * (layout.height_px + GAP_PX)
    height_px = GAP_PX + sum(headers_px) + len(bands) * body_px + (len(bands) - 1) * BAND_GAP_PX
    width_px = margin_px + GAP_PX + layout.columns * (layout.width_px + GAP_PX)
    sheet = Image.new("RGB", (width_px, height_px), WHITE)
    top_px = GAP_PX
    for band, header_px in zip(bands, headers_px, strict=True):
        for column, label in enumerate(band):
            left_px = margin_px + GAP_PX + column * (layout.width_px + GAP_PX)
            _draw_name(sheet, names[label], font, left_px + layout.width_px // 2, top_px + header_px)
            images = [pixels[position] for position in positions[label]]
            _draw_column(sheet, images, layout, left_px, top_px + header_px)
        for row, name in enumerate(row_names):
            middle_px = top_px + header_px + row * (layout.height_px + GAP_PX) + layout.height_px // 2
            ImageDraw.Draw(sheet).text((GAP_PX, middle_px), name, fill=INK, font=font, anchor="lm")
        top_px += header_px + body_px + BAND_GAP_PX
    return sheet


@dataclass(frozen=True)
class _Layout:
    """columns: of the widest band. rows: of every band. width_px, height_px: of a cell."""

    columns: int
    rows: int
    width_px: int
    height_px: int


def _lay_out(image_px: tuple[int, ...], num_classes: int, rows: int) -> _Layout:
    for cell_px in (CELL_PX, CELL_IN_BANDS_PX):
        height_px, width_px = (_scaled(side_px, max(image_px), cell_px) for side_px in image_px)
        fitting = max(1, (MAX_WIDTH_PX - GAP_PX) // (width_px + GAP_PX))
        if num_classes <= fitting:
            break
    num_bands = -(-num_classes // fitting)
    return _Layout(-(-num_classes // num_bands), rows, width_px, height_px)


def _scaled(side_px: int, longest_px: int, cell_px: int) -> int:
    if longest_px > cell_px:
        return max(1, round(side_px * cell_px / longest_px))
    return side_px * (cell_px // longest_px)


def _draw_name(sheet: Image.Image, lines: list[str], font: Font, middle_px: int, bottom_px: int) -> None:
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(reversed(lines)):
        draw.text((middle_px, bottom_px - 5 - number * LINE_PX), line, fill=INK, font=font, anchor="ms")


def _draw_column(
    sheet: Image.Image, images: list[Tensor], layout: _Layout, left_px: int, top_px: int
) -> None:
    draw = ImageDraw.Draw(sheet)
    size = (layout.width_px, layout.height_px)
    for row in range(layout.rows):
        y_px = top_px + row * (layout.height_px + GAP_PX)
        if row < len(images):
            image = Image.fromarray(images[row].permute(1, 2, 0).contiguous().numpy())
            how = Image.Resampling.NEAREST if image.width <= layout.width_px else Image.Resampling.BOX
            sheet.paste(image.resize(size, how), (left_px, y_px))
        else:
            corner = (left_px + layout.width_px - 1, y_px + layout.height_px - 1)
            draw.rectangle(((left_px, y_px), corner), fill=EMPTY, outline=EMPTY_EDGE)


def _wrap(name: str, font: Font, width_px: int) -> list[str]:
    """Returns the name in at most 3 lines that fit the width, broken at spaces and underscores first."""
    lines = [""]
    for word in name.replace("_", " ").split() or [""]:
        joined = f"{lines[-1]} {word}".strip()
        if font.getlength(joined) <= width_px or not lines[-1]:
            lines[-1] = joined
        else:
            lines.append(word)
    if len(lines) > MAX_NAME_LINES:
        lines = [*lines[: MAX_NAME_LINES - 1], " ".join(lines[MAX_NAME_LINES - 1 :])]
    return [_shorten(line, font, width_px) for line in lines]


def _shorten(line: str, font: Font, width_px: int) -> str:
    if font.getlength(line) <= width_px:
        return line
    while line and font.getlength(f"{line}…") > width_px:
        line = line[:-1]
    return f"{line}…"


def _check(pixels: Tensor, labels: Tensor, classes: Sequence[str], rows: int) -> None:
    if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1] != 3:
        raise ValueError(f"pixels are {pixels.dtype} {tuple(pixels.shape)}, not uint8 (N, 3, H, W)")
    if labels.shape != pixels.shape[:1]:
        raise ValueError(f"{len(pixels)} images, labels {tuple(labels.shape)}")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(classes):
        raise ValueError(
            f"labels span {int(labels.min())}..{int(labels.max())}, there are {len(classes)} classes"
        )
    if not classes or rows < 1:
        raise ValueError(f"{len(classes)} classes, rows {rows}: each must be at least 1")
