"""Which images to label next: the k-centre greedy choice of Sener and Savarese 2018 (arXiv 1708.00489).

Again and again the row that is furthest from all that are labelled or chosen, so that nothing in the set stays far from
a label. It covers a set, odd images included, and knows nothing of classes.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from barlow_jax.errors import UserError
from barlow_jax.evaluation.nearest import nearest_rows
from barlow_jax.evaluation.pairs import STEPS

CHOSEN = STEPS + 1  # as similarity of a row that is labelled or chosen: larger than any


def k_centre(rows, count: int, labelled, *, mesh):
    """`count` rows, each the furthest by cosine from the labelled and those before it; of equal ones the first.

    With no labelled row the first is the one nearest to the mean of all.

    Args:
      rows: float32 [n, F] at length 1, as `embedded.on_sphere` gives them.
      labelled: bool [n].
    Returns:
      places int64 [count], and the cosine distance of each to the nearest labelled or chosen one when it was its turn,
      float64 [count] with six decimals; nan for a first one that had none.
    Raises:
      UserError: fewer rows than `count` have no label.
    """
    n, free = len(rows), int((~labelled).sum())
    if count > free:
        raise UserError(f"--label_next is {count}, but {free} of {n} images have no label; take at most as many.")
    before = []
    if labelled.any():
        similarity, _ = nearest_rows(rows[labelled], rows, 1, mesh=mesh)
        nearest = np.rint(similarity[:, 0] * STEPS).astype(np.int32)
        nearest[labelled] = CHOSEN
    else:
        before = [int(np.argmax(rows @ rows.mean(0, dtype=np.float64).astype(np.float32)))]
        nearest = np.rint(rows @ rows[before[0]] * STEPS).astype(np.int32)
        nearest[before[0]] = CHOSEN
    padding = -n % mesh.size
    split = NamedSharding(mesh, P("data"))
    spread = jax.device_put(np.pad(rows, ((0, padding), (0, 0))), split)
    nearest = jax.device_put(np.pad(nearest, (0, padding), constant_values=CHOSEN), split)
    places, steps = _greedy(spread, nearest, count=count - len(before))
    distances = 1 - np.asarray(steps, np.float64) / STEPS
    return np.array([*before, *np.asarray(places)], np.int64), np.array([np.nan] * len(before) + distances.tolist())


@functools.partial(jax.jit, static_argnames="count")
def _greedy(rows, nearest, *, count):
    """places int32 [count], and their similarity in steps to what was chosen before; all devices share each product."""

    def choose(nearest, _):
        place = jnp.argmin(nearest)
        similarity = jnp.matmul(rows, rows[place], precision="highest")
        after = jnp.maximum(nearest, jnp.rint(similarity * STEPS).astype(jnp.int32))
        return after.at[place].set(CHOSEN), (place.astype(jnp.int32), nearest[place])

    return jax.lax.scan(choose, nearest, length=count)[1]
