"""A run's pictures, made small enough for the page: WebP of a few kilobytes each, some of those over time."""

import base64
import functools
import io
import logging
import os
import re

FRAMES = 12  # of a series, at most: the first, the last, and some between
LIMIT = 18_000  # bytes of a picture of a series
LARGE = 45_000  # of one that stands alone
SIZES = ((900, 70), (640, 60), (520, 45), (420, 40), (320, 35), (240, 30))  # (longer side, quality), tried in turn

log = logging.getLogger(__name__)


def alone(folder, frames=FRAMES):
    """[(name, data URI)] of the PNGs in a folder itself, those that every run leaves first."""
    names = sorted(file.name for file in folder.glob("*.png") if file.name != "curves.png")  # the page draws its own
    first = [name for name in ("views.png", "neighbours.png") if name in names]
    names = [*first, *(name for name in names if name not in first)][:frames]
    return [(name, shown) for name in names if (shown := small(folder / name, LARGE))]


def series(folder, frames=FRAMES):
    """{name of a folder: [(step, data URI)]} of the folders in a folder that hold pictures called STEP.png."""
    found = {}
    for file in sorted(folder.glob("*/*.png")):
        if re.fullmatch(r"\d{4,12}", file.stem):
            found.setdefault(file.parent.name, []).append(file)
    shown = {
        name: [(int(file.stem), uri) for file in spaced(files, frames) if (uri := small(file, LIMIT))]
        for name, files in found.items()
    }
    return {name: pictures for name, pictures in shown.items() if pictures}


def spaced(items, most):
    """At most so many of the items, evenly, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(k * (len(items) - 1) / max(most - 1, 1))] for k in range(most)] if most > 1 else [items[-1]]


def small(file, limit):
    """The data URI of a picture in at most about `limit` bytes, or None: what is no PNG is named in a warning."""
    import PIL.Image

    try:
        seen = os.stat(file)
        return _small(str(file), limit, seen.st_mtime_ns, seen.st_size)
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as error:  # Pillow's, of damaged files
        log.warning("%s is no PNG, or cannot be read (%s); it is left out.", file, type(error).__name__)
        return None


@functools.lru_cache(maxsize=64)  # a run writes its page again and again, with one picture more
def _small(file, limit, changed, size):
    del changed, size  # tell one content from another
    from PIL import Image

    if not os.path.isfile(file):  # a pipe would be waited for
        raise ValueError("no file")
    with Image.open(file, formats=("PNG",)) as opened:
        picture = opened.convert("RGB")
    for side, quality in SIZES:
        scale = min(1.0, side / max(picture.size))
        sides = max(1, round(scale * picture.width)), max(1, round(scale * picture.height))
        stream = io.BytesIO()
        picture.resize(sides, Image.Resampling.LANCZOS).save(stream, "WEBP", quality=quality, method=2)
        if stream.tell() <= limit:
            break
    return f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode()}"
