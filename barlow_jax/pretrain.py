"""Pre-training: the state, its creation, and the train step. In use:

    graphdef, state = create_state(network, tx)
    views_of = views.make_views(recipe, seed, mesh)      # augmentation, on the device
    train_step = make_train_step(graphdef, tx, views_of, lambd=0.0051, mesh=mesh)
    state, metrics = train_step(state, batch)            # batch: {"canvas", "boxes", "index", "label"}

The step is one jitted program over the whole mesh; the gradient is that of the global batch.

    microbatches  the network there and back, for the whole batch or for micro-batches
    nonfinite     steps whose numbers are not finite
    loss_scale    float16
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from barlow_jax import metrics, model, optim, tree
from barlow_jax.errors import UserError
from barlow_jax.loss import barlow_twins_loss, cross_correlation
from barlow_jax.sharding import by_example, replicated
from barlow_jax.training import loss_scale, microbatches, nonfinite


class TrainState(NamedTuple):
    """All that a run is; a checkpoint holds exactly this."""

    step: jax.Array  # int32, updates so far
    params: Any  # nested dict: backbone, projector
    batch_stats: Any  # nested dict: running statistics of every BatchNorm
    opt_state: Any  # of the optimiser
    probe: Any  # the online linear probe: {"params", "opt_state"}, or {} without labels
    health: Any  # what `nonfinite` has found: {"skipped", "in_a_row", "step", "tensor"}
    loss_scale: Any  # of float16: {"scale", "good_steps", "overflows"}, or {} for other precisions


def create_state(barlow_twins, tx, *, num_classes=None, probe_tx=None, scaled=False):
    """The state at step 0.

    Args:
      barlow_twins: a fresh `model.BarlowTwins`.
      tx: its optimiser.
      num_classes: of the online probe; None for no probe.
      probe_tx: the probe's optimiser.
      scaled: whether the gradient needs a loss scale, as float16 does.
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
    scale = loss_scale.create() if scaled else {}
    step = jnp.zeros([], jnp.int32)
    return graphdef, TrainState(step, params, batch_stats, tx.init(params), probe, nonfinite.create(), scale)


def going_on(state, params, batch_stats, momentum, step):
    """A fresh state with what another run has reached.

    Args:
      params, batch_stats: nested dicts like the state's.
      momentum: of the optimiser, like params; None leaves it at 0.
      step: training steps done.
    Raises:
      UserError: the arrays do not fit, or the optimiser has no momentum to take.
    """
    opt_state = optim.going_on(state.opt_state, momentum, step)
    new = state._replace(step=step, params=params, batch_stats=batch_stats, opt_state=opt_state)
    wrong = tree.differences(state, new)
    if wrong:
        name, (here, there) = next(iter(wrong.items()))
        raise UserError(f"The weights do not fit this run: {name} is {there} there and {here} here; take its config.")
    return jax.tree.map(lambda old, value: jnp.asarray(value, old.dtype), state, new)


def make_train_step(
    graphdef,
    tx,
    views_of,
    *,
    lambd,
    mesh,
    batch_size=None,
    form="auto",
    scale_loss=1.0,
    schedules=None,
    probe_tx=None,
    embed=microbatches.whole,
    give_up_after=1,
    state_sharding=None,
):
    """The train step, jitted over the mesh; the state it is given is donated.

    Args:
      graphdef: of the network, from `create_state`.
      tx: its optimiser.
      views_of: (step, batch) -> [B, 2, S, S, C], traced into the step; `views.make_views` gives one.
      lambd, form: of the loss.
      batch_size: what the cross-correlation is divided by; None for the rows of each batch. As in the official code
        it is the nominal size where an epoch ends with a smaller batch, which is a program of its own to compile.
      scale_loss: factor on the loss that is differentiated; the reported loss is without it. It matters only where
        the optimiser is not scale-free.
      schedules: {name: schedule}, learning rates to report.
      probe_tx: optimiser of the online probe, if the state has one.
      embed: the network there and back, see `microbatches`.
      give_up_after: so many updates in a row that are not finite; see `nonfinite`. None of them is applied.
      state_sharding: of the state, see `sharding.of_state`; None replicates it.
    Returns:
      (state, batch) -> (state, metrics); metrics are scalars on the device.
    """

    state_sharding = replicated(mesh) if state_sharding is None else state_sharding
    undivided = all(sharding.is_fully_replicated for sharding in jax.tree.leaves(state_sharding))

    def objective(z, head, features, label):
        if undivided:
            # The loss wants columns of z, and the partitioner would go back from there and split the projector's last
            # product, the gradient and the update of its weights, which it then gathers in float32.
            z = jax.lax.with_sharding_constraint(z, by_example(mesh))
        loss, terms = barlow_twins_loss(z[:, 0], z[:, 1], lambd=lambd, form=form, mesh=mesh, batch_size=batch_size)
        report = {"loss": loss, **terms, **metrics.embedding_stats(z[:, 0], z[:, 1])}
        total = scale_loss * loss
        if head is not None:
            # Of the features, not through them: the probe watches and never shapes them.
            probe_loss, probe_report = linear_probe(head, features, label)
            total, report = total + probe_loss, report | probe_report
        return total, report

    def train_step(state, batch):
        views = views_of(state.step, batch)
        head = state.probe.get("params")
        features, z, batch_stats, pull_back = embed(graphdef, state.params, state.batch_stats, views)
        (dz, head_grads), report = jax.grad(objective, (0, 1), has_aux=True)(z, head, features, batch["label"])
        scale = state.loss_scale.get("scale", 1)
        grads = jax.tree.map(lambda g: g / scale, pull_back(dz * scale)) if state.loss_scale else pull_back(dz)

        # Whole on every device: where the state is split, the partitioner would spread the small arrays that
        # `nonfinite` joins over the devices, and through them the arithmetic of each BatchNorm, with 500 exchanges
        # of 1 kB a step.
        squares = jax.tree.map(lambda g: jnp.square(g).sum(), grads)
        batch_stats, squares = jax.lax.with_sharding_constraint((batch_stats, squares), replicated(mesh))
        report["grad_norm"] = jnp.sqrt(jax.tree.reduce(jnp.add, squares))
        report |= {name: jnp.asarray(rate(state.step)) for name, rate in (schedules or {}).items()}

        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        probe = state.probe
        if head is not None:
            updates, head_state = probe_tx.update(head_grads, probe["opt_state"], head)
            probe = {"params": optax.apply_updates(head, updates), "opt_state": head_state}
        new = state._replace(params=params, batch_stats=batch_stats, opt_state=opt_state, probe=probe)
        state = accept(state, new, nonfinite.find(batch_stats, z, report["loss"], squares), give_up_after)
        report["skipped"] = state.health["skipped"]
        if state.loss_scale:
            report |= {"loss_scale": state.loss_scale["scale"], "overflows": state.loss_scale["overflows"]}
        return state, report

    return jax.jit(
        train_step,
        donate_argnums=0,
        in_shardings=(state_sharding, by_example(mesh)),
        out_shardings=(state_sharding, replicated(mesh)),
    )


def accept(old, new, findings, give_up_after):
    """The state after a step: `new` if all is finite, else `old` with the step counted and the record kept.

    A skipped step leaves nothing behind but its number: in float16 the official code lets the running statistics of
    such a step go on, here they wait as the parameters do, because they may hold the inf. The schedules go on.
    """
    found, only_gradients, tensor = findings
    scaled = bool(old.loss_scale)
    # At scale 1 there is nothing left to halve: then an overflow is a fault like any other.
    overflow = only_gradients & (old.loss_scale["scale"] > 1) if scaled else jnp.zeros_like(found)
    record, given_up = nonfinite.record(old.health, old.step, found, overflow, tensor, give_up_after)
    skipped = old._replace(opt_state=optim.withheld(old.opt_state, new.opt_state))
    after = nonfinite.choose(found, skipped, new)
    if scaled:
        after = after._replace(loss_scale=loss_scale.update(old.loss_scale, ~found, overflow))
    after = after._replace(step=old.step + 1, health=record)
    return nonfinite.choose(given_up, old._replace(health=record), after)


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


def make_inspect_step(graphdef, views_of, *, mesh, embed=microbatches.whole):
    """A look at a batch without learning from it: the views and embeddings that the train step would see.

    Args:
      graphdef, views_of, mesh, embed: as of `make_train_step`.
    Returns:
      (state, batch) -> {"views" [<= 8, 2, S, S, C], "c" [D, D]}, c of the first 8192 dimensions where there are more,
      and divided by the rows that the batch has.
    """

    def inspect(state, batch):
        views = views_of(state.step, batch)
        _, z, _, _ = embed(graphdef, state.params, state.batch_stats, views)
        return {"views": views[:8], "c": cross_correlation(z[:, 0, :8192], z[:, 1, :8192])}

    return jax.jit(inspect, in_shardings=(None, by_example(mesh)), out_shardings=replicated(mesh))
