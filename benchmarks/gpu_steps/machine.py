"""What the machine is: its devices, their peak figures as plan has them, and the versions."""

import os
import platform
import re

import jax

from . import steps
from .paths import ROOT  # noqa: F401  puts the project on the path

from barlow_jax.planning import machines  # isort: skip

TPU_KINDS = {
    "TPU v2": "v2",
    "TPU v3": "v3",
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5": "v5p",
    "TPU v6 lite": "v6e",
}


def name_of(kind):
    """The name that plan has for a device: jax's device_kind -> "H100", "A100-80", "v5e", or None where it has none."""
    tpus = sorted((tpu for tpu in TPU_KINDS if kind.startswith(tpu)), key=len)
    if tpus:
        return TPU_KINDS[tpus[-1]]
    memory = re.search(r"\b(\d+) ?GB\b", kind)

    def is_called(name):
        base, _, size = name.partition("-")
        letters = re.sub(r"(?<=[A-Za-z])\s*(?=\d)", r"\\s?", base)  # RTX4090, RTX 4090
        return re.search(rf"\b{letters}\b", kind) and (not size or (memory and memory[1] == size))

    found = sorted(filter(is_called, machines.GPUS), key=len)
    return found[-1] if found else None


def peaks(kind):
    """{"flops", "bandwidth", "memory"} of one device a second and in bytes, or {} where plan knows none."""
    name = name_of(kind)
    if name is None:
        return {}
    chip = (machines.TPUS | machines.GPUS)[name]
    share = 1 / chip.devices
    return {"flops": chip.flops * share, "bandwidth": chip.bandwidth * share, "memory": chip.memory * share}


def precision(device):
    """What the network computes in: bfloat16, or float16 on GPUs from before it; float32 on a CPU."""
    if device.platform == "cpu":
        return "float32"
    capability = getattr(device, "compute_capability", None)
    before = device.platform == "gpu" and capability is not None and float(capability) < 8
    return "float16" if before else "bfloat16"


def measure(context):
    devices = jax.devices()
    device = devices[0]
    packages = {name: __import__(name).__version__ for name in ("jax", "jaxlib", "flax", "numpy")}
    if steps.has("torch"):
        packages["torch"] = __import__("torch").__version__
    found = peaks(device.device_kind)
    memory = (device.memory_stats() or {}).get("bytes_limit")
    known = f"peak {found['flops'] / 1e12:g} TFLOP/s, {found['bandwidth'] / 1e9:g} GB/s" if found else "peaks unknown"
    versions = ", ".join(f"{name} {version}" for name, version in packages.items())
    context.row(
        "device",
        f"{len(devices)} x {device.device_kind}",
        f"{known}; {os.cpu_count()} cores; Python {platform.python_version()}, {versions}",
        platform=device.platform,
        kind=device.device_kind,
        count=len(devices),
        name=name_of(device.device_kind),
        peaks=found,
        bytes_limit=memory,
        precision=precision(device),
        packages=packages,
        cores=os.cpu_count(),
    )
