"""Scattered digits: a small labelled image set that needs no download, made of scikit-learn's real 8 x 8 digits.

Each of the 1,797 handwritten digits is drawn a few times at random size, place, angle, slant and colours. What
tells the classes apart is the shape alone, so raw pixels say little and features must be learnt: see
`scattered_digits` for the figures.
"""

import numpy as np

from barlow_jax.data.sources import Arrays
from barlow_jax.errors import UserError

# How many of the 1,797 digits each split draws from. "val" serves to choose settings, "test" to report.
SPLITS = {"train": 1197, "val": 200, "test": 400}
LUMA = np.asarray([0.299, 0.587, 0.114])  # ITU-R BT.601, as PIL's convert("L")


def source_digits(split):
    """Positions in sklearn.datasets.load_digits() of the digits of one split: int64 [1197 | 200 | 400].

    A fixed shuffle cut in three, so that no digit is in two splits whatever the other arguments of
    scattered_digits. (The same writers are in all three: the data set does not say who wrote what.)
    """
    if split not in SPLITS:
        raise UserError(f"digits split is {split!r}, but must be one of {', '.join(map(repr, SPLITS))}.")
    order = np.random.RandomState(8).permutation(sum(SPLITS.values()))
    cuts = np.cumsum([0, *SPLITS.values()])
    k = list(SPLITS).index(split)
    return order[cuts[k] : cuts[k + 1]]


def _colours(rng, n, contrast):
    """Foreground and background colours [2, n, 3] in [0, 1], uniform but for a luma difference >= contrast."""
    colours = rng.uniform(size=(2, n, 3))
    while True:
        poor = np.abs((colours[0] - colours[1]) @ LUMA) < contrast
        if not poor.any():
            return colours
        colours[:, poor] = rng.uniform(size=(2, poor.sum(), 3))


def _inverse_maps(rng, n, size, box, rotation, shear):
    """Affine maps [n, 2, 3] from (y, x, 1) on the canvas, in pixels, to (row, column) on the 8 x 8 digit."""
    side = rng.uniform(*box, size=n)
    angle = np.deg2rad(rng.uniform(-rotation, rotation, size=n))
    slant = rng.uniform(-shear, shear, size=n)
    corner = rng.uniform(size=(n, 2)) * (size - side[:, None])
    cos, sin = np.cos(angle), np.sin(angle)
    # digit = shear . rotation . (canvas - centre) / scale + centre of the digit, in pixel edges (centres at .5)
    turn = np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2)
    skew = np.stack([np.stack([np.ones(n), np.zeros(n)], -1), np.stack([slant, np.ones(n)], -1)], -2)
    linear = skew @ turn * (8 / side)[:, None, None]
    centre = corner + side[:, None] / 2
    offset = 4 - np.einsum("nij,nj->ni", linear, centre)
    return np.concatenate([linear, offset[:, :, None]], axis=2)


def _draw(digits, maps, size):
    """Bilinear samples of digits [n, 8, 8] on a canvas [n, size, size], 0 outside the digit."""
    y, x = np.mgrid[:size, :size] + 0.5
    grid = np.stack([y.ravel(), x.ravel(), np.ones(size * size)])
    row, column = np.moveaxis(maps @ grid, 1, 0) - 0.5  # [n, size * size], in pixel centres
    framed = np.pad(digits, ((0, 0), (2, 2), (2, 2))).reshape(len(digits), -1)
    ink = 0
    row, column = np.clip(row, -2, 8) + 2, np.clip(column, -2, 8) + 2
    top, left = np.minimum(row.astype(int), 10), np.minimum(column.astype(int), 10)
    for down in (0, 1):
        for right in (0, 1):
            weight = np.abs(1 - down - (row - top)) * np.abs(1 - right - (column - left))
            ink = ink + weight * np.take_along_axis(framed, (top + down) * 12 + left + right, axis=1)
    return ink.reshape(-1, size, size)


def scattered_digits(
    split="train", *, size=24, renderings=3, seed=0, box=(15, 23), rotation=15.0, shear=0.15, contrast=0.3, noise=0.03
):
    """Labelled RGB images of handwritten digits: Arrays with uint8 [renderings x digits, size, size, 3].

    split: "train" (1,197 source digits), "val" (200) or "test" (400), disjoint. Image k shows source digit
      k // renderings of the split.
    box: range of the digit's side in pixels; it lies anywhere within the size x size canvas.
    rotation: largest angle in degrees; shear: largest slant. contrast: smallest luma difference (0 to 1) of the
      two colours, either the brighter. noise: standard deviation, of 1, of each value.
    All drawn uniformly, from RandomState([seed, split]): a pure function of its arguments.

    What needs no learning reaches on the default test split, from the train split: 20-NN (cosine, T = 0.07) of raw
    pixels 0.44, less each image's mean 0.53, less its mean colour 0.77; logistic regression of raw pixels 0.15.
    """
    from sklearn.datasets import load_digits

    if not 0 < box[0] <= box[1] <= size:
        raise UserError(f"digits box is {tuple(box)}, but must be (smallest, largest) side within the {size} pixels.")
    if renderings < 1:
        raise UserError(f"digits renderings is {renderings}, but must be at least 1.")
    chosen = np.repeat(source_digits(split), renderings)
    digits = load_digits()
    rng = np.random.RandomState([seed, list(SPLITS).index(split)])
    maps = _inverse_maps(rng, len(chosen), size, box, rotation, shear)
    ink = _draw(digits.images[chosen] / 16, maps, size)[..., None]
    front, back = _colours(rng, len(chosen), contrast)[:, :, None, None, :]
    images = back + ink * (front - back) + noise * rng.normal(size=(*ink.shape[:3], 3))
    images = np.round(255 * np.clip(images, 0, 1)).astype(np.uint8)
    names = [str(name) for name in digits.target_names]
    return Arrays(images, digits.target[chosen], class_names=names, name=f"digits:{split}")
