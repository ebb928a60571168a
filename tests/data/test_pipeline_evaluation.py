"""Batches for an evaluation: every image once, and the pixels that its crop needs."""

import numpy as np
import pytest
from batches import assert_same, photograph, pillow_image
from PIL import Image

from barlow_jax import data
from barlow_jax.errors import UserError


def test_evaluation_contract(source):
    batches = list(data.eval_batches(source, batch_size=8, canvas=128, resize_short=32, crop=28, threads=2))
    assert len(batches) == 4
    for batch in batches:
        assert {key: (value.shape, value.dtype) for key, value in batch.items()} == {
            "canvas": ((8, 128, 128, 3), np.uint8),
            "boxes": ((8, 1, 4), np.float32),
            "extent": ((8, 2), np.int32),
            "index": ((8,), np.int64),
            "label": ((8,), np.int32),
            "mask": ((8,), np.bool_),
        }
        mask = batch["mask"]
        assert np.array_equal(batch["label"][mask], source.labels[batch["index"][mask]])
        assert np.all(batch["boxes"][..., 2:] > 0) and np.all(batch["extent"] > 0)
    index = np.concatenate([batch["index"] for batch in batches])
    assert np.array_equal(index, np.r_[np.arange(29), [-1] * 3])
    last = batches[-1]
    assert np.array_equal(last["mask"], last["index"] >= 0) and np.all(last["label"][~last["mask"]] == -1)
    assert not last["canvas"][~last["mask"]].any()


@pytest.mark.parametrize(("source", "count"), [("arrays", 2), ("arrays", 4), ("jpegs", 4)], indirect=["source"])
def test_evaluation_on_many_processes(source, count):
    options = {"batch_size": 8, "canvas": 128, "resize_short": 32, "crop": 28, "threads": 1}
    few = data.sources.evenly_spaced(source, 17)  # the last batch leaves all processes but one without an example
    whole = list(data.eval_batches(few, **options))
    parts = [list(data.eval_batches(few, **options, process_index=p, process_count=count)) for p in range(count)]
    for expected, *rows in zip(whole, *parts, strict=True):
        assert_same({key: np.concatenate([row[key] for row in rows]) for key in rows[0]}, expected)


def test_evaluation_shows_what_resize_and_center_crop_need(jpegs):
    """Pillow's resize of the box, which looks outside it, equals Resize then CenterCrop of the whole image."""
    for batch in data.eval_batches(jpegs, batch_size=8, canvas=160, resize_short=32, crop=28, threads=2):
        for row in np.flatnonzero(batch["mask"]):
            image = pillow_image(jpegs.paths[batch["index"][row]])
            short = min(image.size)
            resized = image.resize([32 if s == short else int(32 * s / short) for s in image.size], Image.BILINEAR)
            left, top = (round((s - 28) / 2) for s in resized.size)
            expected = np.asarray(resized.crop((left, top, left + 28, top + 28))).astype(int)

            height, width = batch["extent"][row]
            content = Image.fromarray(np.ascontiguousarray(batch["canvas"][row, :height, :width]))
            top, left, h, w = (float(v) for v in batch["boxes"][row, 0])
            found = content.resize((28, 28), Image.BILINEAR, box=(left, top, left + w, top + h))
            assert np.abs(np.asarray(found).astype(int) - expected).max() <= 1


def test_squashed_evaluation_shows_the_whole_image(jpegs):
    for batch in data.eval_batches(jpegs, batch_size=8, canvas=160, crop=28, fit="squash", threads=2):
        for row in np.flatnonzero(batch["mask"]):
            image = pillow_image(jpegs.paths[batch["index"][row]])
            assert batch["boxes"][row, 0].tolist() == [0, 0, image.height, image.width]
            np.testing.assert_array_equal(batch["canvas"][row, : image.height, : image.width], image)
    with pytest.raises(UserError, match="fit is 'stretch', but must be one of 'crop', 'squash'"):
        data.eval_batches(jpegs, batch_size=8, canvas=160, fit="stretch")


def test_evaluation_of_an_image_larger_than_the_canvas_comes_close(tmp_path):
    image = Image.fromarray(photograph(700, 900))
    image.save(tmp_path / "a.jpg", quality=95)
    (batch,) = data.eval_batches(data.ImageFolder(tmp_path), batch_size=1, canvas=256, resize_short=80, crop=70)
    resized = pillow_image(tmp_path / "a.jpg").resize((int(80 * 900 / 700), 80), Image.BILINEAR)
    left, top = round((resized.width - 70) / 2), 5
    expected = np.asarray(resized.crop((left, top, left + 70, top + 70))).astype(int)
    height, width = batch["extent"][0]
    assert max(height, width) <= 256 and min(height, width) > 128
    top, left, h, w = (float(v) for v in batch["boxes"][0, 0])
    content = Image.fromarray(np.ascontiguousarray(batch["canvas"][0, :height, :width]))
    found = np.asarray(content.resize((70, 70), Image.BILINEAR, box=(left, top, left + w, top + h))).astype(int)
    assert np.abs(found - expected).mean() < 1.5
    # A shift by one pixel of the canvas would be seen.
    moved = np.asarray(content.resize((70, 70), Image.BILINEAR, box=(left + 1, top, left + w + 1, top + h))).astype(int)
    assert np.abs(moved - expected).mean() > 2 * np.abs(found - expected).mean()


def test_impossible_crop(arrays):
    with pytest.raises(UserError, match="crop is 224"):
        data.eval_batches(arrays, batch_size=4, canvas=24, resize_short=32)
