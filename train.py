"""Barlow Twins pre-training.

    python train.py --config=configs/barlow_twins.py --config.data.path=/data/imagenet --workdir=runs/r50

The same line on one device, on eight, and on every host of a pod. Stopped or killed at any moment and started again
with the same line, it goes on from its last checkpoint and ends where an undisturbed run ends.

`train` below is the whole method, read from top to bottom: data, network, step, log, evaluate, save. What the step does
is one page on: `train_step` in barlow_jax/pretrain.py.
"""

import functools
import logging

import jax
import numpy as np

from barlow_jax import experiment, pretrain, sharding
from barlow_jax.data import order
from barlow_jax.evaluation import online
from barlow_jax.fields import free
from barlow_jax.results import kept, watching
from barlow_jax.run import cluster, compilation_cache, launch, metric_writers, pictures
from barlow_jax.run import workdir as workdirs
from barlow_jax.run.checkpoint import FOLDER, Checkpoints
from barlow_jax.run.profile import Profile
from barlow_jax.run.progress import Progress, due
from barlow_jax.run.signals import StopSignals
from barlow_jax.training import drawn, evidence
from barlow_jax.weights import as_run

log = logging.getLogger("train")


def define_flags(flag):
    flag.config("File or name of the experiment, such as configs/demo.py or demo.")
    flag.text("workdir", "Folder of the run: checkpoints, metrics, pictures.")
    flag.text("init", "File of weights to begin with: an official checkpoint.pth, or a backbone.")
    flag.names("allow_changes", "Fields that may differ from those the run began with, or all.")
    flag.number("stopped_status", "Exit status where a signal came before the end.")


def main(wanted):
    config = wanted.config
    opened = experiment.settle(config, wanted.workdir)
    keep = {"free": free.PRETRAINING, "allowed": wanted.allow_changes}
    with workdirs.opened(wanted.workdir, config.to_dict(), **keep) as workdir, StopSignals() as stop:
        with compilation_cache.used(config.compilation_cache, workdir):
            finished = train(config, workdir, stop, wanted.init, opened)
        if finished:
            return 0
        stop.requeue()
        return wanted.stopped_status


def train(config, workdir, stop, init="", opened=None):
    """Trains, evaluates and saves until the last epoch, or until `stop.received`: then it returns False.

    init: a file of weights to begin with where the work folder has no checkpoint; opened: see `experiment.sources`.
    """
    mesh = sharding.make_mesh()
    sharding.check_batch_size(config.batch_size, mesh)
    experiment.check_microbatches(config, mesh)

    # Data.
    source, val_source = experiment.sources(config, opened)
    steps_per_epoch = order.steps_per_epoch(len(source), config.batch_size, config.data.last)
    experiment.check_last_batch(config, len(source), mesh)
    total_steps = config.epochs * steps_per_epoch
    cluster.check_agreement({"images": {"count": len(source), "listing": source.listing()}})
    log.info("%s: %d images, %d steps an epoch, %d in all", source.name, len(source), steps_per_epoch, total_steps)

    # Network, optimiser, and the step that pretrain.train_step describes.
    method, state = experiment.method(
        config,
        channels=source.channels,
        num_classes=source.num_classes,
        steps_per_epoch=steps_per_epoch,
        mesh=mesh,
    )
    state = jax.device_put(state, method.state_sharding)
    train_step = pretrain.make_train_step(method)
    inspect = pretrain.make_inspect_step(method)
    evaluate = online.make_evaluation(config, method.graphdef, source, val_source, mesh)

    # Where were we?
    checkpoints = Checkpoints(workdir / FOLDER, keep=config.keep_checkpoints, best_of="knn")
    meta = {"config": config.to_dict(), "channels": source.channels, "images": len(source), "names": source.listing()}
    if init and checkpoints.latest_step() is None:
        state = as_run.begin(init, state, config, source.channels, steps_per_epoch)
        state = jax.device_put(state, method.state_sharding)
    state, saved = workdirs.resume(checkpoints, state, source, total_steps, init)
    start_step = int(state.step)
    meta["init"] = saved.get("init", init)

    writer = metric_writers.of_run(config, workdir, start_step)
    teller = watching.Teller(writer, config, workdir)
    page = kept.Page(workdir, start_step)
    progress = Progress(total_steps, start=start_step, terms=teller.terms, shown=jax.process_index() == 0)
    batches_from = functools.partial(experiment.pretraining_batches, config, source, mesh=mesh)
    batches = batches_from(start_step=start_step)
    watch = evidence.Watch(workdir, method, state, batches_from, source, steps_per_epoch, checkpoints.latest_step, meta)
    if start_step < total_steps:
        log.info("compiling the train step: seconds for a small network, minutes for a ResNet-50")
    profile = Profile(workdir / "profile", config.profile_steps)
    teller.begins(experiment.expected_loss(config, state.batch_stats["bn"]["mean"].size))

    try:
        for step in range(start_step, total_steps):
            with progress.waiting():
                batch = next(batches)
            begins = step == start_step and not saved
            if begins or due(step, config.picture_every_epochs * steps_per_epoch):
                with progress.paused():
                    look = inspect(state, batch)
                    if begins:
                        draw_views(look, config, source, step, workdir, writer)
                        if config.eval.every_epochs:
                            teller.scalars(step, evaluate(state, first=True) | look["agreement"])
                    draw_correlation(look, step, workdir, writer)

            with profile.step(step, state):
                state, metrics = train_step(state, batch)

            done = step + 1
            last = done == total_steps
            stopping = stop.received is not None or checkpoints.reached_preemption(done)
            progress.step(len(batch["index"]), metrics)
            ends_epoch = due(done, steps_per_epoch)
            if step == 0 or ends_epoch or due(done, config.log_every_steps):
                watch.check(state)
                teller.scalars(done, metrics | progress.rates())
            scores = {}
            judged = config.eval.every_epochs and (last or due(done, config.eval.every_epochs * steps_per_epoch))
            if judged or last:
                with progress.paused():
                    look = inspect(state, batch)
                    scores = evaluate(state) | look["agreement"] if judged else {}
            if judged:
                teller.scalars(done, scores)
            given_up = ends_epoch and teller.epoch(done // steps_per_epoch) and not last
            if last:
                draw_correlation(look, done, workdir, writer)
            if scores or last:
                page.write()
            if scores or last or stopping or given_up or due(done, config.checkpoint_every_steps):
                watch.check_all(state)
                checkpoints.save(done, state, meta, scores)
            if given_up:
                checkpoints.wait()
                teller.give_up(done)
            if stopping and not last:
                checkpoints.wait()
                log.info("preempted at step %d; the same command goes on from there", done)
                return False
    finally:
        launch.close(batches, progress, profile, writer, checkpoints)
    log.info("finished at step %d; %s", total_steps, watching.next_steps(workdir, config, source.num_classes))
    return True


def draw_views(look, config, source, step, workdir, writer):
    """What the network is shown: 8 images, all views of each, and what was drawn for them, in views.png."""
    if jax.process_index() == 0:
        look, scale = jax.device_get(look | {"c": ()}), (config.views.mean, config.views.std)
        told = drawn.captions(config, source, look, step)
        writer.image(0, "views", pictures.views_grid(look["views"], *scale, workdir / "views.png", captions=told))


def draw_correlation(look, step, workdir, writer):
    """The cross-correlation matrix of a batch and its histograms, in correlation/STEP.png."""
    if jax.process_index() == 0:
        path, of = workdir / "correlation" / f"{step:08d}.png", {"step": step, "width": int(look["width"])}
        picture = pictures.cross_correlation_picture(np.asarray(look["c"]), len(look["index"]), path, **of)
        writer.image(step, "cross_correlation", picture)


if __name__ == "__main__":
    launch.run(main, define_flags)
