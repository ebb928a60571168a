"""Reading a compiled program: its memory, its arithmetic, what it sends between devices, its largest arrays.

All figures are of one device, as XLA counts them for a partitioned program. XLA counts the body of a loop once.
"""

import collections
import dataclasses
import re

BYTES = {
    "pred": 1,
    "s4": 0.5,
    "u4": 0.5,
    "s8": 1,
    "u8": 1,
    "s16": 2,
    "u16": 2,
    "bf16": 2,
    "f16": 2,
    "s32": 4,
    "u32": 4,
    "f32": 4,
    "s64": 8,
    "u64": 8,
    "f64": 8,
    "c64": 8,
    "c128": 16,
}

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([a-z][\w\-]*)\((.*)$")
_ARRAY = re.compile(r"\b(pred|bf16|[suf]\d+|c64|c128)\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Instruction:
    computation: str
    entry: bool  # of the program itself, not of a fusion or loop
    name: str
    shape: str  # result, without its layout; a tuple has several arrays
    op: str
    rest: str  # operands and attributes


def instructions(text):
    """The instructions of a compiled program's text (`Compiled.as_text()`)."""
    computation, entry, found = "", False, []
    for line in text.splitlines():
        header = _COMPUTATION.match(line)
        if header:
            entry, computation = bool(header[1]), header[2]
            continue
        match = _INSTRUCTION.match(line)
        if match:
            found.append(Instruction(computation, entry, match[1], _plain(match[2]), match[3], match[4]))
    return found


def _plain(shape):
    """f32[8,128]{1,0:T(8,128)} -> f32[8,128]; comments inside long tuples go too."""
    return re.sub(r"\{[^}]*\}|/\*.*?\*/", "", shape)


def arrays(shape):
    """Bytes of each array of a result's shape, without the padding of the device's layout."""
    sizes = []
    for dtype, dims in _ARRAY.findall(shape):
        count = 1
        for side in filter(None, dims.split(",")):
            count *= int(side)
        sizes.append(count * BYTES[dtype])
    return sizes


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective operation. bytes: of the whole arrays on one device, the gathered side of it where sizes differ.

    wire: bytes that a device sends at least, with many devices: an all-reduce is a reduce-scatter and an all-gather.
    """

    kind: str
    name: str
    bytes: float
    arrays: int
    what: str

    @property
    def wire(self):
        return self.bytes * (2 if self.kind == "all-reduce" else 1)


def collectives(found):
    """The collective operations among instructions, the largest first."""
    shapes = {i.name: i.shape for i in found}
    # TPUs start one, compute beside it and end it in three fusions, each of which holds a copy; the first one counts.
    again = {i.computation for i in found if '"AsyncCollectiveDone"' in i.rest}
    operations = []
    for i in found:
        kind = i.op.removesuffix("-start")
        if kind not in COLLECTIVES or i.computation in again or i.computation.startswith("async_collective_fusion"):
            continue
        result = arrays(i.shape)
        operands = [size for name in _operands(i.rest) for size in arrays(shapes.get(name, ""))]
        if i.op.endswith("-start") and kind != "all-reduce":
            # Their result is (operands, results, and what the operation keeps for itself).
            result = result[len(operands) : 2 * len(operands)]
        if kind == "all-reduce" and i.computation.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"  # TPUs have it as a fusion of an all-reduce and a slice
        size = max(sum(result), sum(operands))
        operations.append(Collective(kind, i.name, size, len(operands) or len(result), _what(i.rest)))
    return sorted(operations, key=lambda operation: -operation.bytes)


def _operands(rest):
    return re.findall(r"%([\w.\-]+)", rest.split(")", 1)[0])


def _what(rest):
    """The JAX operation that an instruction was made of, as far as the program remembers."""
    name = re.search(r'op_name="(?:jit\(\w+\)/)?\(?([^":;]*)', rest)  # the first, of several that were merged
    return name[1].removeprefix("jit(train_step)/") if name else ""


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
            for array in re.findall(r"[a-z]\w*\[[\d,]*\]", i.shape):
                seen[array] += 1
                names.setdefault(array, _what(i.rest) or i.op)
    ranked = sorted(seen, key=lambda shape: -sum(arrays(shape)))[:count]
    return [(sum(arrays(shape)), seen[shape], shape, names[shape]) for shape in ranked]


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

    @property
    def memory(self):
        return self.arguments + self.results + self.temporaries + self.code


def cost(compiled):
    """The Cost of a jax Compiled."""
    memory, counted = compiled.memory_analysis(), compiled.cost_analysis()
    found = instructions(compiled.as_text())
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
    )
