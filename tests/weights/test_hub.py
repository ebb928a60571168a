"""A folder for the Hugging Face Hub: its files, what its card tells and what not, and its weights read here again."""

import json
import math
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import yaml
from flax import nnx
from ml_collections import ConfigDict
from safetensors.numpy import load_file
from saved_runs import IMAGES, STEP, a_config, random_like

import barlow_jax
from barlow_jax import experiment, export, model, results
from barlow_jax.errors import UserError
from barlow_jax.evaluation import subject
from barlow_jax.run.checkpoint import FOLDER, Checkpoints
from barlow_jax.weights import as_run, card, files, hub

DATASET = "/secret/place/pets/val"


def result(step=STEP, path="elsewhere/run", baseline="", **changes):
    origin = SimpleNamespace(path=path, step=step, baseline=baseline, ema="")
    known = {"protocol": "linear", "dataset": DATASET, "n": 1000, "classes": 10, "metric": "top1", "seeds": [0]}
    return results.line(origin, **({"values": [0.914], "result": "last"} | known | changes))


def first_pixels(_):
    """In place of a network that would have to be compiled."""
    return lambda params, batch_stats, images: images[:, 0, 0]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a run, that of its export, and the run's backbone.

    Features are not computed here: test_export.py does for other formats, test_in_torch.py for this one.
    """
    folder = tmp_path_factory.mktemp("hub")
    config = a_config(objective="vicreg")
    config.data.path = "/secret/place/c10.npz"
    params, batch_stats = backbone(config.to_dict())
    state = {"params": {"backbone": params}, "batch_stats": {"backbone": batch_stats}}
    with Checkpoints(folder / "run" / FOLDER, asynchronous=False) as checkpoints:
        checkpoints.save(STEP, state, {"config": config.to_dict(), "channels": 3, "images": IMAGES})
    (folder / "run" / "linear").mkdir()
    results.append(
        folder / "run" / "linear",
        [
            result(values=[0.5], step=12),  # of an earlier checkpoint
            result(values=[0.6], path="elsewhere/other"),  # of another run
            result(),
            result(values=[0.3, 0.4], seeds=[0, 1], metric="top5", departures=["epochs=5|6"]),
            result(step=0, baseline="random", values=[0.245]),
            result(protocol="effective rank", metric="effective_rank", values=[37.25], result="x"),
        ],
    )
    wanted = {"arguments": [folder / "run" / "checkpoints" / str(STEP)], "format": "huggingface", "nonfinite": "refuse"}
    wanted |= {"ema": "average"}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(export, "features_of", first_pixels)
        export.main(SimpleNamespace(**wanted, out=str(folder / "pets")))
    return folder / "run", folder / "pets", params


def test_the_folder_is_read_here_again_to_the_bit(made):
    run, folder, params = made
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    report = json.loads((folder.parent / "pets.json").read_text())
    assert report["differences"]["read back"] == 0 and report["format"] == "huggingface"
    assert report["bytes"] == (folder / "model.safetensors").stat().st_size
    arrays = load_file(folder / "model.safetensors")
    kernel = params["layer3"]["0"]["downsample"]["conv"]["kernel"]
    np.testing.assert_array_equal(arrays["layer3.0.downsample.0.weight"], kernel.transpose(3, 2, 0, 1))
    assert not any(name.startswith(("fc", "projector", "bn.")) for name in arrays)
    network, mine = barlow_jax.load(folder), subject.load(run)
    assert (network.subject.sha256, network.subject.step, network.head) == (mine.sha256, STEP, None)
    jax.tree.map(np.testing.assert_array_equal, network.subject.params, params)
    assert network.subject.config["data"]["path"] == "c10.npz"
    assert network.subject.config | {"data": mine.config["data"]} == mine.config


def test_a_run_with_weights_beside_its_checkpoints_is_a_run(made, tmp_path):
    run, folder, _ = made
    assert as_run.is_file(folder) and not as_run.is_file(run)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert not as_run.is_file(tmp_path)


def test_config_json(made):
    assert json.loads((made[1] / "config.json").read_text()) == {
        "architecture": "resnet18",
        "num_classes": 0,
        "num_features": 512,
        "global_pool": "avg",
        "pretrained_cfg": {
            "custom_load": False,
            "input_size": [3, 32, 32],
            "fixed_input_size": False,
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": [0.4914, 0.4822, 0.4465],
            "std": [0.247, 0.2435, 0.2616],
            "num_classes": 0,
            "pool_size": [1, 1],
            "first_conv": "conv1",
            "classifier": "fc",
        },
    }


def test_the_card_tells_what_the_run_tells(made):
    text = (made[1] / "README.md").read_text()
    _, header, body = text.split("---\n", 2)
    told = yaml.safe_load(header)
    assert told.keys() == {"library_name", "pipeline_tag", "tags"}  # no license, which is the user's to choose
    assert (told["library_name"], told["pipeline_tag"]) == ("timm", "image-feature-extraction")
    assert {"timm", "vicreg"} <= {*told["tags"]} and "None is set. Whoever publishes" in body
    for line in (
        "| training images | c10.npz, 100 |",
        f"| steps | {STEP}, epoch 2 of 1000 |",
        "| objective | vicreg |",
        "| arch | resnet18 | resnet50 | resnet50 |",
        "| linear, last | pets/val, 1000 images of 10 classes | top1 | 91.40 % |",
        "| linear, last, 2 seeds (1) | pets/val, 1000 images of 10 classes | top5 | 35.00 +- 7.07 % |",
        "| a random network in its place: linear, last | pets/val, 1000 images of 10 classes | top1 | 24.50 % |",
        "| effective rank, x | pets/val, 1000 images of 10 classes | effective_rank | 37.25 |",
    ):
        assert line in body, line
    assert "the standard deviation over the seeds" in body
    assert "(1) not as linear has it: epochs=5|6" in body
    assert "50.00 %" not in body and "60.00 %" not in body and "lambd" not in body
    assert "read back 0.0e+00" in body and json.loads((made[1].parent / "pets.json").read_text())["sha256"] in body
    assert f"barlow_jax.export run/checkpoints/{STEP} --format=huggingface --out=pets`" in body
    assert "@inproceedings{zbontar2021barlow" in body and '"local-dir:pets"' in body
    for file in made[1].iterdir():
        assert b"secret" not in file.read_bytes(), file.name


def classifier():
    """Weights and meta of an evaluation, and the config of what it judged."""
    config = a_config(precision="float32").to_dict()
    config["eval"] |= {"resize": 36, "crop": 32}
    params, batch_stats = backbone(config)
    fc = {"kernel": np.ones((512, 2), np.float32), "bias": np.arange(2, dtype=np.float32)}
    weights = files.Weights("classifier", {"backbone": params, "fc": fc}, {"backbone": batch_stats}, step=7)
    own = {"eval": {"resize": 0, "crop": 28}, "weights": "freeze"}
    trained = {"config": own, "num_classes": 2, "class_names": ["cat", "dog"]}
    return weights, config, {"classifier": trained, "origin": {"path": "runs/r", "step": STEP, "baseline": ""}}


def backbone(config):
    """The arrays of a network, of its shapes alone: nothing is compiled."""
    make = experiment.backbone(ConfigDict(config), 3)
    _, *shapes = model.split(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0))))
    return random_like(jax.tree.map(lambda a: np.zeros(a.shape, np.float32), shapes))


def test_a_trained_classifier_goes_along_with_the_names_of_its_classes(tmp_path):
    weights, config, meta = classifier()
    hub.save(tmp_path, weights, config, 3, meta)
    told = json.loads((tmp_path / "config.json").read_text())
    assert (told["num_classes"], told["label_names"]) == (2, ["cat", "dog"])
    assert told["pretrained_cfg"]["num_classes"] == 2 and told["pretrained_cfg"]["input_size"] == [3, 28, 28]
    assert math.floor(28 / told["pretrained_cfg"]["crop_pct"]) == 36
    back = files.load(tmp_path)
    assert (back.kind, back.step) == ("classifier", 7)
    np.testing.assert_array_equal(back.params["fc"]["bias"], [0, 1])
    report = {"file": "x/pets", "of": "runs/r/linear", "sha256": "0", "differences": {"read back": 0.0}}
    text = card.text(weights, config, 3, meta, [], report)
    assert "pipeline_tag: image-classification" in text and "logits = network(" in text
    assert "On its frozen features a linear classifier of 2 classes was trained, which is included." in text
    assert f"| steps | {STEP} |" in text and "Nothing was measured of it" in text
    random = meta | {"origin": meta["origin"] | {"baseline": "random"}}
    assert "as it was initialised: nothing was trained" in card.text(weights, config, 3, random, [], report)


def test_a_vit_with_what_timm_has_to_be_told():
    config = a_config("vit_tiny", image_size=32).to_dict()
    config["vit"] |= {"patch": 8, "pooling": "mean"}
    weights = files.Weights("backbone", {"backbone": backbone(config)[0]}, {})
    told = hub.config_of(weights, config, 3, {})
    assert (told["architecture"], told["num_features"], told["global_pool"]) == ("vit_tiny_patch16_224", 192, "avg")
    assert told["model_args"] == {"img_size": 32, "patch_size": 8, "global_pool": "avg"}
    own = told["pretrained_cfg"]
    assert own["fixed_input_size"] and own["first_conv"] == "patch_embed.proj" and own["classifier"] == "head"
    assert hub.config_of(weights, config, 1, {})["model_args"]["in_chans"] == 1


def test_of_a_file_of_others_nothing_is_claimed(tmp_path):
    weights, config, _ = classifier()
    report = {"file": "x", "of": "a.pth", "sha256": "0", "differences": {"read back": 0.0}}
    text = card.text(weights, config, 3, {}, [], report)
    assert "did not say how they were trained" in text and "## Training" not in text and "barlow-twins" not in text
    _, _, judged = classifier()
    judged["origin"]["path"] = "resnet50.pth"
    assert "did not say how they were trained" in (text := card.text(weights, config, 3, judged, [], report))
    assert "a linear classifier of 2 classes was trained" in text and "## Training" not in text
    config["data"] |= {"kind": "tfds", "name": "imagenet2012"}
    told = weights._replace(about={"config": "{}"})
    assert "## Training" in (text := card.text(told, config, 3, {}, [], report))
    assert "datasets:\n- ILSVRC/imagenet-1k\n---" in text


def test_the_short_side_that_timm_resizes_to_is_ours_to_the_pixel():
    wrong = [(c, r) for r in range(1, 513) for c in range(1, r + 1) if math.floor(c / hub.crop_share(c, r)) != r]
    assert not wrong
    assert any(math.floor(c / (c / r)) != r for r in range(1, 513) for c in range(1, r + 1))  # as it would be


def test_refusals(made, tmp_path):
    run, folder, _ = made
    for config, sentence in (
        (a_config(stem="cifar"), "has the cifar stem, which no ResNet of timm has.* take --format=timm and change"),
        (a_config("convnet"), "is a convnet, which timm does not have; take --format=safetensors or stablehlo"),
    ):
        source = export.Source("x", files.Weights("backbone", {}, {}), config.to_dict(), 3)
        with pytest.raises(UserError, match=sentence):
            export.check(source, "huggingface")
    source = export.read(run)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(UserError, match="pets is there already; remove it, or take another name"):
        export.export(source, "huggingface", folder)
    assert before == {file.name: file.read_bytes() for file in folder.iterdir()}
    params = jax.tree.map(np.array, source.weights.params)
    params["backbone"]["conv1"]["kernel"][0, 0, 0, 0] = np.nan
    with pytest.raises(UserError, match="holds values that are not finite, of which no folder for the Hub is made"):
        export.check(source._replace(weights=source.weights._replace(params=params)), "huggingface")


def test_a_folder_with_another_array_is_not_given_its_name(made, tmp_path, monkeypatch):
    source, save = export.read(made[0]), files.save

    def wrong(path, layout, weights, **more):
        params = jax.tree.map(np.array, weights.params)
        params["backbone"]["layer3"]["1"]["bn2"]["scale"][7] += 1e-3
        save(path, layout, weights._replace(params=params), **more)

    monkeypatch.setattr(files, "save", wrong)
    monkeypatch.setattr(export, "features_of", first_pixels)
    with pytest.raises(UserError, match="holds another backbone.layer3.1.bn2.weight than the source"):
        export.export(source, "huggingface", tmp_path / "x")
    assert not list(tmp_path.iterdir())
