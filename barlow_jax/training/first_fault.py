"""Which operation of a step is the first whose result is not finite.

The step is traced, and its operations are run one by one on the real numbers. Not every inf or nan is a fault: masks
are filled with -inf, and a division by zero may stand in the branch that is not taken. So each value that is not finite
carries where it was born, and the fault is the birth of what arrives where `nonfinite.find` looks.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun
from jax.sharding import PartitionSpec as P

from barlow_jax.run.trees import named

_PACKAGE = "/barlow_jax/"
_LOOKS = ("nonfinite.py", "find")  # file and function whose questions are the ends of the step
_SHOWN = 4  # inputs of an operation


class Numbers(NamedTuple):
    """What an array holds: its finite values lie between low and high, and `bad` of them are none."""

    shape: tuple[int, ...]
    dtype: str
    low: float
    high: float
    bad: int

    def __str__(self):
        count = int(np.prod(self.shape, dtype=int))
        values = f"{self.low:.4g} to {self.high:.4g}" if self.bad < count else "no finite value"
        bad = f", {self.bad} of {count} not finite" if self.bad else ""
        return f"{self.dtype}{[*self.shape]} {values}{bad}"


class Fault(NamedTuple):
    """The first operation whose result is not finite.

    Attributes:
      operation: JAX's name for it, such as "div"; of an input of the step that is not finite itself, "".
      lines: "networks/resnet.py:88 (__call__)", the lines of this package that it comes from, innermost first.
      backward: whether it belongs to the gradient.
      after: the last parameter that was used before it.
      given, gave: of its inputs, floating-point ones, and its result.
      rows: of the batch, those that are not finite in the result, where it has the batch's axis; all of them: ().
    """

    operation: str
    lines: tuple[str, ...]
    backward: bool
    after: str
    given: tuple[Numbers, ...]
    gave: Numbers
    rows: tuple[int, ...]


def of_inputs(state: Any) -> Fault | None:
    """The first parameter, running statistic or moment that is not finite before the step begins, or None."""
    for kind in ("params", "batch_stats", "opt_state"):
        for name, leaf in named(getattr(state, kind)).items():
            if _is_bad(leaf):
                return Fault("", (), False, f"{kind}.{name}", (), _numbers(leaf), ())
    return None


def first(step: Callable[[Any, Any], Any], state: Any, batch: Any) -> Fault | None:
    """The first fault of step(state, batch), or None where all that `nonfinite.find` looks at is finite.

    Args:
      step: a pure function that calls `nonfinite.find`, such as `pretrain.train_step` of a method, on one device.
      state, batch: arrays on that device.
    """
    closed = jax.make_jaxpr(step)(state, batch)
    jaxpr = closed.jaxpr
    ends = [number for number, equation in enumerate(jaxpr.eqns) if _is_end(equation)]
    wanted = {equation_input for end in ends for equation_input in _variables(jaxpr.eqns[end].invars)}
    kept = _leading_to(jaxpr, wanted)
    inputs = [f"{kind}.{name}" for kind, tree in (("state", state), ("batch", batch)) for name in named(tree)]
    parameters = {
        variable: name.removeprefix("state.params.")
        for variable, name in zip(jaxpr.invars, inputs, strict=True)
        if name.startswith("state.params.")
    }
    walk = _Walk(parameters, len(next(iter(jax.tree.leaves(batch)))))
    values = [*jax.tree.leaves(state), *jax.tree.leaves(batch)]
    born = walk.through(jaxpr, kept, closed.consts, values, wanted, _bind)[1]
    return walk.births[min(born.values())] if born else None


class _Walk:
    """A walk through the operations of a program, inner ones too.

    births: every Fault met, in order, whether or not it goes anywhere.
    """

    def __init__(self, parameters, batch_size):
        self.births: list[Fault] = []
        self._parameters, self._batch_size, self._after = parameters, batch_size, ""

    def through(self, jaxpr, equations, consts, inputs, wanted, bind):
        """Runs equations of a jaxpr: ({variable: value}, {variable: place in births}) of the wanted variables."""
        values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *inputs], strict=True))
        born: dict[Any, int] = {}
        last_use = {v: number for number, equation in enumerate(equations) for v in _variables(equation.invars)}
        for number, equation in enumerate(equations):
            given = [v.val if isinstance(v, Literal) else values[v] for v in equation.invars]
            used = [self._parameters[v] for v in _variables(equation.invars) if v in self._parameters]
            self._after = used[-1] if used else self._after
            results = bind(equation, given)
            bad = [variable for variable, x in zip(equation.outvars, results, strict=True) if _is_bad(x)]
            if bad:
                inherited = [born[v] for v in _variables(equation.invars) if v in born]
                place = min(inherited) if inherited else self._birth(equation, given, results, bind)
                born |= dict.fromkeys(bad, place)
            values |= dict(zip(equation.outvars, results, strict=True))
            for v in {*_variables(equation.invars), *equation.outvars}:
                if v not in wanted and last_use.get(v, -1) <= number:  # a batch's activations do not all fit
                    values.pop(v, None)
        return values, {v: place for v, place in born.items() if v in wanted}

    def _birth(self, equation, given, results, bind):
        """The place in births of what this operation gave, of the operation inside it where there are such."""
        for closed, inputs, bind_inside in _parts(equation, given, in_map=bind is not _bind):
            jaxpr = closed.jaxpr
            wanted = {*_variables(jaxpr.outvars)}
            born = self.through(jaxpr, jaxpr.eqns, closed.consts, inputs, wanted, bind_inside or bind)[1]
            if born:
                return min(born.values())
        gave = next(x for x in results if _is_bad(x))
        shown = [x for x in given if _is_float(x)][:_SHOWN]
        backward = "transpose(" in str(equation.source_info.name_stack)
        numbers = tuple(map(_numbers, shown))
        rows = _rows(gave, self._batch_size)
        lines = _lines(equation)
        fault = Fault(equation.primitive.name, lines, backward, self._after, numbers, _numbers(gave), rows)
        self.births.append(fault)
        return len(self.births) - 1


def _bind(equation, given):
    """The results of one operation, as a list."""
    with equation.ctx.manager:
        found = equation.primitive.bind(*given, **equation.primitive.get_bind_params(equation.params))
    return found if equation.primitive.multiple_results else [found]


def _bind_in_map(mesh, equation, given):
    """The same of one inside a shard_map over a single device, whose results may vary over its axis or not."""
    varies = [[_varies(atom.aval) for atom in atoms] for atoms in (equation.invars, equation.outvars)]
    specs = [tuple(P(*mesh.axis_names) if one else P() for one in some) for some in varies]

    def local(*inputs):  # each that varies has an axis for the device in front
        inputs = [x[0] if one else x for x, one in zip(inputs, varies[0], strict=True)]
        return tuple(x[None] if one else x for x, one in zip(_bind(equation, inputs), varies[1], strict=True))

    mapped = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=specs[0], out_specs=specs[1]))
    inputs = [jnp.asarray(x)[None] if one else x for x, one in zip(given, varies[0], strict=True)]
    return [x[0] if one else x for x, one in zip(mapped(*inputs), varies[1], strict=True)]


def _varies(aval):
    """Whether a value inside a shard_map differs between devices."""
    return bool(getattr(aval, "vma", None) or aval.mat.varying)


def _parts(equation, given, in_map):
    """The programs inside an operation in the order in which they run: (ClosedJaxpr, inputs, how to bind or None).

    in_map: whether it stands in a shard_map, whose loops are taken whole: their rounds cannot be run outside of it.
    """
    kind, params = equation.primitive.name, equation.params
    if kind in ("scan", "while") and in_map:
        return
    if kind == "scan":
        yield from _rounds_of_scan(params, given)
    elif kind == "while":
        yield from _rounds_of_while(params, given)
    elif kind == "cond":
        yield params["branches"][int(given[0])], given[1:], None
    elif kind == "shard_map":
        if params["mesh"].size == 1:
            bind = functools.partial(_bind_in_map, params["mesh"])
            yield _closed(params["jaxpr"]), given, bind
    else:
        inner = next((params[name] for name in ("jaxpr", "call_jaxpr", "fun_jaxpr") if name in params), None)
        if inner is not None:
            yield _closed(inner), given, None


def _rounds_of_scan(params, given):
    body, consts, carried = params["jaxpr"], params["num_consts"], params["num_carry"]
    fixed, carry, rows = given[:consts], given[consts : consts + carried], given[consts + carried :]
    rounds = range(params["length"])
    run = jax.jit(jaxpr_as_fun(body))
    for number in reversed(rounds) if params["reverse"] else rounds:
        inputs = [*fixed, *carry, *(x[number] for x in rows)]
        yield body, inputs, None
        carry = run(*inputs)[:carried]


def _rounds_of_while(params, given):
    condition, body = params["cond_jaxpr"], params["body_jaxpr"]
    first_consts, consts = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
    asked, run = (jax.jit(jaxpr_as_fun(part)) for part in (condition, body))
    carry = given[consts:]
    while bool(asked(*given[:first_consts], *carry)[0]):
        inputs = [*given[first_consts:consts], *carry]
        yield body, inputs, None
        carry = run(*inputs)


def _closed(jaxpr):
    return jaxpr if isinstance(jaxpr, ClosedJaxpr) else ClosedJaxpr(jaxpr, ())


def _variables(atoms) -> Sequence[Any]:
    return [atom for atom in atoms if not isinstance(atom, Literal)]


def _leading_to(jaxpr, wanted):
    """The equations on which the wanted variables depend: without the optimiser, whose update is withheld."""
    needed, kept = {*wanted}, []
    for equation in reversed(jaxpr.eqns):
        if needed & {*equation.outvars}:
            needed |= {*_variables(equation.invars)}
            kept.append(equation)
    return kept[::-1]


def _frames(equation):
    """(file, function, line) of each frame that led to an operation, innermost first."""
    traceback = equation.source_info.traceback
    return [(f.file_name, f.function_name, f.line_num) for f in traceback.frames] if traceback else []


def _is_end(equation):
    if equation.primitive.name != "is_finite":
        return False
    file, function = _LOOKS
    return any(name.endswith(f"/{file}") and function in where for name, where, _ in _frames(equation))


def _lines(equation):
    ours = [(file.partition(_PACKAGE)[2], where, line) for file, where, line in _frames(equation) if _PACKAGE in file]
    ours = [one for one in ours if one[0] != "training/first_fault.py"]
    return tuple(f"{file}:{line} ({where.rpartition('.')[2]})" for file, where, line in ours[:3])


def _is_float(x):
    return jnp.issubdtype(jnp.result_type(x), jnp.floating)


def _is_bad(x):
    return _is_float(x) and bool(_any_bad(x))


@jax.jit
def _any_bad(x):
    return ~jnp.isfinite(x).all()


def _numbers(x):
    x = np.asarray(x)
    finite = x[np.isfinite(x)].astype(np.float64)
    low, high = (finite.min(), finite.max()) if finite.size else (np.nan, np.nan)
    return Numbers(x.shape, str(x.dtype), float(low), float(high), int(x.size - finite.size))


def _rows(x, batch_size):
    """The rows of the batch in which an array is not finite, where it has them and they are not all of them."""
    x = np.asarray(x)
    if x.ndim < 2 or not x.shape[0] or x.shape[0] % batch_size:
        return ()
    bad = ~np.isfinite(x).reshape(batch_size, -1).all(1)
    return () if bad.all() else tuple(np.flatnonzero(bad).tolist())
