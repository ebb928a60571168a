"""Pre-training: the state, its creation, and the train step. In use:

    graphdef, state = create_state(network, tx)
    views_of = views.make_views(recipe, seed, mesh)      # augmentation, on the device
    loss = functools.partial(barlow_twins_loss, lambd=0.0051)
    step = make_train_step(Method(graphdef, tx, views_of, loss, mesh))
    state, metrics = step(state, batch)                  # batch: {"canvas", "boxes", "index", "label"}

`train_step` is the method: views, embeddings, the loss and its gradient, the update. It becomes one jitted program over
the whole mesh, and its gradient is that of the global batch. Of its parts, here and in `training`:

    objective     the loss at the embeddings
    update        of the parameters, by the optimiser
    accept        the new state, if all is finite
    microbatches  the network there and back, for the whole batch or for micro-batches
    nonfinite     steps whose numbers are not finite
    averaging     the average of the weights, where there is one
    loss_scale    float16
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from barlow_jax import model, optim
from barlow_jax.errors import UserError
from barlow_jax.loss import cross_correlation
from barlow_jax.metrics import agreement, embedding_stats
from barlow_jax.run import trees
from barlow_jax.sharding import by_example, replicated
from barlow_jax.training import averaging, loss_scale, microbatches, nonfinite


class TrainState(NamedTuple):
    """All that a run is; a checkpoint holds exactly this."""

    step: jax.Array  # int32, updates so far
    params: Any  # nested dict: backbone, projector
    batch_stats: Any  # nested dict: running statistics of every BatchNorm
    opt_state: Any  # of the optimiser
    probe: Any  # the online linear probe: {"params", "opt_state"}, or {} without labels
    health: Any  # what `nonfinite` has found: {"skipped", "in_a_row", "step", "tensor"}
    loss_scale: Any  # of float16: {"scale", "good_steps", "overflows"}, or {} for other precisions
    average: Any = {}  # of the weights, see `averaging`: {"params", "batch_stats"}, or {} without one


@dataclasses.dataclass(frozen=True)
class Method:
    """What the train step is made of, all of it static: it is traced into the program, and no checkpoint holds it.

    Attributes:
      graphdef: of the network, from `create_state`.
      tx: its optimiser.
      views_of: (step, batch) -> [B, V, S, S, C], two views or more; `views.make_views` gives one. Of several sizes, a
        tuple of them, the first ones first.
      loss: (z1, z2, ..., mesh=mesh) -> loss, {name: term}, of embeddings [B, D]: `loss.barlow_twins_loss` with lambd.
      mesh: the devices.
      draw: step -> {argument: array}, what the loss draws anew in each step.
      told_views_of: (step, batch) -> the same views and what was drawn for them, for a look; None: nothing is told.
      forward: the network there and back, see `microbatches`.
      scale_loss: factor on the loss that is differentiated; the loss that is shown is without it. It matters only where
        the optimiser is not scale-free.
      probe_tx: optimiser of the online probe, if the state has one.
      ema: decay of the average of the weights, if the state has one.
      schedules: {name: schedule}, learning rates to show.
      give_up_after: so many updates in a row that are not finite; see `nonfinite`. None of them is applied.
      state_sharding: of the state, see `sharding.of_state`; None replicates it.
      compiler_options: {name: value} of XLA, see `sharding.compiler_options`.
    """

    graphdef: Any
    tx: optax.GradientTransformation
    views_of: Callable[..., jax.Array]
    loss: Callable[..., tuple[jax.Array, dict[str, jax.Array]]]
    mesh: jax.sharding.Mesh
    _: dataclasses.KW_ONLY
    draw: Callable[[jax.Array], dict[str, jax.Array]] = lambda step: {}
    told_views_of: Callable[..., tuple[jax.Array, dict[str, Any]]] | None = None
    forward: Callable = microbatches.whole
    scale_loss: float = 1.0
    probe_tx: optax.GradientTransformation | None = None
    ema: float = 0.0
    schedules: Mapping[str, Callable] = dataclasses.field(default_factory=dict)
    give_up_after: int = 1
    state_sharding: Any = None
    compiler_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def state_is_whole(self):
        """Whether every device holds all of the state."""
        return all(sharding.is_fully_replicated for sharding in jax.tree.leaves(self.state_sharding))


def create_state(
    barlow_twins: model.BarlowTwins,
    tx: optax.GradientTransformation,
    *,
    num_classes: int | None = None,
    probe_tx: optax.GradientTransformation | None = None,
    scaled: bool = False,
    averaged: bool = False,
) -> tuple[Any, TrainState]:
    """The state at step 0.

    Args:
      barlow_twins: a fresh `model.BarlowTwins`.
      tx: its optimiser.
      num_classes: of the online probe.
      probe_tx: the probe's optimiser. There is a probe where both are given.
      scaled: whether the gradient needs a loss scale, as float16 does.
      averaged: whether an average of the weights is kept.
    Returns:
      graphdef (static structure of the network), TrainState.
    """
    graphdef, params, batch_stats = model.split(barlow_twins)
    probe = {}
    if num_classes is not None and probe_tx is not None:
        head = {
            "kernel": jnp.zeros((barlow_twins.backbone.num_features, num_classes)),
            "bias": jnp.zeros(num_classes),
        }
        probe = {"params": head, "opt_state": probe_tx.init(head)}
    scale = loss_scale.create() if scaled else {}
    average = averaging.create(params, batch_stats) if averaged else {}
    step, health = jnp.zeros([], jnp.int32), nonfinite.create()
    return graphdef, TrainState(step, params, batch_stats, tx.init(params), probe, health, scale, average)


def going_on(state: TrainState, params: Any, batch_stats: Any, momentum: Any, step: int | jax.Array) -> TrainState:
    """A fresh state with what another run has reached; an average of the weights begins there.

    Args:
      params, batch_stats: nested dicts like the state's.
      momentum: of the optimiser, like params; None leaves it at 0.
      step: training steps done.
    Raises:
      UserError: the arrays do not fit, or the optimiser has no momentum to take.
    """
    opt_state = optim.going_on(state.opt_state, momentum, step)
    new = state._replace(step=step, params=params, batch_stats=batch_stats, opt_state=opt_state)
    new = new._replace(average=averaging.create(params, batch_stats) if state.average else {})
    wrong = trees.differences(state, new)
    if wrong:
        name, (here, there) = next(iter(wrong.items()))
        raise UserError(f"The weights do not fit this run: {name} is {there} there and {here} here; take its config.")
    return jax.tree.map(lambda old, value: jnp.asarray(value, old.dtype), state, new)


def make_train_step(method: Method) -> Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]:
    """`train_step`, jitted over the mesh: (state, batch) -> (state, metrics). The state it is given is donated."""
    state_sharding = replicated(method.mesh) if method.state_sharding is None else method.state_sharding
    return jax.jit(
        functools.partial(train_step, method),
        donate_argnums=0,
        in_shardings=(state_sharding, by_example(method.mesh)),
        out_shardings=(state_sharding, replicated(method.mesh)),
        compiler_options=dict(method.compiler_options),
    )


def train_step(method: Method, state: TrainState, batch: Any) -> tuple[TrainState, dict[str, jax.Array]]:
    """One step of Barlow Twins: (state, batch) -> (state, metrics), a pure function.

    Args:
      batch: {"canvas", "boxes", "index", "label"}, [B, ...] each; what `method.views_of` takes, and the label.
    Returns:
      The state after the step, and its metrics, scalars on the device.
    """
    # The views of every image, their features and embeddings. Of more than two, what is watched is the first two.
    with jax.named_scope("views"):  # by which profiles and plans tell their share
        views = method.views_of(state.step, batch)
    features, z, batch_stats, pull_back = method.forward(method.graphdef, state.params, state.batch_stats, views)

    # The loss couples all images of the batch, and sees them through z alone: its gradient there, and from there back.
    gradient = jax.grad(functools.partial(objective, method), (0, 1), has_aux=True)
    drawn = method.draw(state.step)
    (dz, dhead), metrics = gradient(z, state.probe.get("params"), features[:, :2], batch["label"], drawn)
    grads = loss_scale.through(pull_back, dz, state.loss_scale)

    squares = jax.tree.map(lambda g: jnp.square(g).sum(), grads)
    batch_stats, squares = whole((batch_stats, squares), method.mesh)
    metrics["grad_norm"] = jnp.sqrt(jax.tree.reduce(jnp.add, squares))
    metrics |= {name: jnp.asarray(rate(state.step)) for name, rate in method.schedules.items()}

    # The optimiser's update, which becomes the state if all that led to it is finite.
    new = update(method, state, grads, dhead)._replace(batch_stats=batch_stats)
    new = new._replace(average=averaging.update(state.average, new.params, new.batch_stats, method.ema))
    state = accept(state, new, nonfinite.find(batch_stats, z[:, :2], metrics["loss"], squares), method.give_up_after)
    metrics["skipped"] = state.health["skipped"]
    return state, metrics | loss_scale.shown(state.loss_scale)


def objective(method, z, head, features, label, drawn):
    """What is differentiated: the loss at the embeddings of the whole batch, and the probe's.

    Args:
      z: [B, V, D]; features: [B, 2, F], of the first two views; label: int32 [B].
      head: of the probe, see `linear_probe`, or None.
      drawn: of `method.draw`.
    Returns:
      scalar, and what to show of it, {name: scalar}.
    """
    if method.state_is_whole:
        # The loss wants columns of z, and the partitioner would go back from there and split the projector's last
        # product, the gradient and the update of its weights, which it then gathers in float32.
        z = jax.lax.with_sharding_constraint(z, by_example(method.mesh))
    z1, z2, *others = (z[:, view] for view in range(z.shape[1]))
    loss, terms = method.loss(z1, z2, *others, mesh=method.mesh, **drawn)
    metrics = {"loss": loss, **terms, **embedding_stats(z1, z2)}
    total = method.scale_loss * loss
    if head is not None:
        # Of the features, not through them: the probe watches and never shapes them.
        probe_loss, probe_metrics = linear_probe(head, features, label)
        total, metrics = total + probe_loss, metrics | probe_metrics
    return total, metrics


def update(method, state, grads, dhead):
    """The state with the updates of the optimiser, and of the probe's, applied.

    Args:
      grads: like the parameters; dhead: like the probe's, or None.
    """
    updates, opt_state = method.tx.update(grads, state.opt_state, state.params)
    params, probe = optax.apply_updates(state.params, updates), state.probe
    if probe:
        updates, probe_state = method.probe_tx.update(dhead, probe["opt_state"], probe["params"])
        probe = {"params": optax.apply_updates(probe["params"], updates), "opt_state": probe_state}
    return state._replace(params=params, opt_state=opt_state, probe=probe)


def whole(tree, mesh):
    """The arrays of a tree, small ones, whole on every device.

    Where the state is split, the partitioner would spread the small arrays that `nonfinite` joins over the devices, and
    through them the arithmetic of each BatchNorm, with 500 exchanges of 1 kB a step.
    """
    return jax.lax.with_sharding_constraint(tree, replicated(mesh))


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
    logits = jnp.matmul(features, head["kernel"], precision="highest") + head["bias"]
    label = jnp.broadcast_to(label[:, None], logits.shape[:2])
    known = label >= 0
    count = jnp.maximum(known.sum(), 1)
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(label, 0))
    loss = jnp.where(known, cross_entropy, 0).sum() / count
    hits = jnp.where(known, logits.argmax(-1) == label, False).sum()
    return loss, {"probe_loss": loss, "probe_accuracy": hits / count}


def make_inspect_step(method: Method) -> Callable[[TrainState, Any], dict[str, jax.Array]]:
    """A look at a batch without learning from it: the views and embeddings that the train step would see.

    Returns:
      (state, batch) -> {"views" [<= 8, V, S, S, C] or a tuple of such, "boxes" and "small_boxes" [<= 8, V, 4], "draws"
      (of these views, see `views.make_views`), "c" [D, D], "width" [], "index" [B], and
      "agreement" of `metrics`}. c is of the first two views and the first 8192 of `width` dimensions, divided by the
      rows that the batch has.
    """

    def inspect(state, batch):
        told = method.told_views_of or (lambda *of: (method.views_of(*of), {}))
        views, draws = told(state.step, batch)
        _, z, _, _ = method.forward(method.graphdef, state.params, state.batch_stats, views)
        c = cross_correlation(z[:, 0, :8192], z[:, 1, :8192])
        return {
            "views": jax.tree.map(lambda one: one[:8], views),
            "draws": jax.tree.map(lambda one: one[:8], draws),
            "c": c,
            "agreement": agreement(c),
            "width": jnp.int32(z.shape[-1]),
            "index": batch["index"],
            **{name: batch[name][:8] for name in ("boxes", "small_boxes") if name in batch},
        }

    return jax.jit(inspect, in_shardings=(None, by_example(method.mesh)), out_shardings=replicated(method.mesh))
