"""ViTs against their definition, written again in numpy; against timm itself in weights/test_in_torch.py."""

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
from barlow_jax.networks import vit
from barlow_jax.training import microbatches, nonfinite

WIDTH, HEADS, DEPTH, SIDE, PATCH = 16, 2, 2, 12, 4
TINY = functools.partial(vit.ViT, WIDTH, HEADS, DEPTH, image_size=SIDE, patch=PATCH)
gelu = np.vectorize(lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2)


def layer_norm(x, p):
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-6) * p["scale"] + p["bias"]


def linear(x, p):
    return x @ p["kernel"] + p["bias"]


def reference(p, image, pooling):
    """Features of one image [H, W, C], token by token and head by head."""
    tokens = [p["cls_token"][0, 0]]
    for y in range(0, SIDE, PATCH):
        for x in range(0, SIDE, PATCH):
            kernel, piece = p["patch_embed"]["proj"]["kernel"], image[y : y + PATCH, x : x + PATCH]
            tokens.append(np.einsum("yxc,yxcd->d", piece, kernel) + p["patch_embed"]["proj"]["bias"])
    x = np.stack(tokens) + p["pos_embed"][0]
    for k in range(DEPTH):
        block = p["blocks"][str(k)]
        qkv = linear(layer_norm(x, block["norm1"]), block["attn"]["qkv"])
        q, k_, v = np.split(qkv, 3, axis=1)
        heads = []
        for head in np.split(np.arange(WIDTH), HEADS):
            scores = q[:, head] @ k_[:, head].T / math.sqrt(WIDTH // HEADS)
            shares = np.exp(scores - scores.max(1, keepdims=True))
            heads.append(shares / shares.sum(1, keepdims=True) @ v[:, head])
        x = x + linear(np.concatenate(heads, 1), block["attn"]["proj"])
        x = x + linear(gelu(linear(layer_norm(x, block["norm2"]), block["mlp"]["fc1"])), block["mlp"]["fc2"])
    return layer_norm(x[0], p["norm"]) if pooling == "token" else layer_norm(x[1:].mean(0), p["fc_norm"])


def shaken(make, seed=1):
    """graphdef, parameters and statistics as after some training, float64; nothing is drawn on a device."""
    rng = np.random.default_rng(seed)
    graphdef, *trees = model.split(nnx.eval_shape(make))
    return graphdef, *jax.tree.map(lambda a: rng.normal(0, 0.3, a.shape), trees)


@pytest.mark.parametrize(("pooling", "devices"), [("token", 1), ("mean", 8)])
def test_features_are_the_definition(x64, pooling, devices):
    """Without a view axis on one device, with one on eight."""
    graphdef, params, batch_stats = shaken(lambda: TINY(pooling=pooling, dtype=jnp.float64, rngs=nnx.Rngs(0)))
    assert not batch_stats
    shape = (4, SIDE, SIDE, 3) if devices == 1 else (8, 2, SIDE, SIDE, 3)
    images = np.random.default_rng(0).normal(size=shape)
    wanted = [reference(params, image, pooling) for image in images.reshape(-1, *shape[-3:])]
    mesh = sharding.make_mesh(jax.devices()[:devices])
    found = jax.jit(
        lambda params, images: model.merge(graphdef, params, {})(images, train=devices > 1),
        in_shardings=(NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))),
    )(params, images)
    assert found.shape == (*shape[:-3], WIDTH)
    np.testing.assert_allclose(found.reshape(-1, WIDTH), wanted, rtol=1e-11, atol=1e-12)


def step(graphdef, params, batch_stats, views, forward=microbatches.whole):
    """Features, embeddings, and the gradient of their product with fixed numbers, jitted."""
    dz = np.random.default_rng(3).normal(size=(*views.shape[:2], 24))

    def run(params, views):
        features, z, _, pull_back = forward(graphdef, params, batch_stats, views)
        return {"features": features, "z": z, "grads": pull_back(dz)}

    return jax.device_get(jax.jit(run)(params, views))


def twins(widths, **options):
    backbone = functools.partial(TINY, dtype=jnp.float64, **options)
    graphdef, params, batch_stats = shaken(
        lambda: model.BarlowTwins(backbone, widths, dtype=jnp.float64, rngs=nnx.Rngs(0))
    )
    views = np.random.default_rng(2).normal(size=(8, 2, SIDE, SIDE, 3))
    return graphdef, params, jax.tree.map(np.square, batch_stats), views


@pytest.mark.slow
@pytest.mark.parametrize(("widths", "statistics"), [((24,), "micro"), ((40, 24), "batch")])
def test_micro_batches_are_the_undivided_step(x64, widths, statistics):
    """Batch statistics are the projector's alone; and in the parts the blocks are computed again."""
    graphdef, *rest = twins(widths, pooling="mean")
    want = step(graphdef, *rest)
    again, *_ = twins(widths, pooling="mean", remat=True)
    got = step(again, *rest, forward=microbatches.make_forward(2, statistics))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10), got, want)


@pytest.mark.parametrize("positions", vit.POSITIONS)
def test_every_parameter_has_a_gradient_but_fixed_positions(x64, positions):
    """One block, as each is like the other; the blocks computed again in the second case."""
    backbone = functools.partial(vit.ViT, WIDTH, HEADS, 1, image_size=SIDE, patch=PATCH, remat=positions == "fixed")
    graphdef, params, _ = shaken(lambda: backbone(positions=positions, dtype=jnp.float64, rngs=nnx.Rngs(0)))
    images, weights = np.random.default_rng(0).normal(size=(2, SIDE, SIDE, 3)), np.arange(WIDTH)
    grads = jax.jit(jax.grad(lambda p: (model.merge(graphdef, p, {})(images, train=True) * weights).sum()))(params)
    flat = jax.tree_util.tree_leaves_with_path(grads)
    still = [path[-1].key for path, grad in flat if np.abs(grad).max() < 1e-9]  # what rounding leaves is none
    assert still == ["pos_embed"] * (positions == "fixed")


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_what_is_added_does_not_decay(name):
    """So positions without a gradient stay as they are, to the bit."""
    params = {name: np.ones((1, 2, 4), np.float32) for name in optim.ADDED}
    grads = {"pos_embed": 0 * params["pos_embed"], "cls_token": params["cls_token"]}
    tx = optim.make_optimizer(name, 0.1, 0.1, weight_decay=0.05)
    updates, _ = tx.update(grads, tx.init(params), params)
    assert not updates["pos_embed"].any() and updates["cls_token"].all()


def test_groups():
    """No decay for norms, biases, class token and positions; decay for every matrix."""
    params = model.split(nnx.eval_shape(lambda: model.BarlowTwins(TINY, (8, 8), rngs=nnx.Rngs(0))))[1]
    flat = jax.tree_util.tree_leaves_with_path(optim.is_weight(params))
    weights = {jax.tree_util.keystr(path, simple=True, separator=".") for path, weighs in flat if weighs}
    blocks = [f"backbone.blocks.{k}.{name}.kernel" for k in (0, 1) for name in ("attn.qkv", "attn.proj")]
    blocks += [f"backbone.blocks.{k}.mlp.{name}.kernel" for k in (0, 1) for name in ("fc1", "fc2")]
    linears = [f"projector.linears.{k}.kernel" for k in (0, 1)]
    assert weights == {*blocks, *linears, "backbone.patch_embed.proj.kernel"}


@pytest.mark.parametrize(("arch", "count"), [("vit_tiny", 5_717_416), ("vit_base", 86_567_656)])
def test_parameter_counts_of_timm(arch, count):
    """Patch 16, 224 pixels, classifier included."""
    backbone = model.make_backbone(arch, image_size=224)
    params = jax.eval_shape(lambda: model.split(model.Classifier(backbone, 1000, rngs=nnx.Rngs(0)))[1])
    assert sum(p.size for p in jax.tree.leaves(params)) == count


def test_the_first_layer_is_drawn_as_pytorch_draws_a_convolution():
    drawn = np.asarray(vit.uniform_init(48)(jax.random.key(0), (48, 200)))
    assert 0.99 < np.abs(drawn).max() * 48**0.5 <= 1 and abs(drawn.std() * 3**0.5 * 48**0.5 - 1) < 0.02


def test_fixed_positions_are_sines_and_cosines_of_both_coordinates():
    found = np.asarray(jax.jit(vit.sincos_positions, static_argnums=(0, 1))(3, 8))
    assert found.shape == (1, 10, 8) and not found[0, 0].any()
    for y in range(3):
        for x in range(3):
            angles = [(axis * w) for axis in (x, y) for w in (1, 10_000 ** (-1 / 2))]
            wanted = [*map(math.sin, angles[:2]), *map(math.cos, angles[:2])]
            wanted += [*map(math.sin, angles[2:]), *map(math.cos, angles[2:])]
            np.testing.assert_allclose(found[0, 1 + 3 * y + x], wanted, atol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_what_is_computed_in_which_precision(dtype):
    """The softmax in float32, products in the dtype; those of float32 ask for float32."""
    graphdef, params, _ = model.split(nnx.eval_shape(lambda: TINY(dtype=jnp.dtype(dtype), rngs=nnx.Rngs(0))))
    images = jax.ShapeDtypeStruct((1, 1, SIDE, SIDE, 3), jnp.float32)
    traced = jax.make_jaxpr(lambda p, x: model.merge(graphdef, p, {})(x, train=True))(params, images)
    assert traced.out_avals[0].dtype == jnp.float32
    steps = [*equations(traced.jaxpr)]
    exponentials = [step.outvars[0].aval.dtype for step in steps if step.primitive.name == "exp"]
    assert exponentials == [jnp.float32] * DEPTH
    products = [step for step in steps if step.primitive.name == "dot_general"]
    assert {product.invars[0].aval.dtype.name for product in products} == {dtype} and len(products) == 1 + 6 * DEPTH
    assert {"HIGHEST" in str(product.params["precision"]) for product in products} == {dtype == "float32"}


def test_what_is_first_is_told_first():
    """Of tensors that are not finite."""
    params = model.split(nnx.eval_shape(lambda: TINY(rngs=nnx.Rngs(0))))[1]
    names = [name for name, _ in nonfinite.in_order({"backbone": params}) if not name.endswith(("bias", "scale"))]
    block = ("attn.qkv.kernel", "attn.proj.kernel", "mlp.fc1.kernel", "mlp.fc2.kernel")
    blocks = [f"blocks.{k}.{name}" for k in (0, 1) for name in block]
    assert names == [f"backbone.{n}" for n in ("patch_embed.proj.kernel", "cls_token", "pos_embed", *blocks)]
    norms = [name for name, _ in nonfinite.in_order(params) if "norm" in name and name.endswith("scale")]
    assert norms == [*(f"blocks.{k}.norm{n}.scale" for k in (0, 1) for n in (1, 2)), "norm.scale"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"patch": 5}, "config.vit.patch is 5, which does not divide config.image_size=32"),
        ({"positions": "rotary"}, "config.vit.positions is 'rotary'; it is one of learned, fixed"),
        ({"pooling": "max"}, "config.vit.pooling is 'max'; it is one of token, mean"),
    ],
)
def test_what_is_no_vit(options, sentence):
    with pytest.raises(UserError, match=sentence):
        model.make_backbone("vit_tiny", image_size=32, **options)


def test_images_of_another_size_are_refused():
    net = nnx.eval_shape(lambda: TINY(rngs=nnx.Rngs(0)))
    with pytest.raises(UserError, match="have 16 x 12 pixels and this ViT is for 12 x 12; set config.image_size"):
        jax.eval_shape(lambda: net(jnp.ones((1, 16, 12, 3)), train=False))
