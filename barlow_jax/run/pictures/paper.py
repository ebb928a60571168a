"""What all pictures share: tiles of images, text on paper, figures, and the file at the end."""

import functools
import math
import pathlib
import struct
import warnings
import zlib

import numpy as np

from barlow_jax.run import writing

PAPER, INK, FAINT = (255, 255, 255), (34, 34, 34), (102, 102, 102)
TITLE, TEXT = 16, 12  # pixels of the letters
LINE = 1.35  # from one line to the next, in the letters' size
SMALL = 128  # pixels of a side; images that are much smaller are enlarged by a whole factor, without smoothing


def tiles(images, *, like=None, most=None, exactly=None):
    """uint8 [..., S, S, C] -> [..., S', S', 3], S' = S or the multiple of it that is nearest to SMALL.

    Args:
      like: side of larger images, beside which these are enlarged by the same factor.
      most: pixels of a side; larger images are reduced to it.
      exactly: pixels of a side that all are brought to.
    """
    images = np.asarray(images)
    channels, side = images.shape[-1], images.shape[-2]
    if channels == 1:
        images = np.repeat(images, 3, -1)
    elif channels == 2:
        images = np.concatenate([images, np.zeros_like(images[..., :1])], -1)
    images = images[..., :3]
    if exactly or (most and side > most):
        return _resized(images, exactly or most)
    zoom = max(1, round(SMALL / (like or side)))
    return images.repeat(zoom, -3).repeat(zoom, -2)


def _resized(images, side):
    from PIL import Image

    flat = images.reshape(-1, *images.shape[-3:])
    method = Image.Resampling.LANCZOS if images.shape[-2] > side else Image.Resampling.NEAREST
    small = [np.asarray(Image.fromarray(image).resize((side, side), method)) for image in flat]
    return np.stack(small).reshape(*images.shape[:-3], side, side, 3)


def of_channels(channels):
    """A sentence on the colours of images with so many channels; "" of one and three, which need none."""
    if channels == 2:
        return "Of 2 channels, the first is shown as red and the second as green."
    return f"Of {channels} channels, the first three are shown as red, green and blue." if channels > 3 else ""


@functools.cache
def font(size, bold=False):
    """matplotlib's DejaVu Sans for Pillow; what it has no letter for is drawn as a box."""
    import matplotlib
    from PIL import ImageFont

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(pathlib.Path(matplotlib.get_data_path(), "fonts", "ttf", name), size)


def printable(text):
    """The text on one line, with escapes for what cannot be printed or written: new lines, half a character."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def shortened(text, fits):
    """A name as `printable`, cut out in the middle until it fits: what tells names apart stands at their ends.

    fits: text -> whether there is room for it.
    """
    text = printable(text)
    if fits(text):
        return text
    shortest, longest = 0, len(text)  # characters that are left: the first fit, the last do not
    while longest - shortest > 1:
        middle = (shortest + longest) // 2
        shortest, longest = (middle, longest) if fits(_cut(text, middle)) else (shortest, middle)
    return _cut(text, shortest)


def _cut(text, left):
    """`left` of the characters: one more at the end than at the beginning, as numbers and suffixes stand there."""
    first = left // 2
    return text[:first] + "…" + text[len(text) - (left - first) :]


def shortened_to(text, width, letters):
    """`shortened` to so many pixels in a font."""
    return shortened(text, lambda tried: letters.getlength(tried) <= width)


def wrapped(parts, width, letters, between=", "):
    """Parts of a text as lines of at most so many pixels, broken between the parts."""
    lines = []
    for part in parts:
        longer = f"{lines[-1]}{between}{part}" if lines else part
        if lines and letters.getlength(longer + between.strip()) <= width:
            lines[-1] = longer
        else:
            lines[-1:] = [f"{lines[-1]}{between.rstrip()}"] if lines else []
            lines.append(part)
    return lines


def height_of(lines, size=TEXT):
    """Pixels that so many lines take."""
    return math.ceil(lines * size * LINE)


def write(picture, texts):
    """The picture with texts on it: (x, y, text, font, colour), (x, y) the top left corner of each."""
    from PIL import Image, ImageDraw

    sheet = Image.fromarray(picture)
    draw = ImageDraw.Draw(sheet)
    for x, y, text, letters, colour in texts:
        draw.text((x, y), text, fill=colour, font=letters)
    return np.array(sheet)


def titled(picture, title, *notes, margin=8):
    """The picture below its title and notes, which are broken into lines of its width."""
    bold, plain = font(TITLE, True), font(TEXT)
    width = picture.shape[1] - 2 * margin
    lines, y = [], margin
    for text, letters, size in ((title, bold, TITLE), *((note, plain, TEXT) for note in notes if note)):
        for line in wrapped(text.split(), width, letters, between=" "):
            lines.append((margin, y, line, letters, INK if letters is bold else FAINT))
            y += height_of(1, size)
        y += 2
    head = np.full((y + 4, picture.shape[1], 3), PAPER, np.uint8)
    return np.concatenate([write(head, lines), picture])


def arrange(sheets, *, columns, gap):
    """uint8 [n, h, w, 3] -> one picture, row by row, with a gap between sheets and half a gap around all."""
    n, height, width, _ = sheets.shape
    rows = math.ceil(n / columns)
    page = np.full((rows * columns, height + gap, width + gap, 3), PAPER, np.uint8)
    page[:n, gap // 2 : gap // 2 + height, gap // 2 : gap // 2 + width] = sheets
    page = page.reshape(rows, columns, height + gap, width + gap, 3).swapaxes(1, 2)
    return page.reshape(rows * (height + gap), columns * (width + gap), 3)


def figure(width, height, **options):
    """A figure of so many pixels, of its own, without pyplot: no display, no global state, nothing to close."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(width / 100, height / 100), dpi=100, facecolor="white", **options)
    FigureCanvasAgg(made)
    return made


def pixels(made):
    """A figure as uint8 [height, width, 3]."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # a box stands there
        made.canvas.draw()
    return np.array(made.canvas.buffer_rgba())[..., :3]


def save(picture, path, *, noise=False):
    """The picture, in a PNG as well if there is a path.

    noise: whether most of it is few colours without order, where PNG's filters cost more than they save: without them
      the matrix of 512 dimensions takes 0.6 of the bytes.
    """
    if path is not None:
        from PIL import Image

        path = pathlib.Path(path)
        with writing.told(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
        with writing.whole(path) as unfinished:
            if noise:
                pathlib.Path(unfinished).write_bytes(_unfiltered(picture))
            else:
                Image.fromarray(picture).save(unfinished, format="PNG")
    return picture


def _unfiltered(picture):
    """A PNG of which every row is stored as it is."""
    height, width, _ = picture.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), picture.reshape(height, 3 * width)], 1)
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits of red, green and blue
    parts = [(b"IHDR", head), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b"")]
    chunks = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    ]
    return b"".join([b"\x89PNG\r\n\x1a\n", *chunks])
