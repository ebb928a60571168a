"""Measures of representations: arrays in, numbers out.

    topk_accuracy        a classifier's hits, as counts that add up over batches and devices
    average_precision    of a ranking, 11-point or area
    knn_accuracy         weighted nearest neighbours, the usual probe without training
    effective_rank       how many directions the features use
    lidar                how many of them tell images apart whatever the augmentation does
    distinct_rows        how many images there are, to a network
    embedding_stats      what to watch in z1 and z2 during training
    agreement            what c says of any objective
    expected_at_init     what the loss would be if the two views had nothing to do with each other

Nothing here knows about data sets, models or files.
"""

from barlow_jax.metrics.accuracy import average_precision, topk_accuracy
from barlow_jax.metrics.embeddings import DEAD_VARIANCE, agreement, embedding_stats, expected_at_init
from barlow_jax.metrics.neighbours import keep_best, knn_accuracy, knn_predict, merger
from barlow_jax.metrics.ranks import distinct_rows, effective_rank, lidar, rank_sample

__all__ = [
    "DEAD_VARIANCE",
    "agreement",
    "average_precision",
    "distinct_rows",
    "effective_rank",
    "embedding_stats",
    "expected_at_init",
    "keep_best",
    "knn_accuracy",
    "knn_predict",
    "lidar",
    "merger",
    "rank_sample",
    "topk_accuracy",
]
