"""Encoded images to canvases, in a tf.data graph.

Per image: fetch the bytes, learn the size from the header, fit the crop boxes, decode the pixels under their
union, once (window.py).
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from barlow_jax.data import levels, pixels
from barlow_jax.data.window import read_window, tf  # which sets TensorFlow up

NONE = np.int64(-1)
ReadError = tf.errors.OpError  # what canvas_batches raises at an unreadable file when it may not pass over it


class Fetch(NamedTuple):
    """How encoded images come into the graph, where numpy says something of them a batch at a time."""

    told: Callable[[np.ndarray], tuple[np.ndarray, ...]]  # int64 [m] -> of each of these images something, [m]
    dtypes: tuple[tf.DType, ...]  # of what is told
    read: Callable[..., Any]  # in the graph, from what is told of one: (encoded image, label int32)


def as_fetch(fetch):
    """A Fetch as it is; one of a function index -> (encoded image, label)."""
    return fetch if isinstance(fetch, Fetch) else Fetch(lambda index: (index,), (tf.int64,), fetch)


def from_files(paths, labels):
    """The Fetch of image files. TensorFlow knows the paths of the images on their way only: all take it 200 bytes each.

    paths: paths.Paths. labels: int32 [n], or None, which is -1 for all.
    """

    def told(index):
        found = np.full(len(index), -1, np.int32) if labels is None else labels[index]
        return np.asarray(paths.encoded(index), object), found

    return Fetch(told, (tf.string, tf.int32), lambda path, label: (tf.io.read_file(path), label))


def _labels(labels, n):
    return tf.constant(np.full(n, -1, np.int32) if labels is None else labels)


def from_reads(read, labels, n):
    """A function for tf.data: index -> (encoded image, label int32), of a function read(index) -> bytes of n images.

    The read may wait for a network: no lock is held then.
    """
    labels = _labels(labels, n)

    def fetch(index):
        return tf.ensure_shape(tf.numpy_function(read, [index], tf.string, stateful=False), []), labels[index]

    return fetch


def from_records(source):
    """A function for tf.data: index -> (encoded image, label int32), of a records.Records.

    The read is Python's: 20 us and no lock while the disk is at work.
    """

    def fetch(index):
        return source.parse(tf.ensure_shape(tf.numpy_function(source.read, [index], tf.string, stateful=False), []))

    return fetch


def why_unreadable(source, index):
    """A few words on what is wrong with an example of a source of files, for a person."""
    try:
        encoded = source.encoded(index)
    except OSError as error:
        return error.strerror or str(error)
    except Exception as error:  # of the reader of records: whatever its parser runs into
        return str(error)
    return pixels.why_unreadable(encoded, source.reading)


def _fetched_ahead(fetch):
    """A function (index, draws, *what fetch.told says) -> (index, draws, encoded, label); b"" and -1 of blank rows."""
    blank = (tf.constant(b""), tf.constant(-1, tf.int32))

    def ahead(index, draws, *told):
        return index, draws, *tf.cond(index < 0, lambda: blank, lambda: fetch.read(*told))

    return ahead


def _row_loader(fetch, n, boxes_of, margin_of, canvas, reading, views, tries, ahead=False):
    """A function (index, draws, *what fetch.told says of the image) -> one row of canvas_batches.

    ahead: what comes in place of what is told is the image, from _fetched_ahead.

    With tries = 0 it raises tf.errors.OpError at a file that cannot be read. With tries > 0 it passes to the
    next file instead, up to `tries` in all; the detour costs 0.6 ms per image, so the caller takes it only
    where there is something to go around.
    """
    channels = reading.channels
    blank = {
        "pixels": np.zeros([0, 0, channels], levels.dtype_of(reading.bits)),
        "boxes": np.zeros([views, 4], np.float32),
        "size": np.zeros(2, np.int32),
        "label": np.int32(-1),
        "skipped": NONE,
    }

    def told_of_next(place):
        return tf.numpy_function(lambda row: fetch.told(row[None]), [place], fetch.dtypes, stateful=False)

    def load(index, draws, *told):
        def attempt(skipped):
            if tries:
                told_here = [tf.reshape(part, []) for part in told_of_next((index + skipped) % n)]
            else:
                told_here = told
            encoded, label = told_here if ahead else fetch.read(*told_here)
            shown, boxes, size = read_window(
                encoded, functools.partial(boxes_of, draws, xp=tf), margin_of, canvas, reading
            )
            boxes = tf.ensure_shape(boxes, [views, 4])
            return {"pixels": shown, "boxes": boxes, "size": size, "label": label, "skipped": skipped}

        def first_success():  # the graph's try / except
            attempts = tf.data.Dataset.range(tries).map(attempt).ignore_errors()
            attempts = attempts.concatenate(tf.data.Dataset.from_tensors(blank))
            return attempts.take(1).get_single_element()

        read = first_success if tries else lambda: attempt(np.int64(0))
        row = tf.cond(index < 0, lambda: tf.nest.map_structure(tf.constant, blank), read)
        shown = row.pop("pixels")
        extent = tf.shape(shown)[:2]
        lines = tf.reshape(shown, [extent[0], channels * extent[1]])  # tf.pad: 0.1 ms in two dimensions, 0.5 in three
        lines = tf.pad(lines, [[0, canvas - extent[0]], [0, channels * (canvas - extent[1])]])
        return row | {"canvas": tf.reshape(lines, [canvas, canvas, channels]), "extent": extent, "index": index}

    return load


def canvas_batches(
    fetch, n, plan, steps, boxes_of, margin_of, *, canvas, reading, views, tries, threads, prefetch, in_flight=0
) -> Iterator[dict[str, np.ndarray]]:
    """Batches of canvases from encoded images, in order: an iterator of dicts of numpy arrays.

    fetch, n: a Fetch or a function as from_records gives, and the number of images. plan(step), called for every step
    in the range `steps` -> (int64 [rows], the images of the batch, -1 = leave the row blank; float64 [rows, ...], the
    `draws` of each image for boxes_of(draws, height, width, xp=tf) -> [views, 4]).
    reading: pixels.Reading, how the files become pixels.
    Yields canvas [rows, S, S, C], uint8, or uint16 of reading.bits of 16; boxes float32 [rows, views, 4] and extent
    int32 [rows, 2] of the content, see read_window; size int32 [rows, 2] of the image as it is stored; label int32
    [rows]; index int64 [rows], the planned image; skipped int64 [rows], how many unreadable files were passed over
    before the one shown, which is image (index + skipped) % n. Where the row was left blank or none of `tries` files
    could be read, skipped and label are -1, extent and size (0, 0) and the boxes are zero.
    With tries = 0 it raises ReadError instead, in place of the batch. `threads` images are decoded at the same
    time; `prefetch` finished batches wait. in_flight: so many images are fetched at a time, ahead of decoding; 0: the
    decoders fetch. With tries > 0 so many decoders more take their place.
    """
    fetch = as_fetch(fetch)

    def told_and_planned(step):
        index, draws = plan(step)
        return index, draws, *fetch.told(np.maximum(index, 0))

    shapes = [part.shape for part in told_and_planned(steps.start)]

    def planned(step):
        parts = tf.numpy_function(told_and_planned, [step], [tf.int64, tf.float64, *fetch.dtypes])
        return tuple(tf.ensure_shape(part, shape) for part, shape in zip(parts, shapes, strict=True))

    # No `if` of Python in these functions is of a tensor, and converting them takes a second of every start.
    as_written = tf.autograph.experimental.do_not_convert
    ahead = bool(in_flight) and not tries
    load = _row_loader(fetch, n, boxes_of, margin_of, canvas, reading, views, tries, ahead)
    threads += 0 if ahead else in_flight
    running = tf.Variable(True)
    rows = (
        tf.data.Dataset.range(steps.start, steps.stop)
        .take_while(as_written(lambda step: running))
        .map(as_written(planned))
        .unbatch()
    )
    if ahead:
        rows = rows.map(as_written(_fetched_ahead(fetch)), in_flight, deterministic=True)
    batches = (
        rows.map(as_written(load), threads, deterministic=True)
        .batch(shapes[0][0], drop_remainder=True)
        .prefetch(prefetch)
    )
    options = tf.data.Options()
    options.threading.private_threadpool_size = threads + ahead * in_flight
    options.autotune.enabled = False  # nothing is left to tune, and memory stays what `prefetch` says
    iterator = batches.with_options(options).as_numpy_iterator()
    try:
        yield from iterator
    finally:
        with tf.init_scope():  # the collector may end a forgotten reader while another graph is being traced
            running.assign(False)
            _run_out(iterator)


def _run_out(iterator):
    """Reads what is still on its way, so that no thread is left at work when the iterator is destroyed.

    TensorFlow destroys it with Python's lock in hand and waits for its threads; one that is about to call `plan` or
    Pillow waits for that lock, and both for ever. Seen in half of all runs that ended on unreadable files.
    """
    while True:
        try:
            next(iterator)
        except StopIteration:
            return
        except ReadError:
            continue
