"""Batches: order, resume, pixels and boxes, against Pillow's own decode of the same images."""

import copy

import numpy as np
import pytest
from PIL import Image

from barlow_jax import augment, data
from barlow_jax.data import boxes, order
from barlow_jax.errors import UserError

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
SIZES = [(60, 90), (91, 57), (64, 64), (33, 128), (17, 19), (3, 50), (1, 1), (100, 77), (70, 150)]


def photograph(height, width, seed=0):
    """Smooth colours with some texture: what chroma subsampling and its interpolation show themselves on."""
    rng = np.random.RandomState(seed)
    coarse = Image.fromarray(rng.randint(0, 256, (max(height // 6, 1), max(width // 6, 1), 3)).astype(np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.BICUBIC)).astype(int)
    return np.clip(smooth + rng.randint(-12, 13, smooth.shape), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def jpegs(tmp_path_factory):
    """29 labelled JPEGs of many sizes: 4:2:0, 4:2:2, 4:4:4, grey, progressive."""
    root = tmp_path_factory.mktemp("jpegs")
    for k in range(29):
        image = Image.fromarray(photograph(*SIZES[k % len(SIZES)], seed=k))
        if k % 5 == 3:
            image = image.convert("L")
        path = root / "abc"[k % 3] / f"{k:02}.jpg"
        path.parent.mkdir(exist_ok=True)
        image.save(path, quality=80 + k % 15, subsampling=(2, 1, 0)[k % 3], progressive=k % 4 == 1)
    return data.ImageFolder(root)


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.RandomState(0)
    return data.Arrays(rng.randint(0, 256, (29, 20, 24, 3)).astype(np.uint8), np.arange(29) % 3)


@pytest.fixture(params=["jpegs", "arrays"])
def source(request):
    return request.getfixturevalue(request.param)


def pillow_image(path):
    return Image.open(path).convert("RGB")


def pillow(path):
    return np.asarray(pillow_image(path))


def take(count, batches):
    return [next(batches) for _ in range(count)]


def assert_same(one, other):
    assert one.keys() == other.keys()
    for key in one:
        assert one[key].dtype == other[key].dtype and np.array_equal(one[key], other[key]), key


def train(source, **options):
    return data.train_batches(source, **{"batch_size": 8, "seed": 5, "canvas": 128, "threads": 2} | options)


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


def expected_boxes(source, epoch, index, scale):
    """In pixels of the stored images, by the numpy code that test_boxes.py holds to torchvision."""
    draws = boxes.crop_draws(5, epoch, index, scale=scale, ratio=RATIO)
    sizes = [pillow(source.paths[k]).shape[:2] for k in index]
    pairs = zip(draws, sizes, strict=True)
    return np.stack([boxes.random_crop(d, float(h), float(w), RATIO) for d, (h, w) in pairs])


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


def gradient(height, width):
    """Red says how far down a pixel lies, green how far right."""
    y, x = np.mgrid[:height, :width]
    return np.stack([y * 255 / height, x * 255 / width, 0 * y + 128], -1).round().astype(np.uint8)


@pytest.mark.parametrize("form", ["jpg", "png"])
@pytest.mark.parametrize(("size", "canvas"), [((320, 400), 210), ((320, 400), 64), ((1000, 700), 40), ((901, 333), 30)])
def test_a_union_larger_than_the_canvas_is_reduced_and_its_boxes_with_it(tmp_path, form, size, canvas):
    quality = {"quality": 100, "subsampling": 0} if form == "jpg" else {}
    for k in range(8):
        Image.fromarray(gradient(*size)).save(tmp_path / f"{k}.{form}", **quality)
    source = data.ImageFolder(tmp_path)
    factors = []
    for step, batch in enumerate(take(3, train(source, canvas=canvas, scale=(0.2, 0.9)))):
        truth = expected_boxes(source, *order.batch_indices(8, 8, 5, step), (0.2, 0.9))
        for shown, found, real in zip(batch["canvas"], batch["boxes"], truth, strict=True):
            factor = round(real[0, 2] / found[0, 2])
            np.testing.assert_allclose(real[:, 2:] / found[:, 2:], factor, rtol=1e-5)
            np.testing.assert_allclose(real[1] - real[0], factor * (found[1] - found[0]), atol=1e-3)
            assert np.all(found >= 0) and np.all(found[:, :2] + found[:, 2:] <= canvas + 1e-3)
            factors.append(factor)
            # The place that the colours name, at the middle of each box.
            for (top, left, h, w), (real_top, real_left, *_) in zip(found, real, strict=True):
                pixel = np.asarray([top + h / 2, left + w / 2]).astype(int)
                place = shown[tuple(pixel)][:2] / 255 * size + 0.5
                expected = [real_top, real_left] + (pixel + 0.5 - [top, left]) * factor
                assert np.all(np.abs(place - expected) < 2.5 * max(size) / 255)
    union = np.ceil(max(size) / canvas)
    assert max(factors) > 1 and max(factors) <= (2 * union if form == "jpg" else union)
    if form == "jpg" and union <= 8:
        assert set(factors) <= {1, 2, 4, 8}


def test_a_reduced_jpeg_is_pillows_draft_of_it(tmp_path):
    """Image.draft is libjpeg's own reduction; on the canvas lies its part from floor(union / factor) on."""
    for k in range(8):
        Image.fromarray(photograph(301 + k, 395 - k, seed=k)).save(tmp_path / f"{k}.jpg", subsampling=k % 3)
    source, found_factors = data.ImageFolder(tmp_path), set()
    for canvas in (170, 90, 47):
        for step, batch in enumerate(take(2, train(source, canvas=canvas))):
            _, index = order.batch_indices(8, 8, 5, step)
            for row, real in enumerate(expected_boxes(source, step, index, SCALE)):
                factor = round(real[0, 2] / batch["boxes"][row, 0, 2])
                found_factors.add(factor)
                image = Image.open(source.paths[index[row]])
                image.draft("RGB", (image.width // factor, image.height // factor))
                start = np.floor(real[:, :2].min(0) / factor).astype(int)
                stop = np.ceil((real[:, :2] + real[:, 2:]).max(0) / factor).astype(int)
                expected = np.asarray(image)[start[0] : stop[0], start[1] : stop[1]]
                assert np.array_equal(batch["canvas"][row, : len(expected), : expected.shape[1]], expected)
                np.testing.assert_allclose(batch["boxes"][row, :, :2], real[:, :2] / factor - start, atol=1e-4)
    assert found_factors >= {2, 4, 8}


def test_a_reduced_png_is_the_mean_of_its_cells(tmp_path):
    pixels = photograph(211, 330)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    source = data.ImageFolder(tmp_path)
    for step, batch in enumerate(take(6, train(source, batch_size=1, canvas=50))):
        real = expected_boxes(source, step, [0], SCALE)[0].astype(int)
        start, stop = real[:, :2].min(0), (real[:, :2] + real[:, 2:]).max(0)
        factor = -(-max(stop - start) // 50)
        union = pixels[start[0] : stop[0], start[1] : stop[1]].astype(float)
        short = -np.asarray(union.shape[:2]) % factor
        cells = np.pad(union, ((0, short[0]), (0, short[1]), (0, 0)), mode="edge")
        height, width = np.asarray(cells.shape[:2]) // factor
        mean = cells.reshape(height, factor, width, factor, 3).mean((1, 3))
        assert np.abs(batch["canvas"][0, :height, :width] - mean).max() <= 0.501
        np.testing.assert_allclose(batch["boxes"][0], (real - [*start, 0, 0]) / factor, atol=1e-5)


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
        ({"scale": (0.5, 2.0)}, "scale is"),
        ({"last": "kept"}, "'drop', 'wrap', 'keep'"),
        ({"seed": -1}, "seed is -1"),
        ({"last": "keep", "process_count": 2}, "5 rows, which 2 processes do not divide: set config.data.last='wrap'"),
        ({"max_bad_fraction": 2}, "max_bad_fraction is 2"),
    ],
)
def test_impossible_arguments_end_at_once(arrays, options, words):
    with pytest.raises(UserError, match=words):
        train(arrays, **options)


def test_impossible_crop(arrays):
    with pytest.raises(UserError, match="crop is 224"):
        data.eval_batches(arrays, batch_size=4, canvas=24, resize_short=32)


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
