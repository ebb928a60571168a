"""ConvNeXts against their definition, written again in numpy; against timm itself in weights/test_in_torch.py."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from programs import equations

from barlow_jax import model, optim, sharding
from barlow_jax.errors import UserError
from barlow_jax.networks import convnext
from barlow_jax.training import nonfinite

DEPTHS, WIDTHS = (1, 2), (4, 6)
TINY = functools.partial(convnext.ConvNeXt, DEPTHS, WIDTHS)
gelu = np.vectorize(lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2)


def layer_norm(x, p):
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-6) * p["scale"] + p["bias"]


def linear(x, p):
    return x @ p["kernel"] + p["bias"]


def strided(x, p):
    """Windows side by side, one after the other."""
    side = len(p["kernel"])
    y = np.empty((x.shape[0] // side, x.shape[1] // side, p["kernel"].shape[-1]))
    for i, j in np.ndindex(*y.shape[:2]):
        y[i, j] = np.tensordot(x[side * i : side * (i + 1), side * j : side * (j + 1)], p["kernel"], 3) + p["bias"]
    return y


def depthwise(x, p):
    padded = np.pad(x, ((3, 3), (3, 3), (0, 0)))
    y = np.empty_like(x)
    for i, j in np.ndindex(*x.shape[:2]):
        y[i, j] = (padded[i : i + 7, j : j + 7] * p["kernel"][:, :, 0]).sum((0, 1)) + p["bias"]
    return y


def reference(p, image):
    """Features of one image [H, W, C]."""
    x = layer_norm(strided(image, p["stem"]["0"]), p["stem"]["1"])
    for k, depth in enumerate(DEPTHS):
        stage = p["stages"][str(k)]
        if k:
            x = strided(layer_norm(x, stage["downsample"]["0"]), stage["downsample"]["1"])
        for n in range(depth):
            block = stage["blocks"][str(n)]
            y = layer_norm(depthwise(x, block["conv_dw"]), block["norm"])
            x = x + block["gamma"] * linear(gelu(linear(y, block["mlp"]["fc1"])), block["mlp"]["fc2"])
    return layer_norm(x.mean((0, 1)), p["head"]["norm"])


def shaken(make, seed=1):
    """graphdef and parameters as after some training, float64; nothing is drawn on a device."""
    rng = np.random.default_rng(seed)
    graphdef, params, batch_stats = model.split(nnx.eval_shape(make))
    assert not batch_stats
    return graphdef, jax.tree.map(lambda a: rng.normal(0, 0.5, a.shape), params)


@pytest.mark.parametrize(("shape", "devices"), [((2, 22, 17, 3), 1), ((8, 2, 8, 12, 3), 8)])
def test_features_are_the_definition(x64, shape, devices):
    """Without a view axis on one device, where the last rows are in no window; with one on eight."""
    graphdef, params = shaken(lambda: TINY(dtype=jnp.float64, rngs=nnx.Rngs(0)))
    images = np.random.default_rng(0).normal(size=shape)
    wanted = [reference(params, image) for image in images.reshape(-1, *shape[-3:])]
    mesh = sharding.make_mesh(jax.devices()[:devices])
    found = jax.jit(
        lambda params, images: model.merge(graphdef, params, {})(images, train=devices > 1),
        in_shardings=(NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))),
    )(params, images)
    assert found.shape == (*shape[:-3], WIDTHS[-1])
    np.testing.assert_allclose(found.reshape(-1, WIDTHS[-1]), wanted, rtol=1e-11, atol=1e-12)


def test_every_parameter_has_a_gradient_and_it_is_the_references(x64):
    """The blocks computed again; along a random direction of all parameters, by differences of the numpy features."""
    graphdef, params = shaken(lambda: TINY(remat=True, dtype=jnp.float64, rngs=nnx.Rngs(0)))
    rng, weights = np.random.default_rng(0), np.arange(WIDTHS[-1])
    image, direction = rng.normal(size=(8, 8, 3)), jax.tree.map(lambda a: rng.normal(size=a.shape), params)
    total = jax.grad(lambda p: (model.merge(graphdef, p, {})(image[None], train=True) * weights).sum())
    assert "remat" in str(jax.make_jaxpr(total)(params))
    grads = jax.device_get(jax.jit(total)(params))
    assert all(np.abs(grad).max() > 1e-6 for grad in jax.tree.leaves(grads))

    def moved(by):
        return reference(jax.tree.map(lambda p, d: p + by * d, params, direction), image) @ weights

    along = sum(jax.tree.leaves(jax.tree.map(lambda g, d: (g * d).sum(), grads, direction)))
    np.testing.assert_allclose(along, (moved(1e-6) - moved(-1e-6)) / 2e-6, rtol=1e-6)


def test_groups():
    """No decay for norms, biases and layer scales; decay for every kernel, depthwise ones too."""
    params = model.split(nnx.eval_shape(lambda: model.BarlowTwins(TINY, (8, 8), rngs=nnx.Rngs(0))))[1]
    flat = jax.tree_util.tree_leaves_with_path(optim.is_weight(params))
    weights = {jax.tree_util.keystr(path, simple=True, separator=".") for path, weighs in flat if weighs}
    blocks = [f"stages.{k}.blocks.{n}" for k, depth in enumerate(DEPTHS) for n in range(depth)]
    kernels = [f"{block}.{name}" for block in blocks for name in ("conv_dw", "mlp.fc1", "mlp.fc2")]
    kernels = [f"backbone.{name}.kernel" for name in (*kernels, "stem.0", "stages.1.downsample.1")]
    assert weights == {*kernels, *(f"projector.linears.{k}.kernel" for k in (0, 1))}


@pytest.mark.parametrize(
    ("arch", "count"),
    [
        ("convnext_tiny", 28_589_128),
        pytest.param("convnext_small", 50_223_688, marks=pytest.mark.slow),
        pytest.param("convnext_base", 88_591_464, marks=pytest.mark.slow),
    ],
)
def test_parameter_counts_of_timm(arch, count):
    """Classifier included."""
    backbone = model.make_backbone(arch, image_size=224)
    params = jax.eval_shape(lambda: model.split(model.Classifier(backbone, 1000, rngs=nnx.Rngs(0)))[1])
    assert sum(p.size for p in jax.tree.leaves(params)) == count


@pytest.mark.slow
def test_it_begins_as_timms():
    """normal(0, 0.02), zeros, ones, and 1e-6 of each block."""
    params = jax.jit(lambda: model.split(convnext.ConvNeXt((1,), (64,), rngs=nnx.Rngs(0)))[1])()
    flat = {
        jax.tree_util.keystr(path, simple=True, separator="."): a
        for path, a in jax.tree_util.tree_leaves_with_path(params)
    }
    for name, array in flat.items():
        if name.endswith("kernel"):
            assert abs(np.std(array) / 0.02 - 1) < 4 / np.sqrt(2 * array.size), name
        else:
            assert (array == {"bias": 0, "scale": 1, "gamma": np.float32(1e-6)}[name.split(".")[-1]]).all(), name
    assert len(flat) == 4 + 9 + 2


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_what_is_computed_in_which_precision(dtype):
    """Means in float32, products in the dtype; those of float32 ask for float32."""
    graphdef, params, _ = model.split(nnx.eval_shape(lambda: TINY(dtype=jnp.dtype(dtype), rngs=nnx.Rngs(0))))
    images = jax.ShapeDtypeStruct((1, 1, 16, 16, 3), jnp.float32)
    traced = jax.make_jaxpr(lambda p, x: model.merge(graphdef, p, {})(x, train=True))(params, images)
    assert traced.out_avals[0].dtype == jnp.float32
    steps = [*equations(traced.jaxpr)]
    sums = [step.outvars[0].aval.dtype for step in steps if step.primitive.name == "reduce_sum"]
    norms = 1 + sum(DEPTHS) + len(DEPTHS) - 1 + 1
    assert sums == [jnp.float32] * (2 * norms + 1)
    products = [s for s in steps if s.primitive.name in ("dot_general", "conv_general_dilated")]
    assert {product.invars[0].aval.dtype.name for product in products} == {dtype}
    assert len(products) == 2 + 3 * sum(DEPTHS)
    assert {"HIGHEST" in str(product.params["precision"]) for product in products} == {dtype == "float32"}


def test_what_is_first_is_told_first():
    """Of tensors that are not finite."""
    params = model.split(nnx.eval_shape(lambda: TINY(rngs=nnx.Rngs(0))))[1]
    names = [name for name, _ in nonfinite.in_order(params) if not name.endswith("bias")]
    block = ("conv_dw.kernel", "norm.scale", "mlp.fc1.kernel", "mlp.fc2.kernel", "gamma")
    assert names == [
        *("stem.0.kernel", "stem.1.scale"),
        *(f"stages.0.blocks.0.{name}" for name in block),
        *("stages.1.downsample.0.scale", "stages.1.downsample.1.kernel"),
        *(f"stages.1.blocks.{n}.{name}" for n in (0, 1) for name in block),
        "head.norm.scale",
    ]


def test_images_of_which_nothing_would_be_left_are_refused():
    def features(*size):
        return jax.eval_shape(lambda: TINY(rngs=nnx.Rngs(0))(jnp.ones((1, *size, 3)), train=False))

    assert features(8, 8).shape == (1, WIDTHS[-1])
    with pytest.raises(UserError, match="have 12 x 7 pixels and nothing .* set config.image_size .* to 8 or more"):
        features(12, 7)
