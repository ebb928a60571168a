"""From the fields of configs/linear.py, and the run that is judged, to arguments: what `experiment` is to train.py."""

import logging
import pathlib

import numpy as np
from flax import nnx

from barlow_jax import augment, experiment, model, results, tree
from barlow_jax.errors import UserError
from barlow_jax.evaluation import classify, subject
from barlow_jax.results import protocols
from barlow_jax.run.checkpoint import holds_checkpoints, restore_params

# Fields that change what is shown or how fast, and not the result: they may differ when an evaluation goes on.
FREE_FIELDS = (
    "data.path",
    "data.threads",
    "eval.batch_size",
    "log_every_steps",
    "checkpoint_every_epochs",
    "keep_checkpoints",
    "wandb",
)

SCHEDULES = ("cosine", "steps")
PRECISIONS = ("float32", "bfloat16")  # float16 wants a loss scale, which fine-tuning has not
INTERPOLATIONS = ("linear", "cubic")

log = logging.getLogger(__name__)


def check(config):
    """Raises UserError at the first value that cannot work, before anything is opened or compiled."""
    experiment.check_at_least(
        config,
        {
            "seeds": 1,
            "epochs": 1,
            "batch_size": 1,
            "image_size": 0,
            "log_every_steps": 1,
            "checkpoint_every_epochs": 1,
            "keep_checkpoints": 1,
            "eval.every_epochs": 1,
            "eval.batch_size": 1,
            "eval.resize": 0,
            "eval.crop": 0,
            "optimizer.learning_rate_classifier": 0,
            "optimizer.learning_rate_backbone": 0,
            "optimizer.weight_decay": 0,
        },
    )
    experiment.check_one_of(
        config,
        {
            "weights": classify.WEIGHTS,
            "precision": PRECISIONS,
            "interpolation": INTERPOLATIONS,
            "optimizer.schedule": SCHEDULES,
        },
    )
    if not 0 <= config.flip <= 1:
        raise UserError(f"config.flip is {config.flip}; it is a probability, from 0 to 1.")
    if not 0 <= config.optimizer.momentum < 1:
        raise UserError(f"config.optimizer.momentum is {config.optimizer.momentum}; it must be in [0, 1).")
    if not 0 < config.crop_scale[0] <= config.crop_scale[1] <= 1:
        raise UserError(f"config.crop_scale is {config.crop_scale}; it is (smallest, largest) share of the image.")
    if not 0 < config.crop_ratio[0] <= config.crop_ratio[1]:
        raise UserError(f"config.crop_ratio is {config.crop_ratio}; it is (smallest, largest) width / height.")
    rate = config.optimizer.learning_rate_backbone
    if (rate > 0) != (config.weights == "finetune"):
        raise UserError(
            f"config.optimizer.learning_rate_backbone is {rate} with config.weights {config.weights!r}; "
            "a frozen backbone takes 0, and fine-tuning a rate above 0 (the official one is 0.005)."
        )
    _check_schedule(config)


def _check_schedule(config):
    milestones, steps = tuple(config.optimizer.milestones), config.optimizer.schedule == "steps"
    if steps != bool(milestones):
        raise UserError(
            f"config.optimizer.milestones is {milestones} with config.optimizer.schedule "
            f"{config.optimizer.schedule!r}; 'steps' takes the epochs after which the rate falls, 'cosine' takes ()."
        )
    if steps and not (sorted({*milestones}) == [*milestones] and 0 < milestones[0] and milestones[-1] < config.epochs):
        raise UserError(
            f"config.optimizer.milestones is {milestones}; they are numbers of epochs, rising, above 0 and below "
            f"config.epochs ({config.epochs})."
        )
    if not 0 < config.optimizer.factor <= 1:
        raise UserError(f"config.optimizer.factor is {config.optimizer.factor}; it must be above 0 and at most 1.")


def check_folders(checkpoint, workdir):
    """Raises UserError unless both are given and the evaluation's folder does not hold the run that is judged."""
    if not checkpoint or not workdir:
        missing, what = (
            ("--checkpoint", "work folder of a run of train.py")
            if not checkpoint
            else ("--workdir", "folder where checkpoints, metrics and results of the evaluation go")
        )
        raise UserError(f"{missing} is missing; give the {what}.")
    run, own = pathlib.Path(checkpoint).expanduser(), pathlib.Path(workdir).expanduser()
    if own.resolve() in (run.resolve(), *run.resolve().parents):
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


def find_subject(checkpoint, folders, baseline=""):
    """What is judged, see `subject.load`, or as the evaluation in the first folder that has begun took it over then.

    So an evaluation that goes on does not mind that the run it judges has gone on too, and all seeds judge the same.
    """
    run, own = pathlib.Path(checkpoint).expanduser(), next(filter(holds_checkpoints, folders), None)
    if own is None:
        judged = subject.load(checkpoint, baseline)
        _check_finite(judged)
        return judged
    params, batch_stats, meta = restore_params(own)
    began = meta.get("origin", {})
    if (began.get("path"), began.get("baseline", "")) != (str(run), baseline):
        raise UserError(
            f"--workdir {own} holds an evaluation of {began.get('path')}{_in_place(began.get('baseline'))}, and "
            f"--checkpoint is {run}{_in_place(baseline)}; take another --workdir."
        )
    judged = subject.of_evaluation(params, batch_stats, meta)
    log.info("judging %s", judged)
    return judged


def _check_finite(judged):
    for name, leaf in tree.named({"params": judged.params, "batch_stats": judged.batch_stats}).items():
        if not np.all(np.isfinite(leaf)):
            raise UserError(
                f"The backbone in {judged.path} has values in {name} that are not finite, so its features would be "
                "NaN; give an earlier checkpoint, FOLDER/checkpoints/STEP."
            )


def _in_place(baseline):
    return f" with --baseline={baseline}" if baseline else ""


def filled_in(config, pretrained):
    """The config with the pre-training run's values where its own are empty: the data, and the sizes of images.

    Args:
      config: of the evaluation.
      pretrained: config of the pre-training run.
    """
    config = config.copy_and_resolve_references().unlock()
    fields = ["image_size", "eval.resize", "eval.crop"]
    if config.data.kind in ("", pretrained.data.kind):
        fields += ["data.kind", "data.path", "data.name", "data.train", "data.val", "data.channels", "data.value_range"]
    taken = []
    for field in fields:
        group, _, name = field.rpartition(".")
        ours, theirs = (c[group] if group else c for c in (config, pretrained))
        if name in ours and not ours[name] and theirs.get(name):
            ours[name] = theirs[name]
            taken.append(f"config.{field}={theirs[name]}")
    if taken:
        log.info("as in the pre-training run: %s", ", ".join(taken))
    return config.lock()


def sources(config, channels):
    """The labelled training and validation sources, and the number of classes.

    Args:
      config: from `filled_in`.
      channels: of the images that the backbone was made for.
    Raises:
      UserError: something about the images or labels does not fit.
    """
    experiment.check_data(config.data)
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
