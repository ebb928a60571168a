"""The text of a compiled program (`Compiled.as_text()`), instruction by instruction.

XLA prints it in one language for all backends. What is read here is what runs: `executed` leaves out the insides of
fusions and the functions of reductions, which have no memory of their own.
"""

import collections
import dataclasses
import math
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

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([a-z][\w\-]*)\((.*)$")
_ARRAY = re.compile(r"\b(pred|bf16|[suf]\d+|c64|c128)\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Array:
    dtype: str  # as XLA writes it: "f32", "bf16"
    dims: tuple

    def __str__(self):
        return f"{self.dtype}[{','.join(map(str, self.dims))}]"

    @property
    def count(self):
        return math.prod(self.dims)

    @property
    def bytes(self):
        """Without the padding of the device's layout."""
        return self.count * BYTES[self.dtype]


@dataclasses.dataclass(frozen=True)
class Instruction:
    computation: str
    entry: bool  # of the program itself, not of a fusion or loop
    root: bool  # the result of its computation
    name: str
    shape: str  # result, without its layout; a tuple has several arrays
    op: str
    rest: str  # operands and attributes

    @property
    def arrays(self):
        """The arrays of the result."""
        return arrays(self.shape)

    @property
    def operands(self):
        """Names."""
        return re.findall(r"%([\w.\-]+)", self.rest.split(")", 1)[0])

    @property
    def what(self):
        """The JAX operation that it was made of, as far as the program remembers."""
        name = re.search(r'op_name="(?:jit\(\w+\)/)?\(?([^":;]*)', self.rest)  # the first, of several that were merged
        return name[1].removeprefix("jit(train_step)/") if name else ""

    @property
    def target(self):
        """What a custom call calls."""
        name = re.search(r'custom_call_target="([^"]*)"', self.rest)
        return name[1] if name else ""

    def attribute(self, name):
        """The text of an attribute such as dim_labels=bf_io->bf; "" without it."""
        found = re.search(rf"\b{name}=(\{{[^}}]*\}}|[^\s,]+)", self.rest)
        return found[1].strip("{}") if found else ""


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
            root, name, shape, op, rest = match.groups()
            found.append(Instruction(computation, entry, bool(root), name, _plain(shape), op, rest))
    return found


def _plain(shape):
    """f32[8,128]{1,0:T(8,128)} -> f32[8,128]; comments inside long tuples go too."""
    return re.sub(r"\{[^}]*\}|/\*.*?\*/", "", shape)


def arrays(shape):
    """The Arrays in the text of a shape."""
    return [Array(dtype, tuple(map(int, filter(None, dims.split(","))))) for dtype, dims in _ARRAY.findall(shape)]


def by_computation(found):
    """{name of a computation: its instructions}."""
    groups = collections.defaultdict(list)
    for i in found:
        groups[i.computation].append(i)
    return groups


# How one computation runs another as it stands, in places of memory of its own; a fusion does not.
_RUNS = {
    "while": ("body", "condition"),
    "call": ("to_apply",),
    "conditional": ("branch_computations", "true_computation", "false_computation"),
    "async-start": ("calls",),
}


def executed(found):
    """The instructions that run as they stand: of the program, its loops, calls and branches, each once."""
    groups = by_computation(found)
    waiting = [i.computation for i in found if i.entry][:1]
    reached = dict.fromkeys(waiting)
    while waiting:
        for i in groups[waiting.pop()]:
            for attribute in _RUNS.get(i.op, ()):
                for name in re.findall(r"[\w.\-]+", i.attribute(attribute)):
                    if name not in reached:
                        reached[name] = None
                        waiting.append(name)
    return [i for name in reached for i in groups[name]]
