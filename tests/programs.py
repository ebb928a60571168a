"""What a program asks of the device, read off its jaxpr."""

from jax.extend import core


def products(jaxpr):
    """The equations of all matrix products of a jaxpr, those of its inner jaxprs too, in order."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation
        for inner in core.jaxprs_in_params(equation.params):
            yield from products(inner)


def precisions(closed):
    """The precision that each matrix product asks for; an error if its two sides differ."""
    asked = []
    for equation in products(closed.jaxpr):
        precision = equation.params["precision"]
        left, right = (None, None) if precision is None else precision
        assert left == right
        asked.append(left)
    return asked
