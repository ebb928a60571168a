"""The average of the weights: against a recursion in numpy, in checkpoints, and in whatever judges a run."""

import dataclasses

import frozen_runs
import jax
import numpy as np
import pytest

import barlow_jax
from barlow_jax import experiment, export, plan, pretrain, results, sharding
from barlow_jax.data.sources import Arrays
from barlow_jax.errors import UserError
from barlow_jax.evaluation import encoder, features, linear_experiment, online, subject
from barlow_jax.run.checkpoint import FOLDER, Checkpoints, restore_params
from barlow_jax.training import averaging, feed

ROWS, SIDE, DECAY = 16, 12, 0.9


def config_of(**changes):
    """The demo, small, whose projector is split over devices."""
    config = barlow_jax.config("demo").unlock()
    config.update(projector=(256,), image_size=SIDE, batch_size=ROWS, epochs=4, on_nonfinite="skip")
    config.update({"eval": {"resize": SIDE, "crop": SIDE}})
    config.update(changes)
    experiment.check(config)
    return config


def made(config, devices, **options):
    mesh = sharding.make_mesh(jax.devices()[:devices])
    return experiment.method(config, channels=3, num_classes=None, steps_per_epoch=4, mesh=mesh, **options)


def wide(state):
    """What is averaged, in float64 on the host."""
    return jax.tree.map(lambda x: np.asarray(x, np.float64), {"params": state.params, "batch_stats": state.batch_stats})


ON = [pytest.param((1, 1), id="one device", marks=pytest.mark.slow), pytest.param((8, 2), id="eight, in micro-batches")]


@pytest.fixture(scope="module", params=ON)
def run(request):
    """(the states before and after five steps on the host, the step, the last state on the devices, views).

    Of a projector on pixels, which is sooner compiled than a network.
    """
    devices, parts = request.param
    config = config_of(ema=DECAY, microbatches=parts)
    config.arch = "pixels"
    method, state = made(config, devices)
    method = dataclasses.replace(method, views_of=lambda step, batch: batch["views"])
    state = jax.device_put(state, method.state_sharding)
    step = pretrain.make_train_step(method)
    rng = np.random.default_rng(0)

    def batch(scale=1.0):
        images = scale * rng.normal(size=(ROWS, 2, SIDE, SIDE, 3)).astype(np.float32)
        return feed.put({"views": images, "label": np.arange(ROWS, dtype=np.int32) % 10}, method.mesh)

    seen = [jax.device_get(state)]
    for _ in range(5):
        state, _ = step(state, batch())
        seen.append(jax.device_get(state))
    return seen, step, state, batch


def test_five_steps_are_a_recursion_in_numpy_and_a_step_that_is_skipped_is_none(run):
    seen, step, state, batch = run
    want = wide(seen[0])
    jax.tree.map(np.testing.assert_array_equal, seen[0].average, want)
    for after in seen[1:]:
        want = jax.tree.map(lambda mean, x: DECAY * mean + (1 - DECAY) * x, want, wide(after))
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7), after.average, want)
    far = jax.tree.map(lambda x, y: np.abs(x - y).max(), wide(seen[-1]), want)
    assert min(far["params"]["projector"]["linears"]["0"].values()) > 1e-4  # or it would be the weights themselves
    lies, mine = ([x.sharding for x in jax.tree.leaves(tree)] for tree in (state.params, state.average["params"]))
    assert mine == lies and all("data" in lie.spec for lie in lies)  # split
    copy = jax.tree.map(lambda x: jax.device_put(np.array(x), x.sharding), state)  # the step donates its state
    skipped, metrics = step(copy, batch(np.nan))
    assert int(metrics["skipped"]) == 1 and int(skipped.step) == 6
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(skipped.average), seen[-1].average)


def test_a_checkpoint_holds_it_and_one_without_goes_on(run, tmp_path):
    """Also one that is older than the choice, which has no such part at all."""
    seen, _, state, *_ = run
    without = state._replace(average={})
    with Checkpoints(tmp_path / "with", asynchronous=False) as kept:
        kept.save(5, state)
        back, _ = kept.restore(state)
        assert jax.tree.structure(back) == jax.tree.structure(state)
        assert [x.sharding for x in jax.tree.leaves(back)] == [x.sharding for x in jax.tree.leaves(state)]
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(back), seen[-1])
        with pytest.raises(UserError, match=r"average\.\S+ is float32\S+ there and absent here; use the config"):
            kept.restore(without)
    older = {name: part for name, part in state._asdict().items() if name != "average"}
    for name, saved in (("without", without), ("older", older)):
        with Checkpoints(tmp_path / name, asynchronous=False) as kept:
            kept.save(5, saved)
            back, _ = kept.restore(without)
            assert jax.tree.structure(back) == jax.tree.structure(without)
            jax.tree.map(np.testing.assert_array_equal, jax.device_get(back), seen[-1]._replace(average={}))
            with pytest.raises(UserError, match=r"average\.\S+ is absent there and float32\S+ here; use the config"):
                kept.restore(state)
        assert "averaged" not in restore_params(tmp_path / name)[2]


def test_a_run_without_it_has_no_arrays_for_it_and_plan_counts_those_of_one_with():
    images = plan.Images(64, 3, 10, 16, "made up")
    (_, off), (_, on) = (plan.program(config_of(ema=decay), images) for decay in (0.0, 0.9))
    assert off.average == {} and off == on._replace(average={})
    assert plan.nbytes(on) - plan.nbytes(off) == plan.nbytes((off.params, off.batch_stats))
    assert "of it the average of the weights, 3 kept" in "\n".join(plan.meaning(config_of(ema=0.9), images))
    assert "average" not in "\n".join(line for line in plan.meaning(config_of(), images) if "checkpoint" in line)


def test_it_begins_anew_at_the_weights_of_a_file(run):
    state = run[0][-1]
    moved = jax.tree.map(lambda x: np.asarray(x) + 1, (state.params, state.batch_stats))
    new = pretrain.going_on(state, *moved, None, 0)
    assert new.average.keys() == {"params", "batch_stats"}
    jax.tree.map(np.testing.assert_array_equal, new.average, {"params": new.params, "batch_stats": new.batch_stats})
    jax.tree.map(np.testing.assert_array_equal, new.params, moved[0])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder of a run of the convnet, whose average is twice its weights; its state, graphdef and config."""
    config, folder = frozen_runs.config_of("set.npz"), tmp_path_factory.mktemp("run")
    config.ema = DECAY
    method, shapes = made(config, 1, abstract=True)
    rng = np.random.default_rng(0)  # sooner than to initialise it
    state = jax.tree.map(lambda x: rng.uniform(0.1, 0.3, x.shape).astype(x.dtype), shapes)
    latest = {"params": state.params, "batch_stats": state.batch_stats}
    state = state._replace(average=jax.tree.map(lambda x: 2 * x, latest))
    with Checkpoints(folder / FOLDER, asynchronous=False) as checkpoints:
        checkpoints.save(7, state, {"config": config.to_dict(), "channels": 3, "images": 640})
    return folder, state, method.graphdef, config


def same(found, wanted):
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    return True


def test_what_judges_a_run_takes_the_average_and_says_so(saved, tmp_path, monkeypatch):
    folder, state, *_ = saved
    monkeypatch.setattr(export, "verify", lambda *_: {"none": 0.0})  # it has tests of its own, and takes seconds
    average, last = state.average, {"params": state.params, "batch_stats": state.batch_stats}
    for which, weights, options in (("average", average, {}), ("last", last, {"ema": "last"})):
        backbone = tuple(tree["backbone"] for tree in (weights["params"], weights["batch_stats"]))
        judged = subject.load(folder, **options)
        assert same((judged.params, judged.batch_stats), backbone)
        assert str(judged) == f"{folder}, step 7, its {which} weights"
        assert same(encoder.load(folder, **options).subject.params, backbone[0])
        source = export.read(folder, **options)
        assert same((source.weights.params, source.weights.batch_stats), (weights["params"], weights["batch_stats"]))
        told = {"protocol": "knn", "dataset": "x", "n": 1, "classes": 2, "metric": "top1", "values": [1], "seeds": []}
        assert results.line(judged, **told, k=5)["settings"] == {"k": 5, "ema": which}
        report = export.export(source, "safetensors", tmp_path / f"{which}.safetensors")
        assert report["ema"] == which
        exported = subject.load(tmp_path / f"{which}.safetensors")
        assert exported.sha256 == judged.sha256 and exported.ema == ""
    assert subject.load(folder).sha256 != subject.load(folder, ema="last").sha256
    assert subject.load(folder, "random", "last").ema == ""
    official = export.read(folder, whole=True)  # with the momentum, which belongs to the last weights
    assert same(official.weights.params, state.params) and official.ema == "last"
    with pytest.raises(UserError, match=r"--ema is 'first'; it is one of average, last\."):
        subject.load(folder, ema="first")


def test_an_evaluation_goes_on_with_the_weights_that_it_began_with(saved, tmp_path):
    judged = subject.load(saved[0])
    state = {"params": {"backbone": judged.params}, "batch_stats": {"backbone": judged.batch_stats}}
    origin = {name: getattr(judged, name) for name in ("path", "step", "sha256", "baseline", "ema")}
    with Checkpoints(tmp_path / FOLDER, asynchronous=False) as checkpoints:
        checkpoints.save(1, state, {"config": judged.config, "channels": 3, "origin": origin})
    assert linear_experiment.find_subject(saved[0], [tmp_path]).ema == "average"
    with pytest.raises(UserError, match=r"with --ema=average, and --checkpoint is \S+ with --ema=last; take another"):
        linear_experiment.find_subject(saved[0], [tmp_path], ema="last")


def test_scores_during_training_are_of_the_average_and_the_probes_of_the_last_weights(saved, monkeypatch):
    _, state, graphdef, config = saved
    seen = []

    def extract(step, params, batch_stats, batches, mesh, n):
        kind = "average" if params is state.average["params"] else "last"
        assert batch_stats is (state.average["batch_stats"] if kind == "average" else state.batch_stats)
        seen.append(kind)
        # Of the last weights, the features of image k point along axis k; of the average all are alike.
        found = np.eye(8, 256, dtype=np.float32) if kind == "last" else np.ones((8, 256), np.float32)
        return found, np.arange(8), np.arange(8)

    monkeypatch.setattr(features, "extract", extract)
    monkeypatch.setattr(experiment, "eval_batches", lambda *_: None)
    source = Arrays(np.zeros((8, 16, 16, 3), np.uint8), np.arange(8, dtype=np.int32))
    config.eval.knn_k = 1
    head = {"kernel": np.eye(256, 10, dtype=np.float32), "bias": np.zeros(10, np.float32)}
    evaluate = online.make_evaluation(config, graphdef, source, source, sharding.make_mesh(jax.devices()[:1]))
    scores = evaluate(state._replace(probe={"params": head}))
    assert scores["probe"] == 1 and scores["knn"] < 1
    assert seen == ["average", "average", "last"]
    state = state._replace(average={})
    assert averaging.judged(state) == (state.params, state.batch_stats)
