"""Views: whole pipes against Pillow's output, random numbers against torchvision's, a batch against its parts."""

import dataclasses
import functools
import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from levels import affine_crop, assert_levels, crop_resize
from PIL import Image

from barlow_jax import augment
from barlow_jax.data.boxes import center_crop
from barlow_jax.errors import UserError
from barlow_jax.ops import color as color_ops

# Compiled once for all tests of the same shapes.
apply = jax.jit(augment.apply, static_argnums=3)
draw = jax.jit(jax.vmap(jax.vmap(augment.draw, (0, None, None)), (None, None, 0)), static_argnums=1)
random_views = jax.jit(augment.random_views, static_argnums=3)
eval_views = jax.jit(augment.eval_views, static_argnames=("size", "mean", "std"))
random_boxes = jax.jit(augment.random_boxes, static_argnames=("views", "scale", "ratio"))

SHARED = pathlib.Path(__file__).parents[2] / "shared" / "data"  # photographs that may not be distributed
PIPE_RECIPE = augment.Recipe(size=40, solarize=(0.5, 0.5), invert=0.5)  # every operation present
OFF = dict(flip=0.0, jitter=0.0, grayscale=0.0, blur=(0.0, 0.0), solarize=(0.0, 0.0))


# ----------------------------------------------------------------------------------------------- whole views


def central(image, short, size, *, jit=True):
    """The evaluation view of uint8 [H, W, 3] in grey levels; nothing outside the image may matter."""
    height, width = image.shape[:2]
    canvas = np.full((1, *(max(height, width),) * 2, 3), 77, np.uint8)
    canvas[0, :height, :width] = image
    box = center_crop(np.array([height]), np.array([width]), short, size)
    make = eval_views if jit else augment.eval_views
    extent = np.array([[height, width]])
    view = make(canvas, box[None, None].astype(np.float32), extent, size=size, mean=(0.0,) * 3, std=(1 / 255,) * 3)
    return np.round(view[0])


@pytest.mark.parametrize("jit", [pytest.param(False, marks=pytest.mark.slow), True], ids=["eager", "jit"])
def test_eval_views_equal_resize_and_center_crop(pillow, jit):
    arrays, parameters = pillow
    photo = arrays["photo"].astype(np.uint8)
    for k, sizes in enumerate(parameters["resizes"]):
        for image, name in ((photo, "wide"), (photo.transpose(1, 0, 2), "tall")):
            assert_levels(central(image, *sizes, jit=jit), arrays[f"resize{k}_{name}"], most=1, share=0.015)
    square = central(photo[:56, :56], *parameters["square_resize"], jit=jit)
    assert_levels(square, arrays["resize_square"])
    left, top, right, bottom = parameters["strip"]
    strip = central(photo[top:bottom, left:right], *parameters["strip_resize"], jit=jit)
    assert_levels(strip, arrays["resize_strip"], most=1, share=0.06)  # columns first: 0.22


def assert_official_evaluation(image):
    """Resize(256) and CenterCrop(224) of a square of 224 pixels, by Pillow as it is installed."""
    with_pillow = np.asarray(Image.fromarray(image).resize((256, 256), Image.BILINEAR))[16:240, 16:240]
    assert_levels(central(image, 256, 224), with_pillow)


def test_eval_views_of_224_pixels_equal_pillow(pillow):
    """196 pixels become 224: sixteenths, and exact halves one time in 16."""
    assert_official_evaluation(np.random.RandomState(0).randint(0, 256, (224, 224, 3), np.uint8))
    assert_official_evaluation(np.tile(pillow[0]["photo"], (4, 3, 1))[:224, :224].astype(np.uint8))


def test_eval_views_of_photographs_equal_pillow():
    folder = SHARED / "imagenette224_mini" / "val"
    files = [f for f in sorted(folder.glob("*/*.JPEG"))[::40]]
    if not files:
        pytest.skip("the photographs of imagenette224_mini are not beside this checkout")
    for file in files[:10]:
        image = np.asarray(Image.open(file).convert("RGB"))
        assert image.shape == (224, 224, 3)
        assert_official_evaluation(image)


def test_crops_of_photographs_equal_pillow():
    files = sorted((SHARED / "imagenet_originals").glob("*/*.JPEG"))[::7]
    if not files:
        pytest.skip("the photographs of imagenet_originals are not beside this checkout")
    rng = np.random.RandomState(0)
    different = values = 0
    for file in files:
        image = Image.open(file).convert("RGB")
        image.thumbnail((512, 512))
        canvas = np.zeros((512, 512, 3), np.float32)
        canvas[: image.height, : image.width] = image
        height, width = rng.randint(24, image.height + 1), rng.randint(24, image.width + 1)
        top, left = rng.randint(image.height - height + 1), rng.randint(image.width - width + 1)
        # In the order of Pillow 13, also by another Pillow.
        rows_first = height - 224 > 2 * max(width - 224, 0)
        between = (width, 224) if rows_first else (224, height)
        expected = image.crop((left, top, left + width, top + height))
        expected = np.asarray(expected.resize(between, Image.BICUBIC).resize((224, 224), Image.BICUBIC))
        result = np.asarray(crop_resize(canvas, np.array([top, left, height, width], np.float32), 224))
        assert_levels(result, expected, most=1, share=0.01)
        different, values = different + (result != expected).sum(), values + expected.size
    assert different < 2e-3 * values


def test_eval_views_of_padding_rows_are_black():
    black = eval_views(
        np.zeros((1, 20, 20, 3), np.uint8),
        np.zeros((1, 1, 4), np.float32),
        np.zeros((1, 2), np.int32),
        size=8,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
    )
    np.testing.assert_array_equal(black, -1.0)


def test_apply_equals_pillow(pillow):
    arrays, parameters = pillow
    for k, pipe in enumerate(parameters["pipes"]):
        numbers = augment.Draw(
            flip=pipe.get("flip", False),
            angle=0.0,
            order=np.array(pipe.get("order", [color_ops.NOTHING] * 4)),
            factors=np.array(pipe.get("factors", [0.0] * 4), np.float32),
            grayscale=pipe.get("grayscale", False),
            sigma=pipe.get("sigma", 0.0),
            solarize=pipe.get("solarize", False),
            invert=pipe.get("invert", False),
        )
        result = apply(arrays["photo"].astype(np.uint8), np.array(pipe["box"], np.float32), numbers, PIPE_RECIPE)
        assert_levels(result, arrays[f"pipe{k}"], most=1, share=2e-3)


def test_apply_to_one_channel_equals_grey_rgb(pillow):
    """Saturation, hue and grayscale do nothing to one channel, as they do to grey."""
    grey = np.repeat(pillow[0]["photo"][..., :1], 3, axis=-1).astype(np.uint8)
    box = np.array([2, 3, 40, 50], np.float32)
    factors = np.array([1.2, 0.7, 1.2, 0.1], np.float32)
    numbers = augment.Draw(True, 0.0, np.array([3, 1, 2, 0]), factors, True, 1.1, True, True)
    rgb = apply(grey, box, numbers, PIPE_RECIPE)
    assert_levels(apply(grey[..., :1], box, numbers, PIPE_RECIPE), np.asarray(rgb)[..., :1])


def test_operations_of_probability_zero_are_left_out(pillow):
    recipe = augment.Recipe(size=24, **OFF)
    box = np.array([2, 3, 40, 50], np.float32)
    all_on = augment.Draw(True, 30.0, np.arange(4), np.full(4, 1.3, np.float32), True, 2.0, True, True)
    result = apply(pillow[0]["photo"], box, all_on, recipe)
    assert_levels(result, np.asarray(crop_resize(pillow[0]["photo"], box, 24)))
    jittered = dataclasses.replace(recipe, jitter=1.0, hue=0.0)  # a shift of 0 is not the identity: HSV has 8 bits
    no_hue = dataclasses.replace(all_on, order=np.array([color_ops.NOTHING, 0, 1, 2]))
    ones = dataclasses.replace(all_on, order=np.array([color_ops.HUE, 0, 1, 2]))
    assert_levels(*(np.asarray(apply(pillow[0]["photo"], box, numbers, jittered)) for numbers in (ones, no_hue)))
    turned = apply(pillow[0]["photo"], box, all_on, dataclasses.replace(recipe, rotation=45.0))
    assert_levels(turned, np.asarray(affine_crop(pillow[0]["photo"], box, 30.0, 24)), most=1, share=1e-3)


# ------------------------------------------------------------------------------------------- random numbers


@pytest.fixture(scope="module")
def drawn():
    """The official recipe's numbers of 8,000 examples, plus rotation and inversion: a Draw with [2, 8000, ...]."""
    recipe = augment.Recipe(rotation=10.0, invert=0.3)
    keys = jax.random.split(jax.random.key(0), 8000)
    numbers = draw(keys, recipe, jnp.arange(2))
    return dataclasses.replace(
        numbers, **{f.name: np.asarray(getattr(numbers, f.name)) for f in dataclasses.fields(numbers)}
    )


def test_probabilities(drawn):
    jittered = (drawn.order != color_ops.NOTHING).all(-1)
    np.testing.assert_array_equal(jittered, (drawn.order != color_ops.NOTHING).any(-1))  # one coin for all four
    rates = dict(flip=drawn.flip, jitter=jittered, grayscale=drawn.grayscale, blur=drawn.sigma > 0)
    rates.update(solarize=drawn.solarize, invert=drawn.invert)
    expected = dict(flip=(0.5, 0.5), jitter=(0.8, 0.8), grayscale=(0.2, 0.2), blur=(1, 0.1), solarize=(0, 0.2))
    expected.update(invert=(0.3, 0.3))
    for name, acts in rates.items():
        for rate, probability in zip(acts.mean(1), expected[name], strict=True):
            deviation = np.sqrt(probability * (1 - probability) / 8000)
            assert abs(rate - probability) <= 4 * deviation, name


def test_uniform_ranges(drawn):
    numbers = [*np.moveaxis(drawn.factors, -1, 0), drawn.angle, drawn.sigma[:1]]
    ranges = [(0.6, 1.4), (0.6, 1.4), (0.8, 1.2), (-0.1, 0.1), (-10, 10), (0.1, 2.0)]
    for sample, (low, high) in zip(numbers, ranges, strict=True):
        share = (sample.ravel() - low) / (high - low)
        assert share.min() > -1e-6 and share.max() < 1 + 1e-6
        np.testing.assert_allclose(np.quantile(share, np.arange(1, 10) / 10), np.arange(1, 10) / 10, atol=0.025)


def test_every_order_of_the_jitter_is_equally_likely(drawn):
    orders = [tuple(o) for o in drawn.order.reshape(-1, 4) if o[0] != color_ops.NOTHING]
    counts = np.array([orders.count(p) for p in itertools.permutations(range(4))])
    assert counts.sum() == len(orders)
    expected = len(orders) / 24
    assert np.sum((counts - expected) ** 2) / expected < 49.7  # chi squared, 23 degrees of freedom, 99.9 %


def test_draws_are_independent(drawn):
    """No two numbers of a view correlate, nor the same number of the two views."""
    jitter = drawn.order[..., 0] != color_ops.NOTHING
    columns = [drawn.flip, drawn.angle, jitter, drawn.grayscale, drawn.invert, *np.moveaxis(drawn.factors, -1, 0)]
    both = np.concatenate([np.stack([c[view] for c in columns]) for view in range(2)]).astype(float)
    correlation = np.corrcoef(both) - np.eye(len(both))
    assert np.abs(correlation).max() < 4.5 / np.sqrt(8000)


def test_strengths_of_zero_and_above_one():
    key = jax.random.key(1)
    official = augment.draw(key, augment.Recipe(), 0).factors
    factors = augment.draw(key, augment.Recipe(brightness=0.0, contrast=2.0, hue=0.0), 0).factors
    uniform = (official[1] - 0.6) / 0.8
    np.testing.assert_allclose(factors, [1.0, 3 * uniform, official[2], 0.0], rtol=1e-5)  # 0..3, not -1..3


@pytest.mark.parametrize(
    "field, value",
    [
        ("size", 0),
        ("size", 22.5),
        ("interpolation", "nearest"),
        ("flip", 1.5),
        ("jitter", -0.1),
        ("grayscale", float("nan")),
        ("invert", 2),
        ("rotation", -5),
        ("brightness", -0.4),
        ("hue", 0.6),
        ("blur", 0.5),
        ("blur", (0.5,)),
        ("solarize", (0.0, 1.2)),
        ("blur_sigma", (2.0, 0.1)),
        ("mean", ()),
        ("std", (0.2, 0.2)),
        ("std", (0.2, 0.0, 0.2)),
    ],
)
def test_recipe_names_the_wrong_field(field, value):
    with pytest.raises(UserError, match=f"Recipe.{field} is .* but must be "):
        augment.Recipe(**{field: value})


def test_the_recipe_unless_told_otherwise_is_the_official_one():
    """Transform of the official main.py: both views, and torchvision's means of ImageNet."""
    assert dataclasses.asdict(augment.Recipe()) == {
        "size": 224,
        "interpolation": "cubic",
        "rotation": 0.0,
        "flip": 0.5,
        "jitter": 0.8,
        "brightness": 0.4,
        "contrast": 0.4,
        "saturation": 0.2,
        "hue": 0.1,
        "grayscale": 0.2,
        "blur": (1.0, 0.1),
        "blur_sigma": (0.1, 2.0),
        "solarize": (0.0, 0.2),
        "invert": 0.0,
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
    }


def test_recipe_is_hashable_from_lists():
    assert hash(augment.Recipe(blur=[1.0, 0.1], mean=[0.485, 0.456, 0.406])) == hash(augment.Recipe())


# ---------------------------------------------------------------------------------------------------- boxes


def test_random_boxes_follow_torchvision(golden):
    expected = golden("augment")[1]["boxes"]
    shapes = [tuple(int(part[1:]) for part in name.split("_")) for name in expected]
    height, width = (np.repeat([s[k] for s in shapes], 5000) for k in range(2))
    keys = jax.random.split(jax.random.key(0), len(height))
    boxes = random_boxes(keys, height, width, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3))
    assert boxes.shape == (len(height), 2, 4) and boxes.dtype == jnp.float32
    boxes = np.asarray(boxes).reshape(len(shapes), -1, 4)
    np.testing.assert_array_equal(boxes, np.round(boxes))
    for (rows, columns), sample, reference in zip(shapes, boxes, expected.values(), strict=True):
        top, left, h, w = sample.T
        assert top.min() >= 0 and left.min() >= 0 and h.min() > 0 and w.min() > 0
        assert (top + h).max() <= rows and (left + w).max() <= columns
        for start, length, side in ((top, h, rows), (left, w, columns)):  # both ends are as likely
            free = length < side
            assert abs((start[free] == 0).mean() - (start[free] + length[free] == side).mean()) < 0.015
        for q, value in reference["area_fraction"].items():
            atol = 0.04 if rows == 32 else 0.02
            np.testing.assert_allclose(np.quantile(h * w / (rows * columns), float(q)), value, atol=atol)
        for q, value in reference["log_aspect_w_over_h"].items():
            if 0 < float(q) < 1:
                np.testing.assert_allclose(np.quantile(np.log(w / h), float(q)), value, atol=0.03)
        for mean, name, side in zip(sample.mean(0), "ijhw", (rows, columns) * 2, strict=True):
            assert abs(mean - reference["mean"][name]) < 0.015 * side
        fallback = (sample == reference["fallback_box_i_j_h_w"]).all(1).mean()
        assert abs(fallback - reference["freq_of_fallback_box"]) < 0.02


def test_random_boxes_beyond_the_image():
    keys = jax.random.split(jax.random.key(0), 4000)
    boxes = random_boxes(keys, 24, 32, views=1, scale=(0.7, 1.3), ratio=(0.8, 1.25))
    top, left, height, width = np.asarray(boxes[:, 0], np.float64).T
    deciles = np.arange(1, 10) / 10
    for sample, low, high in (
        (height * width / (24 * 32), 0.7, 1.3),
        (np.log(width / height), np.log(0.8), np.log(1.25)),
        (top / (24 - height), 0, 1),  # also where both are negative
        (left / (32 - width), 0, 1),
    ):
        np.testing.assert_allclose(np.quantile(sample, deciles), low + (high - low) * deciles, atol=0.03 * (high - low))
    assert height.max() > 26 and top.min() < -2


def test_boxes_and_views_of_one_key_are_independent(drawn):
    """Both get the example's key, and no number of the box is one of the view's."""
    keys = jax.random.split(jax.random.key(0), 8000)  # as in `drawn`
    found = np.asarray(random_boxes(keys, 400, 500, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3)))
    area, aspect = found[..., 2] * found[..., 3], found[..., 3] / found[..., 2]
    free = found[..., :2] / (np.array([401, 501]) - found[..., 2:])
    box = [*np.moveaxis(np.concatenate([free, area[..., None], aspect[..., None]], -1).reshape(8000, 8), 1, 0)]
    jitter = drawn.order[..., 0] != color_ops.NOTHING
    columns = [drawn.flip, drawn.angle, jitter, drawn.grayscale, drawn.sigma, drawn.solarize, drawn.invert]
    columns += [*np.moveaxis(drawn.factors, -1, 0)]
    view = [column[k] for column in columns for k in range(2) if column[k].std() > 0]
    correlation = np.corrcoef(np.stack(box + view).astype(float))[: len(box), len(box) :]
    assert np.abs(correlation).max() < 4.5 / np.sqrt(8000)


def test_random_boxes_refuse_limits_out_of_order():
    keys = jax.random.split(jax.random.key(0), 2)
    with pytest.raises(UserError, match="scale is .* but must be"):
        augment.random_boxes(keys, 8, 8, scale=(1.0, 0.5), ratio=(0.8, 1.25))
    with pytest.raises(UserError, match="ratio is .* but must be"):
        augment.random_boxes(keys, 8, 8, scale=(0.5, 1.0), ratio=(0.0, 1.25))


# --------------------------------------------------------------------------------------------------- batches

RECIPE = augment.Recipe(size=16, grayscale=0.4, blur=(1.0, 0.5), solarize=(0.3, 0.5), invert=0.3)


@pytest.fixture(scope="module")
def batch():
    """(keys [8], canvas, boxes) and their views."""
    keys = jax.random.split(jax.random.key(7), 8)
    canvas = np.random.RandomState(0).randint(0, 256, (8, 28, 28, 3), np.uint8)
    boxes = np.random.RandomState(1).uniform([0, 0, 8, 8], [8, 8, 20, 20], (8, 2, 4)).astype(np.float32)
    views = random_views(keys, canvas, boxes, RECIPE)
    return (keys, canvas, boxes), np.asarray(views)


def test_more_numbers_leave_those_before_them_as_they_are():
    """So an augmentation that is added changes no draw of the others, and a further box none of those before it."""
    key = jax.random.key(5)
    few, more = (jax.random.uniform(key, (count,)) for count in (16, 19))
    np.testing.assert_array_equal(few, more[:16])


def test_further_views_are_those_of_other_keys(batch):
    """Views 1 and 2 stay what they are; 3 and 4 are the two views of a key made of the example's."""
    (keys, canvas, boxes), _ = batch
    recipe = augment.Recipe(size=16, jitter=0, grayscale=0, blur=(0, 0), solarize=(0, 1))
    views = random_views(keys, canvas, boxes, recipe)
    four = np.asarray(random_views(keys, canvas, np.concatenate([boxes, boxes], axis=1), recipe))
    assert four.shape == (8, 4, *views.shape[2:])
    np.testing.assert_array_equal(four[:, :2], views)
    others = jax.vmap(lambda key: jax.random.fold_in(key, 3))(keys)
    np.testing.assert_array_equal(four[:, 2:], random_views(others, canvas, boxes, recipe))
    differs = ~(four[:, 2:] == views).all((2, 3, 4))
    assert differs.any(0).all() and not differs.all()  # half of the flips fall alike, and nothing else is drawn


def test_random_views_are_draw_apply_normalize(batch):
    (keys, canvas, boxes), views = batch
    assert views.shape == (8, 2, 16, 16, 3) and views.dtype == np.float32

    @jax.jit
    def one_view(key, image, box, view):
        return augment.apply(image, box, augment.draw(key, RECIPE, view), RECIPE)

    levels = np.stack([[one_view(keys[i], canvas[i], boxes[i, v], v) for v in range(2)] for i in range(8)])
    assert levels.min() >= 0 and levels.max() <= 255 and np.all(levels == np.round(levels))
    np.testing.assert_array_equal(np.round((views * RECIPE.std + RECIPE.mean) * 255), levels)
    assert all(np.mean(levels[i, 0] != levels[i, 1]) > 0.5 for i in range(8))


def test_views_do_not_depend_on_the_batch(batch):
    (keys, canvas, boxes), views = batch
    order = np.array([3, 1, 7, 0, 2, 6, 5, 4])
    np.testing.assert_array_equal(random_views(keys[order], canvas[order], boxes[order], RECIPE), views[order])
    some = np.array([5, 2, 6])  # another batch size, and the first view alone
    np.testing.assert_array_equal(random_views(keys[some], canvas[some], boxes[some, :1], RECIPE), views[some, :1])


@pytest.mark.parametrize("mapped", [False, True], ids=["jit", "shard_map"])
def test_views_do_not_depend_on_the_devices(batch, mapped):
    inputs, views = batch
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    make = functools.partial(augment.random_views, recipe=RECIPE)
    if mapped:
        make = jax.shard_map(make, mesh=mesh, in_specs=(P("data"),) * 3, out_specs=P("data"))
    sharding = NamedSharding(mesh, P("data"))
    sharded = jax.jit(make, out_shardings=sharding)(*jax.device_put(inputs, sharding))
    assert len(sharded.sharding.device_set) == 8
    np.testing.assert_array_equal(sharded, views)


def test_random_views_refuse_other_channels_and_shapes(batch):
    (keys, canvas, boxes), _ = batch
    with pytest.raises(UserError, match="images have 1 channels, but Recipe.mean and Recipe.std have 3 values"):
        augment.random_views(keys, canvas[..., :1], boxes, RECIPE)
    with pytest.raises(ValueError, match=r"boxes must have shape \(8, views, 4\); got \(8, 4\)"):
        augment.random_views(keys, canvas, boxes[:, 0], RECIPE)
