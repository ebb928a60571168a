"""One mesh over all devices, how arrays lie on it, and the keys of examples, which know nothing of it.

The mesh has one axis, "data". Batches are split along it by example, everything else is replicated, and `jax.jit`
works out the communication: batch statistics, the cross-correlation and the gradients are those of the global batch
on any number of devices and processes.
"""

import jax
import jax.numpy as jnp
from jax.experimental import mesh_utils
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from barlow_jax.errors import UserError

SPLIT_FROM = 2**16  # numbers; below, a transfer costs more than the memory it saves


def make_mesh(devices=None):
    """A one-axis mesh, "data", over the given devices or all devices of all processes; TPU slices lie end to end."""
    devices = jax.devices() if devices is None else devices
    slices = {getattr(device, "slice_index", 0) for device in devices}
    if len(slices) > 1 and devices[0].platform == "tpu":  # of which jax.make_mesh makes none
        ordered = mesh_utils.create_hybrid_device_mesh((len(devices) // len(slices),), (len(slices),), devices)
        return jax.sharding.Mesh(ordered, ("data",), axis_types=(AxisType.Auto,))
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh):
    """Every device holds the whole array."""
    return NamedSharding(mesh, P())


def by_example(mesh):
    """The first axis is split over the devices."""
    return NamedSharding(mesh, P("data"))


def of_state(state, mesh, *, split=False):
    """The sharding of every array of a train state, as a pytree.

    Args:
      state: with `params` and `opt_state`, arrays or shapes.
      split: whether the state of the optimiser and the matrices of projector and predictor are split over the devices
        along their largest axis that allows it (the idea of ZeRO, arXiv 1910.02054); what is left, and small, is
        replicated. The partitioner then splits their products too, which moves fewer bytes than to gather them. An
        average of the weights lies as the weights do.
    """
    whole = jax.tree.map(lambda _: replicated(mesh), state)
    if not split:
        return whole

    def along_largest(x):
        axes = [axis for axis in range(x.ndim) if x.shape[axis] % mesh.size == 0]
        if x.size < SPLIT_FROM or not axes:
            return replicated(mesh)
        chosen = max(reversed(axes), key=lambda axis: x.shape[axis])
        return NamedSharding(mesh, P(*("data" if axis == chosen else None for axis in range(x.ndim))))

    heads = {name: state.params[name] for name in ("projector", "predictor") if name in state.params}
    opt_state = jax.tree.map(along_largest, state.opt_state)
    params = whole.params | jax.tree.map(along_largest, heads)
    average = whole.average | ({"params": params} if whole.average else {})
    return whole._replace(params=params, opt_state=opt_state, average=average)


def compiler_options(mesh, *, deterministic=False):
    """Options of XLA for a program that trains on these devices, {name: value}, for `jax.jit`.

    Args:
      deterministic: whether a GPU is to compute the same bits at each run of one compiled program: no sums by atomics,
        and of cuDNN's and cuBLAS's algorithms only those that promise it. What XLA has no such form of does not
        compile. CPUs and TPUs compute so anyway.
    """
    gpu = mesh.devices.flat[0].platform in ("gpu", "cuda", "rocm")
    return {"xla_gpu_exclude_nondeterministic_ops": True} if gpu and deterministic else {}


def check_batch_size(batch_size, mesh):
    """Raises UserError unless the global batch splits evenly over the devices."""
    if batch_size % mesh.size:
        lower = batch_size // mesh.size * mesh.size
        raise UserError(
            f"config.batch_size is {batch_size}, which {mesh.size} devices do not divide; "
            f"take {max(lower, mesh.size)} or {lower + mesh.size}."
        )


def round_up(batch_size, mesh):
    """The smallest multiple of the number of devices that is no smaller than batch_size."""
    return -(-batch_size // mesh.size) * mesh.size


def example_keys(seed, step, batch_size):
    """One PRNG key per example, [batch_size], from (seed, step, place in the global batch).

    So what is drawn for an example never depends on the number of devices.
    """
    key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch_size))
