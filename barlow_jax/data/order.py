"""The order of the data: which image stands in which row of which batch, and nothing else.

Every function here is a pure function of its arguments (numpy only), so a run that stops has nothing to
save but its step: batch `s` is the same whether the run read the batches before it or opened at `s`, on
one process or on many. The streams are frozen: RandomState's by numpy's promise (NEP 19).
"""

import dataclasses
import functools

import numpy as np

from barlow_jax.errors import UserError

LAST = ("drop", "wrap", "keep")


def epoch_permutation(seed, epoch, n):
    """The order of the n examples in one epoch: int64 [n], a permutation of 0..n-1.

    seed, epoch: integers in 0..2**32-1. UserError names the one that is not.
    """
    _check_seeds(seed, epoch)
    return np.random.RandomState([seed, epoch]).permutation(n)


def _check_seeds(seed, epoch):
    for field, value in (("seed", seed), ("epoch", epoch)):
        if not 0 <= value < 2**32:
            raise UserError(f"{field} is {value}, but must be an integer from 0 to 2**32 - 1.")


# Consecutive batches belong to the same epoch, and 1.28 million indices take 30 ms to permute. Two entries,
# because the last step of one epoch and the first of the next may be asked for by turns.
@functools.lru_cache(maxsize=2)
def _cached_permutation(seed, epoch, n):
    permutation = epoch_permutation(seed, epoch, n)
    permutation.flags.writeable = False
    return permutation


@dataclasses.dataclass(frozen=True, eq=False)
class Mixing:
    """An order of blocks in place of one over the whole set.

    starts: where the blocks begin, and the last ends: int64 [m + 1]. window: how many of them are mixed at a time.
    """

    starts: np.ndarray
    window: int


def mixing(n, block, window, groups=None):
    """The Mixing of n examples in blocks of `block`, or None for block 0: the order over the whole set.

    groups: where what can only be read whole begins, as the row groups of Parquet files: ascending integers, 0 the
      first. Blocks are then so many of these in a row as hold no more than `block` examples together, at least one.
    """
    if not block:
        return None
    if groups is None:
        return Mixing(np.append(np.arange(0, n, block), n), window)
    ends, starts = [*groups[1:], n], [0]
    for begins, ends_at in zip(groups, ends, strict=True):
        if ends_at - starts[-1] > block and begins > starts[-1]:
            starts.append(begins)
    return Mixing(np.asarray([*starts, n], np.int64), window)


@functools.lru_cache(maxsize=2)
def _mixed(seed, epoch, blocks):
    """(order of one epoch, int64 [n]; of each example where among a batch's rows it belongs, uint32 [n]).

    The blocks follow each other in a permutation of theirs, and each example is held back by a uniform number of
    blocks from 0 to `window`: so at any time those of `window` blocks are mixed, and one comes as another goes.
    The second is a number of the block's, by which `batch_indices` sorts: the same process gets all of a block, or
    nearly. Of neighbours in the permutation the numbers lie evenly (Fibonacci hashing: Knuth, vol. 3, 6.4).
    """
    _check_seeds(seed, epoch)
    count = len(blocks.starts) - 1
    stream, rank = np.random.RandomState([seed, epoch]), np.empty(count, np.int64)
    rank[stream.permutation(count)] = np.arange(count)
    block = np.repeat(np.arange(count), np.diff(blocks.starts))
    found = np.argsort(rank[block] + blocks.window * stream.random_sample(len(block)), kind="stable")
    numbers = ((rank * 2654435769) & 0xFFFFFFFF).astype(np.uint32)[block]
    for array in (found, numbers):
        array.flags.writeable = False
    return found, numbers


def steps_per_epoch(n, batch_size, last="drop"):
    """Number of batches of `batch_size` rows (global) in an epoch of n examples.

    last="drop" leaves out the n % batch_size examples at the end of each epoch's order (others every epoch).
    last="wrap" fills the last batch with the first examples of the same epoch's order, which are then seen
    twice, the way torch's DistributedSampler pads.
    last="keep" leaves the last batch smaller, as the official Barlow Twins loader does: see last_batch_size.

    ImageNet at 2048 has 626 steps by "wrap" and "keep", as officially, hence the official learning-rate schedule;
    "drop" has 625. "wrap" is what works everywhere: it needs one compiled program and any number of devices.
    """
    if last not in LAST:
        raise UserError(f"config.data.last is {last!r}, but must be one of {', '.join(map(repr, LAST))}.")
    if batch_size < 1:
        raise UserError(f"config.batch_size is {batch_size}, but must be at least 1.")
    if n < 1:
        raise UserError("The data set holds no example: point config.data.path to one that does.")
    if last != "drop":
        return -(-n // batch_size)
    if n < batch_size:
        raise UserError(
            f"config.batch_size {batch_size} is larger than the data set ({n} examples), so config.data.last='drop' "
            "leaves no batch: lower config.batch_size or set config.data.last='wrap'."
        )
    return n // batch_size


def last_batch_size(n, batch_size, last="drop", reference_world_size=1):
    """Rows of an epoch's last batch, over all processes; every other batch has batch_size rows.

    Only last="keep" makes a difference: the n % batch_size examples that are left, filled up to a multiple of
    reference_world_size, the number of GPUs of the run that is to be matched, with the first examples of the same
    epoch's order. On W GPUs the official loader (DistributedSampler, drop_last=False) does the same: ImageNet at
    2048 on 16 GPUs ends with 1,168 rows, 1,167 images and one repeated. Batch statistics are then those of 1,168
    rows, while the cross-correlation is still divided by 2048. Which image stands in which row is our order, not
    torch's.
    UserError unless reference_world_size divides batch_size, with "keep".
    """
    if last != "keep":
        return batch_size
    if batch_size % reference_world_size:
        raise UserError(
            f"config.batch_size {batch_size} is not a multiple of config.reference_world_size {reference_world_size}, "
            "as config.data.last='keep' needs: choose one that is, or set config.data.last='wrap'."
        )
    left = n % batch_size or batch_size
    return -(-left // reference_world_size) * reference_world_size


def process_rows(batch_size, process_index=0, process_count=1):
    """The slice of a global batch's rows that belongs to one process: contiguous, equal for all."""
    if not 0 <= process_index < process_count:
        raise UserError(f"process_index is {process_index}, but must lie in 0..{process_count - 1} (process_count).")
    if batch_size % process_count:
        raise UserError(
            f"config.batch_size {batch_size} is not divisible by the {process_count} processes: choose a multiple."
        )
    rows = batch_size // process_count
    return slice(process_index * rows, (process_index + 1) * rows)


def batch_indices(
    n, batch_size, seed, step, last="drop", process_index=0, process_count=1, reference_world_size=1, blocks=None
):
    """Examples of the training batch at `step` (counted from 0 over all epochs), this process's rows.

    Returns (epoch, int64 [rows / process_count]), where rows is batch_size or, at the end of an epoch,
    last_batch_size. The rows of all processes, one after the other, are the global batch, which does not depend
    on process_count. blocks: a Mixing, or None. UserError at every step if the last batch cannot be divided among the
    processes.
    """
    steps = steps_per_epoch(n, batch_size, last)
    epoch, position = divmod(int(step), steps)
    rows = process_rows(batch_size, process_index, process_count)
    end = last_batch_size(n, batch_size, last, reference_world_size)
    if end % process_count:
        raise UserError(
            f"With config.data.last='keep' the last batch of an epoch has {end} rows, which {process_count} processes "
            "do not divide: set config.data.last='wrap'."
        )
    if position == steps - 1:
        rows = process_rows(end, process_index, process_count)
    start = position * batch_size
    if blocks is None:
        places = np.arange(start + rows.start, start + rows.stop) % n  # the modulus is what wraps
        return epoch, _cached_permutation(seed, epoch, n)[places]
    whole, numbers = _mixed(seed, epoch, blocks)
    batch = whole[np.arange(start, start + (end if position == steps - 1 else batch_size)) % n]
    return epoch, batch[np.argsort(numbers[batch], kind="stable")][rows]


def held_blocks(blocks, batch_size, process_count=1):
    """How many blocks a process holds so that it reads nearly none of them twice in an epoch.

    Its share of those that are mixed at a time and of those that come while a batch is read, a tenth more for the lag
    of their first image, and those at the borders of the share, which move with the rows that a batch happens to have:
    of N rows of `window` blocks by window / (2 sqrt N), one standard deviation, at most.
    """
    count = len(blocks.starts) - 1
    window = min(blocks.window, count)
    there = window + batch_size * count / int(blocks.starts[-1])
    borders = 0 if process_count == 1 else 3 * there / batch_size**0.5
    return min(count, int(np.ceil(1.1 * there / process_count + borders)))


def eval_steps(n, batch_size):
    """Number of batches in one pass over n examples, the last one padded."""
    return steps_per_epoch(n, batch_size, last="wrap")


def eval_indices(n, batch_size, step, process_index=0, process_count=1):
    """Examples of evaluation batch `step` in stored order, -1 = padding: int64 [batch_size / process_count]."""
    rows = process_rows(batch_size, process_index, process_count)
    places = step * batch_size + np.arange(rows.start, rows.stop)
    return np.where(places < n, places, -1)


def _mix(x):
    """SplitMix64's finaliser: a bijection of uint64 in which every input bit moves every output bit.

    Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014 (the
    constants are Stafford's variant 13). Arrays only: numpy warns about overflow of uint64 scalars.
    """
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def uniforms(seed, epoch, indices, views, count, first=0):
    """Uniform numbers of [0, 1) that depend on (seed, epoch, index, view) alone: float64 [b, views, count].

    indices: integers [b]. first: number of the first of these views. One SplitMix64 stream per (seed, epoch, index,
    view), so that an example's crop does not depend on the batch or the process it is read in. Vectorised: 2,048 rows
    of 2 x 22 take 3 ms.
    """
    golden = np.uint64(0x9E3779B97F4A7C15)  # SplitMix64's step, 2**64 / golden ratio
    stream = _mix(np.full((1, 1, 1), seed, np.uint64) + golden)
    for key in (
        np.full((1, 1, 1), epoch, np.uint64),
        np.asarray(indices).astype(np.uint64).reshape(-1, 1, 1),
        np.arange(first, first + views, dtype=np.uint64).reshape(1, -1, 1),
    ):
        stream = _mix((stream ^ key) + golden)
    steps = np.arange(1, count + 1, dtype=np.uint64) * golden
    return (_mix(stream + steps) >> np.uint64(11)) * 2.0**-53
