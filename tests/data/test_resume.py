"""Resuming at any step gives what the uninterrupted run gets there, from every source, local and in buckets.

The sources, the order, the boxes and what is read are the real ones. In place of the pixels, which are a function of
the bytes and the boxes (test_pipeline.py), stands a digest of the bytes: a graph of TensorFlow for each start would
cost a second.
"""

import hashlib

import cloud_servers
import numpy as np
import pytest
from cloud_servers import KINDS, opened

from barlow_jax import data
from barlow_jax.data import decode

pytestmark = pytest.mark.slow
STEPS = 60


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    cloud_servers.write(root)
    return root


@pytest.fixture(scope="module", params=["local", *cloud_servers.BEGIN])
def where(request, sets):
    """Where the sets lie: a folder, or the address of a bucket."""
    if request.param == "local":
        yield sets
        return
    pytest.importorskip("obstore", reason="see requirements-buckets.txt")
    with cloud_servers.holding(request.param, sets) as address:
        yield address


@pytest.fixture
def digests(monkeypatch):
    """Digests of what is read, in place of canvases."""

    def canvas_batches(fetch, n, plan, steps, boxes_of, margin_of, *, views, **_):
        fetch = decode.as_fetch(fetch)
        for step in steps:
            index, draws = plan(step)
            told = zip(*fetch.told(index), strict=True)
            read = [[part.numpy() for part in map(decode.tf.convert_to_tensor, fetch.read(*one))] for one in told]
            yield {
                "canvas": np.asarray([[*hashlib.sha256(encoded).digest()] for encoded, _ in read]),
                "boxes": draws[:, :views],
                "label": np.asarray([label for _, label in read]),
                "index": index,
                "skipped": np.zeros(len(index), np.int64),
            }

    monkeypatch.setattr(decode, "canvas_batches", canvas_batches)


def batches(source, step, count, block):
    more = {
        "blocks": data.order.mixing(len(source), block, 2, source.groups),
        "canvas": 64,
        "last": "wrap",
        "threads": 2,
    }
    found = data.train_batches(source, batch_size=4, seed=5, start_step=step, **more)
    try:
        return [next(found) for _ in range(count)]
    finally:
        found.close()


@pytest.mark.parametrize("kind", KINDS)
def test_twenty_random_steps(kind, where, digests, sets, tmp_path):
    for block in (0, 2):
        expected = batches(opened(kind, sets), 0, STEPS + 3, block)
        source = opened(kind, where, cache=str(tmp_path), cache_bytes=2**30)
        for step in np.random.RandomState(block).randint(1, STEPS, 20):
            for one, other in zip(batches(source, step, 3, block), expected[step:], strict=False):
                assert one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in other)
