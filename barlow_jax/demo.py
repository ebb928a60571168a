"""The demo: the run of configs/demo.py, unless the folder has it, and a table and pictures of what it has learned.

    barlow-jax demo --workdir=runs/demo

The same in two lines, the first of which takes other values for the config's fields, such as --config.seed=1:

    python train.py --config=configs/demo.py --workdir=runs/demo
    python -m barlow_jax.demo --workdir=runs/demo

Four representations of the same images, each judged twice: by the 20 nearest training images, and by a linear
classifier (multinomial logistic regression on standardised features, scikit-learn). The test digits come from source
digits that training never saw.
"""

import warnings

import numpy as np
from ml_collections import ConfigDict

from barlow_jax import experiment, metrics, model, sharding
from barlow_jax.data import order
from barlow_jax.errors import UserError
from barlow_jax.evaluation import features
from barlow_jax.run import config_files, launch, metric_writers, pictures
from barlow_jax.run.buckets import reading
from barlow_jax.run.checkpoint import newest_step, restore_params
from barlow_jax.training import viewing

CURVES = ("loss", "on_diag", "off_diag", "knn", "probe_accuracy", "effective_rank")


def define_flags(flag):
    flag.text("workdir", "Folder of the run.", default="runs/demo")


def main(wanted):
    folder = reading.here_alone(wanted.workdir)
    begun = newest_step(folder)
    config = config_files.load("demo") if begun is None else config_of(folder)
    train, test = experiment.sources(config)
    steps = config.epochs * order.steps_per_epoch(len(train), config.batch_size, config.data.last)
    if (begun or 0) < steps and not trained(config, folder):
        return  # stopped; the same line goes on
    params, batch_stats, _ = restore_params(folder)
    representations = {
        "raw pixels": [pixels(source) for source in (train, test)],
        "raw pixels, mean colour off": [pixels(source, centred=True) for source in (train, test)],
    }
    mesh = sharding.make_mesh()
    recipe = viewing.recipe(config, train.channels)
    graphdef, *untrained = model.split(experiment.network(config, train.channels))
    step = features.make_feature_step(graphdef, size=config.eval.crop, mean=recipe.mean, std=recipe.std, mesh=mesh)
    for name, weights in (("random network", untrained), ("Barlow Twins", (params, batch_stats))):
        representations[name] = [
            features.extract(step, *weights, experiment.eval_batches(config, source, mesh), mesh, n=len(source))[0]
            for source in (train, test)
        ]

    print(f"\n{len(train)} training and {len(test)} test images, {config.epochs} epochs, seed {config.seed}\n")
    print(f"{'':28}{'20-NN':>8}{'linear':>8}")
    for name, (bank, queries) in representations.items():
        knn = metrics.knn_accuracy(
            bank, train.labels, queries, test.labels, k=config.eval.knn_k, temperature=config.eval.knn_temperature
        )
        linear = linear_accuracy(bank, train.labels, queries, test.labels)
        print(f"{name:28}{knn:8.3f}{linear:8.3f}", flush=True)

    draw_neighbours(*representations["Barlow Twins"], train, test, folder / "neighbours.png")
    pictures.curves(folder / metric_writers.FILE, CURVES, path=folder / "curves.png")
    shown = ("views.png", "neighbours.png", "curves.png", "correlation/")
    print(f"\nPictures in {folder}: {', '.join(shown)}")


def config_of(folder):
    """The config of the run in a folder; UserError where that is none on digits, which all here is about."""
    meta = restore_params(folder)[2]
    config = ConfigDict(meta.get("config", {}))
    if "classifier" in meta or "arch" not in config or config.data.kind != "digits":
        raise UserError(f"{folder} holds no run of --config=demo; take another --workdir.")
    return config


def trained(config, folder):
    """Trains as train.py does, from where the run in the folder is; whether to the end."""
    program, flag = config_files.program("train"), launch.Flags()
    program.define_flags(flag)
    return program.main(flag.given(config, workdir=str(folder), stopped_status=1)) == 0


def pixels(source, *, centred=False):
    """The images themselves as features, float32 [n, height * width * channels], of images scaled to 0..1.

    centred: without the mean of each channel of each image, which is mostly the background's colour. (One mean for
      the three channels together would be a far weaker opponent.)
    """
    images = source.images.astype(np.float32) / 255
    if centred:
        images = images - images.mean((1, 2), keepdims=True)
    return images.reshape(len(source), -1)


def linear_accuracy(bank, labels, queries, targets):
    """Test accuracy of a logistic regression on standardised features."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits  # comes with scikit-learn

    mean, std = bank.mean(0), bank.std(0) + 1e-6
    # One thread: the products are small, and on busy cores BLAS threads burn time waiting for each other.
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)
        # Regularised for the sake of the pixels: after 100 iterations the centred ones fit
        # 0.90 of the training images at C = 0.1 (validation 0.10) and 0.37 at 0.001 (validation 0.18).
        classifier = LogisticRegression(C=0.01, max_iter=300).fit((bank - mean) / std, labels)
    return classifier.score((queries - mean) / std, targets)


def draw_neighbours(bank, queries, train, test, path, rows=8, columns=8):
    """The nearest training images of a few test images, those of the same class marked."""
    chosen = np.linspace(0, len(test) - 1, rows).astype(int)

    def unit(x):
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    cosines = unit(queries[chosen]) @ unit(bank).T
    nearest = np.argsort(-cosines, axis=1)[:, :columns]
    labels = np.concatenate([test.labels[chosen][:, None], train.labels[nearest]], 1)
    told = {
        "names": [[f"digit {label}" for label in row] for row in labels],
        "similarities": np.take_along_axis(cosines, nearest, 1),
    }
    pictures.neighbours_grid(
        test.images[chosen], train.images[nearest], labels[:, 1:] == labels[:, :1], path=path, **told
    )


if __name__ == "__main__":
    launch.run(main, define_flags)
