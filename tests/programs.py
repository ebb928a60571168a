"""What a program asks of the device, read off its jaxpr."""

import pathlib

import commands
from jax.extend import core
from jax.lax import Precision

PRODUCTS = ("dot_general", "conv_general_dilated")


def equations(jaxpr):
    """All equations of a jaxpr, those of its inner jaxprs too, in order."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in core.jaxprs_in_params(equation.params):
            yield from equations(inner)


def products(jaxpr):
    """Of its equations the matrix products and convolutions."""
    return (equation for equation in equations(jaxpr) if equation.primitive.name in PRODUCTS)


def asked(equation):
    """The precision that a product asks for, of its left and of its right side."""
    return tuple(equation.params["precision"] or (Precision.DEFAULT, Precision.DEFAULT))


def precisions(closed):
    """What each product asks for: one precision, or two if its sides differ."""
    pairs = (asked(equation) for equation in products(closed.jaxpr))
    return [left if left == right else (left, right) for left, right in pairs]


def unasked(closed):
    """The products of float32 numbers that some device would round: {(where, left side, right side)}.

    Those that ask for "high" too, as a GPU takes it for TF32.
    """
    found = set()
    for equation in products(closed.jaxpr):
        left, right = (x.aval for x in equation.invars)
        if left.dtype == right.dtype == "float32" and Precision.HIGHEST not in asked(equation):
            found.add((_line(equation), left.str_short(), right.str_short()))
    return found


def _line(equation):
    """The innermost line of the package, or else of a test, that an equation comes from."""
    frames = [(pathlib.Path(frame.file_name), frame.line_num) for frame in equation.source_info.traceback.frames]
    frames = [
        found for found in frames if found[0].is_relative_to(commands.ROOT) and "site-packages" not in found[0].parts
    ]
    file, line = next((f for f in frames if f[0].is_relative_to(commands.ROOT / "barlow_jax")), frames[0])
    return f"{file.relative_to(commands.ROOT)}:{line}"
