"""The order of the data as a pure function of (seed, step), and the random numbers behind the crops."""

import numpy as np
import pytest

from barlow_jax.data import order
from barlow_jax.errors import UserError


def test_an_epoch_is_a_frozen_permutation():
    first = order.epoch_permutation(3, 0, 1000)
    assert np.array_equal(np.sort(first), np.arange(1000))
    assert np.array_equal(first, order.epoch_permutation(3, 0, 1000))
    assert not np.array_equal(first, order.epoch_permutation(3, 1, 1000))
    assert not np.array_equal(first, order.epoch_permutation(4, 0, 1000))
    # Runs of other machines and years must find the same order.
    assert order.epoch_permutation(0, 0, 10).tolist() == FROZEN_ORDER


FROZEN_ORDER = [3, 7, 6, 4, 1, 0, 2, 8, 5, 9]


def test_imagenet_has_the_official_number_of_steps():
    assert order.steps_per_epoch(1281167, 2048, "wrap") == 626
    assert order.steps_per_epoch(1281167, 2048, "drop") == 625
    assert order.steps_per_epoch(1281167, 2048, "keep") == 626
    assert order.last_batch_size(1281167, 2048, "keep", 16) == 1168  # 1,281,168 / 16 = 80,073 = 625 * 128 + 73 a rank
    assert order.last_batch_size(1281167, 2048, "keep") == 1167
    assert order.last_batch_size(1281167, 2048, "wrap", 16) == 2048


@pytest.mark.parametrize(("n", "batch"), [(64, 8), (67, 8), (5, 8), (8, 8)])
def test_wrap_shows_every_example_and_then_the_first_again(n, batch):
    steps = order.steps_per_epoch(n, batch, "wrap")
    for epoch in (0, 2):
        rows = [order.batch_indices(n, batch, 1, epoch * steps + k, "wrap") for k in range(steps)]
        assert [e for e, _ in rows] == [epoch] * steps
        permutation = order.epoch_permutation(1, epoch, n)
        assert np.array_equal(np.concatenate([i for _, i in rows]), np.resize(permutation, steps * batch))


def test_drop_leaves_out_the_end_of_the_order():
    rows = np.concatenate([order.batch_indices(67, 8, 1, step)[1] for step in range(8)])
    assert np.array_equal(rows, order.epoch_permutation(1, 0, 67)[:64])
    assert order.batch_indices(67, 8, 1, 8)[0] == 1


@pytest.mark.parametrize(
    ("n", "ranks", "sizes"),
    [
        (64, 4, [8] * 8),
        (67, 1, [8] * 8 + [3]),
        (67, 4, [8] * 8 + [4]),
        (61, 4, [8] * 8),
        (5, 1, [5]),
        (5, 2, [6]),
        (5, 4, [8]),
        (3, 8, [8]),
        (1, 4, [4]),
        (9, 4, [8, 4]),
    ],
)
def test_keep_has_the_rows_of_the_official_loader(n, ranks, sizes):
    steps = order.steps_per_epoch(n, 8, "keep")
    # torch's DistributedSampler(drop_last=False) and DataLoader(batch_size=8 / ranks, drop_last=False).
    of_a_rank = -(-n // ranks)
    assert sizes == [ranks * min(8 // ranks, of_a_rank - k) for k in range(0, of_a_rank, 8 // ranks)]
    for epoch in (0, 2):
        rows = [
            order.batch_indices(n, 8, 1, epoch * steps + k, "keep", reference_world_size=ranks) for k in range(steps)
        ]
        assert [e for e, _ in rows] == [epoch] * steps and [len(i) for _, i in rows] == sizes
        permutation = order.epoch_permutation(1, epoch, n)
        assert np.array_equal(np.concatenate([i for _, i in rows]), np.resize(permutation, sum(sizes)))
        assert sum(sizes) == of_a_rank * ranks


@pytest.mark.parametrize("last", order.LAST)
@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("n", [65, 68, 67])
def test_the_global_batch_does_not_depend_on_the_processes(last, count, n):
    for step in (0, 7, 8, 9, 40):
        epoch, whole = order.batch_indices(n, 8, 5, step, last, reference_world_size=4)
        parts = [order.batch_indices(n, 8, 5, step, last, p, count, reference_world_size=4) for p in range(count)]
        assert np.array_equal(np.concatenate([i for _, i in parts]), whole)
        assert {e for e, _ in parts} == {epoch}


@pytest.mark.parametrize("n", [1, 7, 8, 9, 61])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_evaluation_takes_every_example_once(n, count):
    steps = order.eval_steps(n, 8)
    rows = [order.eval_indices(n, 8, step, p, count) for step in range(steps) for p in range(count)]
    assert all(len(r) == 8 // count for r in rows)
    rows = np.concatenate(rows)
    assert np.array_equal(rows, np.r_[np.arange(n), np.full(steps * 8 - n, -1)])


def test_uniforms_belong_to_the_example_and_not_to_its_batch():
    indices = np.asarray([5, 0, 1281166, 7])
    whole = order.uniforms(9, 3, indices, 2, 22)
    assert whole.shape == (4, 2, 22) and whole.dtype == np.float64
    for k, index in enumerate(indices):
        assert np.array_equal(order.uniforms(9, 3, [index], 2, 22)[0], whole[k])
    assert order.uniforms(0, 0, [0], 1, 2)[0, 0].tolist() == FROZEN_UNIFORMS


FROZEN_UNIFORMS = [0.47141042966848024, 0.7247520786262142]


def test_uniforms_are_uniform_and_independent():
    scipy_stats = pytest.importorskip("scipy.stats")
    streams = [order.uniforms(seed, epoch, np.arange(4000), 2, 22) for seed in (0, 1) for epoch in (0, 1)]
    values = np.stack(streams)  # [seed and epoch, index, view, count]
    assert values.min() >= 0 and values.max() < 1
    assert scipy_stats.kstest(values[0].ravel(), "uniform").pvalue > 1e-3
    # Neighbours along every axis: |correlation| of m independent pairs stays below 4.5 / sqrt(m).
    for axis in range(values.ndim):
        a = np.take(values, range(values.shape[axis] - 1), axis).ravel() - 0.5
        b = np.take(values, range(1, values.shape[axis]), axis).ravel() - 0.5
        assert abs(np.mean(a * b) * 12) < 4.5 / np.sqrt(a.size), axis
    assert len(np.unique(values)) == values.size


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: order.epoch_permutation(-1, 0, 5), "seed is -1"),
        (lambda: order.epoch_permutation(2**32, 0, 5), "seed is 4294967296"),
        (lambda: order.steps_per_epoch(10, 4, "kept"), "'drop', 'wrap', 'keep'"),
        (
            lambda: order.last_batch_size(10, 4, "keep", 3),
            "batch_size 4 is not a multiple of config.reference_world_size 3",
        ),
        (lambda: order.batch_indices(11, 4, 0, 0, "keep", 0, 2), "3 rows, which 2 processes do not divide"),
        (lambda: order.steps_per_epoch(10, 0), "batch_size is 0"),
        (lambda: order.steps_per_epoch(0, 4), "no example"),
        (lambda: order.steps_per_epoch(3, 4), "lower config.batch_size or set config.data.last='wrap'"),
        (lambda: order.process_rows(10, 0, 4), "not divisible by the 4 processes"),
        (lambda: order.process_rows(8, 2, 2), "process_index is 2"),
    ],
)
def test_impossible_arguments_end_in_one_sentence(call, words):
    with pytest.raises(UserError, match=".") as caught:
        call()
    assert words in str(caught.value)


# Blocks.


def test_blocks_are_mixed_and_no_others_meet():
    """Against the definition: a block's images come within `window` blocks of its place, each image once."""
    blocks = order.mixing(1000, 8, 10)
    assert blocks.starts.tolist() == [*range(0, 1000, 8), 1000]
    for epoch in (0, 1):
        whole, numbers = order._mixed(5, epoch, blocks)
        assert np.array_equal(np.sort(whole), np.arange(1000)) and len(np.unique(numbers)) == 125
        first = [np.flatnonzero(whole // 8 == block) for block in range(125)]
        spread = [places[-1] - places[0] for places in first]
        assert max(spread) < 80 + 16 and np.mean(spread) > 50  # of 80, 8 uniform ones spread over 62 in expectation
    assert not np.array_equal(whole, order._mixed(5, 0, blocks)[0])
    # The stream is frozen: this is what runs that began with it go on with.
    assert order._mixed(5, 0, order.mixing(12, 2, 2))[0].tolist() == [3, 2, 6, 8, 7, 11, 9, 10, 4, 5, 1, 0]
    assert order.mixing(10, 0, 4) is None


def test_blocks_of_what_is_only_read_whole():
    groups = np.asarray([0, 3, 6, 9, 20, 21])
    assert order.mixing(25, 6, 4, groups).starts.tolist() == [0, 6, 9, 20, 25]
    assert order.mixing(25, 1, 4, groups).starts.tolist() == [0, 3, 6, 9, 20, 21, 25]
    assert order.mixing(25, 100, 4, groups).starts.tolist() == [0, 25]


@pytest.mark.parametrize("last", order.LAST)
def test_blocks_give_each_image_once_on_any_number_of_processes(last):
    blocks = order.mixing(1003, 8, 12)
    steps = order.steps_per_epoch(1003, 64, last)
    whole = [order.batch_indices(1003, 64, 3, step, last, 0, 1, 4, blocks) for step in range(2 * steps)]
    for count in (2, 4):
        of_processes = [
            [order.batch_indices(1003, 64, 3, step, last, p, count, 4, blocks)[1] for step in range(2 * steps)]
            for p in range(count)
        ]
        for step, parts in enumerate(zip(*of_processes, strict=True)):
            assert np.array_equal(np.concatenate(parts), whole[step][1])
    for epoch in (0, 1):
        seen = np.concatenate([index for e, index in whole if e == epoch])
        counts = np.bincount(seen, minlength=1003)
        assert len(seen) == {"drop": 960, "wrap": 1024, "keep": 1004}[last]
        assert (counts <= 1).all() if last == "drop" else (counts >= 1).all()


def test_a_process_reads_its_share_of_the_blocks_once():
    """With as many held as `held_blocks` says, first in, first out."""
    for n, batch, block, window, count, most in (
        (40_000, 256, 16, 64, 1, 1.03),
        (40_000, 256, 16, 64, 4, 1.8),
        (9469, 64, 64, 16, 1, 1.08),
    ):
        blocks = order.mixing(n, block, window)
        held = order.held_blocks(blocks, batch, count)
        for process in {0, count // 2}:
            there, read = [], 0
            for step in range(order.steps_per_epoch(n, batch, "drop")):
                index = order.batch_indices(n, batch, 0, step, "drop", process, count, 1, blocks)[1]
                for one in dict.fromkeys((index // block).tolist()):
                    if one not in there:
                        there, read = [*there, one][-held:], read + 1
            assert read < most * len(blocks.starts) / count
