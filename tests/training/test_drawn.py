"""What is said of views is what made them."""

import jax
import numpy as np
import pytest
from saved_runs import a_config

from barlow_jax import augment, experiment, sharding
from barlow_jax.data import Arrays
from barlow_jax.training import drawn, viewing


def numbers(**given):
    """Draws that do nothing, but for those given."""
    nothing = {"angle": 0.0, "order": [4, 4, 4, 4], "factors": [1.2, 0.8, 1.1, -0.05], "sigma": 0.0}
    nothing |= dict.fromkeys(("flip", "grayscale", "solarize", "invert"), False)
    return augment.Draw(**{name: np.asarray(value) for name, value in (nothing | given).items()})


@pytest.mark.parametrize("last", ["wrap", "drop"])
def test_the_boxes_are_those_of_the_batch(last):
    """Of every view, as shares of each image's own size; drawn again where the host reads, and kept on the devices."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(20, 41, (24, 2)).astype(np.int32)
    source = Arrays(rng.integers(0, 256, (24, 40, 40, 3)).astype(np.uint8), sizes=sizes)
    config = a_config("convnet", batch_size=16)
    config.data.last = last
    config.data.resident_bytes, config.views.small, config.views.number = 0, 2, 3
    batches = experiment.pretraining_batches(config, source, 5, sharding.make_mesh(jax.devices()[:2]))
    batch = jax.device_get(next(batches))
    batches.close()
    look = {"index": batch["index"], "draws": {}}
    for name, views in (("boxes", 3), ("small_boxes", 2)):
        look["draws"][name] = jax.tree.map(lambda x, v=views: np.broadcast_to(x, (8, v, *np.shape(x))), numbers())
        assert batch[name].shape[1] == views
    elsewhere = {"boxes": np.zeros((8, 3, 4), np.float32), "small_boxes": np.zeros((8, 2, 4), np.float32)}
    told = drawn.captions(config, source, look | elsewhere, 5)
    assert [len(of_one) for of_one in told] == [5] * 8
    of_image = np.tile(sizes[batch["index"][:8]], 2)[:, None]
    for name, first in (("boxes", 0), ("small_boxes", 3)):
        want = 100 * batch[name][:8] / of_image
        for i, v in ((0, 0), (3, 1), (7, batch[name].shape[1] - 1)):
            assert told[i][first + v] == [f"crop {want[i, v, 3]:.0f} x {want[i, v, 2]:.0f} %"]
    config.data.resident_bytes = 2**30
    assert told == drawn.captions(config, source, look | {name: batch[name][:8] for name in elsewhere}, 5)


def test_operations_in_words_in_the_order_in_which_they_act():
    def told(recipe=None, **given):
        return drawn.in_words(numbers(**given), recipe or augment.Recipe(), (0.1, 0.2, 0.3456, 0.5))

    assert told() == ["crop 50 x 35 %"]
    everything = {"flip": True, "order": [3, 0, 2, 1], "grayscale": True, "sigma": 1.25, "solarize": True}
    jitter = ["hue -0.05", "brightness ×1.20", "saturation ×1.10", "contrast ×0.80"]
    rest = ["grey", "blur σ 1.2", "solarized", "inverted"]
    assert told(**everything, invert=True) == ["crop 50 x 35 %", "mirrored", *jitter, *rest]
    grey = augment.Recipe(rotation=10, brightness=0, mean=(0.5,), std=(0.2,))
    # Of one channel there is no hue, no saturation and no grey; a strength of 0 does nothing either.
    assert told(grey, **everything, angle=-7.4) == [
        "crop 50 x 35 %",
        "turned -7°",
        "mirrored",
        "contrast ×0.80",
        "blur σ 1.2",
        "solarized",
    ]


def test_the_log_says_once_what_is_left_out(caplog):
    caplog.set_level("INFO")
    config = a_config("convnet")
    config.views.mean, config.views.std, config.views.small = (0.5,), (0.5,), 2
    viewing.recipe(config, 1), viewing.small_recipe(config, 1), viewing.recipe(config, 1, told=True)
    assert caplog.text.count("are for 3 and are left out") == 1
