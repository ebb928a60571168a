"""What stands beside the Barlow Twins loss: the paper's ablations, and objectives of others (docs/objectives.md).

All have one signature, that of `loss.barlow_twins_loss`:

    objective(z1, z2, *, mesh=None, batch_size=None, own...) -> loss, {name: term}

    z1, z2      [N, D] embeddings of two views of N images, N the global batch; sharded along N under `jax.jit`
    mesh        the device mesh whose axis "data" shards N, or None on one device
    batch_size  what sums over the batch are divided by where the official code divides by the nominal batch size; N if
                None
    own         numbers from the config, see `Objective.reads`

Each is computed in float32 or wider, and gives the value and the gradient of the global batch on any number of devices.
`OBJECTIVES` has them by the name that config.objective gives. Of more than two views a pairwise objective is its mean
over all pairs, by `over_pairs`; others take all views. `stopped` is Table 6's stop-gradient, of any of them.
"""

import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from barlow_jax import loss
from barlow_jax.objectives import ablations, lejepa, mixed, nt_xent, vicreg

Loss = Callable[..., tuple[Array, dict[str, Array]]]


class Objective(NamedTuple):
    """One that config.objective names.

    Attributes:
      loss: with the signature above.
      terms: the names of the terms it gives, in the order in which they are shown.
      reads: {argument: field of the config}.
      draws: whether it takes `key`, a PRNG key of its own for each step.
      views_of: (views_of, keys) -> views_of, where it wants more than the two views; keys: step -> key.
      pairwise: whether it is of two views, and of more the mean over their pairs; else it takes all that there are.
    """

    loss: Loss
    terms: tuple[str, ...]
    reads: Mapping[str, str]
    draws: bool = False
    views_of: Callable[..., Any] | None = None
    pairwise: bool = True


_FORM = {"form": "loss_form"}
_BARLOW = {"lambd": "lambd", **_FORM}
_DIAGONALS = ("on_diag", "off_diag")

OBJECTIVES = {
    "barlow_twins": Objective(loss.barlow_twins_loss, _DIAGONALS, _BARLOW),
    "invariance_only": Objective(ablations.invariance_only, ("on_diag",), {}),
    "redundancy_only": Objective(ablations.redundancy_only, _DIAGONALS, _BARLOW),
    "feature_normalized": Objective(ablations.feature_normalized, _DIAGONALS, _BARLOW),
    "cross_covariance": Objective(ablations.cross_covariance, _DIAGONALS, _BARLOW),
    "cross_entropy": Objective(
        ablations.cross_entropy,
        ("log_on_diag", "log_off_diag"),
        {"temperature": "cross_entropy.temperature", "lambd": "cross_entropy.lambd"},
    ),
    "hsic": Objective(ablations.hsic, _DIAGONALS, _BARLOW),
    "mixed_barlow_twins": Objective(
        mixed.mixed_barlow_twins,
        (*_DIAGONALS, "mixed"),
        {**_BARLOW, "weight": "mixed.weight"},
        draws=True,
        views_of=mixed.with_mixture,
        pairwise=False,
    ),
    "vicreg": Objective(
        vicreg.vicreg,
        ("invariance", "variance", "covariance"),
        {**_FORM, **{name: f"vicreg.{name}" for name in ("invariance", "variance", "covariance")}},
    ),
    "nt_xent": Objective(nt_xent.nt_xent, (), {"temperature": "nt_xent.temperature"}),
    "lejepa": Objective(
        lejepa.lejepa,
        ("invariance", "sigreg"),
        {"lambd": "lejepa.lambd", "slices": "lejepa.slices"},
        draws=True,
        pairwise=False,
    ),
}


def over_pairs(objective: Loss, large: int | None = None) -> Loss:
    """The mean of a pairwise objective, and of each of its terms, over all pairs of two views or more.

    A mean and not a sum, so that rates and weights mean what they mean for one pair.

    Args:
      large: so many of the views, the first, are of full size, and the others small. Each large view is then compared
        with every other view, as in SwAV (Caron et al. 2020, arXiv 2006.09882, multi-crop): two small ones are no pair,
        and two large ones, each of which is compared with the other, count twice. All objectives here are symmetric in
        their two views, so that both times are computed as one.
    """

    def mean(*z, **options):
        first = len(z) if large is None else large
        pairs = [(one, other) for one, other in itertools.combinations(range(len(z)), 2) if one < first]
        weights = [2 if other < first else 1 for _, other in pairs]
        found = [objective(z[one], z[other], **options) for one, other in pairs]

        def mean_of(*values):
            return sum((w * value for w, value in zip(weights, values, strict=True)), jnp.zeros([])) / sum(weights)

        return jax.tree.map(mean_of, *found)

    return mean


def stopped(objective: Loss) -> Loss:
    """The objective with the embeddings of the second view as constants: no gradient goes back through that branch."""

    def of_the_first(z1, z2, **options):
        return objective(z1, jax.lax.stop_gradient(z2), **options)

    return of_the_first
