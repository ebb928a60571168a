"""Features are gathered in the order of the source, each example once, without a second copy of them."""

import tracemalloc

import numpy as np
import pytest

from barlow_jax.evaluation import features


def batches(index, rows, shape=(5,), masked=()):
    """What feature steps give of the examples `index`: features that tell the example and where it came."""
    index = np.asarray(index, np.int32)
    for start in range(0, len(index), rows):
        part = index[start : start + rows]
        told = np.broadcast_to((part + start / 1000).reshape(-1, *[1] * len(shape)), (len(part), *shape))
        out = {"features": told.astype(np.float32), "label": part % 3, "index": part}
        yield out | ({"mask": ~np.isin(part, masked)} if masked else {})


def old(outputs):
    """By lists, np.concatenate and np.unique: the reference."""
    parts = []
    for out in outputs:
        mask = out.get("mask", np.ones(len(out["label"]), bool))
        parts.append([out[name][mask] for name in ("features", "label", "index")])
    found, labels, index = (np.concatenate(part) for part in zip(*parts, strict=True))
    index, first = np.unique(index, return_index=True)
    return found[first], labels[first], index


EPOCH = np.random.RandomState(0).permutation(50)
CASES = {
    "in order": (range(50), ()),
    "padded": ([*range(50), *[-1] * 6], (-1,)),
    "unreadable ones are left out": ([*range(50), *[-1] * 6], (-1, 0, 7, 8, 49)),
    "an epoch that wraps": ([*EPOCH, *EPOCH[:6]], ()),
    "one that stands for another, in a batch and later": ([3, 3, *EPOCH[2:], 3, *EPOCH[:5]], ()),
}


@pytest.mark.parametrize("shape", [(5,), (4, 3)])
@pytest.mark.parametrize("case", CASES)
def test_each_example_once_in_the_order_of_the_source(case, shape, monkeypatch):
    monkeypatch.setattr(features, "BLOCK", 4)
    index, masked = CASES[case]
    found, expected = features.gather(batches(index, 7, shape, masked), 50), old(batches(index, 7, shape, masked))
    for array, reference in zip(found, expected, strict=True):
        assert array.dtype == reference.dtype and np.array_equal(array, reference)


@pytest.mark.parametrize("case", ["in order", "shuffled", "one is missing"])
def test_no_second_copy_is_made(case):
    n, width = 4096, 512
    index = {"in order": np.arange(n), "shuffled": np.arange(n)[::-1], "one is missing": None}[case]
    index, masked = (index, ()) if index is not None else (np.arange(n), (5,))
    tracemalloc.start()
    try:
        features.gather(batches(index, 64, (width,), masked), n)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # Besides the features a batch or a block of rows, and a few numbers for each row.
    assert peak < 4 * n * width + 4 * width * (features.BLOCK + 2 * 64) + 40 * n
