"""The two sources that the batches are tested on: files and arrays."""

import numpy as np
import pytest
from batches import SIZES, photograph
from PIL import Image

from barlow_jax import data


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
