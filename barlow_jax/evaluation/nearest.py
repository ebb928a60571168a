"""The nearest rows by cosine, exactly, in blocks, on all devices."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from barlow_jax.errors import UserError
from barlow_jax.evaluation.embedded import unit
from barlow_jax.evaluation.pairs import BLOCK, padded
from barlow_jax.metrics import keep_best, merger


def nearest_rows(bank, queries, k: int, *, mesh, block: int = BLOCK):
    """The k rows of `bank` that are most similar to each query.

    Args:
      bank: [n, F]; queries: [m, F]; arrays or memory maps.
      block: queries at a time on a device, and rows that they meet at a time.
    Returns:
      similarities float32 [m, k], the largest first, and places int32 [m, k]; of equal ones the lower place.
    Raises:
      UserError: k exceeds n.
    """
    n, m = len(bank), len(queries)
    if not 0 < k <= n:
        raise UserError(f"k is {k}, but there are {n} rows; take a k from 1 to {n}.")
    rows, columns = min(block, -(-m // mesh.size)) * mesh.size, min(block, n)
    split, whole, found = NamedSharding(mesh, P("data")), NamedSharding(mesh, P()), []
    for start in range(0, m, rows):
        mine, _ = jax.device_put(padded(queries, start, rows), split)
        best = jax.device_put((np.full((rows, k), -np.inf, np.float32), np.zeros((rows, k), np.int32)), split)
        for column in range(0, n, columns):
            others = jax.device_put(padded(bank, column, columns, fill=-1), whole)
            before, best = best, merger(mesh, _merge)(*best, mine, *others)
            jax.block_until_ready(before)  # else the host would send block after block to a device that is still busy
        found.append([np.asarray(x) for x in best])
    similarity, places = (np.concatenate(part)[:m] for part in zip(*found, strict=True))
    return similarity, places


def _merge(similarity, places, queries, rows, row_places):
    """The best of what each query remembers, [r, k], and a block of rows; those of the filling are at place -1."""
    return keep_best(similarity, places, unit(queries, jnp), unit(rows, jnp), row_places)
