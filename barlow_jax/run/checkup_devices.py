"""The devices that JAX finds, whether they compute rightly, what memory they have, and the way between processes.

Functions of `checkup.examine`: each returns lines (verdict, about, said).
"""

import functools
import importlib.metadata
import pathlib
import re
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

GB = 10**9
PLUGINS = {  # package: (platform, what shows that the machine has one, how to get the right one)
    "jax-cuda12-plugin": "gpu",
    "jax-cuda13-plugin": "gpu",
    "libtpu": "tpu",
}
NVIDIA = pathlib.Path("/proc/driver/nvidia/version")
OLDEST_DRIVER = {"jax-cuda12-plugin": 525, "jax-cuda13-plugin": 580}  # as requirements.txt has them
_SIDE = 256  # of the product
# Largest error, relative to the largest value, of sums of products of float32 in float32, and of rounded inputs.
_IN_FLOAT32, _ROUNDED = 1e-5, 1e-3


def found(devices, installed, driver=None):
    """The devices, and what is amiss where the machine or the packages promise others.

    Args:
      devices: jax.Devices of this process.
      installed: {package: version} of those in PLUGINS that are.
      driver: text of NVIDIA's driver about its version, or None where there is none.
    """
    kinds = {}
    for device in devices:
        kinds.setdefault((device.platform, device.device_kind), []).append(device)
    told = ", ".join(f"{len(some)} x {kind} ({platform})" for (platform, kind), some in kinds.items())
    platforms = {"gpu" if device.platform in ("cuda", "rocm") else device.platform for device in devices}
    lines = [("ok", "devices", told)]
    number = re.search(r"\b(\d+)\.\d+", driver) if driver else None
    for package, version in installed.items():
        oldest = OLDEST_DRIVER.get(package, 0)
        if number and int(number[1]) < oldest:
            remedy = "install a newer driver, or jax[cuda12]" if oldest > 525 else "install a newer driver"
            said = f"the driver is {number[0]}, and {package} {version} wants {oldest} or newer; {remedy}."
            lines.append(("problem", "driver", said))
        elif PLUGINS[package] not in platforms and not (PLUGINS[package] == "gpu" and not driver):
            remedy = "see that nothing else holds it and that JAX_PLATFORMS does not leave it out"
            said = f"{package} {version} is installed, and JAX uses no {PLUGINS[package].upper()}; {remedy}."
            lines.append(("warning", "devices", said))
    if driver and not any(PLUGINS[package] == "gpu" for package in installed):
        said = 'there is an NVIDIA driver and JAX runs on the CPU; pip install "jax[cuda13]" (driver 580 or newer) or '
        lines.append(("warning", "devices", said + '"jax[cuda12]".'))
    return lines


def installed_plugins(version=importlib.metadata.version):
    """{package: version} of those in PLUGINS that are installed."""
    there = {}
    for package in PLUGINS:
        try:
            there[package] = version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return there


def driver():
    """What NVIDIA's driver says of itself, or None."""
    return NVIDIA.read_text().splitlines()[0] if NVIDIA.exists() else None


def libraries(devices, version=importlib.metadata.version):
    """Versions of CUDA and cuDNN as JAX has loaded them, and as packages; none on a CPU."""
    if not any(device.platform in ("gpu", "cuda") for device in devices):
        return []
    runtime = re.sub(r"\s+", " ", devices[0].client.platform_version).strip()
    names = [f"nvidia-{name}-cu{major}" for major in (12, 13) for name in ("cudnn", "nccl")]
    there = []
    for name in names:
        try:
            there.append(f"{name} {version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return [("ok", "CUDA", ", ".join([runtime, *there]))]


def memory(devices):
    """Free memory of each device that tells."""
    lines = []
    for device in devices:
        told = device.memory_stats() or {}
        limit, used = told.get("bytes_limit"), told.get("bytes_in_use", 0)
        if limit:
            few = limit - used < 2 * GB
            said = f"device {device.id}: {(limit - used) / GB:.1f} of {limit / GB:.1f} GB free for JAX"
            remedy = "; end what else runs there, or see to XLA_PYTHON_CLIENT_MEM_FRACTION." if few else ""
            lines.append(("warning" if few else "ok", "device memory", said + remedy))
    return lines


def computes(device, product=jnp.matmul, convolution=jax.lax.conv_general_dilated):
    """A matrix product and a convolution on a device, there and back, held against float64 on the host.

    product, convolution: what computes them there.
    """
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, _SIDE, _SIDE)).astype(np.float32)
    images, kernel = (
        rng.normal(size=(8, 16, 16, 8)).astype(np.float32),
        rng.normal(size=(3, 3, 8, 8)).astype(np.float32),
    )
    convolve = functools.partial(
        convolution,
        window_strides=(1, 1),
        padding="VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision="highest",
    )
    windows = np.lib.stride_tricks.sliding_window_view(images.astype(np.float64), (3, 3), (1, 2))
    wanted = {
        "product": a.astype(np.float64) @ b,
        "convolution": np.einsum("nhwckl,klco->nhwo", windows, kernel.astype(np.float64)),
    }
    begun = time.monotonic()
    there = {
        "product": jax.jit(functools.partial(product, precision="highest"))(*jax.device_put((a, b), device)),
        "convolution": jax.jit(convolve)(*jax.device_put((images, kernel), device)),
    }
    errors = {
        name: float(np.abs(np.asarray(value, np.float64) - wanted[name]).max() / np.abs(wanted[name]).max())
        for name, value in there.items()
    }
    seconds = time.monotonic() - begun
    told = ", ".join(f"{name} {error:.0e} off" for name, error in errors.items())
    worst = max(errors.values())
    if not worst < _ROUNDED:  # nan too
        said = f"device {device.id} computes wrongly ({told}); take it out of use, or install other versions of jax."
        return [("problem", "arithmetic", said)]
    if worst > _IN_FLOAT32:
        said = f"device {device.id} rounds the inputs of float32 products ({told}); see to XLA_FLAGS and its libraries."
        return [("warning", "arithmetic", said)]
    return [("ok", "arithmetic", f"device {device.id}: {told}, of float64, in {seconds:.1f} s with compiling")]


def network(mesh, small=20, megabytes=64, rounds=3):
    """Between the processes: a barrier, and all-reduces over all devices, small ones for latency, large for bandwidth.

    mesh: of all devices; every process asks at the same point.
    """
    if jax.process_count() == 1:
        return []
    begun = time.monotonic()
    multihost_utils.sync_global_devices("doctor")
    barrier = time.monotonic() - begun
    latency, bandwidth = reduce_times(mesh, small, megabytes * 2**20, rounds)
    said = f"{jax.process_count()} processes: barrier {1000 * barrier:.0f} ms, an all-reduce of 4 bytes "
    said += f"{1000 * latency:.2f} ms, of {megabytes} MiB {bandwidth / GB:.2f} GB/s"
    slow = bandwidth < 0.1 * GB
    remedy = "; that is below a network of 1 Gbit/s, see with NCCL_DEBUG=INFO which way it takes." if slow else ""
    return [("warning" if slow else "ok", "network", said + remedy)]


def reduce_times(mesh, small, nbytes, rounds):
    """Seconds of an all-reduce of 4 bytes a device, bytes a second of one of `nbytes` a device; the fastest of each."""
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    reduced = jax.jit(lambda x: x.sum(0), out_shardings=whole)

    def fastest(numbers, times):
        here = jax.make_array_from_callback(
            (mesh.size, numbers), sharding, lambda index: np.ones((1, numbers), np.float32)
        )
        reduced(here).block_until_ready()  # compiled, and the connections made
        taken = []
        for _ in range(times):
            begun = time.monotonic()
            total = reduced(here).block_until_ready()
            taken.append(time.monotonic() - begun)
        if float(total.addressable_data(0)[0]) != mesh.size:
            raise ArithmeticError(f"the sum of {mesh.size} ones came back as {float(total.addressable_data(0)[0])}")
        return min(taken)

    return fastest(1, small), nbytes / fastest(nbytes // 4, rounds)
