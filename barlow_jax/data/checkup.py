"""A look at a set of images before a run: what they are, how fast they are read, which are broken or there twice.

Functions that return lines (verdict, about, said): "ok", "warning" or "problem", and the remedy in the sentence.
"""

import collections
import hashlib
import os
import time

import numpy as np

from barlow_jax.data import pipeline, pixels

SAMPLE = 200  # images that are looked at one by one
HASHED = 2000  # files of equal size whose contents are compared
STATED = 200_000  # files whose sizes are asked for


def classes(source):
    """How many images there are of each class."""
    if source.num_classes is None:
        return [("ok", "classes", "none: images without labels, so no probe and no kNN while it trains")]
    if source.labels is None:
        return [("ok", "classes", f"{source.num_classes}, counted only as they are read")]
    counts = np.bincount(source.labels[source.labels >= 0], minlength=source.num_classes)
    named = source.class_names or [str(number) for number in range(len(counts))]
    said = f"{len(counts)}, of {counts.min()} ({named[counts.argmin()]}) to {counts.max()} ({named[counts.argmax()]})"
    unlabelled = int(np.sum(source.labels < 0))
    said += f" images, {unlabelled} without a label" if unlabelled else " images"
    if counts.min() == 0:
        return [("warning", "classes", f"{said}; one without images is seldom meant, see to its folder.")]
    if len(counts) == 1:
        return [("warning", "classes", f"{said}: one class tells nothing apart, see whether the folders are classes.")]
    return [("ok", "classes", said)]


def sample(source, count=SAMPLE):
    """Evenly spaced images of a source, int [m]."""
    return np.unique(np.linspace(0, len(source) - 1, min(count, len(source))).astype(int))


def files(source, image_size, max_bad_fraction, count=SAMPLE):
    """Formats, sizes and depth of a sample, and what of it cannot be read.

    Args:
      source: one of files or records; of arrays there is nothing to tell but their shape.
      image_size: of the views; max_bad_fraction: config.data.max_bad_fraction.
    """
    if source.images is not None:
        height, width, channels = source.shape
        return [
            ("ok", "images", f"{len(source)} of at most {height} x {width} pixels and {channels} channels, in memory")
        ]
    rows = sample(source, count)
    formats, modes, sides, bad = collections.Counter(), collections.Counter(), [], {}
    for row in map(int, rows):
        try:
            encoded = source.encoded(row)
            pixels.pillow_pixels(encoded, source.reading)
            format_, mode = pixels.told_of(encoded)
            formats[format_] += 1
            modes[mode] += 1
            sides.append(sorted(pixels.stored_size(encoded, source.reading)))
        except Exception as error:  # of Pillow's plugins and the file system: all of it is the answer
            why = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
            bad[source.where(row)] = why or type(error).__name__
    lines = []
    if sides:
        short, long = np.median(sides, axis=0)
        told = ", ".join(f"{number} {name}" for counter in (formats, modes) for name, number in counter.most_common(4))
        said = f"{len(source)}; of {len(rows)} looked at: {told}; median sides {short:.0f} and {long:.0f} pixels, "
        said += f"shortest {min(side for side, _ in sides)}, longest {max(side for _, side in sides)}"
        small = sum(side < image_size for side, _ in sides)
        if 2 * small > len(sides):
            remedy = "views are enlarged, take a smaller config.image_size"
            lines.append(
                ("warning", "images", f"{said}; {small} are smaller than config.image_size={image_size}: {remedy}.")
            )
        else:
            lines.append(("ok", "images", said))
    if bad:
        shown = "; ".join(f"{where} ({why})" for where, why in list(bad.items())[:3])
        said = f"{len(bad)} of {len(rows)} cannot be read: {shown}"
        allowed = len(bad) <= max_bad_fraction * len(rows)
        remedy = (
            "others take their place; repair or delete them" if allowed else "the run would end; repair or delete them"
        )
        return [*lines, ("warning" if allowed else "problem", "unreadable", f"{said}: {remedy}.")]
    return lines


def duplicates(paths, where=str):
    """Files that are the same to the byte: by their sizes, and of those of equal size by content."""
    by_size = collections.defaultdict(list)
    for path in paths[:STATED]:
        try:
            by_size[os.stat(path).st_size].append(path)
        except OSError:
            continue  # `files` tells of it
    candidates = [path for same in by_size.values() if len(same) > 1 for path in same]
    by_content = collections.defaultdict(list)
    for path in candidates[:HASHED]:
        try:
            with open(path, "rb") as file:
                by_content[hashlib.file_digest(file, "sha256").hexdigest()].append(path)
        except OSError:
            continue
    groups = [same for same in by_content.values() if len(same) > 1]
    looked = f"{min(len(paths), STATED)} files" + (f", {HASHED} of them by content" if len(candidates) > HASHED else "")
    if not groups:
        return [("ok", "duplicates", f"none that are the same to the byte among {looked}")]
    extra, first = sum(len(same) - 1 for same in groups), [where(path) for path in groups[0][:2]]
    said = f"{extra} of {looked} are copies, to the byte, of others ({first[0]} and {first[1]})"
    if extra * 100 < len(paths):
        return [("ok", "duplicates", said)]
    return [("warning", "duplicates", f"{said}; the loss takes them for different images, remove them.")]


def speed(source, batch_size, canvas, seconds=8.0, threads=None):
    """How fast batches are read as training reads them.

    Args:
      batch_size, canvas, threads: as in the config.
      seconds: to read for, and no more than 200 batches; what cannot be read of them is told.
    """
    rows = min(batch_size, len(source), 32)  # small ones, so that a slow disk shows something in the time there is
    batches = pipeline.train_batches(
        source, batch_size=rows, seed=0, canvas=canvas, last="wrap", threads=threads, max_bad_fraction=1.0
    )
    try:
        next(batches)  # starts the readers
        begun, read = time.monotonic(), 0
        while read < 200 and time.monotonic() - begun < seconds:
            next(batches)
            read += 1
        taken = time.monotonic() - begun
    finally:
        batches.close()
    rate = read * rows / taken
    said = f"{rate:,.0f} images/s are read here: a batch of {batch_size} each {batch_size / rate:.2f} s, an epoch in "
    lines = [("ok", "reading", f"{said}{len(source) / rate / 60:.1f} min at best; a faster step would wait for it")]
    for where, why in list(batches.bad_files.items())[:3]:
        lines.append(("warning", "unreadable", f"{where} ({why}): another takes its place; repair or delete it."))
    return lines
