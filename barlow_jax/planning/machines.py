"""Machines that a step can be planned for: what their chips can do at best, and compiling for them from afar.

parse("v5e:16x16")     256 chips of a TPU v5e in a 16 x 16 torus
parse("gpu:8xH100")    8 GPUs
"""

import dataclasses
import importlib.util
import math
import os
import re

import jax
from jax.experimental import topologies

from barlow_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Chip:
    """Peak figures of one chip, and where they stand.

    Attributes:
      flops: a second, dense, 16-bit inputs with 32-bit sums (bfloat16; float16 on the V100).
      bandwidth: of its memory, bytes a second.
      memory: bytes.
      network: bytes a second in one direction over all links to other chips (ICI, NVLink).
      source: of the figures.
      devices: that JAX sees of one chip; TPU v2 and v3 show their two cores, which share all the above.
      options: for libtpu. A v4 is one device of two cores ("megacore") on Cloud TPU, and two if libtpu is not told.
    """

    flops: float
    bandwidth: float
    memory: float
    network: float
    source: str
    devices: int = 1
    options: tuple = ()


GIB = 2**30
_JOUPPI = "Jouppi et al., A domain-specific supercomputer for training deep neural networks, CACM 63(7), 2020"
_CLOUD = "cloud.google.com/tpu/docs, system architecture"
_NVIDIA = "NVIDIA's data sheet of the {} (dense; NVLink's total halved)"

TPUS = {
    "v2": Chip(46e12, 700e9, 16 * GIB, 4 * 62e9, _JOUPPI, devices=2),
    "v3": Chip(123e12, 900e9, 32 * GIB, 4 * 82e9, _JOUPPI, devices=2),
    "v4": Chip(275e12, 1200e9, 32 * GIB, 300e9, _CLOUD, options=(("chip_config_name", "megacore"),)),
    "v5e": Chip(197e12, 819e9, 16 * GIB, 200e9, _CLOUD),
    "v5p": Chip(459e12, 2765e9, 95 * GIB, 600e9, _CLOUD),
    "v6e": Chip(918e12, 1640e9, 32 * GIB, 448e9, _CLOUD),
}

GPUS = {
    "V100": Chip(125e12, 900e9, 32 * GIB, 150e9, _NVIDIA.format("V100 SXM2 32GB")),
    "V100-16": Chip(125e12, 900e9, 16 * GIB, 150e9, _NVIDIA.format("V100 SXM2 16GB")),
    "A100-40": Chip(312e12, 1555e9, 40 * GIB, 300e9, _NVIDIA.format("A100 SXM4 40GB")),
    "A100-80": Chip(312e12, 2039e9, 80 * GIB, 300e9, _NVIDIA.format("A100 SXM4 80GB")),
    "H100": Chip(989e12, 3350e9, 80 * GIB, 450e9, _NVIDIA.format("H100 SXM5")),
    "H200": Chip(989e12, 4800e9, 141e9, 450e9, _NVIDIA.format("H200 SXM")),
}

# JAX takes this share of a GPU's memory at its start, and no more, unless XLA_PYTHON_CLIENT_MEM_FRACTION says so.
GPU_SHARE = 0.75


@dataclasses.dataclass(frozen=True)
class Machine:
    """A number of chips. Per device: `flops`, `bandwidth`, `memory` and `network`, as Chip has them."""

    topology: str
    platform: str  # "tpu" | "gpu"
    chip: Chip
    chips: int

    @property
    def devices(self):
        return self.chips * self.chip.devices

    @property
    def device_name(self):
        return "core" if self.chip.devices > 1 else "chip"

    def __getattr__(self, name):
        if name in ("flops", "bandwidth", "memory", "network"):
            return getattr(self.chip, name) / self.chip.devices
        raise AttributeError(name)


def parse(topology):
    """The Machine of "v4:4x4x4" (a kind of TPU, and chips along each axis) or "gpu:8xH100" (how many of which)."""
    tpu = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", topology)
    if tpu and tpu[1] in TPUS:
        chips = math.prod(int(side) for side in tpu[2].split("x"))
        if chips:
            return Machine(topology, "tpu", TPUS[tpu[1]], chips)
    gpu = re.fullmatch(r"gpu:(\d+)x([\w-]+)", topology)
    if gpu and gpu[2] in GPUS and int(gpu[1]):
        return Machine(topology, "gpu", GPUS[gpu[2]], int(gpu[1]))
    raise UserError(
        f"--topology={topology} is not known; it is a TPU slice such as v5e:16x16 ({', '.join(TPUS)}) or GPUs such as "
        f"gpu:8xH100 ({', '.join(GPUS)})."
    )


def has_libtpu():
    return importlib.util.find_spec("libtpu") is not None


# Without these libtpu looks for the machine it is on, complains about what it does not find, and lets no second process
# in, as it would have to if it drove a TPU and not only compiled for one.
_LIBTPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v4-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def devices(machine):
    """The devices to compile for: of a TPU that nobody here owns, or simulated CPU devices in place of GPUs."""
    if machine.platform == "gpu":
        if jax.device_count("cpu") < machine.devices:
            raise UserError(
                f"--topology={machine.topology} needs {machine.devices} simulated devices and JAX has started with "
                f"{jax.device_count('cpu')}; set XLA_FLAGS=--xla_force_host_platform_device_count={machine.devices}."
            )
        return jax.devices("cpu")[: machine.devices]
    if not has_libtpu():
        raise UserError(
            f"--topology={machine.topology} needs the TPU compiler, which is the optional package libtpu; install it "
            "with `pip install libtpu`."
        )
    for name, value in _LIBTPU.items():
        os.environ.setdefault(name, value)
    try:
        return topologies.get_topology_desc(machine.topology, "tpu", **dict(machine.chip.options)).devices
    except jax.errors.JaxRuntimeError as error:
        what = str(error).splitlines()[0].split(": ", 1)[-1].rstrip(".")
        raise UserError(
            f"--topology={machine.topology} is no slice that libtpu knows ({what}); slices of v2, v3, v5e and v6e have "
            "two sides such as 4x4, those of v4 and v5p three such as 2x2x4."
        ) from None
