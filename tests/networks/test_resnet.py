"""ResNets against torchvision's, every trap of padding, stride, statistics and initialisers."""

import detw
import jax
import jax.numpy as jnp
import numpy as np
import official
import pytest
from flax import nnx

from barlow_jax import model
from barlow_jax.networks import resnet

SIZES = {"resnet18": ["c32", "a64", "odd65x97"], "resnet50": ["a64", "odd65x97"]}
# One pass there and back in the suite, the larger network's; the others in the slow tier: a compilation each.
INPUTS = [
    pytest.param(arch, name, marks=[] if (arch, name) == ("resnet50", "a64") else [pytest.mark.slow])
    for arch, names in SIZES.items()
    for name in names
]


def network(golden, arch, dtype, **rule):
    """graphdef and detw's deterministic weights."""
    described, listing = golden(arch)[1], golden("state_dicts")[1][arch]["backbone"]
    state_dict = detw.state_dict([(n, s) for n, s, _ in listing], described["weights_seed"], **rule)
    shapes = nnx.eval_shape(lambda: model.BACKBONES[arch](dtype=dtype, rngs=nnx.Rngs(0)))
    graphdef, params, batch_stats = model.split(shapes)
    loaded = official.load(state_dict, dtype)
    for ours, theirs in zip((params, batch_stats), loaded, strict=True):  # same tree, same shapes
        jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), ours, theirs)
    return graphdef, *jax.tree.map(jnp.asarray, loaded)


def images(golden, arch, name, dtype):
    source = golden(arch)[1]["input_seeds"][name]
    n, _, h, w = source["shape"]
    return jnp.asarray(detw.images(source["seed"], n, h, w).transpose(0, 2, 3, 1), dtype)


def train_pass(graphdef, params, batch_stats, x):
    """Features of one view, and the statistics after."""
    net = model.merge(graphdef, params, batch_stats)
    features = net(x[:, None], train=True)[:, 0]
    return features, model.batch_stats_of(net)


def relative(got, want):
    return np.linalg.norm(np.asarray(got, np.float64) - want) / np.linalg.norm(want)


def per_norm(batch_stats, described, leaf):
    """Per BatchNorm: the norm and the first two values of a running statistic."""
    arrays = [official.get(batch_stats, f"{n}.running_{leaf}") for n in described["bn_names"]]
    return np.array([np.linalg.norm(a) for a in arrays]), np.array([a[:2] for a in arrays])


@pytest.mark.parametrize("arch,name", INPUTS)
def test_training_pass_in_float64(golden, x64, arch, name):
    arrays, described = golden(arch)
    graphdef, params, batch_stats = network(golden, arch, jnp.float64)
    x = images(golden, arch, name, jnp.float64)
    cotangent = detw.probe(described["input_seeds"][name]["seed"] + 50, arrays[f"{name}.f64.train_features"].shape)

    def probe(params):
        features, after = train_pass(graphdef, params, batch_stats, x)
        return (features * cotangent).sum(), (features, after)

    grads, (features, after) = jax.jit(jax.grad(probe, has_aux=True))(params)
    assert relative(features, arrays[f"{name}.f64.train_features"]) < 1e-9
    for leaf in ("mean", "var"):
        norms, firsts = per_norm(after, described, leaf)
        want = f"{name}.f64.running_{leaf}_after_1"
        np.testing.assert_allclose(norms, arrays[f"{want}.norm_per_bn"], rtol=1e-9)
        np.testing.assert_allclose(firsts, arrays[f"{want}.first2_per_bn"], rtol=1e-9)
    for grad_name, norm, first in zip(
        described["grad_names"], arrays[f"{name}.f64.grad_norm"], arrays[f"{name}.f64.grad_first4"], strict=True
    ):
        grad = official.get(grads, grad_name)
        assert abs(np.linalg.norm(grad) - norm) <= 1e-9 * norm, grad_name
        np.testing.assert_allclose(grad.ravel()[:4], first, rtol=1e-8, atol=1e-10 * norm, err_msg=grad_name)


@pytest.mark.parametrize("arch,bound", [("resnet18", 1e-4), pytest.param("resnet50", 5e-4, marks=pytest.mark.slow)])
def test_float32_features(golden, arch, bound):
    arrays, described = golden(arch)
    graphdef, params, batch_stats = network(golden, arch, jnp.float32)
    x = images(golden, arch, "a64", jnp.float32)
    features, after = jax.jit(lambda p: train_pass(graphdef, p, batch_stats, x))(params)
    assert relative(features, arrays["a64.f64.train_features"]) < bound
    for leaf in ("mean", "var"):
        norms, _ = per_norm(after, described, leaf)
        np.testing.assert_allclose(norms, arrays[f"a64.f64.running_{leaf}_after_1.norm_per_bn"], rtol=1e-4)
    if arch == "resnet50":
        graphdef, params, batch_stats = network(golden, arch, jnp.float32, zero_init_residual=True)
        features, _ = jax.jit(lambda p: train_pass(graphdef, p, batch_stats, x))(params)
        assert relative(features, arrays["a64.f64.zero_init_train_features"]) < 1e-5


@pytest.mark.parametrize("name", ["a64", "b224"])
def test_evaluation_uses_the_running_statistics(golden, name):
    arrays, _ = golden("resnet50")
    graphdef, params, batch_stats = network(golden, "resnet50", jnp.float32)
    x = images(golden, "resnet50", name, jnp.float32)
    features = jax.jit(lambda p: model.merge(graphdef, p, batch_stats)(x, train=False))(params)
    assert relative(features, arrays[f"{name}.f64.eval_features_rawstats"]) < 1e-5


@pytest.mark.slow
def test_second_pass_moves_the_statistics_again(golden, x64):
    """As one pass over two views moves them."""
    arrays, described = golden("resnet18")
    graphdef, params, batch_stats = network(golden, "resnet18", jnp.float64)
    views = [images(golden, "resnet18", n, jnp.float64) for n in ("a64", "a64_second")]

    @jax.jit
    def moved(stats, x):
        net = model.merge(graphdef, params, stats)
        net(x, train=True)
        return model.batch_stats_of(net)

    after = moved(batch_stats, jnp.stack(views, 1))
    for leaf in ("mean", "var"):
        norms, _ = per_norm(after, described, leaf)
        np.testing.assert_allclose(norms, arrays[f"a64.f64.running_{leaf}_after_2.norm_per_bn"], rtol=1e-9)


@pytest.mark.slow  # the official runs have two views too
def test_two_views_in_one_pass_equal_two_passes(x64):
    net = resnet.ResNet(resnet.BasicBlock, (1, 1, 1, 1), dtype=jnp.float64, rngs=nnx.Rngs(0))
    net.layer3, net.layer4 = nnx.List([]), nnx.List([])  # slow to compile
    graphdef, params, batch_stats = model.split(net)
    views = np.random.default_rng(0).normal(size=(2, 4, 20, 20, 3))

    @jax.jit
    def forward(stats, x):
        net = model.merge(graphdef, params, stats)
        return net(x, train=True), model.batch_stats_of(net)

    after, passes = batch_stats, []
    for x in views:
        features, after = forward(after, x[:, None])
        passes.append(features[:, 0])
    both, at_once = forward(batch_stats, jnp.stack([*views], 1))
    np.testing.assert_allclose(both, jnp.stack(passes, 1), rtol=1e-9)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), at_once, after)


@pytest.mark.slow
def test_activations_stage_by_stage(golden, x64):
    arrays, _ = golden("resnet50")
    graphdef, params, batch_stats = network(golden, "resnet50", jnp.float64)
    net = model.merge(graphdef, params, batch_stats)
    x = images(golden, "resnet50", "a64", jnp.float64)[:, None]
    seen = {"conv1": net.conv1(x)}
    seen["bn1"] = net.bn1(seen["conv1"], train=True)
    x = seen["maxpool"] = resnet.max_pool_3x3(jax.nn.relu(seen["bn1"]))
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        for block in getattr(net, stage):
            x = block(x, train=True)
        seen[stage] = x
    for stage, value in seen.items():
        value = np.asarray(value[:, 0]).transpose(0, 3, 1, 2)
        want = f"a64.f64.stage.{stage}"
        np.testing.assert_array_equal(value.shape, arrays[f"{want}.shape"], err_msg=stage)
        np.testing.assert_allclose(value[:2, :3, :3, :3], arrays[f"{want}.corner"], rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(value[:2, :3, -3:, -3:], arrays[f"{want}.far_corner"], rtol=1e-8, atol=1e-10)


@pytest.mark.slow
def test_initialisers(golden):
    """Spread and shape of every distribution of a fresh official model (ResNet-50, the fixture's projector)."""
    _, described = golden("init")
    projector = tuple(
        p["shape"][0] for p in described["params"] if p["name"].startswith("projector") and len(p["shape"]) == 2
    )
    backbone = model.make_backbone("resnet50", image_size=224)
    projector = tuple(min(width, 1024) for width in projector)  # the rule depends on the fan-in only
    _, params, _ = model.split(model.BarlowTwins(backbone, projector, rngs=nnx.Rngs(0)))
    for p in described["params"]:
        value = np.asarray(official.get(params, p["name"]), np.float64)
        if p["name"] in described["zero_weights"]:
            assert np.all(value == 0), p["name"]
        elif "constant" in p:
            assert np.all(value == p["constant"]), p["name"]
        elif value.ndim == 4:
            assert abs(value.std() / p["expected_std"] - 1) < 5 / np.sqrt(value.size), p["name"]
            assert np.abs(value).max() > 2.5 * p["expected_std"], p["name"]  # not truncated at 2
        else:
            bound = 1 / np.sqrt(value.shape[1])
            assert 0.99 * bound < np.abs(value).max() <= bound, p["name"]
            assert abs(value.std() * np.sqrt(3) / bound - 1) < 0.02, p["name"]  # uniform


@pytest.mark.parametrize("arch", model.BACKBONES)
def test_every_backbone_runs(arch):
    backbone = model.make_backbone(arch, image_size=32, channels=1, stem="cifar")
    shapes = jax.eval_shape(lambda: model.split(model.Classifier(backbone, 7, rngs=nnx.Rngs(0)))[1])
    assert shapes["fc"]["kernel"].shape[1] == 7
    if arch == "convnet":  # the others run elsewhere
        net = backbone(rngs=nnx.Rngs(0))
        assert net(jnp.ones((2, 32, 32, 1)), train=False).shape == (2, net.num_features)


def test_the_small_network_by_its_parameters():
    """Convolutions of 32, 64 and 64 maps, a layer of 256, what BatchNorm has of each, and a classifier of 7."""
    backbone = model.make_backbone("convnet", image_size=30, channels=2)  # 15, 8, 4 pixels
    shapes = jax.eval_shape(lambda: model.split(model.Classifier(backbone, 7, rngs=nnx.Rngs(0)))[1])
    convolutions = 9 * (2 * 32 + 32 * 64 + 64 * 64)
    count = convolutions + 4 * 4 * 64 * 256 + 2 * (32 + 64 + 64 + 256) + 256 * 7 + 7
    assert sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == count


@pytest.mark.parametrize(
    "arch,count",
    [
        ("resnet18", 11_689_512),
        ("resnet34", 21_797_672),
        ("resnet50", 25_557_032),
        ("resnet101", 44_549_160),
        ("resnet152", 60_192_808),
        ("wide_resnet50_2", 68_883_240),
        ("wide_resnet101_2", 126_886_696),
    ],
)
def test_parameter_counts_of_torchvision(arch, count):
    """As torchvision's documentation lists them, classifier included."""
    backbone = model.make_backbone(arch, image_size=224)
    params = jax.eval_shape(lambda: model.split(model.Classifier(backbone, 1000, rngs=nnx.Rngs(0)))[1])
    assert sum(p.size for p in jax.tree.leaves(params)) == count


def test_cifar_stem_keeps_the_resolution():
    net = resnet.resnet18(stem="cifar", rngs=nnx.Rngs(0))
    assert net.conv1(jnp.ones((1, 32, 32, 3))).shape == (1, 32, 32, 64)
    with pytest.raises(ValueError, match="'tiny'.*imagenet, cifar"):
        resnet.resnet18(stem="tiny", rngs=nnx.Rngs(0))


def test_bfloat16_keeps_statistics_and_features_in_float32():
    net = resnet.ResNet(resnet.BasicBlock, (1, 1, 1, 1), dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    features = net(jnp.ones((2, 1, 32, 32, 3)), train=True)
    assert features.dtype == jnp.float32
    assert {s.dtype for s in jax.tree.leaves(model.split(net)[1:])} == {jnp.dtype("float32")}


def test_an_empty_projector_is_the_identity():
    network = model.BarlowTwins(model.make_backbone("convnet", image_size=8), (), rngs=nnx.Rngs(0))
    features, z = network(jnp.ones((2, 8, 8, 3)), train=False)
    np.testing.assert_array_equal(features, z)


def test_structures_of_equal_networks_are_equal():
    """As keys, too: a compiled step is found again for the same structure."""
    first, second = (nnx.eval_shape(lambda: resnet.resnet18(rngs=nnx.Rngs(0))) for _ in range(2))
    assert len({model.split(network)[0] for network in (first, second)}) == 1


def test_unknown_backbone_is_named():
    with pytest.raises(ValueError, match="config.arch is 'resnet51'"):
        model.make_backbone("resnet51", image_size=224)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_pool_commutes_with_the_relu(dtype):
    """The stem pools first; values and gradients are those of torchvision's order bit by bit, with ties and zeros."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(np.round(2 * rng.normal(size=(3, 2, 12, 12, 5))) / 2, dtype)
    g = jnp.asarray(rng.normal(size=(3, 2, 6, 6, 5)), dtype)
    ours, ours_back = jax.vjp(lambda x: nnx.relu(resnet.max_pool_3x3(x)), x)
    theirs, theirs_back = jax.vjp(lambda x: resnet.max_pool_3x3(nnx.relu(x)), x)
    np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(ours_back(g)[0], theirs_back(g)[0])


def test_remat_computes_every_block_again_and_changes_nothing():
    """The stem and the first stage, as more is slow to compile: values, gradients, statistics."""
    images = jnp.asarray(np.random.default_rng(0).normal(size=(4, 2, 8, 8, 3)), jnp.float32)

    def step(remat):
        net = resnet.ResNet(resnet.BasicBlock, (2, 1, 1, 1), stem="cifar", remat=remat, rngs=nnx.Rngs(0))
        net.layer2, net.layer3, net.layer4 = (nnx.List([]) for _ in range(3))
        graphdef, params, batch_stats = model.split(net)

        def loss(params):
            net = model.merge(graphdef, params, batch_stats)
            return jnp.square(net(images, train=True)).sum(), model.batch_stats_of(net)

        assert str(jax.make_jaxpr(jax.grad(loss, has_aux=True))(params)).count("prevent_cse=") == 2 * remat
        return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), step(True), step(False))


def test_features_of_bfloat16_are_pooled_in_float32():
    net = resnet.ResNet(resnet.BasicBlock, (1, 1, 1, 1), stem="cifar", dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    net.layer2, net.layer3, net.layer4 = (nnx.List([]) for _ in range(3))  # slow to compile
    images = jnp.asarray(np.random.default_rng(0).normal(size=(4, 12, 12, 3)), jnp.float32)
    maps = []
    net.layer1 = nnx.List([lambda x, train, block=net.layer1[0]: maps.append(block(x, train=train)) or maps[-1]])
    features = net(images, train=False)
    assert maps[0].dtype == jnp.bfloat16 and features.dtype == jnp.float32
    np.testing.assert_allclose(features, np.asarray(maps[0], np.float64).mean((1, 2)), rtol=1e-6)


def test_what_a_network_is_unless_told_otherwise():
    """The projector of the paper, float32, nothing computed twice; embeddings of bfloat16 come out wider."""
    backbone = model.make_backbone("resnet18", image_size=32, stem="cifar")
    network = nnx.eval_shape(lambda: model.BarlowTwins(backbone, rngs=nnx.Rngs(0)))
    assert [linear.kernel.shape for linear in network.projector.linears] == [(512, 8192), (8192, 8192), (8192, 8192)]
    assert not network.backbone.remat and network.backbone.dtype == jnp.float32
    assert {linear.dtype for linear in network.projector.linears} == {jnp.float32}
    backbone = model.make_backbone("pixels", image_size=4, dtype=jnp.bfloat16)
    narrow = model.BarlowTwins(backbone, (8, 8), dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    assert {z.dtype for z in narrow(jnp.ones((2, 1, 4, 4, 3)), train=True)} == {jnp.dtype("float32")}


def test_moments_at_the_start_are_those_of_the_running_statistics():
    """Of every BatchNorm around its running mean: mean 0, mean square the running variance, alike in all views."""
    network = model.BarlowTwins(model.make_backbone("pixels", image_size=2), (6, 5), rngs=nnx.Rngs(0))
    graphdef, params, batch_stats = model.split(network)
    batch_stats = jax.tree.map(lambda x: x + jnp.arange(x.size), batch_stats)
    found = model.moments_at_start(graphdef, params, batch_stats, 3)
    assert found.keys() == {"projector.norms.0", "bn"}
    for path, width in (("projector.norms.0", 6), ("bn", 5)):
        want = np.stack([np.zeros((3, width)), np.tile(1 + np.arange(width), (3, 1))])
        np.testing.assert_array_equal(found[path], want)
