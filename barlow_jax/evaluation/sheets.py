"""What people look at after a search: a table in CSV, and a sheet of images in blocks, with names and numbers."""

import csv
import io
import os
import pathlib
from typing import NamedTuple

import numpy as np

from barlow_jax.evaluation.image_sets import SIDE
from barlow_jax.run import writing
from barlow_jax.run.pictures.paper import printable

WIDTH = 1240  # pixels of a sheet, unless one block is wider
GAP, LINE = 8, 15  # pixels between tiles, and of a line of text
INK, GREY = (34, 34, 34), (225, 225, 225)


class Cell(NamedTuple):
    """An image on a sheet."""

    path: str  # as embed writes it
    note: str = ""  # below its name


class Block(NamedTuple):
    """Images that belong together, side by side under a heading."""

    heading: str  # "" needs no room where no block has one
    cells: list


def table(path, header, rows):
    """Writes a CSV: text in quotes, numbers without, so that any name can stand in it."""
    stream = io.StringIO()
    writer = csv.writer(stream, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    writing.text(path, stream.getvalue())


def sheet(path, title, blocks, thumbnails, columns=0):
    """Draws blocks of images; each name is told from the folder on that all of them share.

    Args:
      path: a PNG.
      title: one line above.
      blocks: a list of `Block`, as many beside each other as fit.
      thumbnails: `image_sets.Thumbnails`.
      columns: images in a line of a block; 0 is all of a block in one.
    Returns:
      uint8 [height, width, 3].
    """
    from PIL import Image, ImageDraw

    font = _font()
    shared = _shared([cell.path for block in blocks for cell in block.cells])
    across = columns or max(len(block.cells) for block in blocks)
    wide, high = across * (SIDE + GAP) + GAP, SIDE + 2 * LINE + GAP
    beside = max(1, min((WIDTH - GAP) // wide, len(blocks)))
    tops, top = [], 2 * LINE + GAP
    above = LINE + GAP if any(block.heading for block in blocks) else 0
    for start in range(0, len(blocks), beside):
        lines = max(-(-len(block.cells) // across) for block in blocks[start : start + beside])
        tops += [top] * beside
        top += above + lines * high + GAP
    width = max(GAP + beside * wide, int(font.getlength(printable(title))) + 2 * GAP)
    picture = Image.new("RGB", (width, top), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((GAP, GAP), printable(title), INK, font)
    for k, block in enumerate(blocks):
        left, top = GAP + k % beside * wide, tops[k]
        draw.text((left, top), _fitting(block.heading, wide - 2 * GAP, font, keep_end=False), INK, font)
        for place, cell in enumerate(block.cells):
            x, y = left + place % across * (SIDE + GAP), top + above + place // across * high
            tile = thumbnails.of(cell.path)
            if tile is None:
                draw.rectangle((x, y, x + SIDE, y + SIDE), GREY)
                draw.text((x + GAP, y + SIDE // 2), "unreadable", INK, font)
            else:
                picture.paste(Image.fromarray(tile), (x, y))
            draw.text((x, y + SIDE + 2), _fitting(cell.path[len(shared) :], SIDE, font), INK, font)
            draw.text((x, y + SIDE + 2 + LINE), _fitting(cell.note, SIDE, font, keep_end=False), INK, font)
    path = pathlib.Path(path)
    with writing.whole(path) as unfinished:
        picture.save(unfinished, format="PNG")
    return np.asarray(picture)


def _shared(paths):
    """The folder that all paths share, with its slash; "" where they share none."""
    shared = os.path.commonprefix(paths)
    return shared[: shared.rfind("/") + 1]


def _font():
    from matplotlib import get_data_path
    from PIL import ImageFont

    return ImageFont.truetype(os.path.join(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), 11)


def _fitting(text, width, font, keep_end=True):
    """As much of a text as fits, with an ellipsis in place of its beginning or its end."""
    text = printable(text)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "\N{HORIZONTAL ELLIPSIS}") > width:
        text = text[1:] if keep_end else text[:-1]
    return f"\N{HORIZONTAL ELLIPSIS}{text}" if keep_end else f"{text}\N{HORIZONTAL ELLIPSIS}"
