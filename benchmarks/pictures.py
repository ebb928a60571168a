"""The pictures of README.md and docs/, anew, from the demo's run; and what a picture of the correlations costs.

    python benchmarks/pictures.py --run=runs/demo --out=docs/pictures
    python benchmarks/pictures.py --costs

`make pictures` is the first line. It trains the demo where the folder has no run of it; one run gives the same pictures
each time.
"""

import argparse
import pathlib
import sys
import time
import tracemalloc

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import jax
import numpy as np

from barlow_jax import demo, experiment, pretrain, sharding
from barlow_jax.data import order
from barlow_jax.evaluation import features, maps
from barlow_jax.run import config_files, metric_writers, pictures
from barlow_jax.run.checkpoint import newest_step, restore_params
from barlow_jax.training import drawn


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=pathlib.Path, default="runs/demo", help="work folder of the demo")
    parser.add_argument("--out", type=pathlib.Path, default="docs/pictures", help="folder of the pictures")
    parser.add_argument("--costs", action="store_true", help="time the pictures of matrices of several widths instead")
    wanted = parser.parse_args()
    if wanted.costs:
        return costs()
    draw(wanted.run, wanted.out)
    for file in sorted(wanted.out.glob("*.png")):
        print(f"{file}: {file.stat().st_size / 1000:.0f} kB")


def draw(run, out):
    """All of them, from a run of the demo that ended, or that is trained first."""
    begun = newest_step(run)
    config = config_files.load("demo") if begun is None else demo.config_of(run)
    train, test = experiment.sources(config)
    an_epoch = order.steps_per_epoch(len(train), config.batch_size, config.data.last)
    steps = config.epochs * an_epoch
    if (begun or 0) < steps and not demo.trained(config, run):
        raise SystemExit("stopped; the same line goes on")
    out.mkdir(parents=True, exist_ok=True)
    pictures.curves(run / metric_writers.FILE, demo.CURVES, path=out / "demo_curves.png")

    mesh, parts = sharding.make_mesh(), {"channels": train.channels, "num_classes": train.num_classes}
    method, state = experiment.method(config, **parts, steps_per_epoch=an_epoch, mesh=mesh)
    params, batch_stats, _ = restore_params(run)
    trained = state._replace(step=np.int32(steps), params=params, batch_stats=batch_stats)
    inspect, scale = pretrain.make_inspect_step(method), (config.views.mean, config.views.std)
    for name, of, step in (("first", state, 0), ("last", trained, steps)):  # as train.py looks at them
        batches = experiment.pretraining_batches(config, train, max(step - 1, 0), mesh)
        look = jax.device_get(inspect(of, next(batches)))
        batches.close()
        path = out / f"demo_correlation_{name}.png"
        pictures.cross_correlation_picture(look["c"], len(look["index"]), path, step=step)
        if not step:
            told = drawn.captions(config, train, look, step)
            pictures.views_grid(look["views"], *scale, out / "demo_views.png", captions=told)

    step = features.make_feature_step(method.graphdef, size=config.eval.crop, mean=scale[0], std=scale[1], mesh=mesh)
    bank, queries = (
        features.extract(step, params, batch_stats, experiment.eval_batches(config, source, mesh), mesh, n=len(source))[
            0
        ]
        for source in (train, test)
    )
    demo.draw_neighbours(bank, queries, train, test, out / "demo_neighbours.png", rows=5, columns=6)
    points, shares = maps.principal([(None, None, queries)])
    shown, _ = pictures.spread(points)
    options = {"labels": test.labels, "class_names": [f"digit {k}" for k in range(10)]}
    options |= {"width": queries.shape[1], "path": out / "demo_map.png"}
    pictures.features_map(points, shares, test.images[shown], **options)
    pictures.cross_correlation_picture(correlated(8192, 2048), 2048, out / "correlation_8192.png", step=62_600)


def correlated(d, n, seed=0):
    """A made matrix c [d, d] of n images, as of a run on its way.

    The diagonal runs from 0.95 down to 0.2, one dimension in 16 is dead, and one in 8 shares half of its variance with
    15 others.
    """
    rng = np.random.default_rng(seed)
    signal = rng.standard_normal((n, d), np.float32)
    alike = rng.permutation(d)[: d // 8]
    signal[:, alike] = np.sqrt(0.5) * (signal[:, alike] + rng.standard_normal((n, d // 128), np.float32).repeat(16, 1))
    kept = np.linspace(0.95, 0.2, d, dtype=np.float32)[rng.permutation(d)]
    kept[rng.permutation(d)[: d // 16]] = 0
    z = [np.sqrt(kept) * signal + np.sqrt(1 - kept) * rng.standard_normal((n, d), np.float32) for _ in range(2)]
    z1, z2 = ((one - one.mean(0)) / one.std(0) for one in z)
    return z1.T @ z2 / n


def costs():
    """CPU seconds and memory of one picture, and the size of its file, of matrices of several widths."""
    place = pathlib.Path("costs.png")
    for d in (512, 2048, 8192):
        c = correlated(d, 2048)
        pictures.cross_correlation_picture(c, 2048, place)  # loads what draws
        took = []
        for _ in range(3):
            began = time.process_time()
            pictures.cross_correlation_picture(c, 2048, place)
            took.append(time.process_time() - began)
        tracemalloc.start()
        pictures.cross_correlation_picture(c, 2048, place)
        more = tracemalloc.get_traced_memory()[1] / 1e6
        tracemalloc.stop()
        size = place.stat().st_size / 1000
        print(f"D = {d}: {min(took):.2f} s, {more:.0f} MB beside the {c.nbytes / 1e6:.0f} of c, file of {size:.0f} kB")
    place.unlink()


if __name__ == "__main__":
    main()
