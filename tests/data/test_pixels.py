"""What an image file becomes: limits of size, ranges of more than 8 bits, and words for what is none."""

import io
import logging
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from deep_files import pgm, png16, tiff
from PIL import Image

from barlow_jax import data
from barlow_jax.data import levels, pixels
from barlow_jax.data.pixels import Reading
from barlow_jax.errors import UserError

RNG = np.random.RandomState(0)
RAMP = np.linspace(0, 4095, 48 * 64).astype(np.uint16).reshape(48, 64)  # 12 bits
EIGHT = np.rint(RAMP.astype(float) * 255 / 4095).astype(np.uint8)


def encoded(image, form, **options):
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def canvas_of(tmp_path, content, **reading):
    """The whole image as the reader gives it."""
    (tmp_path / "x.png").write_bytes(content)  # whatever it is
    source = data.ImageFolder(tmp_path, **reading)
    options = {"seed": 0, "canvas": 64, "scale": (1.0, 1.0), "ratio": (4 / 3, 4 / 3), "last": "wrap", "threads": 1}
    return next(data.train_batches(source, batch_size=1, **options))["canvas"][0, :48, :64]


RGB12 = np.stack([RAMP, RAMP.T.reshape(48, 64), 4095 - RAMP], -1)
RGB8 = np.rint(RGB12.astype(float) * 255 / 4095).astype(np.uint8)
GREY12 = {
    "png": png16(RAMP),
    "png with alpha": png16(np.stack([RAMP, RAMP + 9], -1)),
    "pgm": pgm(RAMP, 65535),
    "pgm of another maximum": pgm(RAMP, 5000),
    "plain pgm": pgm(RAMP, 65535, "P2"),
    "tiff": tiff(RAMP),
    "tiff, big-endian": tiff(RAMP, ">"),
    "signed": tiff(RAMP.astype(np.int16)),
    "int32": tiff(RAMP.astype(np.int32)),
    "int32, big-endian": tiff(RAMP.astype(np.int32), ">"),
    "float": tiff(RAMP.astype(np.float32)),
    "float, big-endian": tiff(RAMP.astype(np.float32), ">"),
}


@pytest.mark.parametrize("name", GREY12)
def test_a_given_range_becomes_0_to_255(tmp_path, name):
    """12 bits in files of 16 and more, of every kind, as grey and as RGB."""
    grey = canvas_of(tmp_path, GREY12[name], channels=1, value_range=(0, 4095))
    assert grey.shape == (48, 64, 1) and np.array_equal(grey[..., 0], EIGHT)
    rgb = canvas_of(tmp_path, GREY12[name], value_range=(0, 4095))
    assert np.array_equal(rgb, EIGHT[..., None].repeat(3, -1))


@pytest.mark.parametrize("alpha", [False, True])
def test_a_given_range_of_a_coloured_png(tmp_path, alpha):
    content = png16(np.concatenate([RGB12, RAMP[..., None]], -1) if alpha else RGB12)
    assert np.array_equal(canvas_of(tmp_path, content, value_range=(0, 4095)), RGB8)
    grey = canvas_of(tmp_path, content, channels=1, value_range=(0, 4095))
    assert np.array_equal(grey[..., 0], np.asarray(Image.fromarray(RGB8).convert("L")))


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("order", "<>")
def test_a_tiff_whose_lowest_is_white(kind, order):
    """Pillow exchanges black and white in 8 bits, and not in more; tifffile reads those that Pillow does not."""
    if (kind, order) == (np.uint16, ">"):
        pytest.importorskip("tifffile")
    values = EIGHT.astype(kind) if kind == np.uint8 else RAMP.astype(kind)
    found = pixels.pillow_pixels(tiff(values, order, 0), Reading(channels=1, value_range=(0, 4095)))
    assert np.array_equal(found[..., 0], 255 - EIGHT)
    if kind == np.uint16:
        assert pixels.largest_of_16_bits(tiff(values, order, 0)) == 4095 >> 8  # nearly white, and told of all the same


def test_what_lies_outside_the_range():
    values = np.asarray([[-1e30, -1, 0, 10, 20, 21, 1e30, np.inf, -np.inf, np.nan]], np.float32)
    assert levels.scaled(values, 0, 20).tolist() == [[0, 0, 0, 128, 255, 255, 255, 255, 0, 0]]
    tall = RNG.randint(0, 2**31, (3000, 1000)).astype(np.int32)  # in several blocks
    assert np.array_equal(levels.scaled(tall, 0, 2**31), np.rint(tall * (255 / 2**31)).astype(np.uint8))


FULL = (RNG.randint(0, 65536, (48, 64))).astype(np.uint16)
FULL_RGB = RNG.randint(0, 65536, (48, 64, 3)).astype(np.uint16)


@pytest.mark.parametrize(
    "content",
    [png16(FULL), pgm(FULL, 65535), pgm(FULL, 65535, "P2"), tiff(FULL), tiff(FULL, ">")],
    ids=["png", "pgm", "plain pgm", "tiff", "big-endian tiff"],
)
def test_without_a_range_16_bits_keep_the_high_byte(tmp_path, content):
    high = (FULL >> 8).astype(np.uint8)
    assert np.array_equal(canvas_of(tmp_path, content, channels=1)[..., 0], high)
    assert np.array_equal(canvas_of(tmp_path, content), high[..., None].repeat(3, -1))


@pytest.mark.parametrize("content", [png16(FULL_RGB), tiff(FULL_RGB), tiff(FULL_RGB, ">")], ids=["png", "tiff", "MM"])
def test_colours_of_16_bits_keep_the_high_byte(tmp_path, content):
    assert np.array_equal(canvas_of(tmp_path, content), (FULL_RGB >> 8).astype(np.uint8))


def test_8_bits_are_left_alone_by_a_range(tmp_path):
    for form in ("PNG", "BMP", "TIFF"):
        content = encoded(Image.fromarray(RGB8), form)
        assert np.array_equal(canvas_of(tmp_path, content, value_range=(0, 4095)), RGB8)


@pytest.mark.parametrize(
    ("content", "reading", "words"),
    [
        (GREY12["float"], Reading(), "its values are fractions"),
        (GREY12["int32"], Reading(), "whole numbers of 32 bits"),
        (GREY12["signed"], Reading(), "whole numbers of 16 bits with a sign"),
        (tiff(FULL_RGB), Reading(value_range=(0, 4095)), "save it as PNG"),
    ],
    ids=["float", "int32", "signed", "colour"],
)
def test_no_silent_white_or_black(tmp_path, content, reading, words):
    """Where the range cannot be known the image is unreadable, and the sentence names the field."""
    with pytest.raises(ValueError, match=words) as caught:
        pixels.pillow_pixels(content, reading)
    assert "config.data.value_range" in str(caught.value)
    with pytest.raises(UserError, match="could not be read, .* for one") as caught:
        canvas_of(tmp_path, content, value_range=reading.value_range)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("count", [1, 9])
def test_12_bits_in_16_are_told(tmp_path, caplog, count):
    def opened(values, **reading):
        for k in range(count):
            (tmp_path / f"{k}.png").write_bytes(png16(values))
        caplog.clear()
        source = data.ImageFolder(tmp_path, **reading)
        for _ in range(2):
            source.batches(job_of(source)).close()
        return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]

    def job_of(source):
        return data.train_batches(source, batch_size=1, seed=0, canvas=64, last="wrap", threads=1)._job

    told = opened(RAMP)
    assert told and all("no value above 4095 of 65535" in line and "(0, 4095)" in line for line in told)
    assert f"looked at ({min(count, 8)})" in told[0]
    assert opened(RAMP, value_range=(0, 4095)) == []
    assert opened(FULL) == [] and opened(np.zeros((4, 4, 3), np.uint8)) == []


# Too large


def png_head(width, height):
    head, body = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), zlib.compress(bytes(1000))
    chunks = [
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in ((b"IHDR", head), (b"IDAT", body))
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def edited_jpeg(height):
    content = bytearray(encoded(Image.fromarray(RGB8), "JPEG"))
    frame = content.index(b"\xff\xc0")
    content[frame + 5 : frame + 9] = struct.pack(">HH", height, 9000)
    return bytes(content)


def edited_bmp(side):
    content = bytearray(encoded(Image.fromarray(RGB8), "BMP"))
    content[18:26] = struct.pack("<ii", side, side)
    return bytes(content)


# Below 89 million pixels, where Pillow warns, and the tests take warnings for errors.
BOMBS = {
    "png": png_head(9_000, 9_000),
    "png of 2**32": png_head(2**31 + 5, 7),
    "jpeg": edited_jpeg(9_000),
    "webp": encoded(Image.new("RGB", (16_000, 5_000)), "WEBP", lossless=True, method=0),
    "bmp": edited_bmp(9_000),
    "pgm": b"P5 9000 9000 255\n",
}


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_header_is_looked_at_before_anything_is_decoded(tmp_path, name, channels):
    with pytest.raises(UserError) as caught:
        canvas_of(tmp_path, BOMBS[name], channels=channels)
    words = "more than the 178956970 pixels that Pillow opens"
    if name != "png of 2**32":
        words = "pixels, more than config.data.max_pixels = 67108864 allows"
    assert words in str(caught.value)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
def test_the_limit_can_be_moved(tmp_path, form):
    content = encoded(Image.fromarray(RGB8), form)
    assert canvas_of(tmp_path, content, max_pixels=48 * 64).any()
    with pytest.raises(UserError, match="it has 48 x 64 pixels, more than config.data.max_pixels = 3071 allows"):
        canvas_of(tmp_path, content, max_pixels=48 * 64 - 1)


@pytest.mark.parametrize("shape", [(5, 7), (64, 48), (31, 999), (9, 9), (333, 701), (1, 4000), (4000, 1)])
@pytest.mark.parametrize("factor", [2, 3, 4, 7, 16, 20])
def test_reduced(shape, factor):
    """The mean over cells with repeated edges, halves to even; in blocks of any size."""
    image = RNG.randint(0, 256, (*shape, 3)).astype(np.uint8)
    h, w = (-(-n // factor) * factor for n in shape)
    rows, columns = (np.minimum(np.arange(n), side - 1) for n, side in zip((h, w), shape, strict=True))
    cells = image[rows][:, columns].reshape(h // factor, factor, w // factor, factor, 3)
    expected = np.rint(cells.mean(axis=(1, 3))).astype(np.uint8)
    assert np.array_equal(pixels.reduced(image, factor), expected)


def test_a_line_of_millions_is_reduced_in_place(monkeypatch):
    """Edges are weighed, not repeated: a cell of 131072 x 131072 on a line of one row."""
    line = np.repeat(np.arange(4, dtype=np.uint8), 2**18)[None, :, None]
    assert np.unique(pixels.reduced(line, 2**17)).tolist() == [0, 1, 2, 3]
    monkeypatch.setattr(pixels, "BLOCK", 64)
    image = RNG.randint(0, 256, (37, 21, 3)).astype(np.uint8)
    small = pixels.reduced(image, 4)
    monkeypatch.undo()
    assert np.array_equal(small, pixels.reduced(image, 4))


# What is no image


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"<!DOCTYPE html><html>", "HTML"),
        (b"\n <html lang=en>", "HTML"),
        (b"<?xml version='1.0'?><svg/>", "XML"),
        (b"PK\x03\x04 a zip", "a ZIP archive"),
        (bytes(4096), "zero bytes"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1", "HEIC"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0", "a video"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript"),
        (b"this is no image at all", "text"),
        (b"\xfe\xdc\xba\x98\x76", "the bytes fe dc ba 98 76"),
        (b"\xff\xd8\xff and no more", "JPEG, and is damaged"),
    ],
)
def test_what_a_file_begins_as(content, words):
    reason = pixels.why_unreadable(content, Reading())
    assert reason.startswith("cannot identify image file: it begins as") and words in reason and "0x" not in reason


def test_pillow_starts_no_program_and_opens_no_container():
    assert not {"EPS", "ICO", "ICNS", "PSD", "FITS", "WMF"} & set(pixels.FORMATS)
    assert {"JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"} <= set(pixels.FORMATS)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"value_range": (1,)}, r"config.data.value_range is \(1,\)"),
        ({"value_range": (5, 5)}, "config.data.value_range"),
        ({"value_range": (0, float("inf"))}, "config.data.value_range"),
        ({"value_range": ("a", "b")}, "config.data.value_range"),
        ({"max_pixels": 0}, "config.data.max_pixels is 0"),
        ({"max_pixels": 10**12}, "the most that Pillow opens"),
    ],
)
def test_impossible_fields(fields, words):
    pixels.check(**{"value_range": (), "max_pixels": 1} | {"value_range": (-1, 2.5)})
    with pytest.raises(UserError, match=words):
        pixels.check(**{"value_range": (), "max_pixels": 2**26} | fields)


def test_a_fingerprint_is_what_it_was_and_follows_the_fields(tmp_path):
    (tmp_path / "x.png").write_bytes(GREY12["png"])

    def found(**reading):
        return data.ImageFolder(tmp_path, **reading).fingerprint()

    assert Reading().told() == {"channels": 3}  # so features that were kept before still count
    assert found() == found(value_range=(), max_pixels=pixels.MAX_PIXELS)
    assert len({found(), found(value_range=(0, 4095)), found(value_range=(0, 1)), found(max_pixels=9)}) == 4


def test_a_grey_image_becomes_three_channels_once_it_has_8_bits():
    """Not before, when each channel takes 2 to 8 bytes a pixel, and large images all the memory that there is."""
    stored = levels.Values(np.full((1000, 1000, 1), 2**15, np.uint16), (0, 65535))
    tracemalloc.start()
    found = levels.of_values(stored, pixels.Reading())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.shape == (1000, 1000, 3) and (found == 128).all() and peak < 8e6, peak
