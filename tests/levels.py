"""Grey levels beside expected ones, and the two resamplings, compiled once for all tests of the same shapes."""

import jax
import numpy as np

from barlow_jax.ops import image as image_ops

crop_resize = jax.jit(image_ops.crop_resize, static_argnums=2, static_argnames="interpolation")
affine_crop = jax.jit(image_ops.affine_crop, static_argnums=3)


def assert_levels(actual, expected, *, most=0, share=0.0):
    """Equal but for at most `share` of the values, which differ by at most `most` grey levels."""
    difference = np.abs(np.asarray(actual, np.float64) - expected)
    assert np.shape(actual) == expected.shape
    assert difference.max() <= most
    assert (difference > 0).mean() <= share
