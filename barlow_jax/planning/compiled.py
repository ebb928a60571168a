"""Reading a compiled program: its memory, its arithmetic, what it sends between devices, its largest arrays.

All figures are of one device, as XLA counts them for a partitioned program. The body of a loop counts once.
"""

import collections
import dataclasses
import re

from barlow_jax.planning import counts, hlo

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective operation. bytes: of the whole arrays on one device, the gathered side of it where sizes differ.

    wire: bytes that a device sends at least, with many devices: an all-reduce is a reduce-scatter and an all-gather.
    """

    kind: str
    name: str
    bytes: float
    arrays: tuple  # the whole ones, hlo.Array
    what: str

    @property
    def wire(self):
        return self.bytes * (2 if self.kind == "all-reduce" else 1)


def collectives(found):
    """The collective operations among instructions, the largest first."""
    shapes = {(i.computation, i.name): i.arrays for i in found}
    # TPUs start one, compute beside it and end it in three fusions, each of which holds a copy; the first one counts.
    again = {i.computation for i in found if '"AsyncCollectiveDone"' in i.rest}
    operations = []
    for i in found:
        kind = i.op.removesuffix("-start")
        if kind not in COLLECTIVES or i.computation in again or i.computation.startswith("async_collective_fusion"):
            continue
        result = i.arrays
        operands = [array for name in i.operands for array in shapes.get((i.computation, name), ())]
        if i.op.endswith("-start") and kind != "all-reduce":
            # Their result is (operands, results, and what the operation keeps for itself).
            result = result[len(operands) : 2 * len(operands)]
        if kind == "all-reduce" and i.computation.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"  # TPUs have it as a fusion of an all-reduce and a slice
        whole = max(result, operands, key=counts.size)
        operations.append(Collective(kind, i.name, counts.size(whole), tuple(whole), i.what))
    return sorted(operations, key=lambda operation: -operation.bytes)


def between_slices(found):
    """[Collective] of what each device hands to the network between TPU slices, the largest first.

    There they are no collectives, but transfers from the host, by a runtime of libtpu that sums or gathers them.
    """
    sent = []
    for i in found:
        kind = re.search(r'_xla_megascale_transfer_type="(\w+)"', i.rest)
        if i.op == "send" and kind:
            array = i.arrays[0]  # beside it what the transfer keeps for itself
            sent.append(Collective(kind[1].lower().replace("_", "-"), i.name, array.bytes, (array,), i.what))
    return sorted(sent, key=lambda operation: -operation.bytes)


def by_kind(operations):
    """{kind: (number, bytes, bytes of the largest)}."""
    groups = collections.defaultdict(list)
    for operation in operations:
        groups[operation.kind].append(operation.bytes)
    return {kind: (len(sizes), sum(sizes), max(sizes)) for kind, sizes in sorted(groups.items())}


def largest_arrays(found, count=8):
    """[(bytes, how often, shape, op name)] of the largest arrays that the program computes, the largest first.

    Not how many live at once; those whose life is over give their place to others.
    """
    passed_on = {"parameter", "tuple", "get-tuple-element", "bitcast", "constant", "optimization-barrier", "while"}
    seen = collections.Counter()
    names = {}
    for i in found:
        if i.entry and i.op not in passed_on and not i.op.endswith("-done"):
            for array in i.arrays:
                seen[array] += 1
                names.setdefault(array, i.what or i.op)
    ranked = sorted(seen, key=lambda array: -array.bytes)[:count]
    return [(array.bytes, seen[array], str(array), names[array]) for array in ranked]


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a compiled program takes of one device; bytes, and FLOPs for one run."""

    arguments: int
    results: int  # that do not stand in the place of arguments
    temporaries: int
    code: int
    flops: float
    accessed: float
    optimal_seconds: float | None  # the TPU compiler's own estimate
    collectives: tuple
    largest: tuple
    between: tuple = ()  # TPU slices

    @property
    def memory(self):
        return self.arguments + self.results + self.temporaries + self.code


def cost(compiled):
    """The Cost of a jax Compiled."""
    memory, counted = compiled.memory_analysis(), compiled.cost_analysis()
    found = hlo.instructions(compiled.as_text())
    if counted is None:  # a GPU's, compiled from afar
        accessed = sum(moved for _, moved in counts.traffic(found))
        counted = {"flops": counts.flops(found), "bytes accessed": accessed}
    optimal = counted.get("optimal_seconds", 0)
    return Cost(
        arguments=memory.argument_size_in_bytes,
        results=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        flops=counted.get("flops", 0.0),
        accessed=counted.get("bytes accessed", 0.0),
        optimal_seconds=optimal if optimal > 0 else None,
        collectives=tuple(collectives(found)),
        largest=tuple(largest_arrays(found)),
        between=tuple(between_slices(found)),
    )
