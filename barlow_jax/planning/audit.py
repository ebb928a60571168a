"""What a compiled train step must not do, read off its text. Each check gives sentences; none is good news.

Args of all of them:
  found: the instructions of a program (hlo.instructions), of one device.
"""

from barlow_jax.planning import compiled, counts

LARGE_SORT = 2**16  # numbers; the views sort the order of four operations, by example


def reductions(found, n, d):
    """All-reduces of what the loss must not let all devices sum: anything D x D, and N x D in float32.

    Args:
      n: the global batch; d: the embedding's dimensions.
    """
    wrong = []
    for c in compiled.collectives(found):
        if c.kind == "all-reduce":
            for array in c.arrays:
                if array.count >= d * d or (array.dtype == "f32" and array.count >= n * d):
                    wrong.append(f"{c.name} sums {array} over the devices, of {c.what or 'several'}")
    return wrong


def gathers(found, bound):
    """Arrays above `bound` bytes that are gathered on every device."""
    return [
        f"{c.name} gathers {array}, {array.bytes / 1e6:.1f} MB where {bound / 1e6:.1f} are allowed, of {c.what}"
        for c in compiled.collectives(found)
        if c.kind == "all-gather"
        for array in c.arrays
        if array.bytes > bound
    ]


def convolutions(found):
    """Convolutions over pixels with an operand in float32, as a step in 16 bits has none."""
    shapes = {(i.computation, i.name): i.arrays for i in found}
    wrong = []
    for i in found:
        # TPUs have matrix products as convolutions too.
        if not (i.op == "convolution" or "$conv" in i.target) or "conv_general_dilated" not in i.rest:
            continue
        operands = [array for name in i.operands[:2] for array in shapes.get((i.computation, name), ())]
        if any(array.dtype == "f32" for array in operands):
            wrong.append(f"{i.name} of {' and '.join(map(str, operands))}, of {i.what}")
    return wrong


def scatters(found, allowed=()):
    """Scatters whose indices may collide: on a GPU atomics add up there, in whatever order the threads come.

    Args:
      allowed: words in the name of a JAX operation whose indices are known to differ.
    """
    return [
        f"{i.name} into {i.shape}, of {i.what}"
        for i in found
        if i.op == "scatter" and i.attribute("unique_indices") != "true" and not any(word in i.what for word in allowed)
    ]


def sorts(found, limit=LARGE_SORT):
    """Sorts of more than `limit` numbers."""
    shapes = {(i.computation, i.name): i.arrays for i in found}
    wrong = []
    for i in found:
        if i.op == "sort" or "Sort" in i.target or "TopK" in i.target:
            operands = [array for name in i.operands for array in shapes.get((i.computation, name), ())]
            if any(array.count > limit for array in operands):
                wrong.append(f"{i.name} of {operands[0]}, of {i.what}")
    return wrong


def share(found, scope):
    """The share of a named scope in all bytes that the program reads and writes, by the first name of what is fused."""
    moved = counts.traffic(found)
    inside = sum(size for i, size in moved if scope in i.what.split("/"))
    return inside / sum(size for _, size in moved)
