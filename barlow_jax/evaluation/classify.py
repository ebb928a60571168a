"""Classification on a pre-trained backbone: a linear head on frozen features, or fine-tuning of everything.

    graphdef, state = create_state(classifier, tx, backbone=(params, batch_stats), weights="freeze")
    images_of = views.make_one_view(recipe, seed, mesh)   # augmentation, on the device
    train_step = make_train_step(graphdef, tx, images_of, weights="freeze", mesh=mesh)
    state, metrics = train_step(state, batch)             # batch: {"canvas", "boxes", "index", "label"}
    eval_images = views.make_eval_views(size=224, mean=mean, std=std, mesh=mesh)
    eval_step = make_eval_step(graphdef, eval_images, mesh=mesh)
    scores = evaluate(eval_step, state, batches, mesh)

The protocol is that of the official evaluate.py (facebookresearch/barlowtwins), with two departures: batch statistics
in fine-tuning are those of the global batch (there: of each GPU's part), and the smaller last batch of an epoch is
filled up with images whose rows do not count (static shapes).
"""

import hashlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from barlow_jax import model
from barlow_jax.errors import UserError
from barlow_jax.metrics import topk_accuracy
from barlow_jax.run import trees
from barlow_jax.sharding import by_example, replicated
from barlow_jax.training.feed import put

WEIGHTS = ("freeze", "finetune")


class State(NamedTuple):
    """All that an evaluation run is; a checkpoint holds exactly this."""

    step: jax.Array  # int32, updates so far
    params: Any  # nested dict: backbone, fc
    batch_stats: Any  # nested dict: running statistics of every BatchNorm of the backbone
    opt_state: Any  # of the optimiser, for the parameters that are trained


def cosine_by_epoch(peak, epochs, steps_per_epoch):
    """A cosine from `peak` towards 0 that moves once an epoch: torch's CosineAnnealingLR(T_max=epochs).

    0 itself is what the epoch after the last would have; the last one trains at a rate above 0.

    Args:
      peak: the rate of the first epoch; the official one is not scaled with the batch size.
    Returns:
      An optax schedule, step -> rate.
    """
    # Computed on the host in float64: the official rates to the last digit that the step's dtype holds.
    rates = 0.5 * peak * (1 + np.cos(np.pi * np.arange(epochs + 1) / epochs))
    return lambda step: jnp.asarray(rates)[jnp.minimum(step // steps_per_epoch, epochs)]


def steps_by_epoch(peak, milestones, factor, steps_per_epoch):
    """`peak`, times `factor` once more after each number of epochs in `milestones`: torch's MultiStepLR.

    With (12, 16) the 13th epoch is the first at the second rate, the 17th the first at the third.

    Returns:
      An optax schedule, step -> rate.
    """
    rates = peak * np.power(float(factor), np.arange(len(milestones) + 1))
    steps = np.asarray(milestones, np.int32) * steps_per_epoch
    return lambda step: jnp.asarray(rates)[jnp.searchsorted(jnp.asarray(steps), step, side="right")]


def sgd(rates, *, weight_decay=1e-6, momentum=0.9, nesterov=False):
    """PyTorch's SGD for the groups "fc" and "backbone": weight decay on every parameter, biases included.

    Args:
      rates: {group: schedule or constant}, for the groups that are trained.
    """

    def group(rate):
        return optax.chain(
            optax.add_decayed_weights(weight_decay),
            optax.trace(momentum, nesterov=nesterov),
            optax.scale_by_learning_rate(rate),
        )

    # A group is one branch of the parameters.
    return optax.multi_transform({name: group(rate) for name, rate in rates.items()}, {name: name for name in rates})


def trained(params, weights):
    """The branch or branches of the parameters that the optimiser moves."""
    if weights not in WEIGHTS:
        raise UserError(f"config.weights is {weights!r}; it is one of {', '.join(WEIGHTS)}.")
    return {"fc": params["fc"]} if weights == "freeze" else params


def create_state(classifier, tx, *, backbone, weights):
    """The state at step 0: a fresh fc on a pre-trained backbone.

    Args:
      classifier: () -> a fresh `model.Classifier`. Only its fc is computed: random weights for a ResNet-50 that are
        thrown away at once would cost more than all else here.
      tx: optimiser of what is trained, as `sgd` gives.
      backbone: (params, batch_stats) of the backbone, nested dicts as a checkpoint holds.
      weights: "freeze" or "finetune".
    Returns:
      graphdef (static structure of the network), State.
    Raises:
      UserError: the backbone is of another architecture.
    """
    graphdef, params, batch_stats = model.split(nnx.eval_shape(classifier))
    for fresh, given in zip((params, batch_stats), backbone, strict=True):
        _check_fit(fresh.get("backbone", {}), given)
    fc = jax.jit(lambda: model.split(classifier())[1]["fc"])()
    # Copies on the device: the train step donates its state, and the caller keeps the checkpoint's arrays.
    given, given_stats = jax.tree.map(jnp.array, backbone)
    # As `model.split` has it: a backbone without BatchNorm has no entry.
    params, batch_stats = {"backbone": given, "fc": fc}, {"backbone": given_stats} if given_stats else {}
    return graphdef, State(jnp.zeros([], jnp.int32), params, batch_stats, tx.init(trained(params, weights)))


def make_train_step(
    graphdef, tx, images_of, *, weights, mesh, images_per_epoch=None, schedules=None, compiler_options=None
):
    """The train step, jitted over the mesh; the state it is given is donated.

    "freeze" keeps the backbone in evaluation mode and differentiates fc alone; "finetune" trains everything, with
    batch statistics of the global batch. The loss is the mean cross-entropy of the rows that count.

    Args:
      graphdef: of the classifier, from `create_state`.
      tx: the optimiser.
      images_of: (step, batch) -> [B, H, W, C], traced into the step; `views.make_one_view` gives one.
      weights: "freeze" or "finetune".
      images_per_epoch: n where the last batch of an epoch is filled up beyond the n-th image: those rows do not count,
        as if the batch were smaller. None: every row counts.
      schedules: {name: schedule}, learning rates to show.
      compiler_options: {name: value} of XLA, see `sharding.compiler_options`.
    Returns:
      (state, batch) -> (state, metrics); metrics are scalars on the device: loss, train_top1, grad_norm.
    """

    def objective(moving, state, images, counted, label):
        network = model.merge(graphdef, state.params | moving, state.batch_stats)
        if weights == "finetune":
            logits, batch_stats = network(images[:, None], train=True)[:, 0], model.batch_stats_of(network)
        else:
            logits, batch_stats = network(images, train=False), state.batch_stats
        cross_entropy = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(label, 0))
        loss = jnp.where(counted, cross_entropy, 0).sum() / counted.sum()
        hits = topk_accuracy(logits, label, ks=(1,), mask=counted)
        return loss, (batch_stats, {"loss": loss, "train_top1": hits["top1"] / hits["count"]})

    def train_step(state, batch):
        label, moving = batch["label"], trained(state.params, weights)
        counted = jnp.arange(len(label)) < rows_that_count(state.step, len(label), images_per_epoch)
        images = images_of(state.step, batch)
        gradient = jax.grad(objective, has_aux=True)
        grads, (batch_stats, metrics) = gradient(moving, state, images, counted, label)
        metrics["grad_norm"] = optax.tree.norm(grads)
        metrics |= {name: jnp.asarray(rate(state.step)) for name, rate in (schedules or {}).items()}
        updates, opt_state = tx.update(grads, state.opt_state, moving)
        params = state.params | optax.apply_updates(moving, updates)
        return State(state.step + 1, params, batch_stats, opt_state), metrics

    return jax.jit(
        train_step,
        donate_argnums=0,
        in_shardings=(replicated(mesh), by_example(mesh)),
        out_shardings=(replicated(mesh), replicated(mesh)),
        compiler_options=compiler_options,
    )


def rows_that_count(step, batch_size, images_per_epoch):
    """How many rows of a training batch are no repetition: all but in the last batch of an epoch."""
    if images_per_epoch is None:
        return batch_size
    position = step % -(-images_per_epoch // batch_size)
    return jnp.minimum(batch_size, images_per_epoch - position * batch_size)


def make_eval_step(graphdef, images_of, *, mesh):
    """(params, batch_stats, batch) -> {"loss", "top1", "top5", "count"}: sums over the rows whose mask is set.

    Args:
      graphdef: of the classifier.
      images_of: batch -> [B, H, W, C]; `views.make_eval_views` gives one.
    """

    def eval_step(params, batch_stats, batch):
        logits = model.merge(graphdef, params, batch_stats)(images_of(batch), train=False)
        label, counted = batch["label"], batch["mask"]
        cross_entropy = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(label, 0))
        loss = jnp.where(counted, cross_entropy, 0).sum()
        return {"loss": loss} | topk_accuracy(logits, label, ks=(1, 5), mask=counted)

    whole = replicated(mesh)
    return jax.jit(eval_step, in_shardings=(whole, whole, by_example(mesh)), out_shardings=whole)


def evaluate(eval_step, state, batches, mesh):
    """Scores over all images of a pass: {"val_loss", "top1", "top5"} as means over images, and their number "images".

    Args:
      eval_step: from `make_eval_step`.
      batches: this process's evaluation batches (numpy), each image in one of them.
    Raises:
      UserError: no image counted, or one has a label that the head does not know.
    """
    total = dict.fromkeys(("loss", "top1", "top5", "count"), 0)
    classes = state.params["fc"]["bias"].size
    for batch in batches:
        wrong = batch["mask"] & ((batch["label"] < 0) | (batch["label"] >= classes))
        if np.any(wrong):
            row = np.argmax(wrong)
            raise UserError(
                f"Validation image {batch['index'][row]} has label {batch['label'][row]}, and the classes of the head "
                f"are 0 to {classes - 1}; check config.data.val."
            )
        sums = jax.device_get(eval_step(state.params, state.batch_stats, put(batch, mesh)))
        total = {name: total[name] + sums[name].item() for name in total}
    count = total.pop("count")
    if not count:
        raise UserError("No validation image could be read; check config.data.path and config.data.val.")
    return {
        "val_loss": total["loss"] / count,
        "top1": total["top1"] / count,
        "top5": total["top5"] / count,
        "images": count,
    }


def fingerprint(params, batch_stats):
    """SHA-256 of the backbone in these trees, names, dtypes, shapes and every bit of every value."""
    backbone = (params["backbone"], batch_stats.get("backbone", {}))
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(backbone)):
        leaf = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode())
        digest.update(leaf.tobytes())
    return digest.hexdigest()


def _check_fit(fresh, given):
    wrong = trees.differences(fresh, given)
    if wrong:
        name = min(wrong)
        here, there = wrong[name]
        raise UserError(
            f"The checkpoint's backbone does not fit: {name} is {there} there and {here} here; check "
            "config.image_size, or give a checkpoint of this architecture."
        )
