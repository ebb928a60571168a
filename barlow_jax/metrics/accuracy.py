"""How often a classifier is right: top-k hits that add up over batches and devices, average precision of a ranking."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike

from barlow_jax.errors import UserError


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
