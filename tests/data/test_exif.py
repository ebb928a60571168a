"""Photographs turned as their EXIF says, beside PIL.ImageOps.exif_transpose, in training and in evaluation."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from barlow_jax import data
from barlow_jax.data import pixels
from barlow_jax.data.pixels import Reading

PLACES = range(1, 9)


def encoded(image, form, place):
    about, stream = Image.Exif(), io.BytesIO()
    about[274] = place
    image.save(stream, form, exif=about.tobytes(), **({"quality": 95} if form == "JPEG" else {}))
    return stream.getvalue()


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """(photographs of all orientations, JPEG and PNG, grey of 16 bits among them; the same turned by Pillow)."""
    root, rng = tmp_path_factory.mktemp("exif"), np.random.RandomState(0)
    smooth = Image.fromarray(rng.randint(0, 256, (5, 6, 3)).astype(np.uint8)).resize((46, 37), Image.Resampling.BICUBIC)
    for folder in ("given", "turned"):
        (root / folder).mkdir()
    for place in PLACES:
        for form in ("JPEG", "PNG", "WEBP"):
            content = encoded(smooth, form, place)
            (root / "given" / f"{place}{form}.jpg").write_bytes(content)
            turned = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
            turned.convert("RGB").save(root / "turned" / f"{place}{form}.jpg", "PNG", exif=b"")
    return root


def same(given, turned):
    assert np.array_equal(given["canvas"], turned["canvas"])
    np.testing.assert_allclose(given["boxes"], turned["boxes"], atol=1e-4)
    assert given["label"].shape == turned["label"].shape


def test_views_and_evaluations_see_what_pillow_turns(sets):
    given, turned = (data.ImageFolder(sets / name, exif=name == "given") for name in ("given", "turned"))
    n = len(given)
    for row in range(n):
        assert given.stored_size(row) == turned.stored_size(row)
        assert np.array_equal(
            pixels.pillow_pixels(given.encoded(row), given.reading),
            pixels.pillow_pixels(turned.encoded(row), Reading()),
        )
    options = {"batch_size": n, "canvas": 64, "threads": 1}
    same(*(next(data.train_batches(one, seed=3, **options)) for one in (given, turned)))
    same(*(next(data.eval_batches(one, resize_short=24, crop=20, **options)) for one in (given, turned)))
    assert given.fingerprint() != data.ImageFolder(sets / "given").fingerprint()


def test_what_does_not_fit_is_reduced_and_then_turned(sets):
    """At 1/2 the cells begin at the stored corner, so that the last of them may be others than after the turn."""
    given, turned = (data.ImageFolder(sets / name, exif=name == "given") for name in ("given", "turned"))
    options = {"batch_size": len(given), "canvas": 24, "threads": 1, "resize_short": 16, "crop": 16, "fit": "squash"}
    one, other = (next(data.eval_batches(source, **options)) for source in (given, turned))
    assert np.array_equal(one["extent"], other["extent"])
    np.testing.assert_allclose(one["boxes"], other["boxes"], atol=0.51)
    heights, widths = one["extent"].T
    for k in range(len(given)):
        rows, columns = slice(1, heights[k] - 1), slice(1, widths[k] - 1)
        moved = one["canvas"][k, rows, columns].astype(int) - other["canvas"][k, rows, columns]
        assert np.abs(moved).mean() < 12


def test_without_the_field_nothing_is_turned(sets):
    source = data.ImageFolder(sets / "given")
    assert {source.stored_size(row) for row in range(len(source))} == {(37, 46)}
    shown = [pixels.pillow_pixels(source.encoded(row), source.reading) for row in range(0, len(source), 3)]
    assert all(np.array_equal(one, shown[0]) for one in shown)
    assert "exif" not in Reading().told() and "bits" not in Reading().told()
