"""Odd image files are ordinary input; unreadable ones are passed over, counted, named, and end the run if many."""

import io
import logging
import pathlib
import re
import subprocess
import sys
import zlib

import commands
import numpy as np
import pytest
from PIL import Image

from barlow_jax import augment, data
from barlow_jax.data import order, pipeline, pixels, readers
from barlow_jax.errors import UserError

RNG = np.random.RandomState(0)
COARSE = Image.fromarray(RNG.randint(0, 256, (6, 8, 3)).astype(np.uint8))
PHOTO = COARSE.resize((64, 48), Image.BICUBIC)
ALPHA = Image.fromarray(RNG.randint(0, 256, (48, 64)).astype(np.uint8))


def encoded(image, form, **options):
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def with_alpha(image):
    image = image.copy()
    image.putalpha(ALPHA)
    return image


def sixteen_bit():
    return Image.fromarray((np.asarray(PHOTO.convert("L")).astype(np.uint16) << 8) + 77)


def rotated_by_exif():
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: 90 degrees
    return encoded(PHOTO, "JPEG", exif=exif)


ODD = {
    "grey.jpg": encoded(PHOTO.convert("L"), "JPEG"),
    "cmyk.jpg": encoded(PHOTO.convert("CMYK"), "JPEG"),
    "progressive.JPG": encoded(PHOTO, "JPEG", progressive=True),
    "exif.jpeg": rotated_by_exif(),
    "one_pixel.jpg": encoded(PHOTO.crop((0, 0, 1, 1)), "JPEG"),
    "line.jpg": encoded(PHOTO.crop((0, 0, 64, 1)), "JPEG"),
    "really_a_png.JPEG": encoded(PHOTO, "PNG"),
    "really_a_jpeg.png": encoded(PHOTO, "JPEG"),
    "really_a_webp.jpg": encoded(PHOTO, "WEBP", lossless=True),
    "palette.png": encoded(PHOTO.convert("P", palette=Image.ADAPTIVE), "PNG"),
    "transparent_palette.png": encoded(PHOTO.convert("P", palette=Image.ADAPTIVE), "PNG", transparency=3),
    "bilevel.png": encoded(PHOTO.convert("1"), "PNG"),
    "grey.png": encoded(PHOTO.convert("L"), "PNG"),
    "grey_alpha.png": encoded(with_alpha(PHOTO.convert("L")), "PNG"),
    "alpha.png": encoded(with_alpha(PHOTO), "PNG"),
    "alpha.webp": encoded(with_alpha(PHOTO), "WEBP"),
    "photo.webp": encoded(PHOTO, "WEBP"),
    "photo.bmp": encoded(PHOTO, "BMP"),
    "palette.bmp": encoded(PHOTO.convert("P", palette=Image.ADAPTIVE), "BMP"),
    "photo.gif": encoded(PHOTO, "GIF"),
    "moving.gif": encoded(PHOTO, "GIF", save_all=True, append_images=[PHOTO.rotate(90)]),
    "photo.tif": encoded(PHOTO, "TIFF"),
    "photo.ppm": encoded(PHOTO, "PPM"),
}


def write(root, files):
    for name, content in files.items():
        (root / name).write_bytes(content)
    return data.ImageFolder(root)


def test_odd_files_are_ordinary_input(tmp_path):
    source = write(tmp_path, ODD)
    batches = data.eval_batches(source, batch_size=len(ODD), canvas=128, resize_short=8, crop=8, threads=2)
    (batch,) = batches
    assert batches.bad_files == {} and batch["mask"].all()
    for row, path in enumerate(source.paths):
        with Image.open(path) as image:
            expected = np.asarray(image.convert("RGB"))
        found = batch["canvas"][row, : batch["extent"][row, 0], : batch["extent"][row, 1]]
        # The window of the central crop: found once, at an offset that the box tells.
        top, left, h, w = batch["boxes"][row, 0]
        size = np.asarray(expected.shape[:2])
        start = np.round((size - [h, w]) / 2 - [top, left]).astype(int)
        name = pathlib.Path(path).name
        stop = start + found.shape[:2]
        assert np.array_equal(found, expected[start[0] : stop[0], start[1] : stop[1]]), name
        assert found.shape[0] >= min(size), name


def test_sixteen_bits_keep_the_high_byte(tmp_path):
    rgb = np.asarray(PHOTO.convert("L"))[..., None].repeat(3, -1)
    source = write(tmp_path, {"a.png": encoded(sixteen_bit(), "PNG"), "b.tif": encoded(sixteen_bit(), "TIFF")})
    for path in source.paths:
        assert np.array_equal(pixels.pillow_pixels(pathlib.Path(path).read_bytes()), rgb)
    (batch,) = data.eval_batches(source, batch_size=2, canvas=64, resize_short=8, crop=8, threads=1)
    assert np.array_equal(batch["canvas"][0], batch["canvas"][1])
    height, width = batch["extent"][0]
    left = (64 - width) // 2
    assert np.array_equal(batch["canvas"][0, :height, :width], rgb[:height, left : left + width])


def zero_sized(name):
    """PHOTO with a width of 0 in the header, as a broken writer leaves it."""
    content = bytearray(encoded(PHOTO, name))
    if name == "JPEG":
        start = content.index(b"\xff\xc0") + 7  # SOF0: length, precision, height, width
        content[start : start + 2] = bytes(2)
    elif name == "PNG":
        content[16:20] = bytes(4)
        content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    else:
        content[18:22] = bytes(4)  # BMP
    return bytes(content)


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
@pytest.mark.parametrize("size", [(20_000, 300), (300, 20_000)])
def test_a_panorama(tmp_path, form, size):
    """Larger than any canvas even at 1/8: averaged further, box and pixels still where they belong."""
    image = PHOTO.resize(size, Image.BICUBIC)
    source = write(tmp_path, {"wide.x": encoded(image, form)})
    (batch,) = data.eval_batches(source, batch_size=1, canvas=128, resize_short=256, crop=224, threads=1)
    view = augment.eval_views(batch["canvas"], batch["boxes"], batch["extent"], size=32, mean=(0,) * 3, std=(1,) * 3)
    left, top = (size[0] - 262) // 2, (size[1] - 262) // 2  # 300 * 224 / 256 = 262.5 pixels of the short side
    expected = np.asarray(image.crop((left, top, left + 263, top + 263)).resize((32, 32), Image.BILINEAR))
    assert np.abs(255 * np.asarray(view[0]) - expected).max() < 8
    batch = next(data.train_batches(source, batch_size=1, seed=0, canvas=128, threads=1))
    assert batch["boxes"].max() <= 128 and (batch["boxes"] >= 0).all() and batch["canvas"].any()


GOOD = {f"good{k:02}.jpg": encoded(PHOTO.rotate(k), "JPEG") for k in range(40)}
BAD = {
    "good07x_truncated.jpg": GOOD["good07.jpg"][: len(GOOD["good07.jpg"]) // 3],
    "good11x_empty.jpg": b"",
    "good20x_text.png": b"this is no image",
    "good30x_cut.png": encoded(PHOTO, "PNG")[:500],
    "good31x_cut.webp": encoded(PHOTO, "WEBP")[:300],
    "good32x_zero.jpg": zero_sized("JPEG"),
    "good33x_zero.png": zero_sized("PNG"),
    "good34x_zero.bmp": zero_sized("BMP"),
}
LAST = {"good40x_empty.jpg": b""}  # the next one is the first


@pytest.fixture
def damaged(tmp_path):
    """49 files, 9 of them unreadable and one more missing; a file's number tells which may stand in for it."""
    source = write(tmp_path, GOOD | BAD | LAST)
    (tmp_path / "good25.jpg").unlink()
    return source


def unreadable(source):
    names = [pathlib.Path(path).name for path in source.paths]
    return [k for k, name in enumerate(names) if name in BAD | LAST or name == "good25.jpg"]


def stands_in(source):
    """index -> the index that is shown for it."""
    bad, n = set(unreadable(source)), len(source)
    return [next(k % n for k in range(index, index + n) if k % n not in bad) for index in range(n)]


@pytest.fixture
def short_detour(monkeypatch):
    monkeypatch.setattr(readers, "DETOUR", 3)


# Whole images, so that the truncated one cannot be read whatever the box.
OPTIONS = {"seed": 4, "canvas": 64, "scale": (1.0, 1.0), "threads": 2}


def test_unreadable_images_are_replaced_by_the_next(damaged, caplog, short_detour, monkeypatch):
    monkeypatch.setattr(pipeline, "_told", set())
    shown, bad = np.asarray(stands_in(damaged)), unreadable(damaged)
    with caplog.at_level(logging.WARNING):
        batches = data.train_batches(damaged, batch_size=4, **OPTIONS, max_bad_fraction=0.5)
        taken = [next(batches) for _ in range(22)]  # two epochs
    asked = np.stack([order.batch_indices(len(damaged), 4, 4, step)[1] for step in range(22)])
    assert np.array_equal([batch["index"] for batch in taken], shown[asked])
    assert batches.seen == asked.size and batches.bad == np.isin(asked, bad).sum()
    met = {damaged.paths[k] for k in bad if k in asked}
    assert set(batches.bad_files) == met and len(met) > 5
    with caplog.at_level(logging.WARNING):  # each named once, and not again by another reader
        next(data.train_batches(damaged, batch_size=4, **OPTIONS, max_bad_fraction=0.5))
    assert len(caplog.records) == len(met)
    assert all(any(path in record.getMessage() for record in caplog.records) for path in met)
    reasons = " ".join(batches.bad_files.values())
    for words in ("truncated", "the file is empty", "cannot identify image file", "No such file"):
        assert words in reasons, reasons


@pytest.mark.parametrize(
    "last", [pytest.param(last, marks=[] if last == "keep" else pytest.mark.slow) for last in order.LAST]
)
def test_resume_over_unreadable_images_is_bit_identical(damaged, short_detour, last):
    options = OPTIONS | {"batch_size": 4, "max_bad_fraction": 0.5, "last": last}
    batches = data.train_batches(damaged, **options)
    taken = [next(batches) for _ in range(13)]
    assert [len(batch["index"]) for batch in taken[10:]] == [4, 4, 1 if last == "keep" else 4]
    part = data.train_batches(damaged, **options, start_step=6)
    for expected in taken[6:]:
        found = next(part)
        assert all(np.array_equal(found[key], expected[key]) for key in expected)


def test_evaluation_masks_what_it_cannot_read(damaged):
    batches = data.eval_batches(damaged, batch_size=16, canvas=64, resize_short=48, crop=40, threads=2)
    index = np.concatenate([np.where(batch["mask"], batch["index"], -1) for batch in batches])
    every = np.arange(len(damaged))
    expected = np.where(np.isin(every, unreadable(damaged)), -1, every)
    assert np.array_equal(index[: len(every)], expected) and np.all(index[len(every) :] == -1)
    assert set(batches.bad_files) == {damaged.paths[k] for k in unreadable(damaged)}


def test_too_many_unreadable_images_end_the_run(damaged):
    batches = data.train_batches(damaged, batch_size=4, **OPTIONS, max_bad_fraction=0.003)
    with pytest.raises(UserError) as caught:
        for _ in range(100):
            next(batches)
    text = str(caught.value)
    assert "max_bad_fraction = 0.003" in text and any(path in text for path in batches.bad_files)
    assert re.match(r"[45] of \d+ images", text) and "repair or delete" in text and "\n" not in text
    assert caught.value.__cause__ is None and caught.value.__context__ is None  # nothing of TensorFlow's below it


def test_a_disk_that_goes_away(tmp_path):
    source = write(tmp_path, GOOD)
    for path in source.paths:
        pathlib.Path(path).unlink()
    with pytest.raises(UserError, match="No such file"):
        next(data.train_batches(source, batch_size=16, **OPTIONS))
    batches = data.train_batches(source, batch_size=4, **OPTIONS)
    with pytest.raises(UserError, match="16 images in a row"):
        next(batches)


def test_nothing_of_a_bad_file_reaches_the_terminal(damaged, capfd):
    batches = data.train_batches(damaged, batch_size=8, **OPTIONS, max_bad_fraction=1)
    for _ in range(5):
        next(batches)
    batches.close()
    out, err = capfd.readouterr()
    assert "Traceback" not in out + err and "tensorflow" not in out + err, err


@pytest.mark.parametrize("closed", [pytest.param(True, marks=pytest.mark.slow), False])
def test_a_reader_left_in_the_middle_ends_with_its_process(tmp_path, closed):
    """Threads that wait for Python's lock must not hang the exit (they did in every other run)."""
    for k in range(40):
        (tmp_path / f"{k}.jpg").write_bytes(b"not an image")
        Image.fromarray(np.full((9, 9, 3), k, np.uint8)).save(tmp_path / f"{k}.webp")  # read through Pillow
    code = f"""
from barlow_jax import augment, data
from barlow_jax.data import pipeline
source = data.open_source("folder", {str(tmp_path)!r}, "")
reader = pipeline.train_batches(source, batch_size=8, seed=0, canvas=16, max_bad_fraction=1.0)
next(reader)
{"reader.close()" if closed else ""}
"""
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=commands.ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
