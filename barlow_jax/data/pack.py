"""Shards of a set of images: made, gone on with after a kill, and read again to compare; forms are in pack_forms.py.

OUT/classes.json           the names of the classes by number
OUT/train.pack.json        what was packed, and of each shard that is whole the number of images, bytes and digest
"""

import concurrent.futures
import contextlib
import hashlib
import io
import itertools
import json
import logging
import os
import shutil
import time
from typing import NamedTuple

import numpy as np
from PIL import Image

from barlow_jax.data import pixels, shards, walk
from barlow_jax.errors import UserError

logger = logging.getLogger(__name__)

SHARD_BYTES = 256 * 2**20  # of a shard, about, where its number of images is not given
SAMPLE = 32  # images by which sizes are guessed
TIMED = 2000  # images that are read to say how long reading takes
TOLD_EVERY = 10.0  # seconds between lines of progress
SPARE = 64 * 2**20  # bytes that are left free
ENDINGS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "BMP": "bmp", "DIB": "bmp", "GIF": "gif", "PPM": "ppm"}


class Size(NamedTuple):
    """How images are stored: those with a longer short side as JPEGs of this one (pixels); 0: all as they are."""

    short_side: int = 0
    quality: int = 90  # of these JPEGs, as Pillow counts


def pack(source, form, size: Size, per_shard: int, threads: int) -> dict:
    """Packs a set, all of it or what is missing, and compares; returns {"images", "bytes", "shards", ...}.

    source: one of encoded images. form: in which, and where, see `pack_forms`. per_shard: images of a shard, 0 for
    about SHARD_BYTES. threads: images that are read at a time.
    Returns how many images, bytes, shards, and of the images how many were made smaller or cannot be opened.
    UserError where the disk is too small, another set lies there, or what was written is not what is read.
    """
    form.check(source)
    os.makedirs(form.folder, exist_ok=True)
    rows = np.unique(np.linspace(0, len(source) - 1, SAMPLE).astype(int))
    mean = float(np.mean([len(stored(read_file(source, int(row)), size)[0]) for row in rows])) + form.beside
    plan = {
        "format": form.name,
        "images": len(source),
        "listing": source.listing(),
        "content": source.fingerprint(),
        "short_side": size.short_side,
        "quality": size.quality if size.short_side else None,
    }
    record = os.path.join(form.out, f"{form.split}.pack.json")
    known = _known(record, plan, per_shard)
    per_shard = known["per_shard"] if known else per_shard or max(1, min(len(source), int(SHARD_BYTES / mean)))
    spans = [(first, min(first + per_shard, len(source))) for first in range(0, len(source), per_shard)]
    paths = [form.path(k, len(spans)) for k in range(len(spans))]
    for rest in form.others(len(spans)):
        raise UserError(f"{rest} is of another pack: remove it, and start again with the same line.")
    done = _whole(paths, known["shards"]) if known else {}
    _check_space(form.out, mean * sum(stop - first for k, (first, stop) in enumerate(spans) if k not in done))
    _names(form.out, source)
    held = plan | {"per_shard": per_shard, "classes": source.num_classes or 0}
    held["shards"] = {str(k): told for k, told in done.items()}
    _write(record, held)
    if done:
        logger.info("%d of %d shards are there already", len(done), len(spans))
    packed, began = 0, time.monotonic()
    said = began
    with concurrent.futures.ThreadPoolExecutor(threads, "pack") as pool:
        for k, (first, stop) in enumerate(spans):
            if k in done:
                continue
            images = read_ahead(pool, lambda row: stored(read_file(source, row), size), range(first, stop), 4 * threads)
            held["shards"][str(k)] = _shard(paths[k], form, images, first, source.labels)
            _write(record, held)
            packed += stop - first
            if time.monotonic() - said > TOLD_EVERY:
                said = time.monotonic()
                left = (said - began) * (len(source) - stop) / packed
                logger.info("%d of %d images are packed, at most %.0f s left", stop, len(source), left)
    form.finish()
    _compare(form, paths, spans, held["shards"], source)
    return {
        "images": len(source),
        "bytes": sum(told["bytes"] for told in held["shards"].values()),
        "shards": len(spans),
        "resized": sum(told["resized"] for told in held["shards"].values()),
        "unreadable": sum(told["unreadable"] for told in held["shards"].values()),
        "seconds": time.monotonic() - began,
    }


def stored(file: bytes, size: Size) -> tuple[bytes, str, str]:
    """(bytes of the image as it is packed, its ending, "" or "resized" or "unreadable") of an image file.

    An image that cannot be read, that is no larger, or that has more than 8 bits stays as it is.
    """
    try:
        with pixels.opened(file) as image:
            ending = ENDINGS.get(image.format, "tif")
            short = min(image.size)
            if not size.short_side or short <= size.short_side or pixels.bits_of(image) > 8:
                return file, ending, ""
            turn = pixels.orientation_of(image)
            grey = image.mode in ("1", "L", "LA")
            shape = [max(1, round(side * size.short_side / short)) for side in image.size]
            small = image.convert("L" if grey else "RGB").resize(shape, Image.Resampling.BICUBIC)
            about, stream = Image.Exif(), io.BytesIO()
            about[274] = turn
            small.save(stream, "JPEG", quality=size.quality, exif=about.tobytes() if turn > 1 else b"")
            return stream.getvalue(), "jpg", "resized"
    except Exception:  # Pillow's plugins raise whatever their parsers run into; the image is told of when it is read
        return file, "jpg", "unreadable"


def read_file(source, row: int) -> bytes:
    """The image file of one example; UserError where it cannot be read."""
    try:
        return source.encoded(row)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:100]
        raise UserError(f"{source.where(row)} cannot be read ({reason}): see to it, or take it out.") from None


def read_ahead(pool, read, rows, ahead):
    """read(row) for each row, in order, `ahead` of them at a time."""
    rows, waiting = iter(rows), []
    for row in itertools.islice(rows, ahead):
        waiting.append(pool.submit(read, row))
    while waiting:
        yield waiting.pop(0).result()
        for row in itertools.islice(rows, 1):
            waiting.append(pool.submit(read, row))


def _shard(path, form, images, first, labels):
    """Writes one shard, whole or not at all; what is kept of it."""
    digest, told = hashlib.sha256(), {"images": 0, "resized": 0, "unreadable": 0}

    def seen():
        for row, (content, ending, kind) in enumerate(images, first):
            label = -1 if labels is None else int(labels[row])
            _digest(digest, content, label)
            told["images"] += 1
            if kind:
                told[kind] += 1
            yield row, content, ending, label

    with _whole_file(path) as unfinished:
        form.write(unfinished, seen())
    return told | {"bytes": os.path.getsize(path), "sha256": digest.hexdigest()}


@contextlib.contextmanager
def _whole_file(path):
    """The name of a file to write, which is `path` once it lies on the disk, and not in memory alone."""
    unfinished = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.unfinished")
    try:
        yield unfinished
        with open(unfinished, "rb") as file:
            os.fsync(file.fileno())
            _forget(file.fileno())
        os.replace(unfinished, path)
    finally:
        if os.path.exists(unfinished):
            os.unlink(unfinished)


def _digest(digest, content, label):
    digest.update(f"{label} {len(content)}\n".encode())
    digest.update(content)


def _forget(descriptor):
    """What was written is read from the disk again, not from memory."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def _known(path, plan, per_shard):
    """What an earlier start has kept, or None. UserError where it was of another set, or packed another way."""
    try:
        with open(path, encoding="utf-8") as file:
            held = json.load(file)
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        raise UserError(f"{path} cannot be read: remove it and the shards beside it, and start again.") from None
    if not isinstance(held, dict) or not isinstance(held.get("shards"), dict) or "per_shard" not in held:
        raise UserError(f"{path} is of no pack: remove it and the shards beside it, and start again.")
    held = {"format": "tar"} | held  # of 0.2.0 before there were others
    asked = plan | ({"per_shard": per_shard} if per_shard else {})
    if wrong := [name for name, value in asked.items() if held.get(name) != value]:
        words = {
            "format": "--format",
            "listing": "images",
            "content": "state of the files",
            "per_shard": "images a shard",
        }
        told = ", ".join(words.get(name, name) for name in wrong)
        raise UserError(
            f"{os.path.dirname(path)} holds a pack that differs in: {told}; give another folder, or remove the shards "
            f"and {os.path.basename(path)}."
        )
    return held


def _whole(paths, told):
    """{number: what was kept} of the shards that are there with the size that they had."""
    found = {}
    for k, about in told.items():
        path = paths[int(k)]
        if os.path.isfile(path) and os.path.getsize(path) == about["bytes"]:
            found[int(k)] = about
    return found


def _check_space(out, wanted):
    free = shutil.disk_usage(out).free
    if wanted + SPARE > free:
        raise UserError(
            f"{out} lies on a disk with {_size(free)} free, and about {_size(wanted)} are to be written beside "
            f"{_size(SPARE)} that stay free: free some, or give another folder."
        )


def _size(count):
    unit, of = next((pair for pair in (("GB", 1e9), ("MB", 1e6)) if count >= pair[1]), ("kB", 1e3))
    return f"{count / of:.1f} {unit}"


def _names(out, source):
    """The names of the classes, which all splits in a folder share."""
    if source.class_names is None:
        return
    before = shards.class_names(shards.Folder(out))
    if before is not None and before != tuple(source.class_names):
        raise UserError(f"{out} has other classes in {shards.CLASSES} than {source.name}: give another folder.")
    _write(os.path.join(out, shards.CLASSES), list(source.class_names))


def _write(path, held):
    with _whole_file(path) as unfinished, open(unfinished, "w", encoding="utf-8") as file:
        json.dump(held, file, indent=1)


def _compare(form, paths, spans, told, source):
    """UserError unless the shards hold what was packed: count, bytes and labels."""
    packed = form.open()
    if len(packed) != len(source):
        raise UserError(
            f"{packed.name} holds {len(packed)} images of {len(source)}: remove the shards and start again."
        )
    for k, (first, stop) in enumerate(spans):
        digest = hashlib.sha256()
        with contextlib.suppress(OSError):  # where one cannot be read the digest is another
            for row in range(first, stop):
                _digest(digest, *form.image(packed, row))
        if digest.hexdigest() != told[str(k)]["sha256"] or stop - first != told[str(k)]["images"]:
            path = walk.readable(paths[k])
            raise UserError(f"{path} does not hold what was packed: remove it, and start again with the same line.")


def read_seconds(read, count: int, seed: int = 0) -> tuple[float, int]:
    """(seconds, number of images) that read(row) takes, in an order over a whole set of `count`, by one thread."""
    rows = np.random.default_rng(seed).permutation(count)[:TIMED].tolist()
    began = time.monotonic()
    for row in rows:
        read(row)
    return time.monotonic() - began, len(rows)
