"""Batches for the devices: numpy dicts of canvases and boxes, in an order that is a function of the step.

A canvas is a square image, uint8 or with config.data.bits=16 uint16, with the pixels at its top left and zeros
elsewhere; a box is (top, left, height, width) in canvas pixels. Cropping, resizing and the rest of the augmentation
happen on the device. readers.py does the reading.
"""

import dataclasses
import functools
import logging
import os
import weakref

import numpy as np

from barlow_jax.data import boxes, order
from barlow_jax.data.readers import Job
from barlow_jax.data.sources import Arrays
from barlow_jax.errors import UserError

logger = logging.getLogger(__name__)

TRIES = 16  # files in a row that may be unreadable
FITS = ("crop", "squash")
_told = set()  # what this process has said of files that cannot be read
FIRST = 1000  # images before which a bad fraction is not judged: 1 of the first 64 is no evidence


class Batches:
    """Iterator over numpy batches that counts and names the images it could not read.

    bad_files: {path, or what else names an image: reason}, each once. seen, bad: images asked for, and how many of them
    were unreadable (one counts each time), in this process since it started. reduced: of the images shown in an
    evaluation, those read at 1/2 or less as the canvas does not hold them. close() stops the reading threads.
    """

    def __init__(self, source, job, finish, max_bad_fraction):
        self.bad_files, self.seen, self.bad, self.reduced = {}, 0, 0, 0
        self._source, self._job, self._finish, self._max_bad_fraction = source, job, finish, max_bad_fraction
        self._raw = source.batches(job)
        # At the latest when Python exits: reading threads that outlive the interpreter would hang it.
        self._stop = weakref.finalize(self, self._raw.close)

    def __iter__(self):
        return self

    def __next__(self):
        raw = next(self._raw)
        if self._job.cut:
            rows = np.count_nonzero(raw["index"] >= 0)
            raw = {key: value[:rows] for key, value in raw.items()}
        index, skipped = raw.pop("index"), raw.pop("skipped")
        self.seen += int(np.sum(index >= 0))
        if np.any(bad := (index >= 0) & (skipped != 0)):
            self._account(index[bad], skipped[bad])
        shown = np.where(skipped < 0, -1, (index + skipped) % len(self._source))
        if self._job.cut:  # no row may be blank
            _check_all_read(shown, self._job.tries, self._source, self.bad_files)
        raw["label"] = np.where(shown < 0, np.int32(-1), raw["label"])
        finished = self._finish(raw, shown)
        self.reduced += finished.pop("reduced", 0)
        return finished

    def close(self):
        """Stops the reading threads; the iterator is at its end."""
        self._stop()

    def _account(self, index, skipped):
        self.bad += len(index)
        too_many = self.bad > self._max_bad_fraction * max(self.seen, FIRST)
        for first, count in zip(index, np.where(skipped < 0, self._job.tries, skipped), strict=True):
            for k in range(count):
                place = (first + k) % len(self._source)
                path = self._source.where(place)
                if path not in self.bad_files:
                    self.bad_files[path] = self._source.why_unreadable(place)
                    if (path, self.bad_files[path]) not in _told:  # by the reader of another epoch or evaluation
                        _told.add((path, self.bad_files[path]))
                        logger.warning("unreadable image %s: %s", path, self.bad_files[path])
            if too_many:
                raise UserError(
                    f"{self.bad} of {self.seen} images could not be read, more than config.data.max_bad_fraction = "
                    f"{self._max_bad_fraction:g} allows, for example {path} ({self.bad_files[path]}): repair or "
                    "delete them, or raise it."
                )


def _default_threads():
    """The CPUs this process may use, which on a shared node are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _check(source, canvas, max_bad_fraction):
    if canvas < 1:
        raise UserError(f"config.data.canvas is {canvas}, but must be a number of pixels, at least 1.")
    if source.images is not None and canvas < max(source.shape[:2]):
        raise UserError(
            f"config.data.canvas {canvas} is smaller than the images of {source.name} {source.shape[:2]}: "
            f"set it to {max(source.shape[:2])}."
        )
    if not 0 <= max_bad_fraction <= 1:
        raise UserError(f"config.data.max_bad_fraction is {max_bad_fraction}, but must lie in [0, 1].")


def _check_all_read(shown, tries, source, bad_files):
    if np.any(shown < 0):
        path, reason = list(bad_files.items())[-1]
        raise UserError(
            f"{tries} images in a row could not be read, {path} for one ({reason}): check that {source.name} is still "
            "there and intact."
        )


def train_batches(
    source,
    *,
    batch_size,
    seed,
    canvas,
    scale=(0.08, 1.0),
    ratio=(3 / 4, 4 / 3),
    views=2,
    small=0,
    small_scale=(0.05, 0.14),
    start_step=0,
    last="drop",
    blocks=None,
    process_index=0,
    process_count=1,
    reference_world_size=1,
    threads=None,
    max_bad_fraction=0.01,
    prefetch=2,
):
    """Training batches from `start_step` on, without end.

    Yields this process's rows of the global batch, b = batch_size / process_count of them:
      canvas uint8 [b, S, S, C]; boxes float32 [b, views, 4], RandomResizedCrop draws (scale: share of the area,
      ratio: width / height) in canvas pixels; index int64 [b]; label int32 [b], -1 = unlabelled.
    The batch at a step is a function of (source, seed, step) and these arguments: opening at step s gives at
    once what the uninterrupted sequence gives there, bit for bit, on any number of processes and threads.
    last: "drop", "wrap" or "keep", see order.steps_per_epoch; with "keep" an epoch's last batch has fewer rows, see
    order.last_batch_size, which reference_world_size is for. blocks: an order.Mixing, or None.
    views: boxes of an image; the first of them are those that fewer views have.
    small, small_scale: so many boxes beside them, of this share of the area: small_boxes float32 [b, small, 4].
    canvas: its side S in pixels. Where the union of the boxes is larger it is decoded at 1/2, 1/4 or 1/8
    and the boxes with it; arrays must fit. ImageNet (mean 400 x 350) loses next to nothing at 512.
    An unreadable image is replaced by the next one (index + 1), logged and counted; UserError once more than
    max_bad_fraction of the images (at least 1,000) were, or 16 in a row.
    threads: decoders at work, by default one per CPU. prefetch: finished batches that wait.
    Returns a Batches iterator. UserError names any impossible argument.
    """
    _check(source, canvas, max_bad_fraction)
    ending = last, process_index, process_count, reference_world_size, blocks
    cropped = {"views": views, "scale": scale, "small": small, "small_scale": small_scale, "ratio": ratio}

    def plan(step):
        epoch, index = order.batch_indices(len(source), batch_size, seed, step, *ending)
        # The readers' batches are all of one shape: a smaller one ends in blank rows, which Batches cuts off.
        index = np.pad(index, (0, batch_size // process_count - len(index)), constant_values=-1)
        return index, boxes.draws_of_sizes(seed, epoch, index, **cropped)

    def boxes_of(draws, height, width, xp):
        return boxes.random_crop(draws, height, width, ratio, xp)

    plan(start_step)  # an impossible argument should end here, not in a reading thread
    steps, workers, tries = range(start_step, 2**62), threads or _default_threads(), min(len(source), TRIES)
    epoch = order.steps_per_epoch(len(source), batch_size, last)
    job = Job(plan, steps, boxes_of, boxes.no_margin, canvas, views + small, tries, workers, prefetch, True, epoch)
    job = _in_blocks(job, blocks, batch_size, process_count)
    return Batches(source, job, functools.partial(_finished, views), max_bad_fraction)


def _in_blocks(job, blocks, batch_size, process_count):
    """The job, with the blocks that a source may read at once, see blocks.py."""
    if blocks is None:
        return job
    held = order.held_blocks(blocks, batch_size, process_count)
    return dataclasses.replace(job, blocks=blocks.starts, held=held)


def _finished(views, raw, index):
    return {"canvas": raw["canvas"], **_of_sizes(raw["boxes"], views), "index": index, "label": raw["label"]}


def _of_sizes(found, views):
    """The boxes of an image's views, and those behind them, of small ones, under a name of their own."""
    small = {"small_boxes": found[:, views:]} if found.shape[1] > views else {}
    return {"boxes": found[:, :views]} | small


def eval_batches(
    source,
    *,
    batch_size,
    canvas,
    resize_short=256,
    crop=224,
    fit="crop",
    process_index=0,
    process_count=1,
    threads=None,
    max_bad_fraction=0.01,
    prefetch=2,
):
    """One pass over all examples in stored order, each exactly once, the same number of batches on all processes.

    Yields this process's rows of the global batch, b = batch_size / process_count of them:
      canvas uint8 [b, S, S, C]; boxes float32 [b, 1, 4], what Resize(resize_short) and CenterCrop(crop) show, in
      canvas pixels; extent int32 [b, 2], height and width of the content, up to which an antialias filter may
      look beyond the box; index int64 [b]; label int32 [b]; mask bool [b]. Rows that pad the last batch, and
      unreadable images, have mask False and index and label -1.
    Files: only the box and a filter's margin around it are read, at 1/2, 1/4 or 1/8 scale where they do not fit the
    canvas. To be exactly the official evaluation the canvas must hold that window at full scale, which for
    256 / 224 is 0.875 x the short side + 8 pixels (short side 576 at S = 512); larger images come close.
    fit: "squash" shows the whole image instead, whatever its shape, resized to crop x crop at once.
    Other arguments and errors: see train_batches.
    """
    _check(source, canvas, max_bad_fraction)
    if not 0 < crop <= resize_short:
        raise UserError(f"crop is {crop}, but must lie between 1 and resize_short ({resize_short}).")
    if fit not in FITS:
        raise UserError(f"fit is {fit!r}, but must be one of {', '.join(map(repr, FITS))}.")
    rows = order.process_rows(batch_size, process_index, process_count)

    def plan(step):
        index = order.eval_indices(len(source), batch_size, step, process_index, process_count)
        return index, np.zeros((rows.stop - rows.start, 1))

    def boxes_of(draws, height, width, xp):
        if fit == "squash":
            return xp.concat([0 * height, 0 * width, height, width], axis=-1)
        return boxes.center_crop(height, width, resize_short, crop, xp)

    def margin_of(found, xp):
        return boxes.filter_margin(found, crop, xp)

    def finish(raw, index):
        stored = boxes_of(None, *raw["size"][index >= 0, :, None].astype(np.float64).transpose(1, 0, 2), xp=np)
        return _masked(raw, index, canvas, stored)

    steps, workers = range(order.eval_steps(len(source), batch_size)), threads or _default_threads()
    job = Job(plan, steps, boxes_of, margin_of, canvas, 1, 1, workers, prefetch, cut=False)
    return Batches(source, job, finish, max_bad_fraction)


def _masked(raw, index, canvas, stored):
    """An evaluation batch; rows without an image have the whole canvas as their box: finite for any resize.

    stored: boxes of the rows with an image, in pixels of the stored one, which tell how many are `reduced`.
    """
    mask, whole = index >= 0, np.asarray([0, 0, canvas, canvas], np.float32)
    return {
        "reduced": np.count_nonzero(stored[:, 2] > 1.5 * raw["boxes"][mask, 0, 2]),
        "canvas": raw["canvas"],
        "boxes": np.where(mask[:, None, None], raw["boxes"], whole),
        "extent": np.where(mask[:, None], raw["extent"], np.int32(canvas)),
        "index": index,
        "label": raw["label"],
        "mask": mask,
    }


def in_memory(source, *, max_bytes, canvas, threads=None, max_bad_fraction=0.01):
    """The whole source as Arrays, or None: if that takes more than max_bytes, or an image is larger than the canvas.

    Images stand at the top left of arrays as large as the largest of them. A source whose images are in memory is
    returned as it is. Unreadable images are replaced, counted and named as in train_batches.
    """
    if source.images is not None:
        if source.images.nbytes > max_bytes:
            return None
        images = np.asarray(source.images)  # of mapped.Levels all are made now
        if images is source.images:
            return source
        about = {"class_names": source.class_names, "name": source.name, "sizes": source.sizes}
        return Arrays(images, source.labels, **about, listing=source.listing())
    _check(source, canvas, max_bad_fraction)
    side, n = canvas if source.shape is None else max(source.shape[:2]), len(source)
    if n * side * side * source.channels > max_bytes:
        return None
    rows, tries = min(n, 256), min(n, TRIES)

    def plan(step):
        return order.eval_indices(n, rows, step), np.zeros((rows, 1))

    def whole(draws, height, width, xp):
        return xp.concat([0 * height, 0 * width, height, width], axis=-1)

    job = Job(
        plan,
        range(order.eval_steps(n, rows)),
        whole,
        boxes.no_margin,
        side,
        1,
        tries,
        threads or _default_threads(),
        prefetch=2,
        cut=True,
    )
    images, sizes, labels = None, np.empty((0, 2), np.int32), np.empty(0, np.int32)
    batches = Batches(source, job, lambda raw, index: raw, max_bad_fraction)
    try:
        for batch in batches:
            if np.any(batch["extent"] < batch["size"]) or n * batch["canvas"][0].nbytes > max_bytes:
                return None
            images = np.empty((n, *batch["canvas"].shape[1:]), batch["canvas"].dtype) if images is None else images
            images[len(labels) : len(labels) + len(batch["label"])] = batch["canvas"]
            sizes = np.concatenate([sizes, batch["size"]])
            labels = np.concatenate([labels, batch["label"]])
    finally:
        batches.close()
    height, width = sizes.max(axis=0)
    return Arrays(
        np.ascontiguousarray(images[:, :height, :width]),
        None if source.num_classes is None else labels,
        class_names=source.class_names,
        name=source.name,
        sizes=None if np.all(sizes == sizes[0]) else sizes,
        listing=source.listing(),
        groups=source.groups,
    )
