"""Training that goes on from the weights of others: with the losses of the official code, and where nothing fits."""

import commands
import detw
import jax
import jax.numpy as jnp
import numpy as np
import official
import pytest
from flax import nnx
from official import write_backbone
from saved_runs import a_config, save_run

from barlow_jax import export, model, optim, pretrain, sharding
from barlow_jax.errors import UserError
from barlow_jax.training import feed
from barlow_jax.weights import as_run, files, pickle_writer
from configs import barlow_twins


def minitrain_file(golden, path, epoch=0):
    """The model that the official minitrain begins with, as its full checkpoint, in float64."""
    described = golden("minitrain")[1]
    config = described["configs"]["gentle"]
    arrays = detw.state_dict(
        described["state_dict_order"], config["weights_seed"], zero_init_residual=True, fresh_stats=True
    )
    floating = {name: value.astype(np.float64) if value.dtype.kind == "f" else value for name, value in arrays.items()}
    tree = {
        "epoch": epoch,
        "model": {f"module.{name}": value for name, value in floating.items()},
        "optimizer": {"state": {}, "param_groups": [{"params": [0]}, {"params": [1]}]},
    }
    pickle_writer.save(path, tree)
    return described, config


def minitrain_config(described):
    config = barlow_twins.get_config().unlock()
    config.arch, config.epochs = "resnet18", described["epochs"]
    config.projector = tuple(int(width) for width in described["projector"].split("-"))
    return config


@pytest.mark.slow
def test_ten_official_steps_through_two_checkpoints(golden, x64, tmp_path):
    """Five steps from an official checkpoint, a full checkpoint written, and five more from that one."""
    described, config = minitrain_file(golden, tmp_path / "0.pth")
    want = golden("minitrain")[0]["gentle.f64.losses"]
    network = official.given(
        *official.official_model(
            described["state_dict_order"], described["projector"], config["weights_seed"] + 1, jnp.float64
        )
    )
    scale = config["B"] / 256
    rates = [optim.warmup_cosine(config[k] * scale, 10, described["epochs"]) for k in ("lw", "lb")]
    tx = optim.make_optimizer("lars", *rates, weight_decay=config["wd"])
    views = [official.two_views(i["seed"], config["B"], config["noise"], jnp.float64) for i in config["inputs"]]
    mesh = sharding.make_mesh(jax.devices()[:1])
    graphdef, fresh = pretrain.create_state(network, tx)
    fresh = jax.tree.map(lambda a: a.astype(jnp.float64) if a.dtype.kind == "f" else a, fresh)
    step = official.step_on_views(graphdef, tx, mesh, lambd=config["lambd"])
    losses = []
    for first in (0, 5):
        state = as_run.begin(tmp_path / f"{first}.pth", fresh, minitrain_config(described), 3, 1)
        assert int(state.step) == first
        state = jax.device_put(jax.tree.map(jnp.array, state), sharding.replicated(mesh))  # a copy: it is donated
        for batch in views[first : first + 5]:
            batch = {"views": batch, "label": np.full(len(batch), -1, np.int32)}
            state, metrics = step(state, feed.put(batch, mesh))
            losses.append(float(metrics["loss"]))
        momentum = state.opt_state[1][1].trace
        reached = files.Weights("pretraining", state.params, state.batch_stats, momentum, first + 5, first + 5)
        files.save(tmp_path / f"{first + 5}.pth", "official", reached)
    np.testing.assert_allclose(losses, want[:10], rtol=1e-9)


@pytest.mark.slow
def test_five_official_ddp_steps_from_a_checkpoint(golden, x64, tmp_path):
    arrays, _, config, (network, params, batch_stats, tx, views) = official.ddp_setup(golden, 4)
    files.save(tmp_path / "x.pth", "official", files.Weights("pretraining", params, batch_stats))
    weights = files.load(tmp_path / "x.pth")
    losses, *_ = official.run(network, weights.params, weights.batch_stats, tx, views, lambd=config["lambd"])
    np.testing.assert_allclose(losses, arrays["W4.losses_5_steps"], rtol=1e-9)


def test_a_run_does_not_go_on_from_what_does_not_fit(golden, tmp_path):
    described, _ = minitrain_file(golden, tmp_path / "x.pth", epoch=20)
    config = minitrain_config(described)

    def begin(path=tmp_path / "x.pth", channels=3, optimizer="lars", **fields):
        changed = config.copy_and_resolve_references()
        changed.update(fields)
        widths = tuple(changed.projector)
        network = model.BarlowTwins(
            model.make_backbone(changed.arch, image_size=32, channels=channels), widths, rngs=nnx.Rngs(0)
        )
        _, state = pretrain.create_state(network, optim.make_optimizer(optimizer, 0.1, 0.1))
        return as_run.begin(path, state, changed, channels, 5)

    for fields, sentence in (
        ({"arch": "resnet34"}, "config.arch is 'resnet34' and .* holds 'resnet18'; set --config.arch=resnet18"),
        ({"projector": (8, 8)}, "config.projector is .* set --config.projector="),
        ({"channels": 1}, "is for images of 3 channels, and those of this run have 1"),
        ({}, "has finished 20 epochs and config.epochs is 20"),
    ):
        with pytest.raises(UserError, match=sentence):
            begin(**fields)
    state = begin(epochs=30)
    assert state.step == 100
    files.save(
        tmp_path / "momentum.pth",
        "official",
        files.Weights("pretraining", state.params, state.batch_stats, state.params, 2, 10),
    )
    with pytest.raises(UserError, match="config.optimizer.name has no use for"):
        begin(tmp_path / "momentum.pth", optimizer="adamw")
    write_backbone(golden, tmp_path / "backbone.pth")
    assert begin(tmp_path / "backbone.pth").step == 0


def test_a_run_begins_with_the_backbone_of_others(golden, tmp_path):
    """Files with names of a projector that is not ours, or of none: the backbone is taken, at step 0."""
    described, _ = minitrain_file(golden, tmp_path / "x.pth")
    config = minitrain_config(described)
    make = model.make_backbone("resnet18", image_size=32)
    network = model.BarlowTwins(make, tuple(config.projector), rngs=nnx.Rngs(0))
    _, fresh = pretrain.create_state(network, optim.make_optimizer("lars", 0.1, 0.1))
    for beside in ({}, {"projector.0.weight": np.zeros((8, 512), np.float32), "projector.0.bias": np.zeros(8)}):
        wrap = lambda a, beside=beside: {"backbone." + name: value for name, value in a.items()} | beside  # noqa: E731
        arrays = write_backbone(golden, tmp_path / "x.pth", wrap=wrap)
        state = as_run.begin(tmp_path / "x.pth", fresh, config, 3, 5)
        assert state.step == 0 and state.params.keys() == fresh.params.keys()
        kernel = arrays["layer1.0.conv1.weight"].transpose(2, 3, 1, 0)
        np.testing.assert_array_equal(state.params["backbone"]["layer1"]["0"]["conv1"]["kernel"], kernel)
        with pytest.raises(UserError, match="has no projector, so no full checkpoint"):
            export.check(export.read(tmp_path / "x.pth", whole=True), "official")


@pytest.mark.slow
def test_train_begins_with_a_file_and_goes_on_from_its_own_checkpoint(tmp_path):
    """train.py --init with a full checkpoint of two epochs: it trains the third, and no more when started again."""
    config = a_config(projector=(32, 32))
    save_run(tmp_path / "run", config)
    source = export.read(tmp_path / "run", whole=True)
    assert source.weights.epoch == 2
    files.save(tmp_path / "checkpoint.pth", "official", source.weights, groups=files.groups_of(source.config))
    images = np.random.default_rng(0).integers(0, 256, (40, 24, 24, 3)).astype(np.uint8)
    np.savez(tmp_path / "set.npz", x_train=images)
    plain = ("jitter=0.0", "grayscale=0.0", "solarize=(0.0,0.0)")  # of what there is no need to compile
    line = (
        "train.py",
        "--config=configs/cifar10.py",
        f"--config.data.path={tmp_path / 'set.npz'}",
        *commands.SMALL,
        "--config.arch=resnet18",
        "--config.stem=imagenet",
        "--config.data.val=",
        "--config.epochs=3",
        f"--workdir={tmp_path / 'on'}",
        f"--init={tmp_path / 'checkpoint.pth'}",
        *(f"--config.views.{field}" for field in plain),
    )
    status, output = commands.run(*line)
    assert status == 0 and "2 epochs are finished, 4 steps, momentum of the file" in output, output
    assert [found["step"] for found in commands.lines(tmp_path / "on") if "loss" in found] == [5, 6]
    status, output = commands.run(*line)
    assert status == 0 and "going on from step 6 of 6" in output and "epochs are finished" not in output, output
    status, output = commands.run(*(text for text in line if "stem" not in text), f"--workdir={tmp_path / 'other'}")
    assert status == 1 and "error: config.stem is 'cifar' and" in output and "Traceback" not in output, output
