"""Files of sensors: arrays, TIFFs of many bands, DICOM; what they become, and the sentence for what is not read."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from sensor_files import dicom_file, tiff

from barlow_jax import data
from barlow_jax.data import pixels
from barlow_jax.data.pixels import Reading

RNG = np.random.RandomState(0)
BANDS = RNG.randint(0, 65536, (12, 10, 6)).astype(np.uint16)
GREY12 = RNG.randint(0, 4096, (12, 10)).astype(np.uint16)


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def levels(values, low, high, top=65535):
    """What is meant by a range, in float64."""
    return np.rint(np.clip((values.astype(float) - low) / (np.asarray(high) - low), 0, 1) * top)


def read(encoded, **reading):
    return pixels.pillow_pixels(encoded, Reading(**reading))


def why(encoded, **reading):
    return pixels.why_unreadable(encoded, Reading(**reading))


def test_arrays_become_levels_of_the_range_that_is_given_or_known():
    assert np.array_equal(read(npy(BANDS), channels=6, bits=16), BANDS)
    assert np.array_equal(read(npy(BANDS), channels=6), BANDS >> 8)
    moved = np.ascontiguousarray(BANDS.transpose(2, 0, 1))
    assert np.array_equal(read(npy(moved), channels=6, bits=16), BANDS)
    assert np.array_equal(read(npy(np.asfortranarray(BANDS)), channels=6, bits=16), BANDS)
    found = read(npy(GREY12), channels=1, bits=16, value_range=(100, 4000))
    assert np.array_equal(found[..., 0], levels(GREY12, 100, 4000))
    assert np.array_equal(
        read(npy(GREY12.astype(">u2")), value_range=(100, 4000)), read(npy(GREY12), value_range=(100, 4000))
    )
    low, high = np.arange(6) * 1000, 30000 + np.arange(6) * 2000
    ends = tuple(np.stack([low, high], -1).ravel().tolist())
    for array in (BANDS, BANDS.astype(np.float32), BANDS.astype(np.int32)):
        assert np.array_equal(read(npy(array), channels=6, bits=16, value_range=ends), levels(BANDS, low, high))
    eight = BANDS[..., :2].astype(np.uint8)
    assert np.array_equal(read(npy(eight), channels=2), eight)
    assert np.array_equal(read(npy(eight), channels=2, bits=16, value_range=(0, 3)), eight * np.uint16(257))
    assert read(npy(GREY12 > 2000), channels=3).shape == (12, 10, 3) and set(np.unique(read(npy(GREY12 > 2000)))) == {
        0,
        255,
    }
    holes = np.where(GREY12 > 4000, np.nan, GREY12).astype(np.float32)
    assert read(npy(holes), channels=1, value_range=(-1000, 4095))[GREY12 > 4000].max() == 0


def header(shape, dtype="'<u2'"):
    text = f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}}}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


@pytest.mark.parametrize(
    "encoded, reading, words",
    [
        (npy(BANDS), {}, "it has 6 bands, and it is read as 3 channels: set config.data.channels=6"),
        (npy(BANDS.astype(np.float32)), {"channels": 6}, "values are fractions.*config.data.value_range"),
        (npy(BANDS.astype(np.int16)), {"channels": 6}, "whole numbers of 16 bits with a sign"),
        (npy(BANDS.astype(np.uint32)), {"channels": 6}, "whole numbers of 32 bits, and"),
        (npy(BANDS)[:-1], {"channels": 6}, "cut off or too long"),
        (npy(BANDS) + b"x", {"channels": 6}, "cut off or too long"),
        (npy(BANDS.astype(complex)), {"channels": 6}, "array of complex128"),
        (npy(BANDS[..., 0, 0]), {}, r"array of shape \(12,\)"),
        (header((2**31, 2**31)), {}, "cut off or too long"),
        (header((0, 5)), {}, "0 x 5 pixels"),
        (header((3, 5), "'O'"), {}, "array of object"),
        (header((3, 5), "__import__('os')"), {}, "."),
        (npy(GREY12), {"max_pixels": 119}, "12 x 10 pixels, more than config.data.max_pixels = 119"),
    ],
)
def test_arrays_that_are_no_images_have_a_sentence(encoded, reading, words):
    with pytest.raises(ValueError, match=words):
        read(encoded, **reading)
    assert why(encoded, **reading)


def test_ordinary_files_of_other_channels_and_bits():
    """Bands are taken as they are where their number is asked for; 8 bits in 16 are 257 times as much."""

    def file(image, form="PNG"):
        stream = io.BytesIO()
        image.save(stream, form)
        return stream.getvalue()

    rgba = RNG.randint(0, 256, (9, 8, 4)).astype(np.uint8)
    assert np.array_equal(read(file(Image.fromarray(rgba)), channels=4), rgba)
    assert np.array_equal(read(file(Image.fromarray(rgba)), bits=16), rgba[..., :3] * np.uint16(257))
    assert "it has 4 bands, and it is read as 5 channels" in why(file(Image.fromarray(rgba)), channels=5)
    for form in ("PNG", "TIFF"):
        found = read(file(Image.fromarray(GREY12), form), channels=1, bits=16)
        assert np.array_equal(found[..., 0], GREY12)
        found = read(file(Image.fromarray(GREY12), form), bits=16, value_range=(0, 4095))
        assert np.array_equal(found, np.repeat(levels(GREY12, 0, 4095)[..., None], 3, 2))


def test_the_pipeline_gives_what_was_stored_in_16_bits(tmp_path):
    """A PNG of 16-bit colours by TensorFlow, arrays by numpy; the canvas, the boxes, an evaluation, arrays of all."""
    (tmp_path / "a").mkdir()
    for k in range(4):
        np.save(tmp_path / "a" / f"{k}.npy", np.roll(BANDS, k, 0))
    source = data.open_source("folder", str(tmp_path / "a"), "", channels=6, bits=16)
    assert source.channels == 6 and source.stored_size(0) == (12, 10)
    batch = next(data.eval_batches(source, batch_size=4, canvas=16, resize_short=12, crop=10, fit="squash", threads=1))
    assert batch["canvas"].dtype == np.uint16 and batch["canvas"].shape == (4, 16, 16, 6)
    for k in range(4):
        assert np.array_equal(batch["canvas"][k, :12, :10], np.roll(BANDS, k, 0))
    held = data.pipeline.in_memory(source, max_bytes=10**6, canvas=16, threads=1)
    assert held.images.dtype == np.uint16 and np.array_equal(held.images[1], np.roll(BANDS, 1, 0))
    assert held.listing() == source.listing()
    assert data.pipeline.in_memory(source, max_bytes=4 * 16 * 16 * 6 * 2 - 1, canvas=16) is None
    # Halved on a canvas that is too small: the mean of four, in 16 bits.
    small = next(data.eval_batches(source, batch_size=4, canvas=6, resize_short=6, crop=6, fit="squash", threads=1))
    means = BANDS.reshape(6, 2, 5, 2, 6).astype(float).mean((1, 3))
    assert np.abs(small["canvas"][0, :6, :5] - means).max() <= 0.5


def test_dicom_and_arrays_count_where_a_folder_has_no_other_image(tmp_path, caplog):
    (tmp_path / "x.npy").write_bytes(npy(GREY12))
    (tmp_path / "0001").write_bytes(bytes(128) + b"DICM")
    (tmp_path / "notes.txt").write_text("x")
    assert [path.rpartition("/")[2] for path in data.ImageFolder(tmp_path).paths] == ["0001", "x.npy"]
    Image.fromarray(GREY12).save(tmp_path / "y.png")
    assert [path.rpartition("/")[2] for path in data.ImageFolder(tmp_path).paths] == ["y.png"]
    assert "1 .npy" in caplog.text


def test_a_library_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pydicom", None)
    assert "it is a DICOM file, which takes pydicom to read: pip install 'barlow-jax[sensors]'" in why(
        bytes(128) + b"DICM"
    )
    monkeypatch.setitem(__import__("sys").modules, "tifffile", None)
    assert "a TIFF of another kind than Pillow's takes tifffile" in why(b"II*\0" + bytes(20))


# TIFF.


@pytest.fixture
def tifffile():
    return pytest.importorskip("tifffile")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tile": (16, 16)},
        {"compression": "zlib"},
        {"compression": "zlib", "predictor": 2, "tile": (16, 16)},
        {"bigtiff": True},
        {"byteorder": ">"},
        {"planarconfig": "separate"},
        {"rowsperstrip": 3, "compression": "zlib"},
    ],
)
def test_tiffs_of_many_bands(tifffile, options):
    stored = BANDS.transpose(2, 0, 1) if "planarconfig" in options else BANDS
    encoded = tiff(tifffile, stored, photometric="minisblack", **options)
    assert np.array_equal(read(encoded, channels=6, bits=16), BANDS)
    assert np.array_equal(read(encoded, channels=6), BANDS >> 8)
    assert pixels.stored_size(encoded, Reading(channels=6)) == (12, 10)
    assert "set config.data.channels=6" in why(encoded)
    assert "120 pixels" in why(encoded, channels=6, max_pixels=119).replace("12 x 10", "120")


def test_pages_are_channels_where_there_are_as_many(tifffile):
    encoded = tiff(tifffile, BANDS.transpose(2, 0, 1), photometric="minisblack")
    assert np.array_equal(read(encoded, channels=6, bits=16), BANDS)
    assert np.array_equal(read(encoded, channels=1, bits=16), BANDS[..., :1])  # of which the first is the image
    assert "it has 6 pages of one band each" in why(encoded, channels=5)


def test_tiffs_of_colours_of_16_bits_fractions_and_turns(tifffile):
    colours = BANDS[..., :3]
    encoded = tiff(tifffile, colours, photometric="rgb")
    assert np.array_equal(read(encoded, bits=16), colours)
    assert np.array_equal(read(encoded), colours >> 8)  # as Pillow has it, with and without the library
    assert np.array_equal(read(encoded, value_range=(0, 4095)), levels(colours, 0, 4095, 255))
    fractions = (BANDS / 1000).astype(np.float32)
    found = read(tiff(tifffile, fractions, photometric="minisblack"), channels=6, bits=16, value_range=(0, 50))
    assert np.abs(found - levels(fractions, 0, 50)).max() <= 1
    assert "values are fractions" in why(tiff(tifffile, fractions, photometric="minisblack"), channels=6)
    white = tiff(tifffile, BANDS, photometric="miniswhite")
    assert np.array_equal(read(white, channels=6, bits=16), 65535 - BANDS)
    for place in range(1, 9):  # as Pillow turns those that it reads
        turned = tiff(tifffile, BANDS, photometric="minisblack", extratags=[(274, 3, 1, place, True)])
        one = tiff(tifffile, BANDS[..., 0] >> 8, photometric="minisblack", extratags=[(274, 3, 1, place, True)])
        assert np.array_equal(read(turned, channels=6, bits=16)[..., 0] >> 8, read(one, channels=1, bits=16)[..., 0])


def test_hostile_tiffs(tifffile):
    good = tiff(tifffile, BANDS, photometric="minisblack", compression="zlib")
    for cut in range(0, len(good) - 1, 37):
        assert why(good[:cut], channels=6)
    bomb = zlib.compress(bytes(10**8))
    page = tifffile.TiffFile(io.BytesIO(good)).pages.first
    (at,), (length,) = page.tags[273].value, page.tags[279].value
    changed = bytearray(good[:at] + bomb + good[at + length :])
    place = bytes(good).index(struct.pack("<HHI", 279, page.tags[279].dtype, 1)) + 8
    assert place < at  # so that nothing but the part has moved
    changed[place : place + 4] = struct.pack("<I", len(bomb))
    assert "larger than its header says" in why(bytes(changed), channels=6)
    lzma = tiff(tifffile, BANDS, photometric="minisblack", compression="lzma")
    assert "save it with Deflate" in why(lzma, channels=6)
    for seed in range(60):
        rng = np.random.RandomState(seed)
        bad = bytearray(good)
        for at in rng.randint(0, len(bad), 4):
            bad[at] = rng.randint(256)
        why(bytes(bad), channels=6)  # read or a sentence, and no hang


# DICOM.


@pytest.fixture
def dicom():
    return pytest.importorskip("pydicom")


def test_dicom(dicom):
    file = dicom_file(dicom, GREY12)
    full = levels(GREY12, 0, 4095)[..., None]
    assert np.array_equal(read(file, channels=1, bits=16), full)
    assert np.array_equal(read(file, channels=1)[..., 0], GREY12 >> 4)
    assert pixels.stored_size(file, Reading()) == (12, 10)
    white = dicom_file(dicom, GREY12, PhotometricInterpretation="MONOCHROME1")
    assert np.array_equal(read(white, channels=1, bits=16), 65535 - full)
    # Values in Hounsfield units: 4095 - 1024; a window on them.
    scanned = dicom_file(dicom, GREY12, RescaleSlope=2, RescaleIntercept=-1024)
    assert np.array_equal(read(scanned, channels=1, bits=16), full)
    found = read(scanned, channels=1, bits=16, value_range=(-160, 240))
    assert np.array_equal(found[..., 0], levels(2.0 * GREY12 - 1024, -160, 240))
    falling = dicom_file(dicom, GREY12, RescaleSlope=-1, RescaleIntercept=4095)
    assert np.array_equal(read(falling, channels=1, bits=16), 65535 - full)
    signed = dicom_file(dicom, (GREY12.astype(np.int16) - 1024), bits=16)
    assert "bits with a sign, and which of them are black and white is not known" in why(signed, channels=1)
    found = read(signed, channels=1, bits=16, value_range=(-1024, 3071))
    assert np.array_equal(found, full)
    colours = RNG.randint(0, 256, (12, 10, 3)).astype(np.uint8)
    assert np.array_equal(read(dicom_file(dicom, colours, 8)), colours)
    frames = np.ascontiguousarray(BANDS.transpose(2, 0, 1)) >> 4
    assert np.array_equal(
        read(dicom_file(dicom, frames, NumberOfFrames=6), channels=6, bits=16), levels(BANDS >> 4, 0, 4095)
    )
    assert np.array_equal(read(dicom_file(dicom, frames, NumberOfFrames=6), channels=1)[..., 0], frames[0] >> 4)


def test_frames_that_are_channels_have_each_its_own_slope(dicom):
    from pydicom.dataset import Dataset

    def sequence(*slopes):
        found = []
        for slope in slopes:
            inner, outer = Dataset(), Dataset()
            inner.RescaleSlope, inner.RescaleIntercept = slope, -slope
            outer.PixelValueTransformationSequence = [inner]
            found.append(outer)
        return found

    frames = RNG.randint(0, 4096, (4, 12, 10)).astype(np.uint16)
    own = dicom_file(dicom, frames, NumberOfFrames=4, PerFrameFunctionalGroupsSequence=sequence(1, 2, 3, 4))
    values = np.moveaxis(frames, 0, -1) * np.arange(1.0, 5) - np.arange(1.0, 5)
    found = read(own, channels=4, bits=16, value_range=(0, 16380))
    assert np.array_equal(found, levels(values, 0, 16380))
    assert np.array_equal(read(own, channels=4, bits=16), levels(values, -4, 4 * 4095 - 4))  # of what there can be
    shared = dicom_file(dicom, frames, NumberOfFrames=4, SharedFunctionalGroupsSequence=sequence(2))
    found = read(shared, channels=4, bits=16, value_range=(0, 8190))
    assert np.array_equal(found, levels(np.moveaxis(frames, 0, -1) * 2.0 - 2, 0, 8190))


def test_dicom_that_is_not_read(dicom):
    from pydicom.uid import MPEG2MPML, DeflatedExplicitVRLittleEndian, JPEGLSLossless

    file = dicom_file(dicom, GREY12)
    assert "more than config.data.max_pixels" in why(file, channels=1, max_pixels=119)
    assert "set config.data.channels=3" in why(dicom_file(dicom, np.zeros((4, 4, 3), np.uint8), 8), channels=1)
    syntax = file.index(b"1.2.840.10008.1.2.1\0")

    def of(uid):  # of the same length or padded
        told = str(uid).encode()
        length = struct.pack("<H", len(told) + len(told) % 2)
        return file[: syntax - 2] + length + told + b"\0" * (len(told) % 2) + file[syntax + 20 :]

    assert "hides how large it is: save it as Explicit VR" in why(of(DeflatedExplicitVRLittleEndian))
    jpegls = why(of(JPEGLSLossless), channels=1)
    assert "JPEG-LS" in jpegls and ("takes another package" in jpegls or "pylibjpeg" in jpegls or "jpeg" in jpegls)
    assert "is not one of images that pydicom reads" in why(of(MPEG2MPML), channels=1)
    palette = dicom_file(dicom, np.zeros((4, 4), np.uint8), 8, PhotometricInterpretation="PALETTE COLOR")
    assert "palette" in why(palette, channels=1)
    for cut in range(0, len(file) - 1, 41):
        assert why(file[:cut], channels=1)
    assert "without an image" in why(file[: file.index(b"\xe0\x7f\x10\x00")], channels=1)
    for seed in range(60):
        rng = np.random.RandomState(seed)
        bad = bytearray(file)
        for at in rng.randint(132, len(bad), 4):
            bad[at] = rng.randint(256)
        why(bytes(bad), channels=1)
