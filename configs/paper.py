"""The paper's ablations on ImageNet, a row each: the published run, for 300 epochs, with the one thing changed.

    python train.py --config=configs/paper.py:table5:invariance_only --config.data.path=/data/imagenet --workdir=...
    python train.py --config=configs/paper.py:table6:predictor ...

arXiv 2103.03230, section 4; its top-1 and top-5 stand beside each row in docs/objectives.md. Not run here yet. On other
images, take the fields of a row: it changes nothing but what stands below.
"""

import barlow_jax

ROWS = {
    "table5:baseline": {},
    "table5:invariance_only": {"objective": "invariance_only"},
    "table5:redundancy_only": {"objective": "redundancy_only"},
    "table5:feature_normalized": {"objective": "feature_normalized"},
    "table5:no_batch_norm": {"projector_batch_norm": False},
    "table5:no_normalization": {"projector_batch_norm": False, "objective": "cross_covariance"},
    "table5:cross_entropy": {"objective": "cross_entropy"},
    "table6:baseline": {},
    "table6:stop_gradient": {"stop_gradient": True},
    "table6:predictor": {"predictor": (8192, 8192)},
    "table6:both": {"stop_gradient": True, "predictor": (8192, 8192)},
}


def get_config(row="table5:baseline"):
    """row: table5:NAME or table6:NAME, one of ROWS."""
    if row not in ROWS:
        raise ValueError(f"configs/paper.py:{row} is unknown; take one of {', '.join(ROWS)}.")
    config = barlow_jax.config("barlow_twins").unlock()
    config.epochs = 300
    config.update(ROWS[row])
    return config.lock()
