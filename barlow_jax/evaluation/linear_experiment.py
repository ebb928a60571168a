"""From the fields of configs/linear.py, and the run that is judged, to arguments: what `experiment` is to train.py."""

import logging

import numpy as np
from flax import nnx

from barlow_jax import augment, experiment, fields, model, results
from barlow_jax.errors import UserError
from barlow_jax.evaluation import classify, subject
from barlow_jax.results import protocols
from barlow_jax.run.buckets import reading
from barlow_jax.run.checkpoint import holds_checkpoints, restore_params

log = logging.getLogger(__name__)


def check(config):
    """Raises UserError at the first value that cannot work, before anything is opened or compiled."""
    fields.check(config, fields.LINEAR)


def check_folders(checkpoint, workdir):
    """Raises UserError unless both are given and the evaluation's folder does not hold the run that is judged."""
    if not checkpoint or not workdir:
        missing, what = (
            ("--checkpoint", "work folder of a run of train.py")
            if not checkpoint
            else ("--workdir", "folder where checkpoints, metrics and results of the evaluation go")
        )
        raise UserError(f"{missing} is missing; give the {what}.")
    run, own = reading.named(checkpoint), reading.named(workdir)
    if reading.is_in(run, own):
        raise UserError(f"--workdir {own} holds the run that is judged; take a folder for it alone, as {run}/linear.")


def seeds_and_folders(config, workdir):
    """[(seed, folder)]: the work folder itself for one seed, a folder in it for each of several."""
    if config.seeds == 1:
        return [(config.seed, workdir)]
    return [(seed, workdir / f"seed_{seed}") for seed in range(config.seed, config.seed + config.seeds)]


def with_seed(config, seed):
    """The config of one evaluation among several."""
    config = config.copy_and_resolve_references().unlock()
    config.seed, config.seeds = seed, 1
    return config.lock()


def find_subject(checkpoint, folders, baseline="", ema="average"):
    """What is judged, see `subject.load`, or as the evaluation in the first folder that has begun took it over then.

    So an evaluation that goes on does not mind that the run it judges has gone on too, and all seeds judge the same.
    """
    run, own = reading.named(checkpoint), next(filter(holds_checkpoints, folders), None)
    if own is None:
        return subject.load(checkpoint, baseline, ema)
    params, batch_stats, meta = restore_params(own)
    began = meta.get("origin", {})
    of = began.get("ema", "")  # absent: of older evaluations, which had one kind of weights
    if (began.get("path"), began.get("baseline", "")) != (str(run), baseline) or of not in ("", ema):
        raise UserError(
            f"--workdir {own} holds an evaluation of {began.get('path')}{_in_place(began.get('baseline'), of)}, and "
            f"--checkpoint is {run}{_in_place(baseline, of and ema)}; take another --workdir."
        )
    judged = subject.of_evaluation(params, batch_stats, meta)
    log.info("judging %s", judged)
    return judged


def _in_place(baseline, ema):
    flags = [f"--{name}={value}" for name, value in (("baseline", baseline), ("ema", ema)) if value]
    return f" with {' and '.join(flags)}" if flags else ""


def filled_in(config, pretrained):
    """The config with the pre-training run's values where its own are empty: the data, and the sizes of images.

    Args:
      config: of the evaluation.
      pretrained: config of the pre-training run.
    Raises:
      UserError: sizes of images do not go together now.
    """
    config = config.copy_and_resolve_references().unlock()
    empty = ["image_size", "eval.resize", "eval.crop"]
    if config.data.kind in ("", pretrained.data.kind):
        empty += ["data.kind", "data.path", "data.name", "data.train", "data.val", "data.channels", "data.value_range"]
        empty += ["data.exif", *(["data.bits"] if pretrained.data.get("bits", 8) != 8 else [])]
    taken = []
    for field in empty:
        group, _, name = field.rpartition(".")
        ours, theirs = (c[group] if group else c for c in (config, pretrained))
        if name in ours and not ours[name] and theirs.get(name):
            ours[name] = theirs[name]
            taken.append(f"config.{field}={theirs[name]}")
    if taken:
        log.info("as in the pre-training run: %s", ", ".join(taken))
    fields.check_together(config, fields.VIEW)
    return config.lock()


def check_sizes(config, pretrained):
    """Raises UserError unless images have the size that the backbone is for, where it is for one alone.

    Args:
      config: from `filled_in`.
      pretrained: config of the pre-training run.
    """
    arch, side = pretrained.arch, pretrained.image_size
    for name, group in (("image_size", config), ("eval.crop", config.eval)):
        here = group.get(name.rpartition(".")[2], side)
        if arch in model.OF_ONE_SIZE and arch != "pixels" and here != side:
            raise UserError(
                f"config.{name} is {here}, and the {arch} of the pre-training run is for images of {side} pixels; take "
                f"--config.{name}={side}."
            )


def sources(config, channels):
    """The labelled training and validation sources, and the number of classes.

    Args:
      config: from `filled_in`.
      channels: of the images that the backbone was made for.
    Raises:
      UserError: something about the images or labels does not fit.
    """
    fields.check_together(config, fields.DATA)
    train, val = experiment.sources(config)
    if val is None:
        raise UserError("config.data.val is empty; name the labelled validation images, such as --config.data.val=val.")
    for source in (train, val):
        _check_source(source, channels)
    if train.class_names and val.class_names and train.class_names != val.class_names:
        raise UserError(f"{train.name} and {val.name} name their classes differently; give two splits of one data set.")
    num_classes = train.num_classes
    if num_classes < 2:
        raise UserError(f"{train.name} has one class only; a classifier needs two or more.")
    if val.num_classes > num_classes:
        raise UserError(
            f"{val.name} has images of class {val.num_classes - 1}, but {train.name} has only the classes 0 to "
            f"{num_classes - 1}; give two splits of one data set."
        )
    absent = [] if val.labels is None else np.setdiff1d(np.arange(num_classes), val.labels)
    if len(absent) and config.data.kind == "folder":
        raise UserError(
            f"{val.name} has no class folder {train.class_names[absent[0]]!r}, and {train.name} has one "
            f"({len(absent)} of {num_classes} classes are missing); add it, or take it out of both."
        )
    if len(absent):
        log.warning("%d of the %d classes have no image in %s", len(absent), num_classes, val.name)
    return train, val, num_classes


def _check_source(source, channels):
    if source.num_classes is None:
        raise UserError(
            f"{source.name} has no labels; point config.data.path, train and val to images with labels "
            "(a folder needs one sub-folder for each class)."
        )
    unlabelled = 0 if source.labels is None else int((source.labels < 0).sum())
    if unlabelled:
        raise UserError(f"{unlabelled} of the {len(source)} images of {source.name} have no label (-1); take them out.")
    if source.channels != channels:
        raise UserError(
            f"{source.name} has images of {source.channels} channels and the checkpoint is for {channels}; "
            "give images like those of the pre-training run."
        )


def classifier(config, pretrained, channels, num_classes):
    """() -> a fresh Classifier on the architecture of the pre-training run; fc initialised from config.seed."""
    check_sizes(config, pretrained)
    pretrained = pretrained.copy_and_resolve_references().unlock()
    pretrained.image_size, pretrained.precision = config.image_size, config.precision
    backbone = experiment.backbone(pretrained, channels)
    return lambda: model.Classifier(backbone, num_classes, rngs=nnx.Rngs(config.seed))


def recipe(config, pretrained):
    """The training view as an augment.Recipe: crop, flip, and the normalisation of the pre-training run."""
    return augment.Recipe(
        size=config.image_size,
        interpolation=config.interpolation,
        flip=config.flip,
        jitter=0.0,
        grayscale=0.0,
        blur=(0.0, 0.0),
        solarize=(0.0, 0.0),
        mean=tuple(pretrained.views.mean),
        std=tuple(pretrained.views.std),
    )


def optimizer(config, steps_per_epoch):
    """The optax chain, and its learning-rate schedules by name."""
    experiment.check_steps(config, steps_per_epoch)
    names = {"fc": "learning_rate_classifier"}
    if config.weights == "finetune":
        names["backbone"] = "learning_rate_backbone"
    options = config.optimizer

    def schedule(peak):
        if options.schedule == "steps":
            return classify.steps_by_epoch(peak, tuple(options.milestones), options.factor, steps_per_epoch)
        return classify.cosine_by_epoch(peak, config.epochs, steps_per_epoch)

    rates = {group: schedule(options[name]) for group, name in names.items()}
    tx = classify.sgd(rates, weight_decay=options.weight_decay, momentum=options.momentum, nesterov=options.nesterov)
    return tx, {names[group]: rate for group, rate in rates.items()}


def result_lines(config, judged, outcomes, seeds):
    """Last and best, top-1 and top-5 of one evaluation, or of one for each seed, as lines of results.jsonl.

    Args:
      config: of the evaluation.
      judged: `subject.Subject`.
      outcomes: for each of `seeds` what linear_eval.evaluate returns.
    """
    first = outcomes[0]
    return [
        results.line(
            judged,
            protocol=protocols.name_of(config),
            dataset=first["dataset"],
            n=first[kind]["images"],
            classes=first["classes"],
            metric=metric,
            values=[outcome[kind][metric] for outcome in outcomes],
            seeds=seeds,
            result=kind,
            at_epoch=[outcome[kind][f"{metric}_epoch"] for outcome in outcomes],
            epochs=config.epochs,
            train=first["train"],
            train_images=first["train_images"],
            departures=first["departures"],
        )
        for kind in ("last", "best")
        for metric in ("top1", "top5")
    ]
