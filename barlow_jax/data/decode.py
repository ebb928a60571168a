"""Encoded images to canvases, in a tf.data graph.

Per image: fetch the bytes, learn the size from the header, fit the crop boxes, decode the pixels under their
union, once. Huffman decoding is 79 % of a JPEG's cost, so a second partial decode of the same bytes would be a
loss, and so would decoding what no box shows.
"""

import functools
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

# TensorFlow's opinion of each odd file, with a traceback; we name bad files ourselves. Assigned, as JAX sets a default.
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # not used here, and it greets on stderr
# TensorFlow keeps the memory of a batch for the next one. malloc would give its 50 MB back to the system and fetch them
# anew, page by page: a quarter of all CPU time. The limit, 64 GB if not set, is one too high to be met.
os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "true")
os.environ.setdefault("TF_CPU_BFC_MEM_LIMIT_IN_MB", str(2**20))

import numpy as np
import tensorflow as tf

from barlow_jax.data import levels, pixels

for _kind in ("GPU", "TPU"):  # the accelerators are JAX's; TensorFlow would reserve their memory
    tf.config.set_visible_devices([], _kind)

SCALES = (1, 2, 4, 8)  # libjpeg's own reductions
NONE = np.int64(-1)
PNG = b"\x89PNG\r\n\x1a\n"
# PIL's decoder to the bit; TensorFlow's default is off by up to 4 grey levels.
DCT = "INTEGER_ACCURATE"


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


def png_values(encoded):
    """The values of a PNG of more than 8 bits, uint16 [h, w, 1 to 4] with alpha where it has some; eager or in a graph.

    Pillow gives the upper 8 bits of coloured ones.
    """
    return tf.io.decode_png(encoded, dtype=tf.uint16)


def _decode_whole(encoded, reading):
    """Every pixel of a file that is not an ordinary JPEG: [h, w, channels] as stored, not turned by its EXIF."""
    channels, dtype = reading.channels, levels.dtype_of(reading.bits)
    reading = reading._replace(exif=False)

    def by_pillow():
        def of(encoded):
            return np.ascontiguousarray(pixels.pillow_pixels(encoded, reading))

        return tf.numpy_function(of, [encoded], dtype, stateful=False)

    def png():  # an IHDR has the size at 16, the bits of a value at 24
        size = tf.cast(tf.io.decode_raw(tf.strings.substr(encoded, 16, 8), tf.int32, little_endian=False), tf.int64)
        small = tf.reduce_all(size >= 0) & (tf.reduce_prod(size) <= reading.max_pixels)  # negative: above 2**31
        if reading.plain and not reading.value_range:
            # TensorFlow's grey of a coloured PNG has the weights of green and blue exchanged.
            small = small & (channels == 3)
            return tf.cond(small, lambda: tf.io.decode_png(encoded, channels=3), by_pillow)
        deep = tf.strings.substr(encoded, 24, 1) == b"\x10"
        return tf.cond(small & deep, deep_png, by_pillow)

    def deep_png():
        def of(values):
            return pixels.of_png(values, reading)

        return tf.numpy_function(of, [png_values(encoded)], dtype, stateful=False)

    found = tf.cond(tf.strings.substr(encoded, 0, len(PNG)) == PNG, png, by_pillow)
    return tf.ensure_shape(found, [None, None, channels])


def _decode_jpeg_window(encoded, window, width, scale, channels):
    """Pixels `window` = (top, left, height, width), in pixels of the image reduced by `scale` in SCALES.

    One more column on either side is decoded and cut off: at the edge of a partial decode libjpeg interpolates
    the chroma without its neighbour, up to 7 grey levels wrong.
    """
    left = tf.maximum(window[1] - 1, 0)
    right = tf.minimum(window[1] + window[3] + 1, width)
    wider = tf.stack([window[0], left, window[2], right - left])
    branches = [
        lambda ratio=ratio: tf.io.decode_and_crop_jpeg(encoded, wider, channels=channels, ratio=ratio, dct_method=DCT)
        for ratio in SCALES
    ]
    shown = tf.switch_case(tf.argmax(tf.constant(SCALES) == scale, output_type=tf.int32), branches)
    return shown[:, window[1] - left : window[1] - left + window[3]]


def _widened(decode, *arguments):
    """What decode(*arguments) gives, uint8, as the type that comes last: of 16 bits 65535 is white."""
    *arguments, dtype = arguments
    found = decode(*arguments)
    return found if dtype == np.uint8 else tf.cast(found, dtype) * tf.constant(257, dtype)


def _reduce(shown, factor, channels):
    """`pixels.reduced` in a graph."""
    return tf.ensure_shape(
        tf.numpy_function(pixels.reduced, [shown, factor], shown.dtype, stateful=False), [None, None, channels]
    )


def _place(boxes, margin, size, partial, canvas):
    """Where to read: (window int32 [4] in reduced pixels, libjpeg's scale, further factor, boxes on the canvas).

    All of read_window's arithmetic: boxes, margin and size are float64, in pixels of the stored image.
    """
    start = tf.maximum(tf.reduce_min(boxes[:, :2] - margin, axis=0), 0.0)
    stop = tf.minimum(tf.reduce_max(boxes[:, :2] + boxes[:, 2:] + margin, axis=0), size)
    scales = tf.constant(SCALES, tf.float64)[:, None]
    fits = tf.reduce_all(tf.math.ceil(stop / scales) - tf.floor(start / scales) <= canvas, axis=1)
    scale = tf.where(tf.reduce_any(fits), tf.gather(SCALES, tf.argmax(fits)), SCALES[-1])
    scale = tf.where(partial, scale, 1)
    real_scale = tf.cast(scale, tf.float64)
    origin = tf.floor(start / real_scale)
    window = tf.concat([origin, tf.math.ceil(stop / real_scale) - origin], axis=0)
    factor = tf.math.ceil(tf.reduce_max(window[2:]) / canvas)
    boxes = (boxes / real_scale - tf.pad(origin, [[0, 2]])) / factor
    return tf.cast(window, tf.int32), scale, tf.cast(factor, tf.int32), tf.cast(boxes, tf.float32)


def read_window(encoded, boxes_of, margin_of, canvas, reading):
    """The part of an image that its boxes show: (pixels [h, w, C], boxes float32 [v, 4] on them, stored size).

    uint8, or uint16 where reading.bits is 16.

    boxes_of(height, width) gives the boxes and margin_of(boxes, xp=tf) how far around them pixels are wanted, all
    float64 in pixels of the stored image; what lies outside the image is left out. The window around all boxes
    is decoded once, at libjpeg's scale 1, 1/2, 1/4 or 1/8: the first at which it fits a square of `canvas`
    pixels. What is still larger (or no JPEG) is averaged over whole cells. The boxes shrink with the pixels and
    may become fractional. Greyscale, palette, alpha, CMYK and 16-bit images become RGB, or with one channel grey (of
    a JPEG its luma as stored); the format is told by content, not by name. The stored size is (height, width).
    With reading.exif all that is asked and given is of the image as it is turned by its EXIF.
    reading: pixels.Reading. The size in the header is looked at before anything is decoded.
    tf.errors.OpError where the image cannot be decoded, or has more than reading.max_pixels.
    """
    channels, dtype = reading.channels, levels.dtype_of(reading.bits)
    jpeg = tf.io.is_jpeg(encoded)
    shape = tf.cond(jpeg, lambda: tf.io.extract_jpeg_shape(encoded), lambda: tf.zeros([3], tf.int32))
    partial = (shape[2] == 1) | (shape[2] == 3)  # CMYK goes through Pillow: TensorFlow rounds it otherwise
    if channels not in (1, 3):
        partial = tf.constant(False)  # it is Pillow that says how many there are
    # So does what is too large, and is refused there. The product of two sides may exceed int32.
    partial = partial & (tf.reduce_prod(tf.cast(shape[:2], tf.int64)) <= reading.max_pixels)
    whole = tf.cond(partial, lambda: tf.zeros([0, 0, channels], dtype), lambda: _decode_whole(encoded, reading))
    size = tf.where(partial, shape[:2], tf.shape(whole)[:2])

    real_size = tf.cast(size, tf.float64)
    turns = _turns(encoded) if reading.exif else None
    boxes = _boxes_as_stored(boxes_of, real_size, turns)
    window, scale, factor, boxes = _place(boxes, margin_of(boxes, xp=tf), real_size, partial, canvas)
    shown = tf.cond(
        partial,
        lambda: _widened(_decode_jpeg_window, encoded, window, -(-size[1] // scale), scale, channels, dtype),
        lambda: whole[window[0] : window[0] + window[2], window[1] : window[1] + window[3]],
    )
    shown = tf.cond(factor > 1, lambda: _reduce(shown, factor, channels), lambda: shown)
    return _turned(shown, boxes, size, turns) if reading.exif else (shown, boxes, size)


def _turns(encoded):
    """What levels.TURNS says of an image: bool [3]."""
    place = tf.numpy_function(pixels.orientation, [encoded], tf.int64, stateful=False)
    return tf.gather(tf.constant(levels.TURNS, tf.bool), place - 1)


def _boxes_as_stored(boxes_of, size, turns):
    """The boxes that boxes_of(height, width) gives, float64 [v, 4], of the turned image; on the stored one."""
    if turns is None:
        return boxes_of(size[None, :1], size[None, 1:])
    shown = tf.where(turns[0], size[::-1], size)
    boxes = _mirrored(boxes_of(shown[None, :1], shown[None, 1:]), shown, turns)
    return tf.where(turns[0], tf.gather(boxes, [1, 0, 3, 2], axis=1), boxes)


def _mirrored(boxes, size, turns):
    """Boxes [v, 4] of an image of this (height, width) after left and right, and top and bottom, are exchanged."""
    size = tf.cast(size, boxes.dtype)
    starts = tf.where(turns[:0:-1], size - boxes[:, :2] - boxes[:, 2:], boxes[:, :2])
    return tf.concat([starts, boxes[:, 2:]], axis=1)


def _turned(shown, boxes, size, turns):
    """Pixels, boxes on them, and the stored size, of the turned image."""
    shown = tf.cond(turns[0], lambda: tf.transpose(shown, [1, 0, 2]), lambda: shown)
    boxes = tf.where(turns[0], tf.gather(boxes, [1, 0, 3, 2], axis=1), boxes)
    boxes = _mirrored(boxes, tf.shape(shown)[:2], turns)
    shown = tf.cond(turns[1], lambda: shown[:, ::-1], lambda: shown)
    shown = tf.cond(turns[2], lambda: shown[::-1], lambda: shown)
    return shown, boxes, tf.where(turns[0], size[::-1], size)


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
