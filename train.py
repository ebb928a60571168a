"""Barlow Twins pre-training.

    python train.py --config=configs/barlow_twins.py --config.data.path=/data/imagenet --workdir=runs/r50

The same line on one device, on eight, and on every host of a pod. Stopped or killed at any moment and started again
with the same line, it goes on from its last checkpoint and ends where an undisturbed run ends.

`train` below is the whole method, read from top to bottom: data, network, step, log, evaluate, save.
"""

import logging

import jax
import numpy as np
from absl import flags
from ml_collections import config_flags

from barlow_jax import experiment, features, launch, metric_writers, metrics, pictures, pretrain, sharding
from barlow_jax.checkpoint import FOLDER, Checkpoints
from barlow_jax.data import order, sources
from barlow_jax.errors import UserError

CONFIG = config_flags.DEFINE_config_file("config", None, "File of the experiment, such as configs/demo.py.")
WORKDIR = flags.DEFINE_string("workdir", "", "Folder of the run: checkpoints, metrics, pictures.")
ALLOW = flags.DEFINE_list("allow_changes", [], "Fields that may differ from those the run began with, or all.")
STATUS = flags.DEFINE_integer("stopped_status", 0, "Exit status where a signal came before the end.")

log = logging.getLogger("train")


def main():
    config = launch.config_of(CONFIG)
    experiment.check(config)
    workdir = launch.prepare_workdir(
        WORKDIR.value, config.to_dict(), free=experiment.FREE_FIELDS, allowed=ALLOW.value
    )  # fmt: skip
    stop = launch.StopSignals()
    if train(config, workdir, stop):
        return 0
    stop.requeue()
    return STATUS.value


def train(config, workdir, stop):
    """Trains, evaluates and saves until the last epoch, or until `stop.received`: then it returns False."""
    mesh = sharding.make_mesh()
    sharding.check_batch_size(config.batch_size, mesh)
    process = {"process_index": jax.process_index(), "process_count": jax.process_count()}

    # Data.
    source, val_source = experiment.sources(config)
    steps_per_epoch = order.steps_per_epoch(len(source), config.batch_size, config.data.last)
    experiment.check_last_batch(config, len(source), mesh)
    total_steps = config.epochs * steps_per_epoch
    log.info("%s: %d images, %d steps an epoch, %d in all", source.name, len(source), steps_per_epoch, total_steps)

    # Network, optimiser, state.
    recipe = experiment.recipe(config, source.channels)
    tx, schedules = experiment.optimizer(config, steps_per_epoch)
    probe_tx = experiment.probe_optimizer(config, steps_per_epoch) if source.num_classes else None
    graphdef, state = pretrain.create_state(
        experiment.network(config, source.channels), tx, num_classes=source.num_classes, probe_tx=probe_tx
    )
    state = jax.device_put(state, sharding.replicated(mesh))
    views_of = pretrain.make_views(recipe, config.seed, mesh)
    train_step = pretrain.make_train_step(
        graphdef,
        tx,
        views_of,
        lambd=config.lambd,
        mesh=mesh,
        batch_size=config.batch_size,
        form=config.loss_form,
        scale_loss=config.scale_loss,
        schedules=schedules,
        probe_tx=probe_tx,
    )
    inspect = pretrain.make_inspect_step(graphdef, views_of, mesh=mesh)
    evaluate = make_evaluation(config, graphdef, source, val_source, recipe, mesh, process)

    # Where were we?
    checkpoints = Checkpoints(workdir / FOLDER, keep=config.keep_checkpoints, best_of="knn")
    meta = {"config": config.to_dict(), "channels": source.channels, "images": len(source)}
    state, _ = launch.resume(checkpoints, state, source, total_steps)
    start_step = int(state.step)

    writer = metric_writers.create(
        workdir,
        jax.process_index(),
        wandb=config.wandb,
        resume_step=start_step or None,
        config=config.to_dict(),
    )
    progress = metric_writers.Progress(total_steps, start=start_step, shown=jax.process_index() == 0)
    batches = experiment.train_batches(
        config,
        source,
        start_step,
        mesh,
        process,
        last=config.data.last,
        reference_world_size=config.reference_world_size,
        crop_scale=tuple(config.views.crop_scale),
        crop_ratio=tuple(config.views.crop_ratio),
    )
    expected = metrics.expected_at_init(config.batch_size, state.batch_stats["bn"]["mean"].size, config.lambd)
    log.info("loss of unrelated views: %.4g (on_diag %.4g, off_diag %.4g)",
             expected["loss"], expected["on_diag"], expected["off_diag"])  # fmt: skip

    try:
        for step in range(start_step, total_steps):
            with progress.waiting():
                batch = next(batches)
            if step == 0 or launch.due(step, config.picture_every_epochs * steps_per_epoch):
                with progress.paused():
                    look = inspect(state, batch)
                    if step == 0:
                        draw_views(look, recipe, workdir, writer)
                    draw_correlation(look, step, workdir, writer)

            state, report = train_step(state, batch)

            done = step + 1
            last = done == total_steps
            stopping = stop.received is not None or checkpoints.reached_preemption(done)
            progress.step(len(batch["index"]))
            if step == 0 or last or launch.due(done, config.log_every_steps):
                writer.scalars(done, launch.checked(report, done, checkpoints) | progress.rates())
            scores = {}
            if config.eval.every_epochs and (last or launch.due(done, config.eval.every_epochs * steps_per_epoch)):
                with progress.paused():
                    scores = evaluate(state)
                writer.scalars(done, scores)
                log.info("epoch %d: %s", done // steps_per_epoch, ", ".join(f"{k} {v:.4g}" for k, v in scores.items()))
            if last:
                draw_correlation(inspect(state, batch), done, workdir, writer)
            if scores or last or stopping or launch.due(done, config.checkpoint_every_steps):
                launch.checked(report, done, checkpoints)
                checkpoints.save(done, state, meta, scores)
            if stopping and not last:
                checkpoints.wait()
                log.info("preempted at step %d; the same command goes on from there", done)
                return False
    finally:
        launch.close(batches, progress, writer, checkpoints)
    log.info("finished at step %d; evaluate with linear_eval.py --checkpoint=%s", total_steps, workdir)
    return True


def make_evaluation(config, graphdef, source, val_source, recipe, mesh, process):
    """state -> scores: kNN and the online probe on the validation images, effective rank of their features.

    Unlabelled images, on either side, count for the effective rank only. Without labels, or without validation images,
    it is all that is left, of training images then.
    """
    step = features.make_feature_step(graphdef, size=config.eval.crop, mean=recipe.mean, std=recipe.std, mesh=mesh)
    labelled = sources.labelled(source)
    supervised = bool(val_source and val_source.num_classes and source.num_classes)
    bank_source = sources.evenly_spaced(source, config.eval.knn_bank, among=labelled if supervised else None)
    if supervised and config.eval.every_epochs and config.eval.knn_k > len(bank_source):
        raise UserError(
            f"config.eval.knn_k is {config.eval.knn_k}, and there are {len(bank_source)} labelled images to search; "
            "lower it."
        )

    def extract(state, source):
        batches = experiment.eval_batches(config, source, mesh, process)
        return features.extract(step, state.params, state.batch_stats, batches, mesh)

    def known(features, labels):
        return features[labels >= 0], labels[labels >= 0]

    def evaluate(state):
        test, test_labels = extract(state, val_source or bank_source)
        sample = test[:: max(len(test) // 25_600, 1)]  # as many as in the paper of RankMe
        scores = {"effective_rank": float(metrics.effective_rank(sample))}
        if supervised:
            test, test_labels = known(test, test_labels)
            bank, bank_labels = known(*extract(state, bank_source))
            scores["knn"] = metrics.knn_accuracy(
                bank, bank_labels, test, test_labels, k=config.eval.knn_k, temperature=config.eval.knn_temperature
            )
            head = jax.device_get(state.probe["params"])
            scores["probe"] = float(((test @ head["kernel"] + head["bias"]).argmax(1) == test_labels).mean())
        return scores

    return evaluate


def draw_views(look, recipe, workdir, writer):
    """What the network is shown: 8 images, 2 views each, in views.png."""
    if jax.process_index() == 0:
        picture = pictures.views_grid(np.asarray(look["views"]), recipe.mean, recipe.std, workdir / "views.png")
        writer.image(0, "views", picture)


def draw_correlation(look, step, workdir, writer):
    """The cross-correlation matrix of the next batch, in correlation/STEP.png."""
    if jax.process_index() == 0:
        path = workdir / "correlation" / f"{step:08d}.png"
        writer.image(step, "cross_correlation", pictures.cross_correlation_picture(np.asarray(look["c"]), path))


if __name__ == "__main__":
    launch.run(main)
