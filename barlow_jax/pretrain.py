"""Pre-training: the state, its creation, and the train step. In use:

    graphdef, state = create_state(network, tx)
    views_of = make_views(recipe, seed, mesh)            # augmentation, on the device
    train_step = make_train_step(graphdef, tx, views_of, lambd=0.0051, mesh=mesh)
    state, metrics = train_step(state, batch)            # batch: {"canvas", "boxes", "index", "label"}

The step is one jitted program over the whole mesh; the gradient is that of the global batch.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P

from barlow_jax import augment, metrics, model
from barlow_jax.loss import barlow_twins_loss, cross_correlation
from barlow_jax.sharding import by_example, example_keys, replicated


class TrainState(NamedTuple):
    """All that a run is; a checkpoint holds exactly this."""

    step: jax.Array  # int32, updates so far
    params: Any  # nested dict: backbone, projector
    batch_stats: Any  # nested dict: running statistics of every BatchNorm
    opt_state: Any  # of the optimiser
    probe: Any  # the online linear probe: {"params", "opt_state"}, or {} without labels


def create_state(barlow_twins, tx, *, num_classes=None, probe_tx=None):
    """The state at step 0.

    Args:
      barlow_twins: a fresh `model.BarlowTwins`.
      tx: its optimiser.
      num_classes: of the online probe; None for no probe.
      probe_tx: the probe's optimiser.
    Returns:
      graphdef (static structure of the network), TrainState.
    """
    graphdef, params, batch_stats = model.split(barlow_twins)
    probe = {}
    if num_classes is not None:
        head = {
            "kernel": jnp.zeros((barlow_twins.backbone.num_features, num_classes)),
            "bias": jnp.zeros(num_classes),
        }
        probe = {"params": head, "opt_state": probe_tx.init(head)}
    return graphdef, TrainState(jnp.zeros([], jnp.int32), params, batch_stats, tx.init(params), probe)


def make_views(recipe, seed, mesh):
    """(step, batch) -> the two views of every image, float32 [B, 2, S, S, C], normalised.

    Each device works on its own examples inside a shard_map, because the partitioner would gather the batch for some
    of the gathers in here; each example has a key of its own, so that the views are the same on any number of devices.
    """

    def views(step, batch):
        keys = example_keys(seed, step, batch["canvas"].shape[0])
        local = jax.shard_map(
            lambda keys, canvas, boxes: augment.two_views(keys, canvas, boxes, recipe),
            mesh=mesh,
            in_specs=(P("data"), P("data"), P("data")),
            out_specs=P("data"),
        )
        return local(keys, batch["canvas"], batch["boxes"])

    return views


def make_train_step(
    graphdef, tx, views_of, *, lambd, mesh, batch_size=None, form="auto", scale_loss=1.0, schedules=None, probe_tx=None
):
    """The train step, jitted over the mesh; the state it is given is donated.

    Args:
      graphdef: of the network, from `create_state`.
      tx: its optimiser.
      views_of: (step, batch) -> [B, 2, S, S, C], traced into the step; `make_views` gives one.
      lambd, form: of the loss.
      batch_size: what the cross-correlation is divided by; None for the rows of each batch. As in the official code
        it is the nominal size where an epoch ends with a smaller batch, which is a program of its own to compile.
      scale_loss: factor on the loss that is differentiated; the reported loss is without it. It matters only where
        the optimiser is not scale-free.
      schedules: {name: schedule}, learning rates to report.
      probe_tx: optimiser of the online probe, if the state has one.
    Returns:
      (state, batch) -> (state, metrics); metrics are scalars on the device.
    """

    def objective(params, head, batch_stats, views, label):
        network = model.merge(graphdef, params, batch_stats)
        features, z = network(views, train=True)
        loss, terms = barlow_twins_loss(z[:, 0], z[:, 1], lambd=lambd, form=form, mesh=mesh, batch_size=batch_size)
        report = {"loss": loss, **terms, **metrics.embedding_stats(z[:, 0], z[:, 1])}
        total = scale_loss * loss
        if head is not None:
            # Stopped gradient: the probe watches the features and never shapes them.
            probe_loss, probe_report = linear_probe(head, jax.lax.stop_gradient(features), label)
            total, report = total + probe_loss, report | probe_report
        return total, (model.batch_stats_of(network), report)

    def train_step(state, batch):
        views = views_of(state.step, batch)
        head = state.probe.get("params")
        gradient = jax.grad(objective, argnums=(0, 1) if head is not None else 0, has_aux=True)
        grads, (batch_stats, report) = gradient(state.params, head, state.batch_stats, views, batch["label"])
        probe = state.probe
        if head is not None:
            grads, head_grads = grads
            updates, opt_state = probe_tx.update(head_grads, probe["opt_state"], head)
            probe = {"params": optax.apply_updates(head, updates), "opt_state": opt_state}
        report["grad_norm"] = optax.tree.norm(grads)
        report |= {name: jnp.asarray(rate(state.step)) for name, rate in (schedules or {}).items()}
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, batch_stats, opt_state, probe), report

    return jax.jit(
        train_step,
        donate_argnums=0,
        in_shardings=(replicated(mesh), by_example(mesh)),
        out_shardings=(replicated(mesh), replicated(mesh)),
    )


def linear_probe(head, features, label):
    """Cross-entropy and accuracy of a linear layer on the features of every view; unlabelled rows (-1) do not count.

    Args:
      head: {"kernel": [F, classes], "bias": [classes]}.
      features: [B, V, F]; label: int32 [B].
    """
    logits = features @ head["kernel"] + head["bias"]
    label = jnp.broadcast_to(label[:, None], logits.shape[:2])
    known = label >= 0
    count = jnp.maximum(known.sum(), 1)
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(label, 0))
    loss = jnp.where(known, cross_entropy, 0).sum() / count
    hits = jnp.where(known, logits.argmax(-1) == label, False).sum()
    return loss, {"probe_loss": loss, "probe_accuracy": hits / count}


def make_inspect_step(graphdef, views_of, *, mesh):
    """A look at a batch without learning from it: the views and embeddings that the train step would see.

    Returns:
      (state, batch) -> {"views" [<= 8, 2, S, S, C], "c" [D, D]}, c of the first 8192 dimensions where there are more,
      and divided by the rows that the batch has.
    """

    def inspect(state, batch):
        views = views_of(state.step, batch)
        _, z = model.merge(graphdef, state.params, state.batch_stats)(views, train=True)
        return {"views": views[:8], "c": cross_correlation(z[:, 0, :8192], z[:, 1, :8192])}

    return jax.jit(inspect, in_shardings=(replicated(mesh), by_example(mesh)), out_shardings=replicated(mesh))
