"""Three steps of a small network in float64 on whatever devices there are; what they leave goes to a file.

    python tests/steps_on_devices.py FILE.npz [split]

Views, parameters, running statistics, losses and the momentum. Started as one process or, with the variables of
`cluster.join`, as several; process 0 writes. `split` divides the state over the devices.
"""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from barlow_jax import augment, model, optim, pretrain, sharding, views
from barlow_jax.loss import barlow_twins_loss
from barlow_jax.run import cluster
from barlow_jax.training import feed, microbatches, nonfinite

ROWS = 32


def main(file, split=False):
    cluster.join()
    jax.config.update("jax_enable_x64", True)
    mesh = sharding.make_mesh()
    tx = optim.make_optimizer("lars", optim.warmup_cosine(0.4, 2, 9), optim.warmup_cosine(0.1, 2, 9))
    backbone = model.make_backbone("convnet", image_size=16, dtype=jnp.float64)
    network = model.BarlowTwins(backbone, (256, 256), dtype=jnp.float64, rngs=nnx.Rngs(0))
    graphdef, state = pretrain.create_state(network, tx)
    wide = jax.tree.map(lambda x: x.astype(jnp.float64), (state.params, state.batch_stats))
    state = state._replace(params=wide[0], batch_stats=wide[1], opt_state=tx.init(wide[0]))
    state_sharding = sharding.of_state(state, mesh, split=split)
    state = jax.device_put(state, state_sharding)
    views_of = views.make_views(augment.Recipe(size=16), 0, mesh, microbatches=2)
    loss = functools.partial(barlow_twins_loss, lambd=0.01)
    forward = microbatches.make_forward(2)
    method = pretrain.Method(graphdef, tx, views_of, loss, mesh, forward=forward, state_sharding=state_sharding)
    step = pretrain.make_train_step(method)
    rng, losses = np.random.default_rng(0), []
    mine = slice(*(ROWS * (jax.process_index() + k) // jax.process_count() for k in (0, 1)))
    for _ in range(3):
        canvas = rng.integers(0, 255, (ROWS, 24, 24, 3), np.uint8)
        boxes = np.concatenate([rng.uniform(0, 6, (ROWS, 2, 2)), rng.uniform(8, 18, (ROWS, 2, 2))], -1)
        batch = {"canvas": canvas, "boxes": boxes.astype(np.float32), "label": np.full(ROWS, -1, np.int32)}
        batch = feed.put({name: x[mine] for name, x in batch.items()}, mesh)
        shown = jax.jit(views_of)(state.step, batch)
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    nonfinite.check_all(state, 1, lambda: None)
    state, shown = jax.device_get(jax.jit(lambda x: x, out_shardings=sharding.replicated(mesh))((state, shown)))
    if jax.process_index() == 0:
        leaves = jax.tree.leaves((state.params, state.batch_stats, state.opt_state))
        np.savez(file, *leaves, views=shown, losses=losses)


if __name__ == "__main__":
    main(sys.argv[1], split=sys.argv[2:] == ["split"])
