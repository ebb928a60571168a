"""Counting a program's work from its text, for backends whose compiler does not: traffic and arithmetic.

XLA's cost analysis has no figures for programs that were compiled for a GPU from afar.
"""

import math
import re

from barlow_jax.planning import hlo

# These move nothing: they name what is there, or run what is counted by itself.
_FREE = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "optimization-barrier",
    "after-all",
    "partition-id",
    "while",
    "call",
    "conditional",
    "async-start",
}
_SLICES = {"slice", "dynamic-slice", "gather"}


def traffic(found):
    """[(instruction, bytes)] of all that a program runs: its operands and its results, read and written in memory.

    Of an operand of which a fusion takes a slice, the slice counts, and of a result that a fusion writes a slice into,
    twice the slice. Caches are not reckoned with: what is small enough to stay in one still counts.
    """
    groups = hlo.by_computation(found)
    shapes = {(i.computation, i.name): i.arrays for i in found}
    moved = []
    for i in hlo.executed(found):
        if i.op in _FREE or i.op.endswith("-done"):
            continue
        operands = [size(shapes.get((i.computation, name), ())) for name in i.operands]
        result = size(i.arrays[:1] if i.target.startswith(("__cublas", "__cudnn")) else i.arrays)  # no scratch memory
        if i.op.endswith("-start") and i.op != "all-reduce-start":
            result -= sum(operands)  # their result repeats the operands
        if i.op == "fusion":
            operands, result = _of_fusion(groups[i.attribute("calls").lstrip("%")], operands, result)
        elif i.op in _SLICES:
            operands = [min(operands[0], result), *operands[1:]]
        elif i.op == "dynamic-update-slice":
            operands, result = operands[1:], operands[1]
        moved.append((i, sum(operands) + result))
    return moved


def size(arrays):
    """Bytes of them all."""
    return sum(array.bytes for array in arrays)


def _of_fusion(inside, operands, result):
    """Bytes of the operands and of the result of a fusion, as far as it touches them."""
    users = {}
    for i in inside:
        for place, name in enumerate(i.operands):
            users.setdefault(name, []).append((i, place))
    for i in inside:
        if i.op != "parameter":
            continue
        index, used = int(i.rest.split(")")[0]), _through_bitcasts(users, i.name)
        if used and all(user.op in _SLICES and place == 0 for user, place in used):
            operands[index] = min(operands[index], sum(size(user.arrays) for user, _ in used))
        elif used and all(user.op == "dynamic-update-slice" and place == 0 for user, place in used):
            operands[index] = 0
    named = {i.name: i for i in inside}
    root = next(i for i in inside if i.root)
    written = [named[name] for name in root.operands] if root.op == "tuple" else [root]
    return operands, sum(_written(i, named) for i in written) if written else result


def _through_bitcasts(users, name):
    """[(instruction, place of the operand)] of all that use a value, also under another shape."""
    found = []
    for user, place in users.get(name, []):
        found += _through_bitcasts(users, user.name) if user.op == "bitcast" else [(user, place)]
    return found


def _written(i, named):
    while i.op == "bitcast":
        i = named[i.operands[0]]
    return size(named[i.operands[1]].arrays) if i.op == "dynamic-update-slice" else size(i.arrays)


def flops(found):
    """Of the matrix products and convolutions of a program, the bodies of loops once; windows count whole."""
    shapes = {(i.computation, i.name): i.arrays for i in found}
    total = 0
    for i in found:
        if i.op == "dot" or "matmul" in i.target or "gemm" in i.target:
            total += _of_dot(i, shapes)
        elif i.op == "convolution" or "$conv" in i.target:
            total += _of_convolution(i, shapes)
    return total


def _of_dot(i, shapes):
    left = shapes[i.computation, i.operands[0]][0]
    contracted = i.attribute("lhs_contracting_dims")
    if not contracted:  # a call of cuBLAS
        contracted = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', i.rest)[1].replace('"', "")
    return 2 * i.arrays[0].count * math.prod(left.dims[int(axis)] for axis in contracted.split(","))


def _of_convolution(i, shapes):
    """2 x outputs x the weights of one output channel; cuDNN's gradients are named after the forward product."""
    first, second = (shapes[i.computation, name][0] for name in i.operands[:2])
    result = i.arrays[0]
    if i.target.endswith("BackwardInput"):
        outputs, weights = first, second
    elif i.target.endswith("BackwardFilter"):
        outputs, weights = second, result
    else:
        outputs, weights = result, second
    labels = i.attribute("dim_labels").split("_")[1].split("-")[0]
    return 2 * outputs.count * weights.count // weights.dims[labels.index("o")]
