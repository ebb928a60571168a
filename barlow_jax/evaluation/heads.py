"""Many linear heads on the same features, trained at once: what differs is the learning rate and the weight decay.

    heads = fit([features], labels, num_classes=10, grid=[(0.1, 0.0), (0.3, 0.0)], epochs=9, batch_size=64, mesh=mesh)
    hits = count_hits(heads, features, labels, batch_size=64, mesh=mesh)      # of every head
    head = chosen(heads, best, mesh)                                          # one of them, for the host

The kernels lie side by side, [F, H, C], so that one product with a batch of features serves all heads. On several
devices each has some of the heads and sees the whole batch: nothing is communicated, and a head is computed alike on
any number of devices.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from barlow_jax.errors import UserError
from barlow_jax.evaluation import embedding_files
from barlow_jax.run import writing
from barlow_jax.sharding import replicated, round_up

CHUNK_BYTES = 2**26  # of features that travel to the devices at a time


class Heads(NamedTuple):
    """H linear classifiers, over the devices by head: logits = ((x - mean) / std) @ kernel + bias."""

    kernel: jax.Array  # [F, H, C]
    bias: jax.Array  # [H, C]
    mean: jax.Array  # [F], the same for all heads
    std: jax.Array  # [F]


class Head(NamedTuple):
    """One of them, on the host."""

    kernel: np.ndarray  # [F, C]
    bias: np.ndarray  # [C]
    mean: np.ndarray  # [F]
    std: np.ndarray  # [F]
    class_names: tuple = ()

    def __call__(self, features):
        """features [n, F], as the backbone gives them -> logits [n, C]."""
        return (features - self.mean) / self.std @ self.kernel + self.bias


SPLIT = Heads(P(None, "data"), P("data"), P(), P())


def held_out(labels, share, seed):
    """A share of every class, drawn at random: bool [n]. At least one row of a class that has two, never all."""
    rng, chosen = np.random.default_rng((seed, 0)), np.zeros(len(labels), bool)
    for c in np.unique(labels):
        rows = np.flatnonzero(labels == c)
        count = min(max(round(share * len(rows)), 1), len(rows) - 1)
        chosen[rng.permutation(rows)[:count]] = True
    return chosen


def fit(
    passes,
    labels,
    rows=None,
    *,
    num_classes,
    grid,
    epochs,
    batch_size,
    momentum=0.9,
    standardize=True,
    seed=0,
    mesh,
    track=lambda epochs: epochs,
):
    """Trains a head for each (learning rate, weight decay) of the grid, all on the same batches in the same order.

    Cross-entropy, momentum SGD from zero, one cosine from each head's rate to 0, weight decay on kernel and bias as
    PyTorch's SGD has it. The last batch of an epoch is smaller. Every process gives the same arrays.

    Args:
      passes: list of features [n, F], of the same examples under several views; epoch e takes passes[e % len(passes)].
      labels: int [n], in [0, num_classes).
      rows: int [m], the examples to train on; None is all.
      grid: [(learning rate, weight decay)], H of them.
      batch_size: rows of a step.
      standardize: whether heads see features of mean 0 and variance 1, by the statistics of those of passes[0].
      seed: of the order.
      track: epochs -> epochs, around the loop.
    Returns:
      Heads, H rounded up to a multiple of the devices; those beyond the grid stay zero.
    Raises:
      UserError: there are no examples.
    """
    rows = np.arange(len(labels)) if rows is None else rows
    if not len(rows):
        raise UserError("There is no labelled image to train a head on.")
    width = passes[0].shape[1]
    mean, std = _moments(passes[0], rows) if standardize else (np.zeros(width), np.ones(width))
    heads = _initial(mean, std, len(grid), num_classes, mesh)
    trace = jax.tree.map(jnp.zeros_like, heads[:2])
    spare = np.zeros((heads.bias.shape[0] - len(grid), 2))
    rates, decays = (_put(x, mesh, P("data")) for x in np.concatenate([np.asarray(grid), spare]).T.astype(np.float32))
    advance, steps = _advance(mesh, momentum), -(-len(rows) // batch_size)
    for epoch in track(range(epochs)):
        order = np.random.default_rng((seed, 1 + epoch)).permutation(rows)
        for first, x, y, weight in _chunks(passes[epoch % len(passes)], labels, order, batch_size):
            done = epoch * steps + first + np.arange(len(x))
            cosine = (0.5 * (1 + np.cos(np.pi * done / (epochs * steps)))).astype(np.float32)
            batch = (_put(a, mesh, P()) for a in (x, y, weight, cosine))
            heads, trace, loss = advance(heads, trace, rates, decays, tuple(batch))
            jax.block_until_ready(loss)  # else chunks would queue up on a device that is still busy
    return heads


def count_hits(heads, features, labels, rows=None, *, batch_size, mesh):
    """How many of the rows (None: all) each head gets right: int64 [H]. A head that is not finite gets none right."""
    count, total = _counter(mesh), 0
    rows = np.arange(len(labels)) if rows is None else rows
    for _, x, y, weight in _chunks(features, labels, rows, batch_size):
        total = total + np.asarray(count(heads, *(_put(a, mesh, P()) for a in (x, y, weight))), np.int64)
    return total


def chosen(heads, number, mesh, class_names=()):
    """The head with this number."""
    take = jax.jit(lambda h: (h.kernel[:, number], h.bias[number], h.mean, h.std), out_shardings=replicated(mesh))
    return Head(*jax.device_get(take(heads)), tuple(class_names or ()))


def save(path, head, **about):
    """Writes a head to an .npz file; about: strings and numbers that say where it comes from."""
    names = np.asarray(head.class_names, np.str_)
    writing.arrays(path, {**head._asdict(), "class_names": names} | about)


def load(path):
    """The head of a file that `save` wrote; UserError where it is none."""
    try:
        with open(path, "rb") as stream, np.load(stream) as file:
            arrays = {name: file[name] for name in Head._fields}
    except embedding_files.DAMAGE as error:
        raise UserError(f"{path} holds no head ({error}); give a fast_probe.npz that probe wrote.") from error
    return Head(**arrays | {"class_names": tuple(arrays["class_names"].tolist())})


def _moments(features, rows, block=8192):
    """Mean and standard deviation of some rows, [F] each, in float64; 1 for a feature that is constant."""
    blocks = [rows[start : start + block] for start in range(0, len(rows), block)]
    mean = sum(features[part].sum(0, dtype=np.float64) for part in blocks) / len(rows)
    variance = sum(np.square(features[part] - mean).sum(0) for part in blocks) / len(rows)
    std = np.sqrt(variance)
    return mean, np.where(std <= 1e-6 * std.max(), 1, std)


def _initial(mean, std, count, num_classes, mesh):
    width, count = len(mean), round_up(count, mesh)
    heads = Heads(np.zeros((width, count, num_classes)), np.zeros((count, num_classes)), mean, std)
    return Heads(*(_put(x, mesh, spec) for x, spec in zip(heads, SPLIT, strict=True)))


def _put(x, mesh, spec):
    """The same numpy array of every process, on the devices; floats as float32."""
    x = np.asarray(x, np.float32 if np.issubdtype(np.asarray(x).dtype, np.floating) else np.int32)
    return jax.make_array_from_callback(x.shape, NamedSharding(mesh, spec), x.__getitem__)


def _chunks(features, labels, order, batch_size):
    """Batches in this order, several in one piece: (first batch, x [s, b, F], y [s, b], weight [s, b]).

    Rows that fill up the last batch have weight 0.
    """
    size = min(batch_size, len(order))
    steps = -(-len(order) // size)
    at_a_time = max(CHUNK_BYTES // (4 * size * features.shape[1]), 1)
    weight = (np.arange(steps * size) < len(order)).astype(np.float32).reshape(steps, size)
    rows = np.resize(order, steps * size).reshape(steps, size)
    for first in range(0, steps, at_a_time):
        part = rows[first : first + at_a_time]
        yield first, features[part], labels[part], weight[first : first + at_a_time]


def _logits(heads, x):
    x = (x - heads.mean) / heads.std
    return jnp.einsum("bf,fhc->bhc", x, heads.kernel, precision="highest") + heads.bias


@functools.cache
def _advance(mesh, momentum):
    """(heads, trace, rates, decays, (x, y, weight, cosine) of several steps) -> heads, trace, loss [H]."""

    def loss_of(moving, heads, x, y, weight):
        logits = _logits(heads._replace(kernel=moving[0], bias=moving[1]), x)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.broadcast_to(y[:, None], logits.shape[:2]))
        loss = (weight[:, None] * loss).sum(0) / weight.sum()
        return loss.sum(), loss  # the gradient of the sum is each head's own

    def advance(heads, trace, rates, decays, batches):
        def step(carry, batch):
            heads, trace = carry
            *batch, cosine = batch
            moving = heads[:2]
            grads, loss = jax.grad(loss_of, has_aux=True)(moving, heads, *batch)
            grads = jax.tree.map(lambda g, p: g + decays[:, None] * p, grads, moving)
            trace = jax.tree.map(lambda t, g: momentum * t + g, trace, grads)
            moving = jax.tree.map(lambda p, t: p - cosine * rates[:, None] * t, moving, trace)
            return (heads._replace(kernel=moving[0], bias=moving[1]), trace), loss

        (heads, trace), loss = jax.lax.scan(step, (heads, trace), batches)
        return heads, trace, loss[-1]

    moving = (SPLIT.kernel, SPLIT.bias)
    local = jax.shard_map(
        advance,
        mesh=mesh,
        in_specs=(SPLIT, moving, P("data"), P("data"), P()),
        out_specs=(SPLIT, moving, P("data")),
        check_vma=False,
    )
    return jax.jit(local, donate_argnums=(0, 1))


@functools.cache
def _counter(mesh):
    """(heads, x [s, b, F], y, weight) -> hits of every head, int32 [H], on every device."""

    def count(heads, x, y, weight):
        def one(batch):
            x, y, weight = batch
            logits = _logits(heads, x)
            right = (logits.argmax(-1) == y[:, None]) & jnp.isfinite(logits).all(-1) & (weight[:, None] > 0)
            return right.sum(0, dtype=jnp.int32)

        return jax.lax.map(one, (x, y, weight)).sum(0)

    local = jax.shard_map(count, mesh=mesh, in_specs=(SPLIT, P(), P(), P()), out_specs=P("data"), check_vma=False)
    return jax.jit(local, out_shardings=replicated(mesh))
