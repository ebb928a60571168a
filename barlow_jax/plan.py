"""What a config means, and what a machine would make of it, before anybody rents the machine.

    python -m barlow_jax.plan --config=configs/barlow_twins.py
    python -m barlow_jax.plan --config=configs/barlow_twins.py --topology=v5e:16x16     (needs: pip install libtpu)
    python -m barlow_jax.plan --config=configs/barlow_twins.py --topology=gpu:8xH100

Without a topology: groups of parameters with their rates, steps, the loss to expect at the start, the size of a
checkpoint, and where the config departs from what the authors published. With one: compiles the train step of train.py
for that machine, from shapes alone, and reads memory, arithmetic, traffic and communication off the program. Exits with
status 1 if it does not fit.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from absl import flags
from ml_collections import config_flags

from barlow_jax import experiment, metrics, optim, pretrain, sharding, views
from barlow_jax.data import open_source, order, sources
from barlow_jax.errors import UserError
from barlow_jax.planning import compiled, machines
from barlow_jax.results import published
from barlow_jax.run import launch
from barlow_jax.training import microbatches

CONFIG = config_flags.DEFINE_config_file("config", None, "File of the experiment, such as configs/barlow_twins.py.")
TOPOLOGY = flags.DEFINE_string("topology", "", "Machine, such as v5e:16x16, v4:4x4x4 or gpu:8xH100.")
IMAGES = flags.DEFINE_integer("images", 0, "Training images; 0 counts those of the config, or takes ImageNet's.")
MEMORY = flags.DEFINE_float("memory", 0.0, "GB of memory per chip, where it is not the usual.")
RATE = flags.DEFINE_float("images_per_core", 900.0, "Images that a host core decodes in a second.")

IMAGENET = 1_281_167  # training images of ILSVRC 2012


@dataclasses.dataclass(frozen=True)
class Images:
    """What the program has to know of the images."""

    count: int
    channels: int
    classes: int | None  # for the online probe; None for unlabelled images
    canvas: int  # side in pixels
    origin: str  # of these figures, for people


def main():
    config = launch.config_of(CONFIG)
    machine = machines.parse(TOPOLOGY.value) if TOPOLOGY.value else None
    if machine and MEMORY.value:
        chip = dataclasses.replace(machine.chip, memory=MEMORY.value * 1e9)
        machine = dataclasses.replace(machine, chip=chip)
    jax.config.update("jax_platforms", "cpu")  # nothing is computed, and no accelerator of this host is to be taken
    if machine and machine.platform == "gpu":
        jax.config.update("jax_num_cpu_devices", machine.devices)  # simulated; JAX has not started yet
    images = images_of(config, IMAGES.value)
    check(config)
    show(meaning(config, images))
    if machine:
        cost = compile_step(config, images, machine)
        show(forecast(config, images, machine, cost, RATE.value))
        check_fits(config, machine, cost)


def show(lines):
    print("\n".join(lines), flush=True)


def check(config):
    """The checks of train.py, but for the images, which need not be here."""
    config = config.copy_and_resolve_references().unlock()
    config.data.path = config.data.path or ("" if config.data.kind == "digits" else "elsewhere")
    experiment.check(config)


def images_of(config, count):
    """The Images of a config: counted where they are, assumed where they are not; `count` overrules the number."""
    channels, side = config.data.channels or len(config.views.mean), config.data.canvas
    assumed = Images(count or IMAGENET, channels, 1000, side, "as you say" if count else "ImageNet's, assumed")
    if config.data.kind == "npz":  # arrays are put on a canvas whole
        assumed = dataclasses.replace(assumed, canvas=config.image_size)
    options = {"folder": {"channels": channels}, "tfds": {"channels": channels, "name": config.data.name}}
    try:
        source = open_source(
            config.data.kind,
            config.data.path,
            "" if config.data.train == "." and config.data.kind == "folder" else config.data.train,
            **options.get(config.data.kind, {}),
            **({"listed": config.data.file_list} if config.data.file_list else {}),
        )
    except UserError as error:
        if config.data.path:
            raise UserError(f"{str(error).rstrip('.')}; or leave config.data.path empty and give --images.") from None
        return assumed
    side = experiment.canvas(config, source)
    classes = source.num_classes if len(sources.labelled(source)) else None
    return Images(count or len(source), source.channels, classes, side, "as you say" if count else source.name)


def table(head, rows):
    """Aligned columns, the first to the left and the others as wide as they need."""
    cells = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(row[k]) for row in cells) for k in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return [lines[0], "-" * (sum(widths) + 2 * len(widths) - 2), *lines[1:]]


def size(count):
    """Bytes as people read them."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.2f} {unit}"
    return f"{count:.0f} bytes"


# What a config means.


def program(config, images):
    """(graphdef, abstract TrainState, tx, probe_tx, schedules), as train.py makes them, and nothing allocated."""
    steps = order.steps_per_epoch(images.count, config.batch_size, config.data.last)
    tx, schedules = experiment.optimizer(config, steps)
    probe_tx = experiment.probe_optimizer(config, steps) if images.classes else None
    structure = []

    def create():
        network = experiment.network(config, images.channels)
        graphdef, state = pretrain.create_state(
            network, tx, num_classes=images.classes, probe_tx=probe_tx, scaled=config.precision == "float16"
        )
        structure.append(graphdef)
        return state

    state = jax.eval_shape(create)
    return structure[0], state, tx, probe_tx, schedules


def nbytes(tree):
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def bytes_per_device(tree, shardings):
    """Bytes of the parts that one device holds."""

    def part(leaf, sharding):
        return math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize

    if isinstance(shardings, jax.sharding.Sharding):
        return sum(part(leaf, shardings) for leaf in jax.tree.leaves(tree))
    return sum(jax.tree.leaves(jax.tree.map(part, tree, shardings)))


def meaning(config, images):
    """Lines: groups of parameters, steps, the loss at the start, the checkpoint, the departures."""
    _, state, _, _, schedules = program(config, images)
    d = state.batch_stats["bn"]["mean"].shape[0]
    steps = order.steps_per_epoch(images.count, config.batch_size, config.data.last)
    expected = metrics.expected_at_init(config.batch_size, d, config.lambd)
    return [
        "",
        *_groups(config, state.params),
        "",
        f"images        {images.count:,} ({images.origin})",
        f"steps         {steps:,} an epoch, {steps * config.epochs:,} in {config.epochs} epochs; warm-up "
        f"{steps * config.warmup_epochs:,}, from {float(schedules['learning_rate_weights'](0)):.4g}",
        f"loss at init  {expected['loss']:,.5g} if the views were unrelated: on_diag {expected['on_diag']:,.5g} + "
        f"{config.lambd} x off_diag {expected['off_diag']:,.5g} (N {config.batch_size}, D {d}); expect less on the "
        "diagonal, more off it",
        f"checkpoint    {size(nbytes(state))} each, {config.keep_checkpoints} kept and the best by kNN",
        "",
        *_departures(config),
    ]


def _groups(config, params):
    """Table of the groups of parameters."""
    o, masks = config.optimizer, jax.tree.leaves(optim.is_weight(params))
    counts = {True: [], False: []}
    for leaf, weight in zip(jax.tree.leaves(params), masks, strict=True):
        counts[weight].append(math.prod(leaf.shape))
    rows = []
    for name, weight, base in (("weights", True, o.learning_rate_weights), ("biases", False, o.learning_rate_biases)):
        peak = base * config.batch_size / 256
        adaptation = f"trust ratio, eta {o.eta:g}" if weight and o.name == "lars" else "none"
        if weight and o.name == "lars":
            adaptation += ", clipped" * o.clip + ", separate norms" * o.separate_norms
        decay = f"{o.weight_decay:g}" if weight else "0"
        rows.append(
            (
                name,
                len(counts[weight]),
                f"{sum(counts[weight]):,}",
                f"{base:g} x {config.batch_size}/256",
                f"{peak:g}",
                f"{peak * o.final:g}",
                decay,
                adaptation,
            )
        )
    head = ("group", "tensors", "parameters", "base rate", "peak", "floor", "decay", f"adaptation ({o.name})")
    note = "Biases are all parameters with one axis, BatchNorm's among them. Gradients are first divided by {}."
    return [*table(head, rows), note.format(f"reference_world_size {config.reference_world_size}")]


def _departures(config):
    """Table of what differs from the code and the paper."""
    rows = [*published.deviations(config), *published.ALWAYS]
    unknown = published.unknown_fields(config)

    def said(value):
        if value is None:
            return "does not say"
        if isinstance(value, tuple):
            return ", ".join(map(said, value))
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    shown = [(field, *map(said, values)) for field, *values in rows]
    lines = table(("departs from the authors", "here", "official code", "paper"), shown)
    return [*lines, f"Not compared: {', '.join(unknown)}."] if unknown else lines


# What a machine makes of it.


def compile_step(config, images, machine):
    """The Cost of the train step of train.py on a machine; UserError where the compiler finds no room for it."""
    mesh = sharding.make_mesh(machines.devices(machine))
    sharding.check_batch_size(config.batch_size, mesh)
    experiment.check_last_batch(config, images.count, mesh)
    experiment.check_microbatches(config, mesh)
    graphdef, state, tx, probe_tx, schedules = program(config, images)
    state_sharding = sharding.of_state(state, mesh, split=config.shard_params)
    held = bytes_per_device(state, state_sharding)
    if held > room(machine):  # no need to ask the compiler
        raise UserError(f"It does not fit on {machine.topology}: {remedy(config, machine, held, None)}.")
    step = pretrain.make_train_step(
        graphdef,
        tx,
        views.make_views(
            experiment.recipe(config, images.channels), config.seed, mesh, microbatches=config.microbatches
        ),
        lambd=config.lambd,
        mesh=mesh,
        batch_size=config.batch_size,
        form=config.loss_form,
        scale_loss=config.scale_loss,
        schedules=schedules,
        probe_tx=probe_tx,
        embed=microbatches.make_embed(config.microbatches, config.microbatch_statistics),
        give_up_after=experiment.give_up_after(config),
        state_sharding=state_sharding,
    )
    show(["", f"Compiling the train step for {machine.topology}: some minutes for a ResNet-50."])
    try:
        return compiled.cost(step.lower(state, batch_of(config, images)).compile())
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        what = next((line for line in str(error).splitlines() if "Used" in line), str(error).splitlines()[0])
        what = what.split("Used", 1)[-1].strip().rstrip(".")
        advice = remedy(config, machine, held, None)
        raise UserError(f"It does not fit on {machine.topology}: the compiler used {what}; {advice}.") from None


def batch_of(config, images):
    """The shapes of a batch."""
    n = config.batch_size
    return {
        "canvas": jax.ShapeDtypeStruct((n, images.canvas, images.canvas, images.channels), jnp.uint8),
        "boxes": jax.ShapeDtypeStruct((n, 2, 4), jnp.float32),
        "index": jax.ShapeDtypeStruct((n,), jnp.int32),
        "label": jax.ShapeDtypeStruct((n,), jnp.int32),
    }


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


def forecast(config, images, machine, cost, images_per_core):
    """Lines: memory, arithmetic and traffic, communication, the largest arrays, time, and host cores."""
    gpu, each = machine.platform == "gpu", machine.device_name
    steps = order.steps_per_epoch(images.count, config.batch_size, config.data.last)
    seconds = roofline(machine, cost)
    step = seconds["step"] + seconds["network"]
    chip = machine.chip
    lines = [
        "",
        f"{machine.topology}: {machine.chips} chips, {machine.devices} devices ({each}s), batch "
        f"{config.batch_size // machine.devices} on each; figures are for one {each} and one step",
    ]
    if gpu:
        lines += [
            "Compiled for simulated CPU devices, as there is no compiler for GPUs without one: the FLOPs and the "
            "communication carry over;",
            "bytes and temporaries are the CPU backend's, which computes bfloat16 in float32 and fuses less: upper "
            "bounds, not forecasts.",
        ]
    lines += [
        f"memory        {size(cost.memory)} of {size(room(machine))}{': an estimate' if gpu else ''} (state and batch "
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
    lines += [
        f"              peaks of a chip: {chip.flops / 1e12:g} TFLOP/s, {chip.bandwidth / 1e9:g} GB/s memory, "
        f"{chip.network / 1e9:g} GB/s to other chips, {size(chip.memory)} ({chip.source})",
        f"run           {steps * step / 3600:.3g} hours an epoch, {steps * config.epochs * step / 3600:.4g} for "
        f"{config.epochs} epochs at that estimate, without evaluation and stops",
    ]
    if gpu:
        lines.append("              links between hosts are not reckoned with: of them nothing is known here")
    return [*lines, _input(config, step, images_per_core)]


def _communication(cost):
    kinds = compiled.by_kind(cost.collectives)
    if not kinds:
        return ["communication none"]
    rows = [(kind, number, size(total), size(most)) for kind, (number, total, most) in kinds.items()]
    rows += [("  largest: " + c.name, f"{c.arrays} arrays", size(c.bytes), c.what) for c in cost.collectives[:6]]
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


if __name__ == "__main__":
    launch.run(main)
