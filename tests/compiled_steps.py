"""A small train step, compiled for machines that nobody here owns, and what is committed of the programs.

make programs      writes tests/fixtures/programs.json anew, from the compilers of requirements-programs.txt
"""

import functools
import importlib
import importlib.metadata
import importlib.util
import json

import commands
import jax

from barlow_jax import plan, sharding
from barlow_jax.planning import audit, compiled, counts, gpus, hlo, machines

MACHINES = ("v3:2x2", "gpu:8xH100")  # 64 examples on each of their eight devices
N, D = 512, 4096  # as in the published run a matrix of the projector is larger than any kernel of the backbone
TABLE = commands.FIXTURES / "programs.json"
TOLERANCE = 0.03
PACKAGES = {"tpu": ("jax", "libtpu"), "gpu": ("jax", *gpus.PLUGINS)}


def missing(topology):
    """What to install so that a machine can be compiled for; "" if all is here."""
    if machines.parse(topology).platform == "tpu":
        return "" if machines.has_libtpu() else "libtpu, the TPU compiler, is not installed: make test-programs"
    return "" if gpus.plugin() else "JAX's CUDA plugin is not installed: make test-programs"


def config():
    """The published experiment, with a ResNet-18 on images of 96 pixels."""
    small = importlib.import_module("configs.barlow_twins").get_config().unlock()
    small.update(arch="resnet18", projector=(D, D, D), batch_size=N, image_size=96)
    small.data.canvas = 128
    return small.lock()


@functools.cache
def program(topology):
    """(Cost, instructions) of the step for a machine, of one device."""
    compiler = machines.compiler(machines.parse(topology))
    images, mesh = plan.Images(100_000, 3, 10, 128, "made up"), sharding.make_mesh(compiler.devices)
    method, state = plan.program(config(), images, mesh)
    step = plan.lowered(config(), method, state, images, compiler.platform).compile()
    return compiled.cost(step), hlo.instructions(step.as_text())


def backbone_kernel():
    """Bytes of the largest kernel of the backbone, in float32: its updates are gathered, as its weights are whole."""
    _, state = plan.program(config(), plan.Images(100_000, 3, 10, 128, "made up"))
    return max(plan.nbytes(leaf) for leaf in jax.tree.leaves(state.params["backbone"]))


def figures(cost, found):
    """What is committed of a program: bytes, and of each kind of collective how many, bytes and the largest array."""
    kinds = compiled.by_kind(cost.collectives)
    largest = {kind: max(a.bytes for c in cost.collectives if c.kind == kind for a in c.arrays) for kind in kinds}
    return {
        "temporaries": cost.temporaries,
        "arguments": cost.arguments,
        "traffic": sum(moved for _, moved in counts.traffic(found)),
        "views, share of the traffic": round(audit.share(found, "views"), 4),
        "collectives": {kind: [number, size, largest[kind]] for kind, (number, size, _) in kinds.items()},
    }


def apart(here, committed, tolerance=TOLERANCE):
    """Sentences for the figures that are more than `tolerance` away from what is committed; smaller ones as well."""
    wrong = []
    for name in ("temporaries", "arguments", "traffic", "views, share of the traffic"):
        if abs(here[name] / committed[name] - 1) > tolerance:
            wrong.append(f"{name}: {here[name]} where {committed[name]} is committed")
    for kind in here["collectives"].keys() | committed["collectives"].keys():
        new, old = (side["collectives"].get(kind, [0, 0, 0]) for side in (here, committed))
        if abs(new[1] - old[1]) > tolerance * old[1] or abs(new[2] - old[2]) > tolerance * old[2]:
            wrong.append(f"{kind}: {new} (number, bytes, largest array) where {old} is committed")
    return wrong


def versions(topology):
    """{package: version} of what compiles for a machine."""
    names = PACKAGES[machines.parse(topology).platform]
    return {name: importlib.metadata.version(name) for name in names if importlib.util.find_spec(name)}


def write():
    """The table, from all machines."""
    table = {}
    for topology in MACHINES:
        if missing(topology):
            raise SystemExit(missing(topology))
        print(f"Compiling for {topology}.", flush=True)
        table[topology] = {"compiled by": versions(topology), **figures(*program(topology))}
    TABLE.write_text(json.dumps(table, indent=1) + "\n")


def committed(topology):
    return json.loads(TABLE.read_text())[topology]


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")  # nothing is computed
    write()
