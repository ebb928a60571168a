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


@pytest.fixture(scope="module")
def both(sets):
    """All of both: photographs without an orientation are left as they are. ([k, 2] places of the pairs in it)."""
    source = data.ImageFolder(sets, labels="none", exif=True)
    n = len(source) // 2
    return source, np.stack([np.arange(n), n + np.arange(n)], 1)


def by_place(batch, n):
    """Canvas, boxes and the like of each image by its place in the set."""
    found = {
        key: np.zeros((n, *batch[key].shape[1:]), batch[key].dtype)
        for key in ("canvas", "boxes", "extent")
        if key in batch
    }
    for key, value in found.items():
        value[batch["index"]] = batch[key]
    return found


def test_views_and_evaluations_see_what_pillow_turns(both):
    """Crops of the whole area and of aspect 1 never fit, so that all are the largest central box."""
    source, pairs = both
    for given, turned in pairs:
        assert source.where(given).rpartition("/")[2] == source.where(turned).rpartition("/")[2]
        assert source.stored_size(given) == source.stored_size(turned)
        assert np.array_equal(*(pixels.pillow_pixels(source.encoded(row), source.reading) for row in (given, turned)))
    options = {"batch_size": len(source), "canvas": 64, "threads": 1}
    training = data.train_batches(source, seed=3, scale=(1, 1), ratio=(1, 1), **options)
    evaluation = data.eval_batches(source, resize_short=24, crop=20, **options)
    for batches in (training, evaluation):
        found = by_place(next(batches), len(source))
        given, turned = ({key: value[rows] for key, value in found.items()} for rows in pairs.T)
        assert np.array_equal(given["canvas"], turned["canvas"]) and given["canvas"].std(axis=(1, 2)).min() > 5
        np.testing.assert_allclose(given["boxes"], turned["boxes"], atol=1e-4)
        batches.close()


def test_what_does_not_fit_is_reduced_and_then_turned(both):
    """At 1/2 the cells begin at the stored corner, so that the last of them may be others than after the turn."""
    source, pairs = both
    options = {"batch_size": len(source), "canvas": 24, "threads": 1, "resize_short": 16, "crop": 16, "fit": "squash"}
    found = by_place(next(data.eval_batches(source, **options)), len(source))
    one, other = ({key: value[rows] for key, value in found.items()} for rows in pairs.T)
    assert np.array_equal(one["extent"], other["extent"])
    np.testing.assert_allclose(one["boxes"], other["boxes"], atol=0.51)
    for k, (height, width) in enumerate(one["extent"]):
        rows, columns = slice(1, height - 1), slice(1, width - 1)
        moved = one["canvas"][k, rows, columns].astype(int) - other["canvas"][k, rows, columns]
        assert np.abs(moved).mean() < 12


def test_without_the_field_nothing_is_turned(sets):
    source = data.ImageFolder(sets / "given")
    assert {source.stored_size(row) for row in range(len(source))} == {(37, 46)}
    shown = [pixels.pillow_pixels(source.encoded(row), source.reading) for row in range(0, len(source), 3)]
    assert all(np.array_equal(one, shown[0]) for one in shown)
    assert "exif" not in Reading().told() and "bits" not in Reading().told()
