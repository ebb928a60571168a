"""Near-duplicates: all pairs of rows whose cosine similarity is no less than a threshold, exactly, and their groups.

    found = pairs.above(features, 0.95, most=100_000, mesh=mesh)
    groups = pairs.groups(found, len(features))

No more than some blocks of rows, one block of similarities a device and 2 * most pairs are in memory at a time.
"""

import functools
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from barlow_jax.evaluation.embedded import unit

# Similarities are rounded to six decimals before they are compared. So those of equal rows are 1 and a threshold of 1
# finds them, what is written is what was compared, and the last bits of float32, which depend on the place of a row in
# its block and on the device, decide only where a similarity lies between two steps.
STEPS = 10**6
# Rows and columns of a block of similarities: at 4096 the CPU takes twice the time, much of it for fresh memory.
BLOCK = 2048
NOWHERE = np.int32(2**31 - 1)  # the place of a row that fills up a block: no place is behind it


class Pairs(NamedTuple):
    """Pairs of rows, the most similar first; of equal ones those of the lowest first row, then second row."""

    first: np.ndarray  # int64 [p]
    second: np.ndarray  # int64 [p], behind the first
    similarity: np.ndarray  # float64 [p], with six decimals
    found: int  # how many there are in all; p, or more where `most` has cut them


def above(
    features,
    threshold: float,
    *,
    most: int,
    mesh,
    block: int = BLOCK,
    track: Callable[[Iterable, int], Iterable] = lambda items, total: items,
) -> Pairs:
    """All pairs of rows with a cosine similarity of `threshold` or more, as `Pairs`; the `most` most similar are kept.

    Each block of rows meets itself and those behind it. A row of zeros resembles nothing.

    Args:
      features: [n, F], an array or a memory map.
      threshold: from -1 to 1.
      block: rows at a time on a device, and rows that they meet at a time.
      track: (items, how many) -> items, around the loop over pairs of blocks.
    """
    least = int(np.rint(threshold * STEPS))
    kept, found = _Best(most, least, len(features)), 0
    tiles = _tiles(features, least, mesh, block)
    for first_row, first_column, counts, largest, similarities in track(tiles, _number(len(features), mesh, block)):
        found += int(np.asarray(counts).sum(dtype=np.int64))
        largest = np.asarray(largest)
        for shard in similarities.addressable_shards:
            start = shard.index[0].start or 0
            here = np.arange(start, start + shard.data.shape[0])
            wanted = here[kept.may_hold(first_row + here, largest[here])]
            if len(wanted):
                part = np.asarray(shard.data)[wanted - start]
                row, column = np.nonzero(part >= kept.floor)
                kept.add(first_row + wanted[row], first_column + column, part[row, column])
    return Pairs(*kept.sorted(), found)


def groups(pairs: Pairs, n: int) -> np.ndarray:
    """The group of each pair, int64 [p], from 1 on in their order: what is connected by pairs is one group."""
    from scipy.sparse import coo_array, csgraph  # here, as few need it

    edges = coo_array((np.ones(len(pairs.first), np.int8), (pairs.first, pairs.second)), shape=(n, n))
    of_row = csgraph.connected_components(edges, directed=False)[1]
    _, first, number = np.unique(of_row[pairs.first], return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[number] + 1


def usual(features, count=20_000, seed=0):
    """Cosine similarities of so many pairs of different rows drawn at random, float32: what is nothing special here."""
    rng, n = np.random.default_rng(seed), len(features)
    first = rng.integers(0, n, count)
    second = (first + rng.integers(1, n, count)) % n
    similarities = []
    for start in range(0, count, 4096):  # sorted: a memory map is read forwards
        rows, other = (np.asarray(features[part[start : start + 4096]], np.float32) for part in (first, second))
        similarities.append((unit(rows) * unit(other)).sum(1))
    return np.concatenate(similarities)


class _Best:
    """The most similar of the pairs that were added; `floor`: below it none is wanted any more, in steps."""

    def __init__(self, most, least, n):
        self._most, self.floor, self._last_row = most, least, n
        self._parts, self._count = [], 0

    def may_hold(self, rows, largest):
        """Of rows in ascending order and their largest similarities, which may have a pair that is wanted: bool."""
        return (largest > self.floor) | ((largest == self.floor) & (rows <= self._last_row))

    def add(self, first, second, steps):
        self._parts.append((first.astype(np.int64), second.astype(np.int64), steps.astype(np.int32)))
        self._count += len(first)
        if self._count > 2 * self._most:
            self._trim()

    def _trim(self):
        first, second, steps = (np.concatenate(part) for part in zip(*self._parts, strict=True))
        order = np.lexsort((second, first, -steps))[: self._most]
        self._parts, self._count = [(first[order], second[order], steps[order])], len(order)
        if self._count == self._most:
            self.floor, self._last_row = int(steps[order[-1]]), int(first[order[-1]])

    def sorted(self):
        """first, second, similarity."""
        if not self._parts:
            return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
        self._trim()
        first, second, steps = self._parts[0]
        return first, second, steps / STEPS


def _sizes(n, mesh, block):
    """Rows that all devices take together, and rows that they meet at a time."""
    return min(block, -(-n // mesh.size)) * mesh.size, min(block, n)


def _number(n, mesh, block):
    """How many tiles there are."""
    rows, columns = _sizes(n, mesh, block)
    return sum(len(range(start // columns * columns, n, columns)) for start in range(0, n, rows))


def _tiles(features, least, mesh, block):
    """(first row, first column, counts [r], largest [r], similarities [r, c] in steps) of all pairs of blocks.

    The next one is on its way while the caller looks at one.
    """
    n = len(features)
    rows, columns = _sizes(n, mesh, block)
    split, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    program, ahead = _program(mesh), None
    for first_row in range(0, n, rows):
        mine = jax.device_put(padded(features, first_row, rows), split)
        for first_column in range(first_row // columns * columns, n, columns):
            others = jax.device_put(padded(features, first_column, columns, fill=-1), whole)
            now = first_row, first_column, *program(*mine, *others, np.int32(least))
            if ahead is not None:
                yield ahead
            ahead = now
    yield ahead


def padded(features, start, size, fill=NOWHERE):
    """Rows from `start` on, filled up with zeros to `size`, and their places, those of the filling `fill`."""
    part = np.asarray(features[start : start + size], np.float32)
    places = np.full(size, fill, np.int32)
    places[: len(part)] = np.arange(start, start + len(part))
    return np.concatenate([part, np.zeros((size - len(part), part.shape[1]), np.float32)]), places


@functools.cache
def _program(mesh):
    """`_tile`, each device on its own rows."""
    mine, whole = P("data"), P()
    in_specs = (mine, mine, whole, whole, whole)
    return jax.jit(jax.shard_map(_tile, mesh=mesh, in_specs=in_specs, out_specs=(mine, mine, mine)))


def _tile(rows, row_places, columns, column_places, least):
    """How many columns reach `least`, the largest and all similarities in steps; of columns behind their row alone."""
    # The default precision of a GPU or TPU is off by 1e-3 and more.
    similarity = jnp.matmul(unit(rows, jnp), unit(columns, jnp).T, precision="highest")
    steps = jnp.clip(jnp.rint(similarity * STEPS), -STEPS, STEPS).astype(jnp.int32)
    steps = jnp.where(row_places[:, None] < column_places, steps, -STEPS - 1)
    return (steps >= least).sum(1, dtype=jnp.int32), steps.max(1), steps
