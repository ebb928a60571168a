"""Products of float32 numbers are in float32 on accelerators too, which round them unless they are asked not to."""

import emulated
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from jax import ShapeDtypeStruct as Shape
from jax.lax import Precision
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from programs import unasked
from small_classifiers import head

import barlow_jax
from barlow_jax import augment, experiment, model, pretrain, views
from barlow_jax.evaluation import classify, features, heads
from barlow_jax.loss import barlow_twins_loss
from barlow_jax.metrics import neighbours
from barlow_jax.networks import convnet, resnet

RNG = np.random.default_rng(0)


def mesh():
    return jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:1])


def draw(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def network(make, *shape):
    """A backbone in evaluation mode, weights and images in."""
    graphdef, params, batch_stats = model.split(make(rngs=nnx.Rngs(0)))
    return lambda params, x: model.merge(graphdef, params, batch_stats)(x, train=False), (params, draw(*shape))


def block():
    def make(rngs):
        return resnet.Bottleneck(8, 4, 2, base_width=64, dtype=jnp.float32, rngs=rngs)

    return network(make, 2, 6, 6, 8)


def knn():
    """Similarities of the nearest."""
    start = jnp.full((1, 16, 4), -jnp.inf), jnp.zeros((1, 16, 4), jnp.int32)
    labels = np.arange(64) % 5
    arrays = draw(1, 16, 32), draw(64, 32)
    return lambda queries, rows: neighbours._merge_block(*start, queries, rows, labels)[0], arrays


def loss(form):
    z = draw(64, 32)
    value = jax.value_and_grad(lambda a, b: barlow_twins_loss(a, b, lambd=0.01, form=form)[0], (0, 1))
    return value, (z + draw(64, 32), z + draw(64, 32))


def many_heads():
    """Three steps of two heads, and their answers."""
    begun = jax.device_get(heads._initial(np.zeros(16), np.ones(16), 2, 3, mesh()))
    trace = jax.tree.map(np.zeros_like, begun[:2])
    rates, decays, y = np.ones(2, np.float32), np.zeros(2, np.float32), np.arange(24).reshape(3, 8) % 3

    def fit(x):
        batches = x, y, np.ones((3, 8), np.float32), np.ones(3, np.float32)
        trained = heads._advance(mesh(), 0.9)(begun, trace, rates, decays, batches)[0]
        return trained.kernel, heads._logits(trained, x[0])

    return fit, (draw(3, 8, 16),)


def online_probe():
    label = np.arange(16) % 3
    gradient = jax.grad(lambda head, x: pretrain.linear_probe(head, x, label)[0])
    return gradient, ({"kernel": draw(32, 3), "bias": np.zeros(3, np.float32)}, draw(16, 2, 32))


def projector():
    graphdef, params, batch_stats = model.split(model.Projector(16, (8, 8), dtype=jnp.float32, rngs=nnx.Rngs(0)))

    def gradient(params, x):
        return jax.grad(lambda p: jnp.sin(model.merge(graphdef, p, batch_stats)(x, train=True)).sum())(params)

    return gradient, (params, draw(8, 2, 16))


def classifier():
    """Gradient of a linear layer on features, as in linear evaluation."""
    graphdef, params, _ = model.split(head(32, 10)())

    def gradient(params, x):
        return jax.grad(lambda p: jax.nn.logsumexp(model.merge(graphdef, p, {})(x, train=False)).sum())(params)

    return gradient, (params, draw(16, 32))


# What it is; how far it is off at least, of its norm, on a GPU whose products ask for nothing.
CASES = {
    "kNN": (knn, 1e-5),
    "loss, direct": (lambda: loss("direct"), 1e-6),
    "loss, dual": (lambda: loss("dual"), 1e-6),
    "heads": (many_heads, 1e-5),
    "online probe": (online_probe, 1e-5),
    "projector": (projector, 1e-5),
    "classifier": (classifier, 1e-5),
    "convnet": (lambda: network(lambda rngs: convnet.ConvNet(image_size=8, rngs=rngs), 2, 8, 8, 3), 1e-5),
    "a block of a ResNet": (block, 1e-5),
}


@pytest.mark.parametrize("name", CASES)
def test_on_accelerators_it_is_what_it_is_on_a_cpu(name):
    """To the bit, as far as products go; and with products that ask for nothing it would not be."""
    make, bound = CASES[name]
    function, arguments = make()
    here = np.concatenate([np.ravel(x) for x in jax.tree.leaves(jax.jit(function)(*arguments))])
    for device in ("tpu", "gpu"):
        there = jax.tree.leaves(emulated.on(device, function)(*arguments))
        np.testing.assert_array_equal(np.concatenate([np.ravel(x) for x in there]), here)
    there = jax.tree.leaves(emulated.on("gpu", function, Precision.DEFAULT)(*arguments))
    assert np.linalg.norm(np.concatenate([np.ravel(x) for x in there]) - here) > bound * np.linalg.norm(here)


@pytest.mark.parametrize(("precision", "form"), [("float32", "direct"), ("bfloat16", "dual")])
def test_the_train_step_leaves_no_float32_product_to_the_device(precision, form):
    """Of the whole step, as compiled: views, network there and back, loss, probe, optimiser."""
    config = barlow_jax.config("demo").unlock()
    config.update({"arch": "resnet18", "stem": "imagenet", "projector": (16, 16), "batch_size": 4, "image_size": 32})
    config.update({"precision": precision, "loss_form": form, "views": {"rotation": 0.0}})
    method, state = experiment.method(config, channels=3, num_classes=10, steps_per_epoch=7, mesh=mesh(), abstract=True)
    batch = {
        "canvas": Shape((4, 40, 40, 3), jnp.uint8),
        "boxes": Shape((4, 2, 4), jnp.float32),
        "index": Shape((4,), jnp.int32),
        "label": Shape((4,), jnp.int32),
    }
    program = jax.make_jaxpr(pretrain.make_train_step(method))(state, batch)
    assert not unasked(program)


BATCH = {
    "canvas": Shape((4, 40, 40, 3), jnp.uint8),
    "boxes": Shape((4, 1, 4), jnp.float32),
    "extent": Shape((4, 2), jnp.int32),
    "index": Shape((4,), jnp.int32),
    "label": Shape((4,), jnp.int32),
    "mask": Shape((4,), jnp.bool),
}
NORMAL = {"mean": (0.5,) * 3, "std": (0.25,) * 3}


@pytest.mark.parametrize(("weights", "precision"), [("freeze", "bfloat16"), ("finetune", "float32")])
def test_linear_evaluation_leaves_no_float32_product_to_the_device(weights, precision):
    """Training and validation: of a classifier in float32 on features in bfloat16 too."""
    backbone = model.make_backbone("resnet18", image_size=32, dtype=experiment.PRECISIONS[precision])
    graphdef, *trees = model.split(nnx.eval_shape(lambda: model.Classifier(backbone, 7, rngs=nnx.Rngs(0))))
    tx = classify.sgd({"fc": 0.1} | ({"backbone": 0.1} if weights == "finetune" else {}))
    opt_state = jax.eval_shape(tx.init, classify.trained(trees[0], weights))
    state = classify.State(Shape((), jnp.int32), *trees, opt_state)
    images_of = views.make_one_view(augment.Recipe(size=32, **NORMAL), 0, mesh())
    train = classify.make_train_step(graphdef, tx, images_of, weights=weights, mesh=mesh())
    assert not unasked(jax.make_jaxpr(train)(state, BATCH))
    evaluate = classify.make_eval_step(graphdef, views.make_eval_views(size=32, **NORMAL, mesh=mesh()), mesh=mesh())
    assert not unasked(jax.make_jaxpr(evaluate)(*trees, BATCH))


@pytest.mark.parametrize(("arch", "precision"), [("resnet18", "float32"), ("convnet", "bfloat16")])
def test_frozen_features_leave_no_float32_product_to_the_device(arch, precision):
    """Of kNN, the probe, the SVMs and embed."""
    backbone = model.make_backbone(arch, image_size=32, dtype=experiment.PRECISIONS[precision])
    graphdef, *trees = model.split(nnx.eval_shape(lambda: features.Encoder(backbone, rngs=nnx.Rngs(0))))
    step = features.make_feature_step(graphdef, size=32, **NORMAL, mesh=mesh())
    assert not unasked(jax.make_jaxpr(step)(*trees, BATCH))


def test_a_product_that_asks_for_nothing_is_found_where_it_is():
    """In a loop, in a branch, in a gradient, on several devices; "high" is TF32 on a GPU."""

    def looped(x):
        def body(x, _):
            return jax.lax.cond(x.sum() > 0, lambda x: jnp.matmul(x, x, precision="high"), lambda x: x, x), None

        return jax.lax.scan(body, x, length=2)[0].sum()

    x = np.eye(4, dtype=np.float32)
    ((line, *shapes),) = unasked(jax.make_jaxpr(looped)(x))
    assert line.startswith("tests/test_precision.py:") and shapes == ["float32[4,4]", "float32[4,4]"]
    two = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    split = jax.shard_map(lambda x: x @ x.T, mesh=two, in_specs=P("data"), out_specs=P("data"))
    assert len(unasked(jax.make_jaxpr(jax.grad(lambda x: split(x).sum()))(x))) == 3


def test_the_emulation_is_the_arithmetic_of_the_devices():
    """Parts of bfloat16, cut off by hand in numpy: one, two and three of them, and TF32 by rounding to 11 bits."""

    def parts(x, count):
        found = []
        for _ in range(count):
            found.append(x.astype(ml_dtypes.bfloat16).astype(np.float32))
            x = x - found[-1]
        return found

    def tf32(x):
        mantissa, exponent = np.frexp(x)
        return np.ldexp(np.round(mantissa * 2**11) / 2**11, exponent).astype(np.float32)

    x, y = draw(2, 8, 8)
    (x0, x1), (y0, y1) = parts(x, 2), parts(y, 2)

    def same(device, asking, *pairs):
        wanted = sum(a.astype(np.float64) @ b for a, b in pairs)
        found = emulated.on(device, lambda x, y: jnp.matmul(x, y, precision=asking))(x, y)
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)

    same("tpu", None, (x0, y0))
    same("tpu", "high", (x0, y0), (x0, y1), (x1, y0))
    same("tpu", ("highest", "default"), (x, y0))
    for asking in (None, "high"):
        same("gpu", asking, (tf32(x), tf32(y)))
    for asking in ("highest", ("highest", "default")):
        same("gpu", asking, (x, y))
    same("tpu", "highest", (x, y))
