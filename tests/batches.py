"""Batches of small image sets, and what Pillow makes of the same files."""

import numpy as np
from PIL import Image

from barlow_jax import data
from barlow_jax.data import boxes

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
SIZES = [(60, 90), (91, 57), (64, 64), (33, 128), (17, 19), (3, 50), (1, 1), (100, 77), (70, 150)]


def photograph(height, width, seed=0):
    """Smooth colours with some texture: what chroma subsampling and its interpolation show themselves on."""
    rng = np.random.RandomState(seed)
    coarse = Image.fromarray(rng.randint(0, 256, (max(height // 6, 1), max(width // 6, 1), 3)).astype(np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.BICUBIC)).astype(int)
    return np.clip(smooth + rng.randint(-12, 13, smooth.shape), 0, 255).astype(np.uint8)


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


def expected_boxes(source, epoch, index, scale):
    """In pixels of the stored images, by the numpy code that test_boxes.py holds to torchvision."""
    draws = boxes.crop_draws(5, epoch, index, scale=scale, ratio=RATIO)
    sizes = [pillow(source.paths[k]).shape[:2] for k in index]
    pairs = zip(draws, sizes, strict=True)
    return np.stack([boxes.random_crop(d, float(h), float(w), RATIO) for d, (h, w) in pairs])
