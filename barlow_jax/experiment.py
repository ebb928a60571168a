"""From the fields of a config to arguments: the one place where they are checked and derived numbers are made."""

import functools
import logging

import jax
import jax.numpy as jnp
from flax import nnx

from barlow_jax import fields, metrics, model, objectives, optim, pretrain, sharding, views
from barlow_jax.data import order, pixels
from barlow_jax.data.kinds import CLASSES_OF_TRAIN, open_fields
from barlow_jax.errors import UserError
from barlow_jax.training import feed, microbatches, presets, viewing

log = logging.getLogger(__name__)

PRECISIONS = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}


def check(config):
    """Raises UserError at the first value that cannot work, before anything is opened or compiled.

    The config gets the fields that it lacks and older ones could not have, see `fields.fill_in`.
    """
    fields.check(config, fields.PRETRAINING)


def settle(config, workdir=""):
    """`check`, and the fields that are open (None) get values: see `presets.settle`.

    Returns:
      The training images where they were opened for it, for `sources`, else None.
    """
    check(config)
    opened = []

    def images():
        opened.append(_open(config.data))
        return opened[0]

    if presets.settle(config, workdir, images):
        check(config)
    return opened[0] if opened else None


def check_steps(config, steps_per_epoch):
    """Raises UserError if there are more steps than a program counts to."""
    steps = config.epochs * steps_per_epoch
    if steps > fields.INT32:
        raise UserError(
            f"config.epochs is {config.epochs}, which makes {steps} steps, more than can be counted (2**31 - 1); "
            "lower it."
        )


def reading(data):
    """How the image files of config.data become pixels, as arguments of a source; of older runs, as they did."""
    return {
        "value_range": tuple(data.get("value_range", ())),
        "max_pixels": data.get("max_pixels", pixels.MAX_PIXELS),
        "bits": data.get("bits", 8) or 8,
        "exif": data.get("exif", False),
    }


def _open(data):
    """The training images of config.data, where they are."""
    return open_fields(data, data.train, reading(data))


def sources(config, opened=None):
    """The training source, and the validation source or None.

    opened: what `settle` gave: looking through millions of files takes minutes, and once is enough.
    """
    data = config.data
    train = _open(data) if opened is None else opened
    train = feed.resident(train, data.resident_bytes, **_reading(config, train))
    if not data.val:
        return train, None
    # Both splits must number their classes alike.
    numbered_alike = data.kind in CLASSES_OF_TRAIN and train.class_names
    names = {"class_names": train.class_names} if numbered_alike else {}
    return train, open_fields(data, data.val, reading(data), **names)


def check_microbatches(config, mesh):
    """Raises UserError unless every device has rows of every micro-batch."""
    if config.batch_size % (config.microbatches * mesh.size):
        raise UserError(
            f"config.microbatches is {config.microbatches}, and a batch of {config.batch_size} on {mesh.size} devices "
            f"cannot be cut into so many parts; take a divisor of {config.batch_size // mesh.size}."
        )


def check_last_batch(config, n, mesh):
    """Raises UserError if an epoch's last batch of n images cannot be trained on, see `order.last_batch_size`.

    Warns where a batch holds an image more than once: its rows are then no independent sample.
    """
    if n < 2:
        raise UserError("There is 1 image, and the loss compares images of a batch: point config.data.path to more.")
    rows = order.last_batch_size(n, config.batch_size, config.data.last, config.reference_world_size)
    if rows > n:
        log.warning(
            "a batch of %d rows holds each of the %d images %d times or more, and takes them for different ones; lower "
            "config.batch_size to %d or less, or give more images",
            rows,
            n,
            rows // n,
            n,
        )
    if rows < 2 or rows % (config.microbatches * mesh.size):
        parts = "" if config.microbatches == 1 else f"{config.microbatches} micro-batches on "
        cut = f"which {parts}{mesh.size} devices do not divide"
        problem = "too few for batch statistics" if rows < 2 else cut
        raise UserError(
            f"With config.data.last='keep' the last batch of an epoch has {rows} of {config.batch_size} rows, "
            f"{problem}; take config.data.last='wrap'."
        )


def canvas(config, source):
    """Side of the canvases: arrays are put on whole, files as config.data.canvas says."""
    return config.data.canvas if source.images is None else max(source.shape[:2])


def train_batches(config, source, start_step, mesh, **options):
    """`feed.train_batches` with the fields that pre-training and evaluation share (seed, batch_size, data) filled in.

    options: how an epoch ends and of the boxes: last, reference_world_size, crop_scale, crop_ratio, views.
    """
    return feed.train_batches(
        source,
        start_step,
        mesh,
        batch_size=config.batch_size,
        seed=config.seed,
        resident_bytes=config.data.resident_bytes,
        **_reading(config, source),
        **options,
    )


def pretraining_batches(config, source, start_step, mesh):
    """`train_batches` as pre-training ends its epochs, crops its views, and lets their size grow."""
    batches = train_batches(
        config,
        source,
        start_step,
        mesh,
        last=config.data.last,
        reference_world_size=config.reference_world_size,
        blocks=order.mixing(len(source), config.data.block, config.data.window, source.groups),
        **viewing.boxes(config),
    )
    if not config.views.ramp_sizes:
        return batches
    steps_per_epoch = order.steps_per_epoch(len(source), config.batch_size, config.data.last)
    return viewing.ramped(batches, config, start_step, steps_per_epoch)


def eval_batches(config, source, mesh, *, fit="crop"):
    """`feed.eval_batches` as config.eval says; fit: see `pipeline.eval_batches`."""
    return feed.eval_batches(
        source,
        mesh,
        batch_size=config.eval.batch_size,
        resize_short=config.eval.resize,
        crop=config.eval.crop,
        fit=fit,
        **_reading(config, source),
    )


def _reading(config, source):
    return {
        "canvas": canvas(config, source),
        "threads": config.data.threads or None,
        "max_bad_fraction": config.data.max_bad_fraction,
    }


def backbone(config, channels, *, remat=False):
    """rngs -> the backbone."""
    return model.make_backbone(
        config.arch,
        image_size=config.image_size,
        channels=channels,
        stem=config.stem,
        zero_init_residual=config.zero_init_residual,
        remat=remat,
        **config.get("vit", {}),  # absent: of older runs, which had none
        **config.get("resnet", {}),
        dtype=PRECISIONS[config.precision],
    )


def network(config, channels):
    """A fresh BarlowTwins, initialised from config.seed."""
    return model.BarlowTwins(
        backbone(config, channels, remat=config.remat == "blocks"),
        tuple(config.projector),
        norm=config.get("projector_batch_norm", True),  # absent: of older runs, as they did
        predictor=tuple(config.get("predictor", ())),
        dtype=PRECISIONS[config.precision],
        rngs=nnx.Rngs(config.seed),
    )


def objective(config):
    """The loss of the embeddings, and keys: step -> what it draws anew in each step, as `pretrain.Method` takes both.

    The keys are none of those that `sharding.example_keys` makes of the same seed and step for places in the batch.
    """
    chosen = objectives.OBJECTIVES[config.objective]
    own = {argument: _field(config, name) for argument, name in chosen.reads.items()}
    loss = functools.partial(chosen.loss, **own, batch_size=config.batch_size)
    sizes = {"large": config.views.number} if config.views.small else {}
    if chosen.pairwise and config.views.number + config.views.small > 2:
        loss = objectives.over_pairs(loss, **sizes)
    elif sizes:
        loss = functools.partial(loss, **sizes)
    if config.stop_gradient:
        loss = objectives.stopped(loss)
    return loss, functools.partial(_drawn, config.seed) if chosen.draws else _nothing


def _drawn(seed, step):
    return {"key": jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), fields.INT32)}


def _nothing(step):
    return {}


def _field(config, name):
    return functools.reduce(lambda group, part: group[part], name.split("."), config)


def expected_loss(config, d):
    """{"loss", and its terms} if the two views had nothing to do with each other; {} where no formula says it.

    d: dimensions of the embeddings.
    """
    if config.objective != "barlow_twins":
        return {}
    return metrics.expected_at_init(config.batch_size, d, config.lambd)


def method(config, *, channels, num_classes, steps_per_epoch, mesh, abstract=False):
    """All that the train step is made of, and the state at step 0: of train.py, of plans and of benchmarks.

    Args:
      channels, num_classes: of the training images; None for unlabelled ones, which have no online probe.
      abstract: whether nothing is computed: the state is then one of `jax.ShapeDtypeStruct`.
    Returns:
      pretrain.Method; TrainState, not yet on the mesh: `method.state_sharding` says how it lies there.
    """
    recipe, small = viewing.recipe(config, channels), viewing.small_recipe(config, channels)
    options = {"microbatches": config.microbatches, "small": small}
    views_of, told = (views.make_views(recipe, config.seed, mesh, told=told, **options) for told in (False, True))
    loss, draw = objective(config)
    with_more = objectives.OBJECTIVES[config.objective].views_of
    if with_more:
        more = functools.partial(with_more, keys=lambda step: draw(step)["key"])
        views_of, told = more(views_of), views.with_more_told(told, more)
    tx, schedules = optimizer(config, steps_per_epoch)
    probe_tx = probe_optimizer(config, steps_per_epoch) if num_classes else None
    structure = []

    def create():
        graphdef, state = pretrain.create_state(
            network(config, channels),
            tx,
            num_classes=num_classes,
            probe_tx=probe_tx,
            scaled=config.precision == "float16",
            averaged=config.ema > 0,
        )
        structure.append(graphdef)
        return state

    state = jax.eval_shape(create) if abstract else create()
    parts = pretrain.Method(
        graphdef=structure[0],
        tx=tx,
        views_of=views_of,
        loss=loss,
        mesh=mesh,
        draw=draw,
        told_views_of=told,
        forward=microbatches.make_forward(config.microbatches, config.microbatch_statistics),
        scale_loss=config.scale_loss,
        probe_tx=probe_tx,
        ema=config.ema,
        schedules=schedules,
        give_up_after=config.max_skipped if config.on_nonfinite == "skip" else 1,
        state_sharding=sharding.of_state(state, mesh, split=config.shard_params),
        compiler_options=sharding.compiler_options(mesh, deterministic=config.deterministic),
    )
    return parts, state


def optimizer(config, steps_per_epoch):
    """The optax chain, and its two learning-rate schedules by name."""
    check_steps(config, steps_per_epoch)
    options = config.optimizer.to_dict()
    name, start, final = options.pop("name"), options.pop("warmup_start"), options.pop("final")
    rates = {}
    for group in ("weights", "biases"):
        peak = options.pop(f"learning_rate_{group}") * config.batch_size / 256
        rates[f"learning_rate_{group}"] = optim.warmup_cosine(
            peak,
            config.warmup_epochs * steps_per_epoch,
            config.epochs * steps_per_epoch,
            start=start * peak,
            final=final,
        )
    accepted = {
        "lars": ("weight_decay", "momentum", "eta", "clip", "separate_norms"),
        "sgd": ("weight_decay", "momentum"),
        "adamw": ("weight_decay", "b2", "eps"),
    }.get(name, ())
    tx = optim.make_optimizer(
        name,
        *rates.values(),
        reference_world_size=config.reference_world_size,
        backbone_scale=options.get("backbone_scale", 1.0),  # absent: of older runs, as they did
        backbone_start=options.get("backbone_start", 0) * steps_per_epoch,
        **{option: options[option] for option in accepted},
    )
    return tx, rates


def probe_optimizer(config, steps_per_epoch):
    """Momentum SGD on a cosine, for the online linear probe."""
    peak = config.eval.probe_learning_rate * config.batch_size / 256
    rate = optim.warmup_cosine(peak, 0, config.epochs * steps_per_epoch, final=0.0)
    return optim.sgd(rate, rate, weight_decay=0.0)
