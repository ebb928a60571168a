"""Batches that are not finite, and float16's loss scale: what happens to the state, what is said."""

import functools
import json
import logging
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import official
import pytest
from flax import nnx

from barlow_jax import model, optim, pretrain, sharding
from barlow_jax.errors import UserError
from barlow_jax.run.checkpoint import restore_all
from barlow_jax.training import evidence, feed, loss_scale, nonfinite

RATE = optim.warmup_cosine(0.1, 4, 100)
ROWS = {"label": np.arange(16, dtype=np.int32) % 3}


def training(**options):
    """The state at step 0 and a function (state, batches) -> state, metrics of each step."""
    state, train = compiled(**options)
    return jax.tree.map(jnp.array, state), train  # a copy: the step donates it


@functools.cache
def compiled(give_up_after, dtype=jnp.float32, factor=1.0):
    """`factor` scales the gradient."""
    mesh = sharding.make_mesh(jax.devices()[:2])
    tx = optim.make_optimizer("lars", RATE, RATE)
    probe_tx = optim.sgd(RATE, RATE)
    backbone = model.make_backbone("convnet", image_size=16, dtype=dtype)
    network = model.BarlowTwins(backbone, (24, 24), dtype=dtype, rngs=nnx.Rngs(0))
    graphdef, state = pretrain.create_state(network, tx, num_classes=3, probe_tx=probe_tx, scaled=dtype == jnp.float16)
    step = official.step_on_views(
        graphdef,
        tx,
        mesh,
        lambd=0.01,
        probe_tx=probe_tx,
        give_up_after=give_up_after,
        schedules={"rate": RATE},
        scale_loss=factor,
    )

    def train(state, batches):
        shown = []
        for views in batches:
            state, metrics = step(state, feed.put({"views": views, **ROWS}, mesh))
            shown.append(jax.device_get(metrics))
        return state, shown

    return jax.device_put(state, sharding.replicated(mesh)), train


@pytest.fixture(scope="module")
def batches():
    return list(np.random.default_rng(0).normal(size=(6, 16, 2, 16, 16, 3)).astype(np.float32))


def poisoned(views):
    views = views.copy()
    views[5, 1, 3, 3, 0] = np.inf
    return views


def arrays(state, *, without=()):
    fields = {name: getattr(state, name) for name in ("step", "params", "batch_stats", "opt_state", "probe")}
    return [np.asarray(x) for x in jax.tree.leaves({k: v for k, v in fields.items() if k not in without})]


def same(a, b, **options):
    return all(np.array_equal(x, y) for x, y in zip(arrays(a, **options), arrays(b, **options), strict=True))


def test_skip_goes_on_as_if_the_batch_had_not_been(batches):
    """State and counters, and the rates of later steps, which count the skipped one."""
    state, train = training(give_up_after=2)
    before, _ = train(state, batches[:2])
    kept = jax.device_get(before)
    after, (metrics,) = train(before, [poisoned(batches[2])])
    assert same(kept, after, without=("step", "opt_state")) and after.step == 3
    moments = [[x for x in jax.tree.leaves(s.opt_state) if x.ndim] for s in (kept, after)]
    assert all(np.array_equal(a, b) for a, b in zip(*moments, strict=True))
    assert metrics["skipped"] == 1 and not np.isfinite(metrics["loss"])
    nonfinite.check_all(after, 2, lambda: 0)
    after, shown = train(after, batches[3:])
    assert jax.device_get(after.health)["in_a_row"] == 0 and shown[-1]["skipped"] == 1
    # The same as never having seen it, at the rates of steps 0, 1, 3, 4, 5.
    counts = [int(x) for x in jax.tree.leaves(after.opt_state) if not x.ndim]
    assert set(counts) == {6} and np.isclose(shown[-1]["rate"], RATE(5))


def test_stop_leaves_the_last_good_state_and_names_the_first_tensor(batches):
    state, train = training(give_up_after=1)
    good, _ = train(state, batches[:2])
    kept = jax.device_get(good)
    nonfinite.check_all(good, 1, lambda: None)
    bad, shown = train(good, [poisoned(batches[2]), *batches[3:]])
    assert same(kept, bad, without=("step", "opt_state")) and shown[-1]["skipped"] == 1
    with pytest.raises(UserError) as error:
        nonfinite.check(bad, 1, lambda: 2)
    assert str(error.value) == (
        "At step 3 batch_stats.backbone.norms.0.mean is not finite, the first of all tensors; lower the learning rate, "
        "set config.precision=float32 or set config.on_nonfinite=skip (last checkpoint: step 2)."
    )


def test_skip_gives_up_after_so_many_in_a_row(batches):
    state, train = training(give_up_after=2)
    state, _ = train(state, [batches[0], poisoned(batches[1]), batches[2], poisoned(batches[3])])
    nonfinite.check(state, 2, lambda: None)
    state, _ = train(state, [poisoned(batches[4]), *batches[:3]])
    with pytest.raises(UserError, match="At step 5 .* the last of 2 such steps in a row; .*last checkpoint: none"):
        nonfinite.check(state, 2, lambda: None)


def test_a_parameter_that_is_not_finite_is_never_saved(batches):
    state, _ = training(give_up_after=1)
    state.params["projector"]["linears"]["1"]["kernel"] += np.nan
    with pytest.raises(UserError, match=r"params\.projector\.linears\.1\.kernel is not finite.*checkpoint: step 7"):
        nonfinite.check_all(state, 1, lambda: 7)


@pytest.mark.parametrize(
    ("where", "name"),
    [
        (("batch_stats", "backbone.norms.2.var"), "batch_stats.backbone.norms.2.var"),
        (("z", (3, 1, 2)), "z2"),
        (("loss", ()), "loss"),
        # Backward order: of two bad gradients the one nearer to the loss.
        (("squares", "projector.linears.1.kernel"), "the gradient of projector.linears.1.kernel"),
        (("squares", "backbone.convs.0.kernel"), "the gradient of backbone.convs.0.kernel"),
    ],
)
def test_the_first_tensor_is_found_by_name(where, name):
    backbone = model.make_backbone("convnet", image_size=16)
    _, params, batch_stats = model.split(model.BarlowTwins(backbone, (24, 24), rngs=nnx.Rngs(0)))
    squares = jax.tree.map(lambda p: np.float32(1), params)
    inputs = {"batch_stats": batch_stats, "z": np.ones((4, 2, 3)), "loss": np.ones(()), "squares": squares}
    inputs = jax.tree.map(np.array, inputs)
    assert not nonfinite.find(**inputs)[0]
    kind, place = where
    target = inputs[kind]
    if isinstance(place, str):
        *path, place = place.split(".")
        for key in path:
            target = target[key]
        target[place] = np.full(target[place].shape, np.nan, np.float32)
        if kind == "squares":
            inputs["squares"]["backbone"]["convs"]["0"]["kernel"] = np.float32(np.inf)
    else:
        target[place] = np.nan
    found, only_gradients, tensor = nonfinite.find(**inputs)
    assert found and only_gradients == (kind == "squares")
    assert nonfinite.name(batch_stats, params, 2, tensor) == name


def test_the_order_is_that_of_the_network():
    backbone = model.make_backbone("resnet101", image_size=32)
    shapes = jax.eval_shape(lambda: model.split(model.BarlowTwins(backbone, (8, 8, 8), rngs=nnx.Rngs(0)))[1:])
    names, statistics = ([path for path, _ in nonfinite.in_order(tree)] for tree in shapes)
    wanted = [
        "backbone.conv1.kernel",
        "backbone.bn1.scale",
        "backbone.layer1.0.conv1.kernel",
        "backbone.layer1.0.bn1.bias",
        "backbone.layer1.0.conv2.kernel",
        "backbone.layer1.0.downsample.bn.bias",
        "backbone.layer1.1.conv1.kernel",
        "backbone.layer3.2.bn3.bias",
        "backbone.layer3.10.conv1.kernel",
        "backbone.layer4.0.conv1.kernel",
        "projector.linears.0.kernel",
        "projector.norms.0.bias",
        "projector.linears.1.kernel",
    ]
    places = [names.index(name) for name in wanted]
    assert places == sorted(places)
    assert statistics[-2:] == ["bn.mean", "bn.var"]


def test_float16_halves_its_scale_skips_and_recovers(batches):
    """A gradient 64,000 times too large for the scale: skipped until it fits; then the step is that of float32."""
    state, train = training(give_up_after=1, dtype=jnp.float16, factor=512.0)
    kept = jax.device_get(state)
    for _ in range(16):
        state, (metrics,) = train(state, batches[:1])
        nonfinite.check_all(state, 1, lambda: None)
        if metrics["overflows"] < state.step:
            break
        assert same(kept, state, without=("step", "opt_state")) and metrics["loss_scale"] == 2.0 ** (16 - state.step)
    overflows = int(metrics["overflows"])
    assert 1 <= overflows <= 15 and metrics["skipped"] == overflows and not same(kept, state, without=("step",))
    assert np.isfinite(metrics["grad_norm"]) and metrics["loss_scale"] == 2.0 ** (16 - overflows)
    want, train = training(give_up_after=1, factor=512.0)
    _, (plain,) = train(want, batches[:1])
    np.testing.assert_allclose(metrics["loss"], plain["loss"], rtol=1e-2)
    np.testing.assert_allclose(metrics["grad_norm"], plain["grad_norm"], rtol=2e-2)


def test_float16_counts_a_bad_loss_as_a_fault(batches):
    state, train = training(give_up_after=1, dtype=jnp.float16)
    state, (metrics,) = train(state, [poisoned(batches[0])])
    assert metrics["overflows"] == 0 and metrics["loss_scale"] == loss_scale.INITIAL
    with pytest.raises(UserError, match="At step 1 batch_stats"):
        nonfinite.check(state, 1, lambda: None)


def test_the_scale_grows_after_2000_good_steps_and_not_before():
    scale = loss_scale.create()

    def steps(scale, count, good, overflow):
        return jax.lax.fori_loop(0, count, lambda _, s: loss_scale.update(s, good, overflow), scale)

    scale = steps(scale, 1999, True, False)
    assert scale["scale"] == 2**16
    scale = steps(scale, 1, False, True)
    assert (scale["scale"], scale["good_steps"], scale["overflows"]) == (2**15, 0, 1)
    scale = steps(scale, 1999, True, False)
    assert scale["scale"] == 2**15
    scale = steps(scale, 1, False, False)  # skipped for another reason: the count stands
    scale = steps(scale, 1, True, False)
    assert (scale["scale"], scale["good_steps"]) == (2**16, 0)


def watching(workdir, state, give_up_after, batches):
    """A Watch of a run on these batches, over and over."""
    mesh = sharding.make_mesh(jax.devices()[:2])

    def batches_from(*, start_step):
        for step in range(start_step, start_step + 2):
            rows = ROWS | {"index": np.arange(16, dtype=np.int32) * 10 + step}
            yield feed.put({"views": batches[step], **rows}, mesh)

    source = types.SimpleNamespace(where=lambda image: f"image{image}.jpg", channels=3, num_classes=3)
    method = types.SimpleNamespace(give_up_after=give_up_after)
    return evidence.Watch(workdir, method, state, batches_from, source, 5, lambda: 2, {"config": {"lambd": 0.01}})


def test_where_the_run_gives_up_batch_and_state_are_what_the_bad_step_saw(tmp_path, batches):
    state, train = training(give_up_after=1)
    seen = [*batches[:2], poisoned(batches[2]), *batches[3:]]
    good, _ = train(state, seen[:2])
    watch, kept = watching(tmp_path, good, 1, seen), jax.device_get(good)
    watch.check_all(good)
    assert not (tmp_path / "nonfinite").exists()
    bad, _ = train(good, seen[2:])
    folder = tmp_path / "nonfinite" / "3"
    with pytest.raises(UserError) as error:
        watch.check(bad)
    assert str(error.value).startswith("At step 3 batch_stats.backbone.norms.0.mean is not finite")
    assert str(error.value).endswith(f"To see why: barlow-jax doctor --replay={folder}")
    case, batch, names = evidence.read(folder)
    assert case["step"] == case["state_of_step"] == 3 and case["config"] == {"lambd": 0.01}
    assert json.loads((folder / "case.json").read_text())["replay"] == f"barlow-jax doctor --replay={folder}"
    np.testing.assert_array_equal(batch["views"], seen[2])
    assert names == [f"image{10 * row + 2}.jpg" for row in range(16)]
    stored = restore_all(folder)[0]
    wanted = {name: getattr(kept, name) for name in ("step", "params", "batch_stats", "opt_state", "probe", "health")}
    found = evidence.restored(folder, kept)
    for name, tree in wanted.items():
        pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(getattr(found, name)), strict=True)
        assert all(np.array_equal(a, b) for a, b in pairs), name
    assert stored["step"] == 2


def test_a_step_that_is_passed_over_is_kept_once_and_later_ones_are_told(tmp_path, batches, caplog):
    state, train = training(give_up_after=2)
    seen = [poisoned(batches[0]), *batches[1:3], poisoned(batches[3]), *batches[4:]]
    watch = watching(tmp_path, state, 2, seen)
    state, _ = train(state, seen[:3])
    watch.check(state)
    case, batch, _ = evidence.read(tmp_path / "nonfinite" / "1")
    assert (case["step"], case["state_of_step"]) == (1, 3) and not np.isfinite(batch["views"]).all()
    assert int(restore_all(tmp_path / "nonfinite" / "1")[0]["step"]) == 0
    watch.check(state)
    state, _ = train(state, seen[3:])
    watch.check_all(state)
    assert [path.name for path in (tmp_path / "nonfinite").iterdir()] == ["1"]
    told = [record.getMessage() for record in caplog.records if "passed over" in record.getMessage()]
    assert len(told) == 2 and told[0].startswith("step 1 was not finite and is passed over; to see why: barlow-jax")
    assert told[1] == "step 4 was not finite and is passed over"


def test_three_folders_are_kept_and_the_disk_is_asked_first(tmp_path, batches, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    state, _ = training(give_up_after=1)
    for number in (11, 12, 13):
        (tmp_path / "nonfinite" / str(number)).mkdir(parents=True)
    watch = watching(tmp_path, state, 1, batches)
    broken = state._replace(params=jax.tree.map(lambda x: x * np.nan, state.params))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(UserError, match="params.backbone.convs.0.kernel is not finite.*step 2..$"):
        watch.check_all(broken)
    assert "what step 1 saw could not be kept (it takes 0.00 GB and 0.00 GB are free there)" in caplog.text
    monkeypatch.undo()
    caplog.set_level(logging.INFO)
    with pytest.raises(UserError, match="To see why"):
        watch.check_all(broken)
    assert {path.name for path in (tmp_path / "nonfinite").iterdir()} == {"1", "12", "13"}
    assert "11 is removed: the newest 3 are kept" in caplog.text and "1, 1.1 MB at most" in caplog.text
    _, batch, _ = evidence.read(tmp_path / "nonfinite" / "1")  # the step that would come next
    np.testing.assert_array_equal(batch["views"], batches[0])


def test_a_folder_that_is_none_of_ours(tmp_path):
    with pytest.raises(UserError, match="holds no step that can be replayed"):
        evidence.read(tmp_path)
    (tmp_path / "case.json").write_text("{}")
    with pytest.raises(UserError, match="give a folder nonfinite/STEP"):
        evidence.read(tmp_path)
