"""Machines that a step can be planned for: what their chips can do at best, and compiling for them from afar.

parse("v5e:16x16")       256 chips of a TPU v5e in a 16 x 16 torus
parse("2xv5e:4x8")       2 slices of 4 x 8 chips, over the network of the data centre
parse("gpu:8xH100")      8 GPUs of one host
parse("gpu:2x8xH100")    2 hosts with 8 GPUs each
"""

import dataclasses
import importlib.metadata
import importlib.util
import math
import os
import re

import jax
from jax.experimental import topologies

from barlow_jax.errors import UserError
from barlow_jax.planning import gpus


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
_PCIE = "NVIDIA's data sheet of the {} (dense; PCIe {} x16)"

TPUS = {
    "v2": Chip(46e12, 700e9, 16 * GIB, 4 * 62e9, _JOUPPI, devices=2),
    "v3": Chip(123e12, 900e9, 32 * GIB, 4 * 82e9, _JOUPPI, devices=2),
    "v4": Chip(275e12, 1200e9, 32 * GIB, 300e9, _CLOUD, options=(("chip_config_name", "megacore"),)),
    "v5e": Chip(197e12, 819e9, 16 * GIB, 200e9, _CLOUD),
    "v5p": Chip(459e12, 2765e9, 95 * GIB, 600e9, _CLOUD),
    "v6e": Chip(918e12, 1640e9, 32 * GIB, 448e9, _CLOUD),
}

GPUS = {
    "T4": Chip(65e12, 320e9, 16 * GIB, 16e9, _PCIE.format("T4", "3.0")),
    "V100": Chip(125e12, 900e9, 32 * GIB, 150e9, _NVIDIA.format("V100 SXM2 32GB")),
    "V100-16": Chip(125e12, 900e9, 16 * GIB, 150e9, _NVIDIA.format("V100 SXM2 16GB")),
    "A100-40": Chip(312e12, 1555e9, 40 * GIB, 300e9, _NVIDIA.format("A100 SXM4 40GB")),
    "A100-80": Chip(312e12, 2039e9, 80 * GIB, 300e9, _NVIDIA.format("A100 SXM4 80GB")),
    "L4": Chip(121e12, 300e9, 24 * GIB, 32e9, _PCIE.format("L4", "4.0")),
    "RTX4090": Chip(165.2e12, 1008e9, 24 * GIB, 32e9, _PCIE.format("RTX 4090, white paper on Ada", "4.0")),
    "H100": Chip(989e12, 3350e9, 80 * GIB, 450e9, _NVIDIA.format("H100 SXM5")),
    "H200": Chip(989e12, 4800e9, 141e9, 450e9, _NVIDIA.format("H200 SXM")),
    "B200": Chip(2250e12, 8000e9, 180e9, 900e9, _NVIDIA.format("HGX and DGX B200")),
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
    hosts: int = 1  # GPUs
    slices: int = 1  # TPUs
    card: str = ""  # GPUs: its name in GPUS

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
    """The Machine of "v4:4x4x4" (a kind of TPU, and chips along each axis) or "gpu:2x8xH100" (hosts, GPUs of each)."""
    tpu = re.fullmatch(r"(?:(\d+)x)?(v\w+):(\d+(?:x\d+)*)", topology)
    if tpu and tpu[2] in TPUS:
        slices = int(tpu[1] or 1)
        chips = slices * math.prod(int(side) for side in tpu[3].split("x"))
        if chips:
            return Machine(topology, "tpu", TPUS[tpu[2]], chips, slices=slices)
    gpu = re.fullmatch(r"gpu:(?:(\d+)x)?(\d+)x([\w-]+)", topology)
    if gpu and gpu[3] in GPUS:
        hosts, each = int(gpu[1] or 1), int(gpu[2])
        if hosts * each:
            return Machine(topology, "gpu", GPUS[gpu[3]], hosts * each, hosts, card=gpu[3])
    raise UserError(
        f"--topology={topology} is not known; it is a TPU slice such as v5e:16x16 ({', '.join(TPUS)}), several such as "
        f"2xv5e:4x8, or GPUs such as gpu:8xH100, or gpu:2x8xH100 on two hosts ({', '.join(GPUS)})."
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


@dataclasses.dataclass(frozen=True)
class Compiler:
    """What compiles for a machine.

    Attributes:
      devices: to compile for.
      platform: to lower for; "cpu" stands in for GPUs where there is no compiler for them.
      said: lines for people, of what their figures are.
    """

    devices: list
    platform: str  # "tpu" | "cuda" | "cpu"
    said: tuple

    @property
    def own(self):
        """Whether the program is the one that the machine would run."""
        return self.platform != "cpu"


def compiler(machine):
    """The Compiler for a machine that nobody here owns; UserError where a TPU's is missing or knows no such slice."""
    return _of_gpus(machine) if machine.platform == "gpu" else _of_tpus(machine)


def _of_tpus(machine):
    if not has_libtpu():
        raise UserError(
            f"--topology={machine.topology} needs the TPU compiler, which is the optional package libtpu; install it "
            "with `pip install libtpu`."
        )
    for name, value in _LIBTPU.items():
        os.environ.setdefault(name, value)
    several = f"{machine.slices}x" if machine.slices > 1 else ""
    try:
        options = dict(machine.chip.options) | ({"num_slices": machine.slices} if machine.slices > 1 else {})
        found = topologies.get_topology_desc(machine.topology.removeprefix(several), "tpu", **options).devices
    except jax.errors.JaxRuntimeError as error:
        what = str(error).splitlines()[0].split(": ", 1)[-1].rstrip(".")
        raise UserError(
            f"--topology={machine.topology} is no slice that libtpu knows ({what}); slices of v2, v3, v5e and v6e have "
            "two sides such as 4x4, those of v4 and v5p three such as 2x2x4."
        ) from None
    said = f"Compiled for the TPU itself: jax {jax.__version__}, libtpu {importlib.metadata.version('libtpu')}."
    return Compiler(found, "tpu", (said,))


def _of_gpus(machine):
    """XLA's for GPUs where JAX's CUDA plugin is installed and it takes the card; else simulated CPU devices."""
    plugin = gpus.plugin()
    if not plugin:
        return simulated(machine, f"JAX's CUDA plugin is not installed (`{gpus.INSTALL.format(jax.__version__)}`)")
    chip = machine.chip
    try:
        each = machine.chips // machine.hosts
        found = gpus.devices(machine.card, chip.memory, chip.bandwidth, machine.hosts, each)
    except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
        what = str(error).splitlines()[0].rstrip(".")
        return simulated(machine, f"{plugin} does not take the card ({what})")
    card = gpus.CARDS[machine.card]
    capability = ".".join(map(str, card.capability))
    said = (
        f"Compiled for the card itself, {card.name} of compute capability {capability}: XLA of jax {jax.__version__}, "
        f"{plugin}.",
        "Traffic and FLOPs are summed over the program's text; no kernel was timed to choose among several.",
    )
    return Compiler(found, "cuda", said)


def simulated(machine, why):
    """The Compiler of this host's CPU, whose devices stand in for GPUs; `why`, for people."""
    if jax.device_count("cpu") < machine.devices:
        raise UserError(
            f"--topology={machine.topology} needs {machine.devices} simulated devices and JAX has started with "
            f"{jax.device_count('cpu')}; set XLA_FLAGS=--xla_force_host_platform_device_count={machine.devices}."
        )
    said = (
        f"Compiled for simulated CPU devices, as {why}: the FLOPs and the communication carry over;",
        "bytes and temporaries are the CPU backend's, which computes bfloat16 in float32 and fuses less: upper "
        "bounds, not forecasts.",
    )
    return Compiler(jax.devices("cpu")[: machine.devices], "cpu", said)
