"""What a machine makes of a train step: whether it has room for it, and how long it would take at best.

config: of the run, in all functions here; its fields are read and nothing else.
"""

import math

from barlow_jax.errors import UserError
from barlow_jax.planning import compiled, gpus, machines
from barlow_jax.planning.tables import size, table


def room(machine):
    """Bytes that a device has for the program."""
    return machine.memory * (machines.GPU_SHARE if machine.platform == "gpu" else 1)


def roofline(machine, cost):
    """Seconds of one step at the peak rates: {"compute", "memory", "network", "step"}.

    The step is the slower of arithmetic and memory; the network's time is beside it, as nothing says what it hides
    behind. No program reaches these peaks in all its parts.
    """
    seconds = {
        "compute": cost.flops / machine.flops,
        "memory": cost.accessed / machine.bandwidth,
        "network": sum(c.wire for c in cost.collectives) / machine.network,
    }
    return seconds | {"step": max(seconds["compute"], seconds["memory"])}


def describe(config, steps_per_epoch, machine, compiler, cost, images_per_core):
    """Lines: what compiled it, memory, arithmetic and traffic, communication, largest arrays, time, and host cores.

    Args:
      compiler: the machines.Compiler that the cost is of.
      images_per_core: that a host core decodes in a second.
    """
    each = machine.device_name
    seconds = roofline(machine, cost)
    step = seconds["step"] + seconds["network"]
    epoch = steps_per_epoch * step / 3600
    chip = machine.chip
    lines = [
        "",
        f"{machine.topology}: {machine.chips} chips, {machine.devices} devices ({each}s), batch "
        f"{config.batch_size // machine.devices} on each; figures are for one {each} and one step",
    ]
    lines += compiler.said
    estimate = "" if compiler.own else ": an estimate"
    lines += [
        f"memory        {size(cost.memory)} of {size(room(machine))}{estimate} (state and batch "
        f"{size(cost.arguments)}, temporaries {size(cost.temporaries)}, results {size(cost.results)}, code "
        f"{size(cost.code)})",
        f"arithmetic    {cost.flops / 1e12:.4g} TFLOP",
        f"traffic       {size(cost.accessed)} read and written in memory",
        "",
        *_communication(cost),
        "",
        *table(
            ("largest arrays computed", "bytes, unpadded", "how many in the program", "made by"),
            [(shape, size(total), times, name) for total, times, shape, name in cost.largest],
        ),
        "",
        f"time          {1e3 * step:.4g} ms a step, an ESTIMATE by roofline: the longer of compute "
        f"{1e3 * seconds['compute']:.4g} and memory {1e3 * seconds['memory']:.4g}, and then network "
        f"{1e3 * seconds['network']:.3g}",
    ]
    if cost.optimal_seconds:
        lines.append(f"              {1e3 * cost.optimal_seconds:.4g} ms by the compiler's own reckoning")
    lines.append(
        f"              peaks of a chip: {chip.flops / 1e12:g} TFLOP/s, {chip.bandwidth / 1e9:g} GB/s memory, "
        f"{chip.network / 1e9:g} GB/s to other chips, {size(chip.memory)} ({chip.source})"
    )
    if config.precision == "bfloat16" and machine.card and gpus.CARDS[machine.card].capability < (8, 0):
        lines.append(f"              which a {machine.card} reaches in float16 alone: --config.precision=float16")
    lines.append(
        f"run           {epoch:.3g} hours an epoch, {epoch * config.epochs:.4g} for "
        f"{config.epochs} epochs at that estimate, without evaluation and stops"
    )
    if machine.slices > 1:
        lines += _between(cost, each)
    if machine.hosts > 1:
        lines.append("              links between hosts are not reckoned with: of them nothing is known here")
    return [*lines, _input(config, step, images_per_core)]


def _between(cost, each):
    """Lines on what each device hands to the network between slices; the time that it takes is not in the estimate."""
    parts = [
        f"{kind} {size(total)} in {number}, none above {size(most)}"
        for kind, (number, total, most) in compiled.by_kind(cost.between).items()
    ]
    total = sum(transfer.bytes for transfer in cost.between)
    said = f"              between slices {size(total)} from each {each}, in {len(cost.between)} transfers"
    return [f"{said}: not reckoned with, as of that network nothing is known here", f"              {'; '.join(parts)}"]


def _communication(cost):
    kinds = compiled.by_kind(cost.collectives)
    if not kinds:
        return ["communication none"]
    rows = [(kind, number, size(total), size(most)) for kind, (number, total, most) in kinds.items()]
    rows += [("  largest: " + c.name, f"{len(c.arrays)} arrays", size(c.bytes), c.what) for c in cost.collectives[:6]]
    return table(("communication", "operations", "bytes", "largest"), rows)


def _input(config, step, images_per_core):
    rate = config.batch_size / step
    resident = "; none if the set lives on the devices" if config.data.resident_bytes else ""
    return (
        f"input         {rate:,.0f} images a second: {math.ceil(rate / images_per_core)} host cores in all, at "
        f"{images_per_core:g} images per core and second (--images_per_core; measured elsewhere, by "
        f"benchmarks/input_pipeline.py){resident}"
    )


def remedy(config, machine, fixed, need):
    """What to change so that it fits.

    Args:
      fixed: bytes on a device that depend on neither the batch nor the number of devices.
      need: all bytes on a device, or None if that is not known.
    """
    if fixed > room(machine):
        ways = "take more chips" if config.shard_params else "set config.shard_params=True"
        return (
            f"the state alone takes {size(fixed)} of the {size(room(machine))} of every {machine.device_name}; {ways}, "
            "narrow config.projector or take chips with more memory"
        )
    smaller = ""
    if need:
        share = (room(machine) - fixed) / (need - fixed)
        least = max(int(config.batch_size * share) // machine.devices * machine.devices, machine.devices)
        smaller = f" (to about {least})"
    ways = ["take more chips", f"lower config.batch_size{smaller}"]
    ways += ["raise config.microbatches"]
    ways += [] if config.remat == "blocks" else ["set config.remat=blocks"]
    return " or ".join(ways)


def check_fits(config, machine, cost):
    """Raises UserError, which makes the exit status 1, unless the program has room."""
    if cost.memory > room(machine):
        share = " of its memory, the share that JAX takes" if machine.platform == "gpu" else ""
        raise UserError(
            f"It does not fit on {machine.topology}: a {machine.device_name} needs {size(cost.memory)} and has "
            f"{size(room(machine))}{share}; {remedy(config, machine, cost.arguments, cost.memory)}."
        )
