"""How good are the features of a run, without training anything on them?

    python -m barlow_jax.knn --checkpoint=runs/r50
    python -m barlow_jax.knn --checkpoint=runs/r50 --baseline=random

Three answers, by the fields of configs/frozen.py. The k nearest training images vote for the class of a test image,
weighted by cosine similarity (Wu et al. 2018, arXiv 1805.01978). The same images are told apart from a few labelled
ones of each class, by the nearest class mean and by ridge regression. And the effective rank of the features (RankMe,
arXiv 2210.02885), which is all that is left where there are no labels.
"""

import logging

import numpy as np

from barlow_jax import fields, metrics, results
from barlow_jax.data import sources
from barlow_jax.errors import UserError
from barlow_jax.evaluation import feature_cache, few_shot, frozen
from barlow_jax.run import launch
from barlow_jax.run.progress import tracked

CONFIG = "frozen"  # taken if none is named
FIELDS = ("k", "temperature", "bank", "shots", "shot_seeds", "seed")

log = logging.getLogger("knn")


def define_flags(flag):
    frozen.define_flags(flag, CONFIG)


def main(wanted):
    judge(wanted)


def judge(wanted):
    """Evaluates what the flags name; the lines of results."""
    with frozen.opened(wanted, fields.FROZEN, FIELDS) as judged:
        return frozen.publish(judged, *evaluate(judged))


def evaluate(judged):
    """(lines of results, rows of the table) of one backbone, a `frozen.Judged`."""
    config = judged.config
    train, val = frozen.splits(judged)
    queries = feature_cache.features_of(judged, val or train)
    lines, table = effective_rank(judged, val or train, queries)
    if val and train.num_classes and val.num_classes:
        bank = sources.evenly_spaced(train, config.bank, among=sources.labelled(train))
        bank, labels = frozen.known(feature_cache.features_of(judged, bank))
        queries, targets = frozen.known(queries)
        for part in (nearest_neighbours, few_labels):
            more, rows = part(judged, (bank, labels), (queries, targets), val.name, train.num_classes)
            lines, table = lines + more, table + rows
        table.insert(0, frozen.title(judged, f"{len(bank)} images of {train.name}, {len(queries)} of {val.name}"))
    else:
        table.insert(0, frozen.title(judged, f"no labels, {len(queries.features)} images of {(val or train).name}"))
    return lines, table


def effective_rank(judged, source, extracted):
    """(lines, rows of the table) of the effective rank."""
    sample = metrics.rank_sample(extracted.features)
    log.info("effective rank of %d features of width %d", *sample.shape)
    rank = float(metrics.effective_rank(sample))
    line = results.line(
        judged.subject,
        protocol="effective rank",
        dataset=source.name,
        n=len(sample),
        classes=None,
        metric="effective_rank",
        values=[rank],
        seeds=[],
    )
    return [line], [f"effective rank {rank:.1f} of {sample.shape[1]} (RankMe, {len(sample)} images)"]


def nearest_neighbours(judged, bank, queries, dataset, classes):
    """(lines, rows of the table) for each k."""
    config, n = judged.config, len(bank[0])
    ks = tuple(k for k in sorted(set(config.k)) if k <= n)
    if len(ks) < len(set(config.k)):
        log.info("%d labelled images to search: larger k are left out", n)
    if not ks or not len(queries[0]):
        raise UserError(f"{n} labelled training and {len(queries[0])} labelled test images are too few for config.k.")
    accuracy = metrics.knn_accuracy(
        *bank,
        *queries,
        k=ks,
        temperature=config.temperature,
        num_classes=classes,
        mesh=judged.mesh,
        track=lambda starts: tracked(starts, len(starts), "nearest neighbours"),
    )
    lines = [
        results.line(
            judged.subject,
            protocol="knn",
            dataset=dataset,
            n=len(queries[0]),
            classes=classes,
            metric="top1",
            values=[accuracy[k]],
            seeds=[],
            k=k,
            temperature=config.temperature,
            bank=n,
        )
        for k in ks
    ]
    return lines, ["", f"{'nearest neighbours':24}{'top-1 %':>8}"] + [
        f"{f'k = {k}':24}{100 * accuracy[k]:8.2f}" for k in ks
    ]


def few_labels(judged, bank, queries, dataset, classes):
    """(lines, rows of the table) for each number of images a class, over several draws."""
    config = judged.config
    enough = few_shot.most_shots(bank[1])
    shots = [count for count in sorted(set(config.shots)) if count <= enough]
    if len(shots) < len(set(config.shots)):
        log.info("a class has %d images only: more images a class are left out", enough)
    if not shots or not config.shot_seeds:
        return [], []
    seeds = list(range(config.seed, config.seed + config.shot_seeds))
    lines, table = [], ["", f"{'images a class':24}{'top-1 %':>8}"]
    work = [(count, name) for count in shots for name in few_shot.CLASSIFIERS]
    for count, name in tracked(work, len(work), "few labels"):
        values = []
        for seed in seeds:
            rows = few_shot.draw(bank[1], count, seed)
            predicted = few_shot.predict(name, bank[0][rows], bank[1][rows], queries[0])
            values.append((predicted == queries[1]).mean())
        lines.append(
            results.line(
                judged.subject,
                protocol="few-shot",
                dataset=dataset,
                n=len(queries[0]),
                classes=classes,
                metric="top1",
                values=values,
                seeds=seeds,
                shots=count,
                classifier=name,
            )
        )
        spread = f" +- {100 * lines[-1]['spread']:.2f}" if len(seeds) > 1 else ""
        table.append(f"{f'{count}, {name}':24}{100 * np.mean(values):8.2f}{spread}")
    return lines, [*table, f"(mean of {len(seeds)} draws, and standard deviation over them)"]


if __name__ == "__main__":
    launch.run(main, define_flags)
