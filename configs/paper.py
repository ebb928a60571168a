"""The paper's ablations on ImageNet, a row or a point each: the published run, for 300 epochs, with one thing changed.

    python train.py --config=configs/paper.py:table5:invariance_only --config.data.path=/data/imagenet --workdir=...
    barlow-jax sweep --config=configs/paper.py:table6 --config.data.path=/data/imagenet --workdir=runs/table6

arXiv 2103.03230, section 4: tables 5 and 6, and figures 2 (batch size), 3 (augmentations taken away one after the
other), 4 (width of the projector's last layer) and 5 (lambda). docs/sweeps.md has the paper's numbers, as far as it
prints them. Not run here at that size.

Behind an @ stands another config, by name or file, whose values are kept but for what the row changes; its epochs too:

    python train.py --config=configs/paper.py:table6:predictor@imagenette32 --config.data.path=... --workdir=...
"""

import barlow_jax


def rows(config):
    """{row: {field: value}}: what each row changes in a config. Widths follow its projector, 8192 x 3 as published."""
    *hidden, width = config.projector or (None,)  # of a config that leaves it open, whose rows have no widths
    predictor = (width, width)
    return {
        "table5:baseline": {},
        "table5:invariance_only": {"objective": "invariance_only"},
        "table5:redundancy_only": {"objective": "redundancy_only"},
        "table5:feature_normalized": {"objective": "feature_normalized"},
        "table5:no_batch_norm": {"projector_batch_norm": False},
        "table5:no_normalization": {"projector_batch_norm": False, "objective": "cross_covariance"},
        "table5:cross_entropy": {"objective": "cross_entropy"},
        "table6:baseline": {},
        "table6:stop_gradient": {"stop_gradient": True},
        "table6:predictor": {"predictor": predictor},
        "table6:both": {"stop_gradient": True, "predictor": predictor},
        # The paper searched LARS's rates anew for each size, and does not say what it found: here they scale with it.
        **{f"figure2:{size}": {"batch_size": size} for size in (128, 256, 512, 1024, 2048, 4096)},
        # "Crop only" is taken at its word: no flip. The paper does not say.
        "figure3:baseline": {},
        "figure3:no_grayscale": {"views.grayscale": 0.0},
        "figure3:no_color_jitter": {"views.grayscale": 0.0, "views.jitter": 0.0},
        "figure3:crop_and_blur": CROP_AND_BLUR,
        "figure3:crop": CROP_AND_BLUR | {"views.blur": (0.0, 0.0)},
        # "The dimensionality of the last layer", lambda as it is.
        **{f"figure4:{last}": {"projector": (*hidden, last)} for last in (2**k for k in range(4, 15))},
        **{f"figure5:{lambd}": {"lambd": lambd} for lambd in (0.002, 0.005, 0.007, 0.01, 0.015, 0.02)},
    }


CROP_AND_BLUR = {"views.grayscale": 0.0, "views.jitter": 0.0, "views.solarize": (0.0, 0.0), "views.flip": 0.0}


def members(wanted=""):
    """{row: argument of get_config} of table5, of table5,table6, of a row or of all; @CONFIG: on another config."""
    groups, at, base = wanted.partition("@")
    groups = groups.split(",")
    names = rows(barlow_jax.config("barlow_twins"))
    known = ["", *dict.fromkeys(name.partition(":")[0] for name in names)]
    if unknown := [group for group in groups if group not in (*known, *names)]:
        raise ValueError(f"{unknown[0]!r} is none of the paper's: take some of {', '.join(known[1:])}, or rows of them")
    return {name: f"{name}{at}{base}" for name in names if {*groups} & {"", name, name.partition(":")[0]}}


def get_config(row="table5:baseline"):
    """row: one of rows(), or ROW@CONFIG."""
    row, _, base = row.partition("@")
    config = barlow_jax.config(base or "barlow_twins").unlock()
    if "projector" not in config:
        raise ValueError(f"{base} is no config of a pre-training: name another behind the @")
    known = rows(config)
    if row not in known:
        raise ValueError(f"configs/paper.py:{row} is unknown; take one of {', '.join(known)}.")
    if not config.projector and {"predictor", "projector"} & {*known[row]}:
        raise ValueError(f"{row} changes the projector's width, which {base} leaves open: name another behind the @")
    if not base:
        config.epochs = 300
    config.update_from_flattened_dict(known[row])
    return config.lock()
