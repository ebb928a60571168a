"""Programs as an accelerator computes them, as far as the precision of their matrix products and convolutions goes.

A CPU multiplies float32 numbers as they are, whatever a product asks for. Accelerators do so if asked
(`jax.lax.Precision`), and round the numbers else, or cut them into parts of which they multiply the larger pairs:

           nothing, "default"     "high"             "highest"
    tpu    one bfloat16           two bfloat16       three bfloat16: float32
    gpu    TF32                   TF32               float32, also if one side alone asks for it

On a TPU each side of a product may ask for its own. Of two parts by two it multiplies three pairs, of three by three
six (taken here for exact), of one by three three: so the compiler's estimates for a v5e grow. Sums are in float32.
Products of other types than float32 are left alone, and so is what is no product.
"""

import functools
from types import SimpleNamespace

import jax
from jax.extend import core
from jax.lax import Precision
from programs import PRODUCTS, asked

BITS = {"tpu": 7, "gpu": 10}  # of the mantissa, the leading one not counted
PARTS = {Precision.DEFAULT: 1, Precision.HIGH: 2, Precision.HIGHEST: 3}


def on(device, function, asking=None):
    """The function as "tpu" or "gpu" computes it, arrays in and arrays out.

    Args:
      asking: a Precision that every product asks for, in place of what it does ask for.
    """
    rule = SimpleNamespace(device=device, asking=asking)

    def run(*arguments):
        closed, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
        found = jax.jit(core.jaxpr_as_fun(_inside(closed, rule)))(*jax.tree.leaves(arguments))
        return jax.tree.unflatten(jax.tree.structure(shapes), found)

    return run


def _inside(value, rule):
    """A jaxpr, and those inside of it, with the inputs of products rounded; other values as they are."""
    if isinstance(value, core.ClosedJaxpr):
        return value.replace(jaxpr=_inside(value.jaxpr, rule))
    if isinstance(value, core.Jaxpr):
        return value.replace(eqns=[new for equation in value.eqns for new in _equations(equation, rule)])
    if type(value) in (tuple, list):  # the branches of a cond
        return type(value)(_inside(each, rule) for each in value)
    return value


def _equations(equation, rule):
    if equation.primitive.name not in PRODUCTS:
        return [equation.replace(params={name: _inside(value, rule) for name, value in equation.params.items()})]
    parts = [PARTS[rule.asking or side] for side in asked(equation)]
    exact = parts == [3, 3] or (rule.device == "gpu" and 3 in parts)
    if exact or any(x.aval.dtype != "float32" for x in equation.invars):
        return [equation]
    new = []

    def add(primitive, *inputs, like, **params):
        out = core.Var(like.aval)
        new.append(equation.replace(primitive=primitive, invars=list(inputs), outvars=[out], params=params))
        return out

    def cut(x, count):
        """The leading parts of x, each of so many bits."""
        bits = {"exponent_bits": 8, "mantissa_bits": BITS[rule.device]}
        part = add(jax.lax.reduce_precision_p, x, like=x, **bits)
        return [part] + (cut(add(jax.lax.sub_p, x, part, like=x), count - 1) if count > 1 else [])

    result = equation.outvars[0]
    left, right = (cut(x, n if rule.device == "tpu" else 1) for x, n in zip(equation.invars, parts, strict=True))
    pairs = [(i, j) for i in range(len(left)) for j in range(len(right)) if i + j < max(len(left), len(right))]
    # The smallest first, so that little is lost in the sum.
    products = [
        add(equation.primitive, left[i], right[j], like=result, **equation.params)
        for i, j in sorted(pairs, key=sum, reverse=True)
    ]
    functools.reduce(lambda total, product: add(jax.lax.add_p, total, product, like=result), products)
    return [*new[:-1], new[-1].replace(outvars=[result])]
