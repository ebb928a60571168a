"""Batches for training: order, resume, pixels and boxes, against Pillow's own decode of the same images."""

import copy

import numpy as np
import pytest
from batches import RATIO, SCALE, SIZES, assert_same, expected_boxes, pillow, take, train
from PIL import Image

from barlow_jax import augment, data
from barlow_jax.data import boxes, order
from barlow_jax.errors import UserError


def test_training_contract(source):
    batches = train(source)
    for batch in take(2, batches):
        assert {key: (value.shape, value.dtype) for key, value in batch.items()} == {
            "canvas": ((8, 128, 128, 3), np.uint8),
            "boxes": ((8, 2, 4), np.float32),
            "index": ((8,), np.int64),
            "label": ((8,), np.int32),
        }
        assert np.array_equal(batch["label"], source.labels[batch["index"]])
    assert (batches.seen, batches.bad, batches.bad_files) == (16, 0, {})


@pytest.mark.parametrize("last", order.LAST)
def test_the_order_is_that_of_order_py(source, last):
    for step, batch in enumerate(take(6, train(source, last=last))):
        assert np.array_equal(batch["index"], order.batch_indices(29, 8, 5, step, last)[1])


def test_one_view_is_the_first_of_two(source):
    """The same images and, cut out of the image, the same pixels; only what the second box needs is not read."""
    options = {"batch_size": 8, "seed": 3, "canvas": 160, "scale": SCALE, "ratio": RATIO, "threads": 2}
    for one, two in zip(*(take(4, data.train_batches(source, views=v, **options)) for v in (1, 2)), strict=True):
        assert one["boxes"].shape == (8, 1, 4) and two["boxes"].shape == (8, 2, 4)
        assert np.array_equal(one["index"], two["index"]) and np.array_equal(one["label"], two["label"])
        for row in range(8):
            cut = []
            for batch in (one, two):
                top, left, height, width = batch["boxes"][row, 0].astype(int)
                cut.append(batch["canvas"][row, top : top + height, left : left + width])
            assert cut[0].size and np.array_equal(*cut)


def test_any_step_can_be_opened_at_once(source):
    """20 random steps; the first, a middle and the last one read on to the end."""
    whole = take(40, train(source))
    for k, step in enumerate(np.sort(np.random.RandomState(0).choice(40, 20, replace=False))):
        part = train(source, start_step=step, threads=1, prefetch=1)
        for expected in whole[step:] if k in (0, 10, 19) else whole[step : step + 1]:
            assert_same(next(part), expected)
        part.close()


def test_keep_makes_the_last_batch_of_an_epoch_smaller(source):
    """29 images for 2 ranks: three batches of 8 and one of 6, of which the last image was the epoch's first."""
    keep = {"last": "keep", "reference_world_size": 2}
    whole = take(9, train(source, **keep))
    assert [len(batch["index"]) for batch in whole] == [8, 8, 8, 6, 8, 8, 8, 6, 8]
    for step, (batch, full) in enumerate(zip(whole, train(source, last="wrap"), strict=False)):
        rows = len(batch["index"])
        assert np.array_equal(batch["index"], order.batch_indices(29, 8, 5, step, **keep)[1])
        assert_same(batch, {key: value[:rows] for key, value in full.items()})
    assert whole[3]["index"][-1] == whole[0]["index"][0]
    for step in (2, 3, 4, 7):  # before, at and after the end of an epoch
        part = train(source, start_step=step, threads=1, prefetch=1, **keep)
        for expected in whole[step:]:
            assert_same(next(part), expected)
        assert part.seen == sum(len(batch["index"]) for batch in whole[step:])
    halves = [take(5, train(source, process_index=p, process_count=2, **keep)) for p in range(2)]
    for expected, *rows in zip(whole, *halves, strict=False):
        assert [len(row["index"]) for row in rows] == [len(expected["index"]) // 2] * 2
        assert_same({key: np.concatenate([row[key] for row in rows]) for key in rows[0]}, expected)


@pytest.mark.parametrize(
    ("source", "count"), [("arrays", 2), ("arrays", 4), ("jpegs", 2), ("jpegs", 4)], indirect=["source"]
)
def test_processes_share_the_same_global_batch(source, count):
    whole = take(4, train(source))
    parts = [take(4, train(source, process_index=p, process_count=count)) for p in range(count)]
    for expected, *rows in zip(whole, *parts, strict=True):
        assert_same({key: np.concatenate([row[key] for row in rows]) for key in rows[0]}, expected)


@pytest.mark.parametrize("scale", [SCALE, (0.02, 0.1)])  # small boxes start and end inside chroma blocks
def test_what_a_box_shows_is_pillows_decode_of_it(jpegs, scale):
    for step, batch in enumerate(take(12, train(jpegs, canvas=160, scale=scale))):
        epoch, index = order.batch_indices(29, 8, 5, step)
        for row, both in enumerate(expected_boxes(jpegs, epoch, index, scale).astype(int)):
            image = pillow(jpegs.paths[index[row]])
            origin = both[:, :2].min(0)
            for found, (top, left, h, w) in zip(batch["boxes"][row].astype(int), both, strict=True):
                assert np.array_equal(found, [top - origin[0], left - origin[1], h, w])
                shown = batch["canvas"][row, found[0] : found[0] + h, found[1] : found[1] + w]
                assert np.array_equal(shown, image[top : top + h, left : left + w])
            # Only the union of the boxes is on the canvas.
            end = (both[:, :2] + both[:, 2:]).max(0) - origin
            assert not batch["canvas"][row, end[0] :].any() and not batch["canvas"][row, :, end[1] :].any()


def test_arrays_are_copied_whole(arrays):
    batch = next(train(arrays, canvas=32))
    assert np.array_equal(batch["canvas"][:, :20, :24], arrays.images[batch["index"]])
    assert not batch["canvas"][:, 20:].any() and not batch["canvas"][:, :, 24:].any()
    draws = boxes.crop_draws(5, 0, batch["index"], scale=SCALE, ratio=RATIO)
    assert np.array_equal(batch["boxes"], boxes.random_crop(draws, 20.0, 24.0, RATIO).astype(np.float32))
    square = data.Arrays(np.ascontiguousarray(arrays.images[:, :20, :20, :1]))
    batch = next(train(square, canvas=20))
    assert np.array_equal(batch["canvas"], square.images[batch["index"]]) and set(batch["label"]) == {-1}


def test_closing_ends_the_reading(source):
    batches = train(source)
    next(batches)
    batches.close()
    with pytest.raises(StopIteration):
        next(batches)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"canvas": 0}, "canvas is 0"),
        ({"canvas": 20}, "set it to 24"),
        ({"batch_size": 30}, "lower config.batch_size"),
        ({"batch_size": 9, "process_count": 2}, "not divisible"),
        ({"scale": (0.5, 2.0)}, "crop_scale is .*see resident_bytes"),
        ({"last": "kept"}, "'drop', 'wrap', 'keep'"),
        ({"seed": -1}, "seed is -1"),
        ({"last": "keep", "process_count": 2}, "5 rows, which 2 processes do not divide: set config.data.last='wrap'"),
        ({"max_bad_fraction": 2}, "max_bad_fraction is 2"),
    ],
)
def test_impossible_arguments_end_at_once(arrays, options, words):
    with pytest.raises(UserError, match=words):
        train(arrays, **options)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_folder_held_in_memory(jpegs, channels):
    """Each image at full scale at the top left; not if one is larger than the canvas or all are more than allowed."""
    source = copy.copy(jpegs)
    source.reading = source.reading._replace(channels=channels)
    arrays = data.in_memory(source, max_bytes=29 * 150**2 * channels, canvas=150, threads=2)
    assert arrays.images.shape == (29, 100, 150, channels) and np.array_equal(arrays.labels, jpegs.labels)
    assert arrays.class_names == jpegs.class_names and arrays.num_classes == 3
    for row, path in enumerate(jpegs.paths):
        height, width = arrays.sizes[row]
        assert (height, width) == SIZES[int(path[-6:-4]) % len(SIZES)]
        expected = Image.open(path)
        if channels == 1:
            expected.draft("L", None)  # Pillow too reads the luma as it is stored, and makes no colours of it
        expected = np.asarray(expected.convert("L" if channels == 1 else "RGB")).reshape(height, width, channels)
        assert np.array_equal(arrays.images[row, :height, :width], expected)
        assert not arrays.images[row, height:].any() and not arrays.images[row, :, width:].any()
    assert data.in_memory(source, max_bytes=29 * 150**2 * channels - 1, canvas=150) is None
    assert data.in_memory(source, max_bytes=10**9, canvas=149, threads=2) is None


def test_images_of_many_sizes_in_memory_are_cropped_as_the_files_are(jpegs):
    """The same boxes and the same pixels in them; only where the box lies on the canvas differs."""
    arrays = data.in_memory(jpegs, max_bytes=10**9, canvas=150, threads=2)
    for one, other in zip(take(4, train(jpegs, canvas=150)), take(4, train(arrays, canvas=150)), strict=True):
        assert np.array_equal(one["index"], other["index"]) and np.array_equal(one["label"], other["label"])
        for batch in (one, other):
            batch["crops"] = [
                batch["canvas"][row, top : top + height, left : left + width]
                for row in range(8)
                for top, left, height, width in batch["boxes"][row].astype(int)
            ]
        assert all(np.array_equal(a, b) for a, b in zip(one["crops"], other["crops"], strict=True))
    options = {"batch_size": 29, "canvas": 150, "resize_short": 24, "crop": 20}
    (one,), (other,) = (data.eval_batches(source, **options) for source in (jpegs, arrays))
    views = [
        augment.eval_views(b["canvas"], b["boxes"], b["extent"], size=20, mean=(0.5,) * 3, std=(0.25,) * 3)
        for b in (one, other)
    ]
    assert np.abs(views[0] - views[1]).max() < 0.03  # 2 grey levels: windows begin elsewhere
