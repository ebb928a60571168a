"""What the devices are fed: from the host, and from a set that lives there."""

import jax
import numpy as np
import pytest

from barlow_jax import sharding
from barlow_jax.data import Arrays, order
from barlow_jax.training import feed

OPTIONS = {"batch_size": 16, "seed": 3, "canvas": 9, "threads": 1, "crop_scale": (0.5, 1.0), "crop_ratio": (1.0, 1.0)}


def source(n=21):
    rng = np.random.default_rng(0)
    return Arrays(rng.integers(0, 255, (n, 9, 9, 3), np.uint8), np.arange(n, dtype=np.int32))


@pytest.mark.parametrize("resident_bytes", [0, 2**30])
def test_keep_serves_arrays_from_the_host_and_from_the_devices(resident_bytes):
    arrays, mesh = source(), sharding.make_mesh()
    epochs = {"last": "keep", "reference_world_size": 8}
    batches = feed.train_batches(arrays, 1, mesh, **OPTIONS, **epochs, resident_bytes=resident_bytes)
    for step, rows in ((1, 8), (2, 16), (3, 8)):
        batch = next(batches)
        index = order.batch_indices(21, 16, 3, step, **epochs)[1]
        assert np.array_equal(batch["index"], index)
        assert np.array_equal(batch["canvas"], arrays.images[index]) and np.array_equal(batch["label"], index)
        assert {key: len(value) for key, value in batch.items()} == dict.fromkeys(batch, rows)
        assert {value.sharding for value in batch.values()} == {sharding.by_example(mesh)}
    batches.close()


def test_arrays_live_on_the_devices_up_to_a_size():
    arrays = source()
    size = arrays.images.nbytes
    assert feed.fits_on_devices(arrays, size) and not feed.fits_on_devices(arrays, size - 1)
    assert feed.resident(arrays, size, canvas=9) is arrays
    assert feed.resident(arrays, size - 1, canvas=9) is arrays  # served from the host


def test_boxes_on_the_devices_are_the_same_however_many_views():
    mesh = sharding.make_mesh(jax.devices()[:2])
    images = np.random.default_rng(0).integers(0, 256, (6, 20, 24, 3)).astype(np.uint8)
    one, two, five = (
        feed.ResidentSet(images, None, mesh, seed=1, scale=(0.08, 1.0), ratio=(0.75, 1.33), views=views).batch(
            np.arange(4), step=5
        )
        for views in (1, 2, 5)
    )
    assert one["boxes"].shape == (4, 1, 4) and five["boxes"].shape == (4, 5, 4)
    np.testing.assert_array_equal(one["boxes"][:, 0], two["boxes"][:, 0])
    np.testing.assert_array_equal(five["boxes"][:, :2], two["boxes"])
    assert len(np.unique(five["boxes"].reshape(20, 4), axis=0)) == 20


@pytest.mark.parametrize("resident_bytes", [0, 2**30])
def test_small_boxes_stand_beside_the_others(resident_bytes):
    """Those of the full views stay what they are, and the first small ones too, however many there are."""
    images = np.random.default_rng(0).integers(0, 255, (21, 40, 40, 3), np.uint8)
    arrays, mesh = Arrays(images, np.arange(21, dtype=np.int32)), sharding.make_mesh()

    def first(**more):
        options = OPTIONS | {"canvas": 40, "last": "wrap", "resident_bytes": resident_bytes} | more
        batches = feed.train_batches(arrays, 1, mesh, **options)
        batch = next(batches)
        batches.close()
        return batch

    none, two, three = first(), first(small=2), first(small=3, views=4)
    assert "small_boxes" not in none and two["small_boxes"].shape == (16, 2, 4)
    np.testing.assert_array_equal(none["boxes"], two["boxes"])
    np.testing.assert_array_equal(three["boxes"][:, :2], two["boxes"])
    np.testing.assert_array_equal(three["small_boxes"][:, :2], two["small_boxes"])
    share = np.asarray(three["small_boxes"])[..., 2:].prod(-1) / 1600
    assert 0.04 < share.min() < 0.08 and 0.11 < share.max() < 0.15
    assert len(np.unique(np.asarray(three["small_boxes"]).reshape(48, 4), axis=0)) > 40


def test_batches_go_ahead_and_arrive_in_order():
    mesh, taken = sharding.make_mesh(), []

    def host():
        for k in range(5):
            taken.append(k)
            yield {"x": np.full(8, k)}

    batches = feed.prefetch(host(), mesh, ahead=2)
    assert np.array_equal(next(batches)["x"], np.zeros(8)) and taken == [0, 1, 2]
    assert [int(batch["x"][0]) for batch in batches] == [1, 2, 3, 4]


def test_an_evaluation_serves_every_image_once_to_all_devices():
    mesh = sharding.make_mesh()
    options = {"batch_size": 9, "canvas": 9, "resize_short": 8, "crop": 8, "threads": 1}
    batches = list(feed.eval_batches(source(), mesh, **options))
    assert [len(batch["index"]) for batch in batches] == [16, 16]  # 9, rounded up to the 8 devices
    index = np.concatenate([batch["index"][batch["mask"]] for batch in batches])
    assert np.array_equal(index, np.arange(21))
