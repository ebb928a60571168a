"""Watching a pre-training run learn: kNN and the online probe where labels exist, effective rank everywhere."""

import jax

from barlow_jax import experiment, metrics
from barlow_jax.data import sources
from barlow_jax.errors import UserError
from barlow_jax.evaluation import features
from barlow_jax.training import averaging


def make_evaluation(config, graphdef, source, val_source, mesh):
    """state -> scores: kNN and the online probe on the validation images, effective rank of their features.

    Unlabelled images, on either side, count for the effective rank only. Without labels, or without validation images,
    it is all that is left, of training images then. Of a run with an average of the weights that is judged, but for the
    probe, which is a layer on features of the last weights.
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
        return features.extract(step, *weights, batches, mesh)[:2]

    def known(features, labels):
        return features[labels >= 0], labels[labels >= 0]

    def evaluate(state):
        weights = averaging.judged(state)
        test, test_labels = extract(weights, val_source or bank_source)
        scores = {"effective_rank": float(metrics.effective_rank(metrics.rank_sample(test)))}
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
