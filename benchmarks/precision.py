"""What results would move by on an accelerator that rounds the numbers of a product, and what they ask for against it.

    python benchmarks/precision.py [PART ...] [--run=WORKDIR] [--compiled]

Emulated on the CPU (tests/emulated.py): every product and convolution of float32 numbers with inputs in bfloat16 (a TPU
that is asked for nothing), in three products of bfloat16 parts ("high" on a TPU), in TF32 (a GPU that is asked for
nothing, or for "high"), and as the code asks. Prints the rows of the table in docs/precision.md; PART is one or more of
the names below, or none for all. The loss is measured on drawn embeddings, and with --run on those of a run of
configs/demo.py, at its start and at its end.
"""

import argparse
import pathlib
import re
import sys
from unittest import mock

ROOT = pathlib.Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import emulated
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.lax import Precision
from jax.sharding import AxisType
from programs import unasked

from barlow_jax import augment, metrics, model, pretrain
from barlow_jax.evaluation import heads
from barlow_jax.loss import barlow_twins_loss
from barlow_jax.metrics import neighbours
from barlow_jax.networks import batch_norm
from barlow_jax.ops import image

# Each column: the device, and what all products ask for there; None is what they do ask for.
COLUMNS = {
    "bfloat16": ("tpu", Precision.DEFAULT),
    "3 x bfloat16": ("tpu", Precision.HIGH),
    "TF32": ("gpu", Precision.DEFAULT),
    "as asked, TPU": ("tpu", None),
    "as asked, GPU": ("gpu", None),
}


def relative(found, exact):
    """|found - exact| / |exact| over all arrays."""
    pairs = list(zip(*(map(np.asarray, jax.tree.leaves(x)) for x in (found, exact)), strict=True))
    return np.sqrt(sum(((a - b) ** 2.0).sum() for a, b in pairs) / sum((b**2.0).sum() for _, b in pairs))


def differ(found, exact):
    """The share of whole numbers that differ."""
    return float((np.asarray(found) != np.asarray(exact)).mean())


def show(name, function, arguments, compare):
    """How far `function` is from itself with exact products, and how many products ask for less than float32.

    Args:
      name: of the row; or of the rows, one for each part of what the function returns.
    """
    exact = emulated.on("tpu", function, Precision.HIGHEST)(*arguments)
    found = [emulated.on(device, function, asking)(*arguments) for device, asking in COLUMNS.values()]
    left = len(unasked(jax.make_jaxpr(function)(*arguments)))
    if isinstance(name, str):
        name, exact, found = [name], [exact], [[each] for each in found]
    for row, wanted, *others in zip(name, exact, *found, strict=True):
        cells = [compare(other, wanted) for other in others]
        print(f"| {row} | {' | '.join(f'{cell:.1e}' if cell else '0' for cell in cells)} | {left} |", flush=True)


def photographs():
    """Sixteen times two photographs in turn, [16, 427, 640, 3], and random boxes for them."""
    from sklearn.datasets import load_sample_images

    images = np.stack(load_sample_images().images).astype(np.float32)
    keys = jax.random.split(jax.random.key(0), 8)
    boxes = augment.random_boxes(keys, 427, 640, scale=(0.08, 1), ratio=(3 / 4, 4 / 3))
    return images[[0, 1] * 8], boxes.reshape(16, 4)


def crops(size):
    """[16, size, size, 3], grey levels."""
    return jax.jit(jax.vmap(lambda photograph, box: image.crop_resize(photograph, box, size)))(*photographs())


def crop():
    """Grey levels of random crops of two photographs at 224 pixels."""
    both = jax.vmap(lambda photograph, box: image.crop_resize(photograph, box, 224))
    show("crop: levels off", both, photographs(), differ)


def features(rows, width, classes, seed):
    """Clusters that overlap, all positive as after a ReLU: features and their classes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)
    centres = np.random.default_rng(99).standard_normal((classes, width))
    return np.abs(centres[labels] + 3 * rng.standard_normal((rows, width))).astype(np.float32), labels.astype(np.int32)


def knn():
    """Answers of 20 neighbours."""
    (bank, labels), (queries, _) = features(4096, 512, 100, 0), features(1024, 512, 100, 1)
    start = np.full((2, 512, 20), -np.inf, np.float32), np.zeros((2, 512, 20), np.int32)

    def vote(queries, bank):
        found = neighbours._merge_block(*start, queries.reshape(2, 512, -1), bank, labels)
        return neighbours._vote(*found, 0.07, ks=(20,), classes=100)

    show("kNN: answers changed", vote, (queries, bank), differ)


def probe():
    """Heads on frozen features, 60 steps, and the online probe's gradient."""
    x, y = features(60 * 64, 512, 100, 0)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:1])
    # On the host, because the step takes over the buffers of what it is given.
    begun = jax.device_get(heads._initial(x.mean(0), x.std(0), 2, 100, mesh))
    trace = jax.tree.map(np.zeros_like, begun[:2])
    rates, decays = np.float32([0.1, 0.01]), np.float32([0, 1e-3])
    cosine = np.cos(np.linspace(0, np.pi, 60, dtype=np.float32)) / 2 + 0.5
    batches = x.reshape(60, 64, -1), y.reshape(60, 64), np.ones((60, 64), np.float32), cosine

    def fit(x):
        return heads._advance(mesh, 0.9)(begun, trace, rates, decays, (x, *batches[1:]))

    trained = fit(batches[0])[0]
    show("heads: kernels", lambda x: fit(x)[0].kernel, batches[:1], relative)
    answer = lambda x: heads._logits(trained, x).argmax(-1)  # noqa: E731
    show("heads: answers changed", answer, (features(4096, 512, 100, 1)[0],), differ)
    head = {"kernel": np.asarray(trained.kernel)[:, 0], "bias": np.asarray(trained.bias)[0]}
    both = x[:256].reshape(128, 2, -1)
    loss = lambda head, x: pretrain.linear_probe(head, x, y[:128])[0]  # noqa: E731
    show("online probe: gradient", jax.grad(loss), (head, both), relative)


def classifier():
    """2048 features to 1000 classes, a thousand rows of noise: what is near a tie turns over."""
    backbone = model.make_backbone("pixels", image_size=32, channels=2)
    graphdef, params, batch_stats = model.split(model.Classifier(backbone, 1000, rngs=nnx.Rngs(0)))
    x = np.abs(np.random.default_rng(0).standard_normal((4096, 32, 32, 2), np.float32))

    def answer(params, x):
        return model.merge(graphdef, params, batch_stats)(x, train=False).argmax(-1)

    show("classifier, 2048 to 1000: answers changed", answer, (params, x), differ)


def networks():
    """Features of fresh ResNets, of noise."""
    x = jax.random.normal(jax.random.key(0), (4, 64, 64, 3))
    for arch in ("resnet18", "resnet50"):
        make = model.make_backbone(arch, image_size=64, zero_init_residual=False)
        graphdef, params, batch_stats = model.split(make(rngs=nnx.Rngs(0)))

        def features(params, x, graphdef=graphdef, batch_stats=batch_stats):
            return model.merge(graphdef, params, batch_stats)(x, train=False)

        show(f"{arch}, float32: features", features, (params, x), relative)


def embeddings(run):
    """{name: (z1, z2)}: drawn ones, and those of a run at its start and end."""
    rng, found = np.random.default_rng(0), {}
    for n, d in ((256, 1024), (1024, 256)):
        z = rng.standard_normal((n, d))
        noise = rng.standard_normal((2, n, d))
        found[f"drawn, {n} x {d}, unrelated"] = (z, noise[0])
        if n > d:
            z = np.linalg.qr(z - z.mean(0))[0] * np.sqrt(n)
        found[f"drawn, {n} x {d}, c_ii .99"] = (z + 0.1 * noise[0], z + 0.1 * noise[1])
        if n > d:
            found[f"drawn, {n} x {d}, c_ii .9999"] = (z + 0.01 * noise[0], z + 0.01 * noise[1])
    if run:
        found |= of_run(run)
    return {name: tuple(np.asarray(z, np.float32) for z in pair) for name, pair in found.items()}


def of_run(workdir):
    """Embeddings of a batch of views, by the network of a run at its start and at its end."""
    from ml_collections import ConfigDict

    from barlow_jax import experiment, sharding
    from barlow_jax.run.checkpoint import restore_params

    params, batch_stats, meta = restore_params(workdir)
    config, mesh = ConfigDict(meta["config"]), sharding.make_mesh(jax.devices()[:1])
    source, _ = experiment.sources(config)
    method, fresh = experiment.method(config, channels=3, num_classes=None, steps_per_epoch=7, mesh=mesh)
    options = {"last": "drop", "crop_scale": config.views.crop_scale, "crop_ratio": config.views.crop_ratio}
    batch = next(iter(experiment.train_batches(config, source, 0, mesh, **options)))
    views = jax.jit(method.views_of)(0, batch)
    embed = jax.jit(lambda *weights: method.forward(method.graphdef, *weights, views)[1])
    found = {}
    for name, weights in {"start": (fresh.params, fresh.batch_stats), "end": (params, batch_stats)}.items():
        z = np.asarray(embed(*weights))
        for rows in (128, 256):
            found[f"demo, {name}, {rows} x {z.shape[-1]}"] = tuple(z[:rows].swapaxes(0, 1))
    return found


def loss(run):
    """The loss and its gradient, by either form; in brackets float32's own distance from float64."""
    for name, (z1, z2) in embeddings(run).items():
        for form in ("direct", "dual"):

            def value(z1, z2, form=form):
                return barlow_twins_loss(z1, z2, lambd=0.0051, form=form)[0]

            with jax.enable_x64(True):
                wide = np.asarray(z1, np.float64), np.asarray(z2, np.float64)
                exact = [np.asarray(x) for x in jax.jit(jax.value_and_grad(value))(*wide)]
            both = jax.jit(jax.value_and_grad(value))(z1, z2)
            own = [relative(a, b) for a, b in zip(both, exact, strict=True)]
            names = [f"{what}, {form}: {name} ({d:.0e})" for what, d in zip(("loss", "gradient"), own, strict=True)]
            show(names, jax.value_and_grad(value), (z1, z2), relative)


def batchnorm():
    """The variance around a running mean of zero, by mean / std and by steps: no product, but float32's own loss."""
    x = np.random.default_rng(0).standard_normal((512, 1, 8)).astype(np.float32)
    for ratio in (1, 10, 100):
        norm, errors = batch_norm.BatchNorm(8), []
        moved = jax.jit(lambda norm, x: (norm._batch_statistics(x)[1], norm))
        shifted = x + np.float32(ratio)
        exact = shifted.astype(np.float64).var((0, 1))
        for _ in range(41):
            var, norm = moved(norm, shifted)
            errors.append(np.abs(np.asarray(var)[0] / exact - 1).max())
        said = ", ".join(f"step {k}: {errors[k]:.0e}" for k in (0, 10, 20, 40))
        print(f"| BatchNorm's variance, mean / std {ratio}: {said} |", flush=True)
    x = crops(64)[:, None] / 127.5 - 1
    network = model.make_backbone("resnet18", image_size=64, zero_init_residual=False)(rngs=nnx.Rngs(0))
    network(x, train=True)
    ratios = [
        np.abs(norm.mean[...] / norm.momentum) / np.sqrt((norm.var[...] - 1 + norm.momentum) / norm.momentum)
        for _, norm in nnx.iter_modules(network)
        if isinstance(norm, batch_norm.BatchNorm)
    ]
    print(
        f"| largest mean / std before a BatchNorm of a fresh ResNet-18: {max(r.max() for r in ratios):.1f} |",
        flush=True,
    )


def effective_rank():
    """A singular value decomposition, which jax takes in float32 on every device."""
    show("effective rank", metrics.effective_rank, (features(512, 128, 10, 0)[0],), relative)


def compiled():
    """Crop and loss compiled for one v5e, by what they ask for: its compiler's cycles, and bytes. Wants libtpu."""
    from jax.experimental import topologies

    chip = topologies.get_topology_desc("v5e:2x2", platform="tpu").devices[0]

    def cost(name, function, *shapes):
        on_chip = jax.sharding.SingleDeviceSharding(chip)
        arguments = [jax.ShapeDtypeStruct(shape, np.float32, sharding=on_chip) for shape in shapes]
        program = jax.jit(function).lower(*arguments).compile()
        cycles = sum(map(int, re.findall(r"estimated_cycles\W+(\d+)", program.as_text())))
        print(f"| {name} | {cycles:,} cycles | {program.cost_analysis()['bytes accessed']:.3g} bytes |", flush=True)

    def both_ways(z1, z2):
        return jax.value_and_grad(lambda *z: barlow_twins_loss(*z, lambd=0.0051, form="dual")[0], (0, 1))(z1, z2)

    for precision in (image._PRECISION, Precision.HIGHEST, None):
        with mock.patch.object(image, "_PRECISION", precision):
            cut = jax.vmap(lambda canvas, box: image.crop_resize(canvas, box, 224))
            cost(f"crop, {precision}", cut, (64, 512, 512, 3), (64, 4))
    n, d, matmul = 2048, 8192, jnp.matmul
    cost("dual loss and gradient", both_ways, (n, d), (n, d))
    with mock.patch.object(jnp, "matmul", lambda *sides, precision: matmul(*sides, precision="high")):
        cost('dual loss and gradient, "high"', lambda *z: both_ways(*z), (n, d), (n, d))
    with mock.patch.object(jax.lax, "stop_gradient", lambda x: x):
        cost("dual loss and gradient, two products for each view", lambda *z: both_ways(*z), (n, d), (n, d))


PARTS = (crop, knn, probe, classifier, networks, loss, batchnorm, effective_rank)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", choices=[[], *(part.__name__ for part in PARTS)])
    parser.add_argument("--compiled", action="store_true", help="only what a TPU's compiler reckons; wants libtpu")
    parser.add_argument("--run", default="", help="work folder of a run of configs/demo.py")
    chosen = parser.parse_args()
    if chosen.compiled:
        compiled()
        return
    print(f"| relative difference | {' | '.join(COLUMNS)} | products that ask for less than float32 |")
    print("|" + "---|" * (len(COLUMNS) + 2))
    for part in PARTS:
        if part.__name__ in chosen.parts or not chosen.parts:
            part(chosen.run) if part is loss else part()


if __name__ == "__main__":
    main()
