"""The time of a train step, its share of views, how far it is from the machine's peaks, its memory; PyTorch beside it.

Our step makes its views; PyTorch's is handed ready ones, as its views are made by the host. All take turns in one
process, so that none has a cooler card than another.
"""

import statistics
import time
import types

import jax

from . import configs, steps
from .paths import ROOT  # noqa: F401

import train_step  # isort: skip
from barlow_jax import sharding  # isort: skip
from barlow_jax.training import feed  # isort: skip
from barlow_jax.planning import compiled  # isort: skip

ROUNDS = 5
ROUND_SECONDS = 4.0  # of each contestant


def measure(context, *, arch, side, batch_size):
    config = configs.of_step(arch, side, batch_size, context.machine()["precision"], context.small)
    mesh = sharding.make_mesh()
    sharding.check_batch_size(batch_size, mesh)
    try:
        contestants, found = ours(context, config, mesh)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        context.row("step", "does not fit", str(error).splitlines()[0][:200])
        return
    torch, reason = theirs(config)
    seconds = take_turns(contestants | torch, rounds=2 if context.small else ROUNDS, budget=turn(context))
    describe(context, config, mesh, found, seconds)
    for name, (median, spread) in seconds.items():
        if name in torch:
            ratio = median / seconds["step"][0]
            context.row(name, shown(median, spread), f"{ratio:.2f} times ours", seconds=median, ratio=ratio)
    for name in torch.keys() - seconds.keys():
        context.row(name, "does not fit", "beside ours, in one process")
    if reason:
        context.row("PyTorch", "not measured", reason)


def turn(context):
    return 0.02 if context.small else ROUND_SECONDS


def ours(context, config, mesh):
    """({name: (once, finish)}, what is known of the program) of the step, and of the step that is handed its views."""
    step, ready, state, views_of = configs.programs(config, mesh)
    batch = feed.put(configs.batch(config), mesh)
    began = time.perf_counter()
    program = step.lower(state, batch).compile()
    found = {"compile_seconds": time.perf_counter() - began}
    cost = compiled.cost(program)
    found |= {"memory": cost.memory, "bytes": cost.accessed}
    state, _ = jax.block_until_ready(program(state, batch))
    found["peak_bytes"] = (jax.devices()[0].memory_stats() or {}).get(
        "peak_bytes_in_use"
    )  # before anything else is there
    handed = {"views": jax.jit(views_of)(state.step, batch), "label": batch["label"]}
    with_views = ready.lower(state, handed).compile()
    found["flops"] = train_step.count_flops(jax.make_jaxpr(ready)(state, handed).jaxpr)
    holder = [state]

    def stepping(program, batch):
        def once():
            holder[0], metrics = program(holder[0], batch)
            return metrics

        return once, jax.block_until_ready

    return {"step": stepping(program, batch), "step, ready views": stepping(with_views, handed)}, found


def theirs(config):
    """({name: (once, finish)} of PyTorch's steps, why there are none)."""
    absent = [name for name in ("torch", "torchvision") if not steps.has(name)]
    if absent:
        return {}, f"{' and '.join(absent)} not installed"
    import torch
    import torch_step

    if jax.default_backend() != "cpu" and not torch.cuda.is_available():
        return {}, "this PyTorch sees no GPU"
    wanted = types.SimpleNamespace(**{name: config[name] for name in ("arch", "stem", "image_size", "batch_size")})
    wanted.projector, wanted.precision = tuple(config.projector), config.precision
    return torch_step.contestants(wanted, config.lambd, compiled=torch.cuda.is_available()), ""


def take_turns(contestants, *, rounds, budget):
    """{name: (median seconds of a step, (lowest, highest))}; one that runs out of memory is left out.

    budget: seconds that a turn should take.
    """
    times, counts = {name: [] for name in contestants}, {}
    for turn in range(rounds + 1):
        for name, (once, finish) in contestants.items():
            if name not in times:
                continue
            try:
                finish(once())  # compiles, in the first round; after another's turn it fills the caches again
                taken = train_step.timed(once, counts.get(name, 2), finish)
            except RuntimeError as error:
                if "memory" not in str(error) and "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                print(f"{name}: {error}", flush=True)
                del times[name]
                continue
            if turn == 0:
                counts[name] = min(max(round(budget / taken), 2), 50)
            else:
                times[name].append(taken)
    return {name: (statistics.median(taken), (min(taken), max(taken))) for name, taken in times.items()}


def shown(median, spread):
    return f"{1e3 * median:.4g} ms ({1e3 * spread[0]:.4g} to {1e3 * spread[1]:.4g})"


def describe(context, config, mesh, found, seconds):
    """Rows of our own step."""
    peaks, (median, spread) = context.machine()["peaks"], seconds["step"]
    rate = config.batch_size / median
    flops = found["flops"] / median / mesh.size
    shares, beside = {}, f"{rate:,.0f} images/s, {flops / 1e12:.3g} TFLOP/s a device in the network"
    if peaks:
        shares = {"mfu": flops / peaks["flops"], "roofline": found["bytes"] / peaks["bandwidth"] / median}
        beside += f": MFU {shares['mfu']:.1%}; {shares['roofline']:.1%} of the memory's roofline"
    beside += f" ({found['bytes'] / 1e9:.3g} GB a step)"
    context.row("step", shown(median, spread), beside, seconds=median, images_per_second=rate, **shares, **found)
    ready = seconds["step, ready views"][0]
    share = 1 - ready / median
    context.row("views", f"{share:.1%} of the step", f"{1e3 * ready:.4g} ms where they are handed in", share=share)
    peak, told = found["peak_bytes"], found["memory"]
    used = f"{peak / 1e9:.3g} GB most in use" if peak else "this device does not say"
    context.row("memory", used, f"{told / 1e9:.3g} GB by the compiler's reckoning", peak_bytes=peak, program_bytes=told)
