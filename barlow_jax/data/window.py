"""The part of one encoded image that its boxes show, in a graph of TensorFlow: header, window, decoding, EXIF's turns.

Huffman decoding is 79 % of a JPEG's cost, so a second partial decode of the same bytes would be a loss, and so would
decoding what no box shows.
"""

import os

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
PNG = b"\x89PNG\r\n\x1a\n"
# PIL's decoder to the bit; TensorFlow's default is off by up to 4 grey levels.
DCT = "INTEGER_ACCURATE"


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


def _widened(found, dtype):
    """Pixels of 8 bits as that type: of 16 bits 65535 is white."""
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
    # So does what is too large, and is refused there. The product of two sides may exceed int32.
    partial = partial & (tf.reduce_prod(tf.cast(shape[:2], tf.int64)) <= reading.max_pixels)
    if channels not in (1, 3):  # it is Pillow that says how many there are
        partial = False
    whole = _either(partial, lambda: tf.zeros([0, 0, channels], dtype), lambda: _decode_whole(encoded, reading))
    size = tf.where(partial, shape[:2], tf.shape(whole)[:2])

    real_size = tf.cast(size, tf.float64)
    turns = _turns(encoded) if reading.exif else None
    boxes = _boxes_as_stored(boxes_of, real_size, turns)
    window, scale, factor, boxes = _place(boxes, margin_of(boxes, xp=tf), real_size, partial, canvas)
    shown = _either(
        partial,
        lambda: _widened(_decode_jpeg_window(encoded, window, -(-size[1] // scale), scale, channels), dtype),
        lambda: whole[window[0] : window[0] + window[2], window[1] : window[1] + window[3]],
    )
    shown = tf.cond(factor > 1, lambda: _reduce(shown, factor, channels), lambda: shown)
    return _turned(shown, boxes, size, turns) if reading.exif else (shown, boxes, size)


def _either(condition, first, second):
    """tf.cond, without its first branch where it is False when the graph is made."""
    return second() if condition is False else tf.cond(condition, first, second)


def _turns(encoded):
    """What levels.TURNS says of an image: bool [3]."""
    place = tf.ensure_shape(tf.numpy_function(pixels.orientation, [encoded], tf.int64, stateful=False), [])
    return tf.gather(tf.constant(levels.TURNS) > 0, place - 1)


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
