"""Views on the devices against `augment` called plainly."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from barlow_jax import augment, sharding, views

RECIPE = augment.Recipe(size=16)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    return {
        "canvas": rng.integers(0, 255, (16, 24, 24, 3), np.uint8),
        "boxes": np.concatenate([rng.uniform(0, 6, (16, 2, 2)), rng.uniform(8, 18, (16, 2, 2))], -1).astype(np.float32),
        "extent": np.tile(np.array([20, 24], np.int32), (16, 1)),
    }


def on(devices, make, *args):
    """What `make` gives on so many devices, of arrays on the host."""
    mesh = sharding.make_mesh(jax.devices()[:devices])
    *step, rows = args
    return np.asarray(jax.jit(make(mesh))(*step, jax.device_put(rows, sharding.by_example(mesh))))


def test_views_in_micro_batches_are_the_same_bits(batch):
    whole, parts = (on(2, lambda m, n=n: views.make_views(RECIPE, 0, m, microbatches=n), 3, batch) for n in (1, 4))
    np.testing.assert_array_equal(whole, parts)


def test_views_are_those_of_the_keys_of_the_step(batch):
    """On two devices as by the plain function; another step gives others."""
    made = on(2, lambda mesh: views.make_views(RECIPE, 5, mesh), 3, batch)
    keys = sharding.example_keys(5, 3, 16)
    plain = jax.jit(augment.random_views, static_argnums=3)(keys, batch["canvas"], batch["boxes"], RECIPE)
    np.testing.assert_array_equal(made, plain)
    assert not np.array_equal(made, on(2, lambda mesh: views.make_views(RECIPE, 5, mesh), 4, batch))


def test_what_is_told_of_views_made_them(batch):
    """The draws of a view, applied to its image alone, give it; so do those of small views, in micro-batches too."""
    recipe = augment.Recipe(
        size=16, flip=0.5, grayscale=0.5, solarize=(0.5, 0.5), jitter=0, blur=(0, 0)
    )  # soon compiled
    few = dataclasses.replace(recipe, size=8)
    given = batch | {"small_boxes": batch["boxes"][:, :1]}
    mesh = sharding.make_mesh(jax.devices()[:2])
    make = views.make_views(recipe, 5, mesh, microbatches=2, small=few, told=True)
    made, draws = jax.device_get(jax.jit(make)(3, jax.device_put(given, sharding.by_example(mesh))))

    def applied(image, box, numbers, recipe):
        return augment.color_ops.normalize(augment.apply(image, box, numbers, recipe), recipe.mean, recipe.std)

    for of, name, of_size in zip(made, ("boxes", "small_boxes"), (recipe, few), strict=True):
        one = jax.jit(functools.partial(applied, recipe=of_size))
        for i, v in ((0, 0), (5, 0), (9, of.shape[1] - 1), (14, of.shape[1] - 1)):
            numbers = jax.tree.map(lambda x, i=i, v=v: x[i, v], draws[name])
            np.testing.assert_allclose(one(batch["canvas"][i], given[name][i, v], numbers), of[i, v], atol=1e-6)
        assert len(np.unique(draws[name].factors[..., 0])) == 16 * of.shape[1]


def test_small_views_and_another_size_leave_the_rest_as_it_is(batch):
    """Small ones are the views of a key of their own; a batch's own size is another program of the same draws."""
    recipe = augment.Recipe(size=16, jitter=0, grayscale=0, blur=(0, 0), solarize=(0, 1))
    both = batch | {"small_boxes": batch["boxes"][:, ::-1]}
    mesh = sharding.make_mesh(jax.devices()[:2])
    given = jax.device_put(both, sharding.by_example(mesh))
    large, few = jax.jit(views.make_views(recipe, 5, mesh, microbatches=2, small=recipe))(3, given)
    keys, plain = sharding.example_keys(5, 3, 16), jax.jit(augment.random_views, static_argnums=3)
    np.testing.assert_array_equal(large, plain(keys, both["canvas"], both["boxes"], recipe))
    keys = augment.keys_of_small(keys)
    np.testing.assert_array_equal(few, plain(keys, both["canvas"], both["small_boxes"], recipe))
    made = views.make_views(recipe, 5, mesh, small=dataclasses.replace(recipe, size=8))
    large, few = jax.eval_shape(made, 3, given | {"size": views.Size(12)})
    assert large.shape == (16, 2, 12, 12, 3) and few.shape == (16, 2, 8, 8, 3)


def test_the_one_view_is_the_first_of_two(batch):
    one = on(4, lambda mesh: views.make_one_view(RECIPE, 0, mesh), 3, batch | {"boxes": batch["boxes"][:, :1]})
    two = on(1, lambda mesh: views.make_views(RECIPE, 0, mesh), 3, batch)
    np.testing.assert_array_equal(one, two[:, 0])


def test_the_view_of_evaluation_is_the_same_on_any_number_of_devices(batch):
    options = {"size": 12, "mean": RECIPE.mean, "std": RECIPE.std}
    rows = batch | {"boxes": batch["boxes"][:, :1]}
    made = on(8, lambda mesh: views.make_eval_views(**options, mesh=mesh), rows)
    assert made.shape == (16, 12, 12, 3)
    plain = jax.jit(lambda canvas, boxes, extent: augment.eval_views(canvas, boxes, extent, **options))
    np.testing.assert_array_equal(made, plain(rows["canvas"], rows["boxes"], rows["extent"]))
