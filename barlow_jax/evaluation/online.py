"""Watching a pre-training run learn: kNN and the online probe where labels exist, ranks of the features everywhere."""

import jax

from barlow_jax import experiment, metrics, model, views
from barlow_jax.data import order, sources
from barlow_jax.errors import UserError
from barlow_jax.evaluation import features
from barlow_jax.sharding import by_example, replicated
from barlow_jax.training import averaging, viewing

LIDAR_VIEWS = 4  # of an image, where the paper has 50; two are the least


def make_evaluation(config, graphdef, source, val_source, mesh):
    """(state, first=False) -> scores: kNN and the online probe on the validation images, ranks of their features.

    Unlabelled images, on either side, count for the ranks only. Without labels, or without validation images, those are
    all that is left, of training images then. Of a run with an average of the weights that is judged, but for the
    probe, which is a layer on features of the last weights. The first time, before anything was learnt, the scores hold
    what `results.measured` wants to know of the run, too: its images, and how wide features and embeddings are.
    """
    mean, std = tuple(config.views.mean), tuple(config.views.std)
    step = features.make_feature_step(graphdef, size=config.eval.crop, mean=mean, std=std, mesh=mesh)
    labelled = sources.labelled(source)
    supervised = bool(val_source and val_source.num_classes and source.num_classes)
    bank_source = sources.evenly_spaced(source, config.eval.knn_bank, among=labelled if supervised else None)
    if supervised and config.eval.every_epochs and config.eval.knn_k > len(bank_source):
        raise UserError(
            f"config.eval.knn_k is {config.eval.knn_k}, and there are {len(bank_source)} labelled images to search; "
            "lower it."
        )

    def extract(weights, source):
        batches = experiment.eval_batches(config, source, mesh)
        return features.extract(step, *weights, batches, mesh, n=len(source))[:2]

    lidar = make_lidar(config, graphdef, val_source or bank_source, mesh)

    def known(features, labels):
        return features[labels >= 0], labels[labels >= 0]

    def evaluate(state, first=False):
        weights = averaging.judged(state)
        test, test_labels = extract(weights, val_source or bank_source)
        scores = {"effective_rank": float(metrics.effective_rank(metrics.rank_sample(test))), **lidar(*weights)}
        if first:
            scores |= {"images": len(source), "features": test.shape[1]}
            scores["dimensions"] = state.batch_stats["bn"]["mean"].size
            scores["distinct_images"] = metrics.distinct_rows(test[:: max(len(test) // 2000, 1)])
            scores["judged_images"] = int((test_labels >= 0).sum()) if supervised else len(test)
        if supervised:
            test, test_labels = known(test, test_labels)
            bank, bank_labels = known(*extract(weights, bank_source))
            scores["knn"] = metrics.knn_accuracy(
                bank,
                bank_labels,
                test,
                test_labels,
                k=config.eval.knn_k,
                temperature=config.eval.knn_temperature,
                mesh=mesh,
            )
            if state.average:
                test, _ = known(*extract((state.params, state.batch_stats), val_source))
            head = jax.device_get(state.probe["params"])
            scores["probe"] = float(((test @ head["kernel"] + head["bias"]).argmax(1) == test_labels).mean())
        return scores

    return evaluate


def make_lidar(config, graphdef, source, mesh):
    """(params, batch_stats) -> {"lidar": of views of config.eval.lidar_images images of the source}; {} for 0.

    Always of the same views, by the training recipe, of the network in evaluation mode.
    """
    chosen = sources.evenly_spaced(source, config.eval.lidar_images)
    if not config.eval.lidar_images or len(chosen) < 3:
        return lambda params, batch_stats: {}
    views_of = views.make_views(viewing.recipe(config, source.channels), config.seed, mesh)

    def features_of(step, params, batch_stats, batch):
        images = views_of(step, batch)
        network = model.merge(graphdef, params, batch_stats)
        found = network.backbone(images.reshape(-1, *images.shape[2:]), train=False)
        return {"features": found.reshape(*images.shape[:2], -1), "label": batch["label"], "index": batch["index"]}

    of_views = jax.jit(features_of, in_shardings=(None, None, None, by_example(mesh)), out_shardings=replicated(mesh))

    def lidar(params, batch_stats):
        boxes = viewing.boxes(config) | {"views": LIDAR_VIEWS, "small": 0}
        batches = experiment.train_batches(config, chosen, 0, mesh, last="wrap", **boxes)
        steps = range(order.steps_per_epoch(len(chosen), config.batch_size, "wrap"))
        try:
            outputs = (of_views(step, params, batch_stats, next(batches)) for step in steps)
            found = features.gather(outputs, len(chosen))
        finally:
            batches.close()
        return {"lidar": metrics.lidar(found.features)}

    return lidar
