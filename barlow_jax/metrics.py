"""Measures of representations: arrays in, numbers out.

    topk_accuracy        a classifier's hits, as counts that add up over batches and devices
    knn_accuracy         weighted nearest neighbours, the usual probe without training
    effective_rank       how many directions the features use
    lidar                how many of them tell images apart whatever the augmentation does
    distinct_rows        how many images there are, to a network
    average_precision    of a ranking, 11-point or area
    embedding_stats      what to watch in z1 and z2 during training
    agreement            what c says of any objective
    expected_at_init     what the loss would be if the two views had nothing to do with each other

Nothing here knows about data sets, models or files.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from numpy.typing import ArrayLike

from barlow_jax.errors import UserError

Rows = Array | np.ndarray  # on devices or on the host

# A dimension is dead when its variance is below the eps of the loss's batch norm (`loss.standardize`): there eps
# outweighs the signal, and c_ii stays below 0.71 (0.5 if dead in both views) however well the views agree.
DEAD_VARIANCE = 1e-5

QUERY_BLOCK = 512  # test rows that the nearest-neighbour search takes at a time


def topk_accuracy(
    logits: Array, labels: Array, ks: Sequence[int] = (1, 5), mask: Array | None = None
) -> dict[str, Array]:
    """Counts the rows whose label is among the k largest logits.

    Counts and not rates, so that the sum over batches and devices is exact. Of equal logits the lower class comes
    first: a constant output has the accuracy of class 0 and not 100 %.

    Args:
      logits: [n, C].
      labels: int [n]; rows with a negative label (unlabelled) do not count.
      ks: several k; one that exceeds C counts as C.
      mask: bool [n], rows that count; None is all.
    Returns:
      {"top1": hits, "top5": hits, ..., "count": rows that count}, int32 scalars; accuracy = top1 / count.
    """
    counted = labels >= 0 if mask is None else mask & (labels >= 0)
    _, ranked = jax.lax.top_k(logits, min(max(ks), logits.shape[-1]))
    hit = (ranked == labels[:, None]) & counted[:, None]
    hits = {f"top{k}": hit[:, :k].sum(dtype=jnp.int32) for k in ks}
    return hits | {"count": counted.sum(dtype=jnp.int32)}


def knn_accuracy(
    train_features: Rows, train_labels: Rows, test_features: Rows, test_labels: Rows, **options: Any
) -> float | dict[int, float]:
    """Share of the test rows that `knn_predict` gets right: a float, or {k: float} for several k.

    Args:
      test_labels: int [m]; the others and `options` as in `knn_predict`.
    """
    predicted = np.asarray(knn_predict(train_features, train_labels, test_features, **options))
    rates = (predicted == np.asarray(test_labels)).mean(-1)
    k = options.get("k", 20)
    return float(rates) if isinstance(k, int) else dict(zip(k, rates.tolist(), strict=True))


def knn_predict(
    train_features: Rows,
    train_labels: Rows,
    test_features: Rows,
    *,
    k: int | Sequence[int] = 20,
    temperature: float = 0.07,
    num_classes: int | None = None,
    block: int = 4096,
    mesh: Mesh | None = None,
    track: Callable[[Iterable[int]], Iterable[int]] = lambda starts: starts,
) -> np.ndarray:
    """Classes by a weighted vote of the k nearest training rows, exactly.

    Each of the k rows of largest cosine similarity s votes for its class with weight exp(s / temperature): the protocol
    of Wu et al. 2018 (arXiv 1805.01978), with k = 200 and 0.07 there and k = 20 in most later work. The training rows
    pass over the devices once, a block at a time. The test rows are split over the devices, and each remembers only its
    best k. So a device needs room for its test rows, three blocks of training rows and QUERY_BLOCK x block
    similarities, however many training rows there are. All blocks have one shape, so that the result is the same on any
    number of devices.

    Args:
      train_features: [n, F], on the host or on devices; need not be normalised.
      train_labels: int [n], in [0, num_classes).
      test_features: [m, F].
      k: one k, or a tuple for several from one search.
      num_classes: of the vote; None is the largest label + 1.
      block: training rows at a time; test rows are taken at most QUERY_BLOCK at a time.
      mesh: with the axis "data", whose devices share the work; every process then gives the same arrays. None is one
        device of this process.
      track: starts -> starts, around the loop over blocks of training rows.
    Returns:
      int32 [m], or [len(k), m] for a tuple, numpy. Of equal votes the lowest class wins.
    Raises:
      UserError: k exceeds the number of training rows.
    """
    ks = (k,) if isinstance(k, int) else tuple(k)
    n, m = len(train_features), len(test_features)
    if not 0 < max(ks) <= n:
        raise UserError(f"k is {max(ks)}, but there are {n} training rows; take a k from 1 to {n}.")
    classes = num_classes or int(np.max(train_labels)) + 1
    mesh = mesh or jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,), devices=jax.local_devices()[:1])
    rows, columns = min(block, QUERY_BLOCK, m), min(block, n)
    blocks = -(-m // (rows * mesh.size)) * mesh.size
    # In parts along the first axis, each made on its own device.
    shape, sharding = (blocks, rows, max(ks)), NamedSharding(mesh, P("data"))
    queries = _pad(np.asarray(test_features, np.float32), blocks * rows).reshape(blocks, rows, -1)
    queries = _placed(queries, sharding)
    best = jax.jit(
        lambda: (jnp.full(shape, -jnp.inf), jnp.zeros(shape, jnp.int32)), out_shardings=(sharding, sharding)
    )()
    whole, merge = NamedSharding(mesh, P()), _merger(mesh)
    for start in track(range(0, n, columns)):
        stop = min(start + columns, n)
        features = _pad(np.asarray(train_features[start:stop], np.float32), columns)
        labels = _pad(np.asarray(train_labels[start:stop], np.int32), columns, fill=-1)
        before, best = best, merge(*best, queries, _placed(features, whole), _placed(labels, whole))
        jax.block_until_ready(before)  # else the host would send block after block to a device that is still busy
    predicted = np.asarray(_voter(mesh, ks, classes)(*best, temperature)).reshape(len(ks), -1)[:, :m]
    return predicted[0] if isinstance(k, int) else predicted


def _placed(x, sharding):
    """An array that every process holds, on the devices."""
    return jax.make_array_from_callback(x.shape, sharding, x.__getitem__)


@functools.cache
def _merger(mesh):
    """`_merge_block`, each device on its own test rows."""
    mine, whole = P("data"), P()
    in_specs = (mine, mine, mine, whole, whole)
    # check_vma: the scan inside lax.map would want the block marked as varying.
    return jax.jit(jax.shard_map(_merge_block, mesh=mesh, in_specs=in_specs, out_specs=(mine, mine), check_vma=False))


def _merge_block(similarities, classes, queries, features, labels):
    """The best of what each test row remembers, [blocks, rows, k], and a block of training rows, [columns, F]."""
    features = _unit(features)

    def merge(block):
        similarity, label, query = block
        # The default precision of a GPU or TPU (TF32, bfloat16) is off by 1e-3 and more, enough to swap neighbours.
        new = jnp.matmul(_unit(query), features.T, precision="highest")
        new = jnp.where(labels >= 0, new, -jnp.inf)  # padding
        # The remembered ones come first: of equal similarities top_k prefers the lower training index.
        all_labels = jnp.concatenate([label, jnp.broadcast_to(labels.astype(label.dtype), new.shape)], axis=1)
        similarity, chosen = jax.lax.top_k(jnp.concatenate([similarity, new], axis=1), similarity.shape[1])
        return similarity, jnp.take_along_axis(all_labels, chosen, axis=1)

    return jax.lax.map(merge, (similarities, classes, queries))


@functools.cache
def _voter(mesh, ks, classes):
    """`_vote`, each device for its own test rows; the result is whole on every device."""
    local = jax.shard_map(
        functools.partial(_vote, ks=ks, classes=classes),
        mesh=mesh,
        in_specs=(P("data"), P("data"), P()),
        out_specs=P(None, "data"),
    )
    return jax.jit(local, out_shardings=NamedSharding(mesh, P()))


def _vote(similarities, labels, temperature, *, ks, classes):
    """[blocks, rows, k] -> [len(ks), blocks, rows] classes."""

    def vote(block):
        similarity, label = block
        # Relative to the nearest, so that no temperature overflows.
        weight = jnp.exp((similarity - similarity[:, :1]) / temperature)
        row = jnp.arange(len(label))[:, None]
        empty = jnp.zeros((len(label), classes))
        return jnp.stack([empty.at[row, label[:, :k]].add(weight[:, :k]).argmax(1) for k in ks])

    return jax.lax.map(vote, (similarities, labels)).swapaxes(0, 1).astype(jnp.int32)


def _unit(x):
    x = x.astype(jnp.float32)
    # The floor only keeps a row of zeros from becoming nan.
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def _pad(x, length, fill=0):
    if len(x) == length:
        return x
    return np.pad(x, [(0, length - len(x))] + [(0, 0)] * (x.ndim - 1), constant_values=fill)


def rank_sample(features: Rows) -> Rows:
    """Evenly spaced rows, from 25,600 on: as many as the paper of RankMe takes the effective rank of. A view."""
    return features[:: max(len(features) // 25_600, 1)]


@jax.jit
def effective_rank(features: Rows) -> Array:
    """RankMe: exp of the entropy of the singular values, from 1 (collapsed) to min(n, D) (isotropic).

    p_k = s_k / sum(s) + 1e-7 as in Garrido et al. 2023 (arXiv 2210.02885, equation 2), of the features as they are,
    neither centred nor normalised. The paper takes n = 25,600.

    Args:
      features: [n, D].
    Returns:
      float32 scalar.
    """
    values = jnp.linalg.svd(features.astype(jnp.float32), compute_uv=False)
    share = values / jnp.maximum(values.sum(), jnp.finfo(jnp.float32).tiny) + 1e-7
    return jnp.exp(-(share * jnp.log(share)).sum())


def lidar(features: ArrayLike, delta: float = 1e-4) -> float:
    """LiDAR of Thilak et al. 2023 (arXiv 2312.04000): the effective rank of what tells images apart, in float64.

    Linear discriminant analysis with each image as a class of its views: the eigenvalues of W^-1/2 B W^-1/2, B the
    scatter of the images' means and W that of the views about them plus delta on the diagonal, as shares of their sum;
    then exp of their entropy. A direction in which views differ as much as images counts for little, which an effective
    rank does not know. From 1 to min(images - 1, F). The paper takes 1000 images and 50 views.

    Args:
      features: [images, views, F], views of each image by the training augmentation, at least 2 of each.
    """
    features = np.asarray(features, np.float64)
    n, views, width = features.shape
    means = features.mean(1)
    about, between = features - means[:, None], means - means.mean(0)
    within = np.einsum("nvf,nvg->fg", about, about, optimize=True) / (n * (views - 1)) + delta * np.eye(width)
    values, vectors = np.linalg.eigh(within)
    whitened = between @ (vectors / np.sqrt(values))
    values = np.linalg.svd(whitened, compute_uv=False) ** 2
    share = values[values > 0] / max(values.sum(), np.finfo(np.float64).tiny)
    return float(np.exp(-(share * np.log(share)).sum()))


def distinct_rows(features: ArrayLike) -> int:
    """How many rows differ by more than rounding: images that are the same have the same features, to 1e-5 of them.

    By four directions, on a grid of a thousandth of the spread: it tells one image from several. features: [n, F].
    """
    features = np.asarray(features, np.float64)
    cell = max(1e-3 * features.std(0).max(), 1e-5 * np.abs(features).max(), np.finfo(np.float64).tiny)
    directions = np.random.RandomState(0).normal(size=(features.shape[1], 4)) / np.sqrt(features.shape[1])
    return len(np.unique(np.floor((features - features[0]) @ directions / cell + 0.5), axis=0))


def agreement(c: Array) -> dict[str, Array]:
    """ "alignment", the mean of c_ii, and "c_on_diag" and "c_off_diag", the terms of equation 1; c [D, D]."""
    diagonal = jnp.diagonal(c)
    on, off = jnp.square(1 - diagonal).sum(), jnp.square(c).sum() - jnp.square(diagonal).sum()
    return {"alignment": diagonal.mean(), "c_on_diag": on, "c_off_diag": off}


def embedding_stats(z1: Array, z2: Array) -> dict[str, Array]:
    """What collapse looks like before the loss shows it; made to be called inside the train step.

    Args:
      z1, z2: [N, D] embeddings of the two views, N the global batch, before the loss standardises them.
    Returns:
      float32 scalars, averaged over views: "z_mean", the mean over dimensions of |mean over the batch|; "z_std", the
      mean over dimensions of the standard deviation over the batch; "dead_dims", the number of dimensions whose
      variance is below `DEAD_VARIANCE` in either view.
    """
    z = jnp.stack([z1, z2]).astype(jnp.float32)
    mean = z.mean(1)
    variance = jnp.square(z - mean[:, None]).mean(1)
    dead = (variance < DEAD_VARIANCE).any(0).sum()
    return {"z_mean": jnp.abs(mean).mean(), "z_std": jnp.sqrt(variance).mean(), "dead_dims": dead.astype(jnp.float32)}


def expected_at_init(n: int, d: int, lambd: float) -> dict[str, float]:
    """What the loss is on average if the two views had nothing to do with each other.

    Assumption: the rows of z2 are in random order with respect to those of z1 (independent Gaussian embeddings are a
    special case; eps is neglected, and dimensions may be correlated). Then every c_ij is the sample correlation of two
    unrelated columns, for which E[c] = 0 and E[c^2] = 1 / (n - 1) exactly, whatever their distribution (Pitman 1937,
    J. R. Stat. Soc. Suppl. 4). So
        E[on_diag]  = sum_i E[(1 - c_ii)^2] = d (1 + 1 / (n - 1)) = d n / (n - 1)
        E[off_diag] = d (d - 1) / (n - 1)
    A fresh network starts below this on_diag, because it already maps two views of an image to similar embeddings, and
    above this off_diag, because its dimensions are correlated (ResNet-18, 256 CIFAR-10 images, d = 512: 196 and 4916
    against 514 and 1026).

    Args:
      n: global batch size, at least 2; d: dimensions; lambd: weight of off_diag.
    Returns:
      {"on_diag", "off_diag", "loss"}, floats.
    """
    on_diag, off_diag = d * n / (n - 1), d * (d - 1) / (n - 1)
    return {"on_diag": on_diag, "off_diag": off_diag, "loss": on_diag + lambd * off_diag}


def average_precision(
    scores: ArrayLike, targets: ArrayLike, *, method: str = "area", mask: ArrayLike | None = None
) -> float | np.ndarray:
    """Average precision of each class, in float64 on the host.

    "area" is sum_n (R_n - R_{n-1}) P_n over the distinct scores, without interpolation, as scikit-learn defines it.
    "voc07" is the mean over the recalls 0, 0.1, .., 1 of the highest precision at that recall or above (Everingham et
    al. 2010, section 4.2), the measure of VOC2007. "voc10" is the area below the same interpolated precision, the
    measure from VOC2010 on, and of VISSL on VOC2007 too. Equal scores count as one threshold, so that the order of the
    rows does not matter.

    Args:
      scores: [n] or [n, C]; larger is more likely.
      targets: of the same shape, 1 or True for positives.
      mask: bool, of the same shape, entries that count (VOC leaves out "difficult" ones); None is all.
    Returns:
      float, or [C]; nan for a class without positives.
    """
    if method not in ("area", "voc07", "voc10"):
        raise UserError(f'method is "{method}"; take "area", "voc07" or "voc10".')
    scores, targets = np.asarray(scores, np.float64), np.asarray(targets) > 0
    mask = np.ones(scores.shape, bool) if mask is None else np.asarray(mask)
    if scores.ndim == 2:
        columns = zip(scores.T, targets.T, mask.T, strict=True)
        return np.array([average_precision(s, t, method=method, mask=m) for s, t, m in columns])
    scores, targets = scores[mask], targets[mask]
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)[: len(order)]  # the last row of each distinct score
    hits = np.cumsum(targets[order])[last]
    positives = targets.sum()
    if not positives:
        return float("nan")
    precision = hits / (np.flatnonzero(last) + 1)
    if method == "voc10":
        precision = np.maximum.accumulate(precision[::-1])[::-1]
    if method in ("area", "voc10"):
        return float(np.sum(np.diff(hits, prepend=0) / positives * precision))
    # Recalls are compared as integers: hits / positives >= 0.3 is decided by rounding in floating point.
    return float(np.mean([precision[10 * hits >= tenth * positives].max() for tenth in range(11)]))
