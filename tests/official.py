"""The official model as the fixtures have it, in the dtype of a test: weights, inputs, runs, names of arrays."""

import functools

import detw
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from barlow_jax import model, optim, pretrain, sharding
from barlow_jax.loss import barlow_twins_loss
from barlow_jax.training import feed
from barlow_jax.weights import naming, pickle_writer


def load(state_dict, dtype):
    """A state_dict of numpy arrays -> params, batch_stats."""
    return jax.tree.map(lambda array: array.astype(dtype), naming.trees(state_dict))


def get(tree, name):
    """The array of `tree` (params, gradients, batch_stats) with this PyTorch name, in PyTorch's layout."""
    for key in naming.path_of(name):
        tree = tree[key]
    return naming.to_torch(tree)


def write_backbone(golden, path, arch="resnet18", wrap=lambda arrays: arrays, **replaced):
    """A state_dict of a whole backbone, under the names of the listing: our mapping has no part in it."""
    described = golden("state_dicts")[1][arch]["backbone"]
    arrays = detw.state_dict([(name, shape) for name, shape, _ in described], 3) | replaced
    pickle_writer.save(path, wrap({name: value for name, value in arrays.items() if value is not None}))
    return arrays


def official_model(listing, projector, seed, dtype, **rule):
    state_dict = detw.state_dict(listing, seed, fresh_stats=True, **rule)
    params, batch_stats = load(state_dict, dtype)
    backbone = functools.partial(model.BACKBONES["resnet18"], dtype=dtype)
    widths = tuple(int(w) for w in projector.split("-"))
    # Its shapes alone: drawing initial weights that nobody uses takes seconds to compile.
    network = nnx.eval_shape(lambda: model.BarlowTwins(backbone, widths, dtype=dtype, rngs=nnx.Rngs(0)))
    return network, params, batch_stats


def given(network, params, batch_stats):
    """The network, which may be its shapes alone, with these arrays."""
    return model.merge(model.split(network)[0], params, batch_stats)


def two_views(seed, batch_size, noise, dtype):
    views = detw.two_views(seed, batch_size, 32, 32, noise)
    return np.stack([y.transpose(0, 2, 3, 1) for y in views], 1).astype(dtype)


def step_on_views(graphdef, tx, mesh, *, lambd, of_loss=None, **options):
    """The train step for batches that hold their views; options: of the loss, and of `pretrain.Method`."""
    loss = functools.partial(barlow_twins_loss, lambd=lambd, **(of_loss or {}))
    return pretrain.make_train_step(
        pretrain.Method(graphdef, tx, lambda _, batch: batch["views"], loss, mesh, **options)
    )


def run(network, params, batch_stats, tx, views, *, lambd, devices=1, split=False, scale_loss=1.0, **of_loss):
    """Trains on a list of view batches; returns losses, gradient norms, the last state."""
    mesh = sharding.make_mesh(jax.devices()[:devices])
    params, batch_stats = jax.tree.map(jnp.array, (params, batch_stats))  # copies: the step donates its state
    graphdef, state = pretrain.create_state(given(network, params, batch_stats), tx)
    shardings = sharding.of_state(state, mesh, split=split)
    state = jax.device_put(state, shardings)
    options = {"scale_loss": scale_loss, "state_sharding": shardings}
    step = step_on_views(graphdef, tx, mesh, lambd=lambd, of_loss=of_loss, **options)
    losses, norms = [], []
    for batch in views:
        label = np.full(len(batch), -1, np.int32)
        state, metrics = step(state, feed.put({"views": batch, "label": label}, mesh))
        losses.append(float(metrics["loss"]))
        norms.append(float(metrics["grad_norm"]))
    return np.array(losses), np.array(norms), state


def norms_and_firsts(tree, names):
    arrays = [get(tree, n) for n in names]
    return np.array([np.linalg.norm(a) for a in arrays]), np.array([a.ravel()[:4] for a in arrays])


def ddp_setup(golden, world_size):
    arrays, described = golden("ddp")
    config = described["config"]
    listing = golden("minitrain")[1]["state_dict_order"]
    widths = [int(w) for w in config["proj"].split("-")]
    shapes = {
        "projector.0.weight": (widths[0], 512),
        "projector.3.weight": (widths[1], widths[0]),
        "projector.6.weight": (widths[2], widths[1]),
    }

    def shape(name, old):
        small = name.startswith(("projector.1.", "projector.4.", "bn.")) and len(old) == 1
        return shapes.get(name, (widths[0],) if small else tuple(old))

    listing = [(n, shape(n, s)) for n, s in listing]
    network, params, batch_stats = official_model(listing, config["proj"], config["seed"], jnp.float64)
    rates = [jnp.asarray(config[k], jnp.float64) for k in ("lrw", "lrb")]
    tx = optim.make_optimizer(
        "lars",
        lambda s: rates[0][s],
        lambda s: rates[1][s],
        weight_decay=config["wd"],
        reference_world_size=world_size,
    )
    views = [two_views(config["seed"] + 500 + t, config["B"], 0.4, jnp.float64) for t in range(5)]
    return arrays, described, config, (network, params, batch_stats, tx, views)
