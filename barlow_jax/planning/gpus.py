"""Compiling for NVIDIA's GPUs where there is none: what XLA's compiler asks of a card, and its answer.

XLA takes the card from a text, a GpuTargetConfigProto (openxla/xla, xla/stream_executor/device_description.proto), that
is written here from the table below. The compiler is in JAX's CUDA plugin, which needs nothing of CUDA for that but its
assembler: 0.6 GB (INSTALL), where jax[cuda12], which runs on GPUs too, takes 5.5. Nothing is timed, so where a GPU
would choose between kernels by running them, XLA takes its first guess: memory and traffic are those of the program,
without the scratch buffers of cuDNN.
"""

import dataclasses
import importlib.metadata
import importlib.util
import os

from jax.experimental import topologies

KB, MB = 2**10, 2**20
PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")
INSTALL = "pip install jax-cuda12-plugin=={} nvidia-cuda-nvcc-cu12"


@dataclasses.dataclass(frozen=True)
class Card:
    """What the compiler asks of a card beside its memory and its bandwidth.

    Attributes:
      name: as the driver gives it.
      capability: CUDA's compute capability (major, minor).
      multiprocessors: of the whole card.
      lanes: float32 units of a multiprocessor.
      threads: that a multiprocessor holds.
      shared: bytes of shared memory of a multiprocessor; a block gets 1 kB less from capability 8 on.
      l2: bytes of its cache.
      clock: GHz, the highest.
      links: of NVLink.
    """

    name: str
    capability: tuple
    multiprocessors: int
    lanes: int
    threads: int
    shared: int
    l2: int
    clock: float
    links: int = 0


# What follows from the capability: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability". The
# rest: V100, A100, H100, H200 and B200 as XLA has them (xla/backends/gpu/target_config/specs); T4 and RTX 4090 by
# NVIDIA's white papers on Turing and Ada, L4 by its product brief.
CARDS = {
    "T4": Card("Tesla T4", (7, 5), 40, 64, 1024, 64 * KB, 4 * MB, 1.59),
    "V100": Card("Tesla V100-SXM2-32GB", (7, 0), 80, 64, 2048, 96 * KB, 6 * MB, 1.53, links=6),
    "V100-16": Card("Tesla V100-SXM2-16GB", (7, 0), 80, 64, 2048, 96 * KB, 6 * MB, 1.53, links=6),
    "A100-40": Card("NVIDIA A100-SXM4-40GB", (8, 0), 108, 64, 2048, 164 * KB, 40 * MB, 1.41, links=12),
    "A100-80": Card("NVIDIA A100-SXM4-80GB", (8, 0), 108, 64, 2048, 164 * KB, 40 * MB, 1.41, links=12),
    "L4": Card("NVIDIA L4", (8, 9), 58, 128, 1536, 100 * KB, 48 * MB, 2.04),
    "RTX4090": Card("NVIDIA GeForce RTX 4090", (8, 9), 128, 128, 1536, 100 * KB, 72 * MB, 2.52),
    "H100": Card("NVIDIA H100 80GB HBM3", (9, 0), 132, 128, 2048, 228 * KB, 50 * MB, 1.98, links=18),
    "H200": Card("NVIDIA H200", (9, 0), 132, 128, 2048, 228 * KB, 50 * MB, 1.98, links=18),
    "B200": Card("NVIDIA B200", (10, 0), 148, 128, 2048, 228 * KB, 253 * MB // 2, 1.965, links=18),
}

# The versions of libraries that the program may count on: what XLA's own descriptions of cards name.
CUDNN, CUDA = (9, 10, 0), (12, 8, 0)

# What is the same on all of them.
_COMMON = {
    "threads_per_block_limit": 1024,
    "threads_per_warp": 32,
    "shared_memory_per_block": 48 * KB,
    "block_dim_limit_x": 2**31 - 1,
    "block_dim_limit_y": 2**16 - 1,
    "block_dim_limit_z": 2**16 - 1,
    "thread_dim_limit_x": 1024,
    "thread_dim_limit_y": 1024,
    "thread_dim_limit_z": 64,
    "registers_per_core_limit": 2**16,
    "registers_per_block_limit": 2**16,
}


def target(card, memory, bandwidth):
    """The text that XLA reads the card from.

    Args:
      memory: bytes; bandwidth: bytes a second.
    """
    major, minor = card.capability
    reserved = KB if major >= 8 else 0
    facts = _COMMON | {
        "core_count": card.multiprocessors,
        "fpus_per_core": card.lanes,
        "threads_per_core_limit": card.threads,
        "shared_memory_per_core": card.shared,
        "shared_memory_per_block_optin": card.shared - reserved,
        "l2_cache_size": card.l2,
        "clock_rate_ghz": card.clock,
        "device_memory_size": int(memory),
        "memory_bandwidth": int(bandwidth),
    }
    # From Hopper on some instructions belong to one generation alone ("sm_90a").
    extension = "ACCELERATED_FEATURES" if major in (9, 10) else "NONE"
    info = [f"{name}: {value}" for name, value in facts.items()]
    info.append(f"cuda_compute_capability {{ major: {major} minor: {minor} feature_extension: {extension} }}")
    if card.links:
        info.append(f"device_interconnect_info {{ active_links: {card.links} }}")
    lines = [
        f"gpu_device_info {{ {' '.join(info)} }}",
        'platform_name: "CUDA"',
        "dnn_version_info {{ major: {} minor: {} patch: {} }}".format(*CUDNN),
        "runtime_version {{ major: {} minor: {} patch: {} }}".format(*CUDA),
        f'device_description_str: "{card.name}"',
    ]
    return "\n".join(lines) + "\n"


def plugin():
    """The name and version of JAX's CUDA plugin, such as "jax_cuda12_plugin 0.10.2"; "" if it is not installed."""
    for name in PLUGINS:
        if importlib.util.find_spec(name):
            return f"{name} {importlib.metadata.version(name)}"
    return ""


def devices(name, memory, bandwidth, hosts, each):
    """Devices to compile for, of `hosts` machines with `each` of the cards.

    Raises:
      jax.errors.JaxRuntimeError: XLA does not take the card.
    """
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")  # a card of this host is not to be taken
    text = target(CARDS[name], memory, bandwidth)
    # Slices, hosts, and GPUs of each.
    described = topologies.get_topology_desc(name, "cuda", target_config=text, topology=f"1x{hosts}x{each}")
    return described.devices
