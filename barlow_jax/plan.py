"""What a config means, and what a machine would make of it, before anybody rents the machine.

    python -m barlow_jax.plan --config=configs/barlow_twins.py
    python -m barlow_jax.plan --config=configs/barlow_twins.py --topology=v5e:16x16     (needs: pip install libtpu)
    python -m barlow_jax.plan --config=configs/barlow_twins.py --topology=gpu:8xH100     (2x8xH100: on two hosts)

Without a topology: groups of parameters with their rates, steps, the loss to expect at the start, the size of a
checkpoint, and where the config departs from what the authors published. With one: compiles the train step of train.py
for that machine, from shapes alone, and reads memory, arithmetic, traffic and communication off the program. Exits with
status 1 if it does not fit.
"""

import dataclasses
import math
import textwrap

import jax
import jax.numpy as jnp

from barlow_jax import experiment, fields, model, optim, pretrain, sharding
from barlow_jax.data import levels, open_source, order
from barlow_jax.errors import UserError
from barlow_jax.planning import compiled, forecast, machines
from barlow_jax.planning.tables import size, table
from barlow_jax.results import published
from barlow_jax.run import launch
from barlow_jax.training import presets, viewing

IMAGENET = 1_281_167  # training images of ILSVRC 2012


@dataclasses.dataclass(frozen=True)
class Images:
    """What the program has to know of the images."""

    count: int
    channels: int
    classes: int | None  # for the online probe; None for unlabelled images
    canvas: int  # side in pixels
    origin: str  # of these figures, for people
    side: int = 224  # usual short side in pixels


def define_flags(flag):
    flag.config("File or name of the experiment, such as configs/barlow_twins.py or barlow_twins.")
    flag.text("topology", "Machine, such as v5e:16x16, v4:4x4x4, 2xv5e:4x8 or gpu:8xH100.")
    flag.number("images", "Training images; 0 counts those of the config, or takes ImageNet's.")
    flag.number("memory", "GB of memory per chip, where it is not the usual.", default=0.0)
    flag.number("images_per_core", "Images that a host core decodes in a second.", default=900.0)


def main(wanted):
    config = wanted.config
    fields.check_flags(wanted, fields.PLAN)
    check(config)
    machine = machines.parse(wanted.topology) if wanted.topology else None
    if machine and wanted.memory:
        chip = dataclasses.replace(machine.chip, memory=wanted.memory * 1e9)
        machine = dataclasses.replace(machine, chip=chip)
    jax.config.update("jax_platforms", "cpu")  # nothing is computed, and no accelerator of this host is to be taken
    if machine and machine.platform == "gpu":
        jax.config.update("jax_num_cpu_devices", machine.devices)  # simulated; JAX has not started yet
    images = images_of(config, wanted.images)
    show([*settled(config, images, machine.platform if machine else ""), *meaning(config, images)])
    if machine:
        compiler = machines.compiler(machine)
        cost = compile_step(config, images, machine, compiler)
        steps = steps_per_epoch(config, images)
        show(forecast.describe(config, steps, machine, compiler, cost, wanted.images_per_core))
        forecast.check_fits(config, machine, cost)


def show(lines):
    print("\n".join(lines), flush=True)


def check(config):
    """The checks of train.py, but for the images, which need not be here."""
    fields.fill_in(config, fields.PRETRAINING)
    config = config.copy_and_resolve_references().unlock()
    config.data.path = config.data.path or ("" if config.data.kind == "digits" else "elsewhere")
    experiment.check(config)


def images_of(config, count):
    """The Images of a config: counted where they are, assumed where they are not; `count` overrules the number."""
    channels, side = config.data.channels or len(config.views.mean), config.data.canvas
    assumed = Images(count or IMAGENET, channels, 1000, side, "as you say" if count else "ImageNet's, assumed")
    if config.data.kind == "npz":  # arrays are put on a canvas whole
        assumed = dataclasses.replace(assumed, canvas=config.image_size)
    options = {kind: {"channels": channels} for kind in fields.together.OF_FILES}
    options["tfds"]["name"] = config.data.name
    options["npz"] = {name: experiment.reading(config.data)[name] for name in ("value_range", "bits")}
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
    canvas = experiment.canvas(config, source)
    origin = "as you say" if count else source.name
    classes, short = source.num_classes, presets.short_side(source)
    return Images(count or len(source), source.channels, classes, canvas, origin, short)


def settled(config, images, platform):
    """Lines on the fields that the config leaves open, which get their values here."""
    if not presets.left_open(config):
        return []
    features = presets.features(config)
    seen = presets.Images(images.count, images.side, features, platform)
    values = presets.by_images(presets.asked(config), seen)
    presets.fill(config, values)
    check(config)
    on_cpus = "" if platform or "precision" not in values else " On CPUs, precision=float32."
    return ["", *textwrap.wrap(presets.told(values, seen) + "." + on_cpus, 120, break_on_hyphens=False)]


# What a config means.


def program(config, images, mesh=None):
    """(pretrain.Method, TrainState of shapes) as train.py makes them, nothing allocated; mesh: None is one device."""
    return experiment.method(
        config,
        channels=images.channels,
        num_classes=images.classes,
        steps_per_epoch=steps_per_epoch(config, images),
        mesh=mesh or sharding.make_mesh(jax.devices()[:1]),
        abstract=True,
    )


def steps_per_epoch(config, images):
    return order.steps_per_epoch(images.count, config.batch_size, config.data.last)


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
    method, state = program(config, images)
    d = state.batch_stats["bn"]["mean"].shape[0]
    steps = steps_per_epoch(config, images)
    expected = experiment.expected_loss(config, d)
    average = f", {size(nbytes(state.average))} of it the average of the weights" if state.average else ""
    at_init = f"loss          {config.objective}"
    if expected:
        at_init = (
            f"loss at init  {expected['loss']:,.5g} if the views were unrelated: on_diag {expected['on_diag']:,.5g} + "
            f"{config.lambd} x off_diag {expected['off_diag']:,.5g} (N {config.batch_size}, D {d}); expect less on the "
            "diagonal, more off it"
        )
    return [
        "",
        *_groups(config, state.params),
        "",
        f"images        {images.count:,} ({images.origin})",
        f"steps         {steps:,} an epoch, {steps * config.epochs:,} in {config.epochs} epochs; warm-up "
        f"{steps * config.warmup_epochs:,}, from {float(method.schedules['learning_rate_weights'](0)):.4g}",
        *_order(config, images),
        f"views         {viewing.described(config)}",
        at_init,
        f"checkpoint    {size(nbytes(state))} each{average}, {config.keep_checkpoints} kept and the best by kNN",
        "",
        *_departures(config),
    ]


def _order(config, images):
    """[] or a line on an order of blocks; the share of pairs is that of batches within an epoch, see `data.order`."""
    block, window = config.data.block, config.data.window
    if not block:
        return []
    mixed = min(block * window, images.count)
    return [
        f"order         blocks of {block:,} images, {window:,} of them mixed ({mixed:,} images): of the pairs in a "
        f"batch 1 of {max(1, mixed // block):,} lies in one block"
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
    note = "Biases are all parameters with one axis, those of norms among them{}. Gradients are first divided by {}."
    added = ", and the class token and positions" if config.arch in model.VITS else ""
    return [*table(head, rows), note.format(added, f"reference_world_size {config.reference_world_size}")]


def _departures(config):
    """Table of what differs from the code and the paper."""
    rows = [*published.deviations(config), *published.ALWAYS]
    unknown = published.unknown_fields(config)

    def said(value):
        if value is None:
            return "does not say"
        if isinstance(value, tuple):
            return ", ".join(map(said, value)) or "none"
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    shown = [(field, *map(said, values)) for field, *values in rows]
    lines = table(("departs from the authors", "here", "official code", "paper"), shown)
    return [*lines, f"Not compared: {', '.join(unknown)}."] if unknown else lines


# What a machine makes of it.


def compile_step(config, images, machine, compiler):
    """The Cost of the train step of train.py on a machine; UserError where the compiler finds no room for it."""
    mesh = sharding.make_mesh(compiler.devices)
    sharding.check_batch_size(config.batch_size, mesh)
    experiment.check_last_batch(config, images.count, mesh)
    experiment.check_microbatches(config, mesh)
    method, state = program(config, images, mesh)
    held = bytes_per_device(state, method.state_sharding)
    if held > forecast.room(machine):  # no need to ask the compiler
        raise UserError(f"It does not fit on {machine.topology}: {forecast.remedy(config, machine, held, None)}.")
    show(["", f"Compiling the train step for {machine.topology}: some minutes for a ResNet-50."])
    try:
        return compiled.cost(lowered(config, method, state, images, compiler.platform).compile())
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        what = next((line for line in str(error).splitlines() if "Used" in line), str(error).splitlines()[0])
        what = what.split("Used", 1)[-1].strip().rstrip(".")
        advice = forecast.remedy(config, machine, held, None)
        raise UserError(f"It does not fit on {machine.topology}: the compiler used {what}; {advice}.") from None


def lowered(config, method, state, images, platform="cpu"):
    """The train step of train.py, traced for these shapes and not yet compiled.

    Args:
      platform: of the devices, named because JAX would look for a GPU on this host to find it out.
    """
    traced = pretrain.make_train_step(method).trace(state, batch_of(config, images))
    return traced.lower(lowering_platforms=(platform,))


def batch_of(config, images):
    """The shapes of a batch."""
    n = config.batch_size
    more = {"small_boxes": jax.ShapeDtypeStruct((n, config.views.small, 4), jnp.float32)} if config.views.small else {}
    return more | {
        "canvas": jax.ShapeDtypeStruct(
            (n, images.canvas, images.canvas, images.channels), levels.dtype_of(config.data.bits)
        ),
        "boxes": jax.ShapeDtypeStruct((n, config.views.number, 4), jnp.float32),
        "index": jax.ShapeDtypeStruct((n,), jnp.int32),
        "label": jax.ShapeDtypeStruct((n,), jnp.int32),
    }


if __name__ == "__main__":
    launch.run(main, define_flags)
