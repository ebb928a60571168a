"""Linear evaluation (or fine-tuning) of a run of train.py, by the protocol of the official evaluate.py.

    python linear_eval.py --config=configs/linear.py --checkpoint=runs/r50 --workdir=runs/r50/linear

The same line on one device, on eight, and on every host of a pod. Stopped or killed at any moment and started again
with the same line, it goes on from its last checkpoint and ends where an undisturbed run ends. Results go to
results.jsonl in the work folder, the trained classifier is in its checkpoints; `evaluation.classifier` loads it.

With --config.seeds=3 it is done for three seeds, each in a folder of its own, and ends with mean and spread.

`evaluate` below is the whole protocol, read from top to bottom: backbone, data, classifier, step, validate, save.
"""

import contextlib
import logging

import jax
import numpy as np
from ml_collections import ConfigDict

from barlow_jax import experiment, results, sharding, views
from barlow_jax.data import order
from barlow_jax.errors import UserError
from barlow_jax.evaluation import classify, linear_experiment
from barlow_jax.fields import free
from barlow_jax.results import protocols
from barlow_jax.run import cluster, compilation_cache, launch, metric_writers
from barlow_jax.run import workdir as workdirs
from barlow_jax.run.checkpoint import FOLDER, WEIGHTS, Checkpoints
from barlow_jax.run.progress import Progress, due, tracked
from barlow_jax.run.signals import StopSignals

log = logging.getLogger("linear_eval")


def define_flags(flag):
    flag.config("File or name of the evaluation, such as configs/linear.py or linear.")
    flag.text("checkpoint", "Work folder of the run to be judged, or one of its checkpoints.")
    flag.text("baseline", "Judge this in its place: random (not trained) or pixels (no network).")
    flag.choice("ema", WEIGHTS, "Of a run with config.ema, which of its weights.", default="average")
    flag.text("workdir", "Folder of the evaluation: checkpoints, metrics, results.")
    flag.names("allow_changes", "Fields that may differ from those the evaluation began with, or all.")
    flag.number("stopped_status", "Exit status where a signal came before the end.")


def main(wanted):
    with StopSignals() as stop:
        if judge(wanted, stop) is not None:
            return 0
        stop.requeue()
        return wanted.stopped_status


def judge(wanted, stop):
    """Evaluates for every seed; the lines of results of all together, or None where `stop.received` came before."""
    config = wanted.config
    linear_experiment.check(config)
    linear_experiment.check_folders(wanted.checkpoint, wanted.workdir)
    keep = {"free": free.LINEAR, "allowed": wanted.allow_changes}
    with workdirs.opened(wanted.workdir, config.to_dict(), **keep) as workdir, contextlib.ExitStack() as stack:
        stack.enter_context(compilation_cache.used(config.compilation_cache, workdir))
        seeds, folders = zip(*linear_experiment.seeds_and_folders(config, workdir), strict=True)
        subject = linear_experiment.find_subject(wanted.checkpoint, folders, wanted.baseline, wanted.ema)
        outcomes = []
        for seed, folder in zip(seeds, folders, strict=True):
            one = linear_experiment.with_seed(config, seed)
            if folder != workdir:
                stack.enter_context(workdirs.opened(str(folder), one.to_dict(), **keep))
            outcome = evaluate(one, subject, folder, stop)
            if outcome is None:
                return None
            outcomes.append(outcome)
            lines = publish(config, subject, [outcome], [seed], folder)
        return lines if len(seeds) == 1 else publish(config, subject, outcomes, seeds, workdir)


def evaluate(config, subject, workdir, stop):
    """Trains the classifier, validates and saves until the last epoch, or until `stop.received`: then it returns None.

    Returns:
      The scores, as `with_scores` gives them, with dataset, classes, train, train_images and departures.
    """
    given, pretrained = config.to_dict(), ConfigDict(subject.config)
    config = linear_experiment.filled_in(config, pretrained)
    mesh = sharding.make_mesh()
    sharding.check_batch_size(config.batch_size, mesh)

    # Data.
    source, val_source, num_classes = linear_experiment.sources(config, subject.channels)
    steps_per_epoch = order.steps_per_epoch(len(source), config.batch_size, "wrap")
    total_steps = config.epochs * steps_per_epoch
    cluster.check_agreement({"images": {"count": len(source), "listing": source.listing()}})
    log.info(
        "%s: %d images of %d classes, %d steps an epoch, %d in all; %s: %d images",
        source.name,
        len(source),
        num_classes,
        steps_per_epoch,
        total_steps,
        val_source.name,
        len(val_source),
    )
    left_over = len(source) % config.batch_size
    if 0 < left_over < config.batch_size / 16:
        log.warning(
            "the last batch of an epoch has %d of %d images, and is a whole step, officially too; another "
            "config.batch_size makes it larger",
            left_over,
            config.batch_size,
        )

    # Network, optimiser, state.
    recipe = linear_experiment.recipe(config, pretrained)
    tx, schedules = linear_experiment.optimizer(config, steps_per_epoch)
    graphdef, state = classify.create_state(
        linear_experiment.classifier(config, pretrained, subject.channels, num_classes),
        tx,
        backbone=(subject.params, subject.batch_stats),
        weights=config.weights,
    )
    state = jax.device_put(state, sharding.replicated(mesh))
    train_step = classify.make_train_step(
        graphdef,
        tx,
        views.make_one_view(recipe, config.seed, mesh),
        weights=config.weights,
        mesh=mesh,
        images_per_epoch=len(source),
        schedules=schedules,
        compiler_options=sharding.compiler_options(mesh, deterministic=config.deterministic),
    )
    eval_images = views.make_eval_views(size=config.eval.crop, mean=recipe.mean, std=recipe.std, mesh=mesh)
    eval_step = classify.make_eval_step(graphdef, eval_images, mesh=mesh)

    # Where were we?
    checkpoints = Checkpoints(workdir / FOLDER, keep=config.keep_checkpoints, best_of="top1")
    meta = {
        "config": subject.config,  # of the architecture, as in a checkpoint of train.py
        "channels": subject.channels,
        "images": len(source),
        "names": source.listing(),
        "classifier": {"config": given, "num_classes": num_classes, "class_names": source.class_names},
        "origin": {name: getattr(subject, name) for name in ("path", "step", "sha256", "baseline", "ema")},
    }
    state, saved = workdirs.resume(checkpoints, state, source, total_steps)
    start_step, scores = int(state.step), saved.get("results", {})

    writer = metric_writers.of_run(config, workdir, start_step, given)
    progress = Progress(total_steps, start=start_step, shown=jax.process_index() == 0)
    batches = experiment.train_batches(
        config,
        source,
        start_step,
        mesh,
        last="wrap",
        crop_scale=tuple(config.crop_scale),
        crop_ratio=tuple(config.crop_ratio),
        views=1,
    )

    try:
        for step in range(start_step, total_steps):
            with progress.waiting():
                batch = next(batches)

            state, metrics = train_step(state, batch)

            done = step + 1
            epoch, last = done // steps_per_epoch, done == total_steps
            stopping = stop.received is not None or checkpoints.reached_preemption(done)
            progress.step(config.batch_size, metrics)
            if step == 0 or last or due(done, config.log_every_steps):
                writer.scalars(done, checked(metrics, done, checkpoints) | progress.rates())
            fresh = {}
            if last or due(done, config.eval.every_epochs * steps_per_epoch):
                with progress.paused():
                    val_batches = tracked(
                        experiment.eval_batches(config, val_source, mesh),
                        order.eval_steps(len(val_source), sharding.round_up(config.eval.batch_size, mesh)),
                        f"validation on {val_source.name}",
                    )
                    fresh = classify.evaluate(eval_step, state, val_batches, mesh)
                scores = with_scores(scores, fresh, epoch)
                writer.scalars(done, {"epoch": epoch, **fresh})
                log.info("epoch %d: top-1 %.2f %%, top-5 %.2f %%", epoch, 100 * fresh["top1"], 100 * fresh["top5"])
            if last or stopping or due(done, config.checkpoint_every_epochs * steps_per_epoch):
                checked(metrics, done, checkpoints)
                checkpoints.save(done, state, meta | {"results": scores}, fresh)
            if stopping and not last:
                checkpoints.wait()
                log.info("preempted at step %d; the same command goes on from there", done)
                return None
    finally:
        launch.close(batches, progress, writer, checkpoints)

    if config.weights == "freeze":
        check_frozen(state, subject)
    return scores | {
        "dataset": val_source.name,
        "classes": num_classes,
        "train": source.name,
        "train_images": len(source),
        "departures": protocols.departures(config),
    }


def checked(report, step, checkpoints):
    """The report of a step as it is, or the end of the run where its loss is not a number."""
    loss = float(report["loss"])
    if not np.isfinite(loss):
        last = checkpoints.latest_step()
        raise UserError(
            f"The loss is {loss} at step {step}; lower the learning rate or set config.precision=float32 "
            f"(last checkpoint: {'none' if last is None else f'step {last}'})."
        )
    return report


def with_scores(scores, fresh, epoch):
    """The scores with those of one more validation: the last, and the best top-1 and top-5, each for itself."""
    best = dict(scores.get("best", {}))
    for name in ("top1", "top5"):
        if fresh[name] > best.get(name, -1):
            best |= {name: fresh[name], f"{name}_epoch": epoch}
    best["images"] = fresh["images"]
    last = {"top1": fresh["top1"], "top5": fresh["top5"], "images": fresh["images"]}
    return {"last": last | {"top1_epoch": epoch, "top5_epoch": epoch}, "best": best}


def check_frozen(state, subject):
    """Says that the backbone did not move by a bit; RuntimeError if it did, as that would be a bug of ours."""
    sha256 = classify.fingerprint(state.params, state.batch_stats)
    if sha256 != subject.sha256:
        raise RuntimeError(f"The frozen backbone has moved: SHA-256 {subject.sha256} became {sha256}.")
    log.info("the frozen backbone has not moved: every bit is that of %s", subject)


def publish(config, subject, outcomes, seeds, folder):
    """The scores of these seeds as lines of results; process 0 adds them to results.jsonl and prints them."""
    lines = linear_experiment.result_lines(config, subject, outcomes, seeds)
    if jax.process_index() != 0:
        return lines
    results.append(folder, lines)
    first, departures = lines[0], outcomes[0]["departures"]
    print(
        f"\n{first['protocol']}, {first['dataset']}: {first['n']} images of {first['classes']} classes; "
        f"{subject}; seed {', '.join(map(str, seeds))}"
    )
    if departures:
        print(f"not as {first['protocol']} has it: {', '.join(departures)}")
    for line in lines:
        spread = "" if line["spread"] is None else f" +- {100 * line['spread']:.2f}"
        epochs = ", ".join(map(str, line["settings"]["at_epoch"]))
        print(f"{line['settings']['result']} {line['metric']}  {100 * line['value']:6.2f} %{spread}  (epoch {epochs})")
    return lines


if __name__ == "__main__":
    launch.run(main, define_flags)
