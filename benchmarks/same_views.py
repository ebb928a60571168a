"""The official code and this one from the same weights, on the same views: how far do the losses agree, and then?

    python benchmarks/same_views.py --official=barlowtwins --torch=.venv-torch/bin/python --data=cifar10.npz \\
        --workdir=runs/beside_official --images=5120 --workers=1 [--epochs=20 --seeds=0]

The setting of `beside_official.py`, and in its work folder its official runs. Of such a run `official_views.py` writes
down the initial weights and the views of all epochs, and this code trains from and on them. What is left between the
two is the order of float32's sums: the losses agree to its rounding until that has grown. How fast it grows is shown
beside it, by this code trained from weights of which each is larger or smaller by 1e-7 of itself. What comes out is
same_views.md in the work folder.
"""

import dataclasses
import json

import beside_official
import jax
import jax.numpy as jnp
import numpy as np

import barlow_jax
from barlow_jax import experiment, pretrain, sharding
from barlow_jax.results import plain
from barlow_jax.run.checkpoint import FOLDER, Checkpoints
from barlow_jax.weights import as_run

SHOWN = (1, 2, 3, 5, 8, 12, 20, 40, 100)
OFF_BY = {"same": 0.0, "same_off": 1e-7}  # relative change of the first weights


def draw(chosen, seed, folder):
    projector = "-".join(map(str, beside_official.PROJECTOR))
    line = [chosen.torch, str(beside_official.ROOT / "benchmarks/official_views.py"), f"--official={chosen.official}"]
    line += [f"--images={chosen.workdir / 'images'}", f"--out={folder}", f"--projector={projector}"]
    line += [f"--epochs={chosen.epochs}", f"--seed={seed}", f"--workers={chosen.workers}"]
    beside_official.run(folder, "views", [*line, f"--batch_size={beside_official.BATCH}"])


def train(chosen, seed, drawn, folder, off_by=0.0):
    """This code's train step on the views of a file, from the official weights.

    off_by: relative change of the weights, of either sign at random.
    """
    if (folder / "train.done").exists():
        return
    print(f"{folder.name}: train", flush=True)
    config = barlow_jax.config("barlow_twins")
    config.update_from_flattened_dict(beside_official.settings(chosen, seed))
    views, mesh = np.load(drawn / "views.npy", mmap_mode="r"), sharding.make_mesh()
    steps_per_epoch = chosen.images // beside_official.BATCH
    parts = {"channels": 3, "num_classes": None, "steps_per_epoch": steps_per_epoch, "mesh": mesh}
    method, state = experiment.method(config, **parts)
    state = as_run.begin(drawn / "initial.pth", state, config, 3, steps_per_epoch)
    state = state._replace(params=nudged(state.params, off_by))
    scale = np.float32(config.views.mean), np.float32(config.views.std)
    method = dataclasses.replace(method, views_of=lambda step, batch: (batch["views"] / 255 - scale[0]) / scale[1])
    step, losses = pretrain.make_train_step(method), []
    state = jax.device_put(state, method.state_sharding)
    for number in range(chosen.epochs * steps_per_epoch):
        rows = slice(number * beside_official.BATCH, (number + 1) * beside_official.BATCH)
        batch = {"views": jnp.float32(views[rows]), "label": jnp.full(beside_official.BATCH, -1, jnp.int32)}
        state, metrics = step(state, batch)
        losses.append({"step": number + 1, "loss": float(metrics["loss"])})
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in losses))
    meta = {"config": config.to_dict(), "channels": 3, "images": chosen.images, "names": ""}
    checkpoints = Checkpoints(folder / FOLDER, keep=1, best_of="knn")
    checkpoints.save(len(losses), state, meta, {})
    checkpoints.close()
    (folder / "train.done").write_text("0\n")


def nudged(params, off_by):
    """Weights, each by the share `off_by` larger or smaller than it was."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: x * (1 + off_by * rng.choice([-1, 1], x.shape)).astype(np.float32), params)


def main():
    chosen = beside_official.arguments("The official code and this one on the same views.", seeds="0")
    beside_official.take_part(chosen)
    curves, judged = ({code: [] for code in ("official", *OFF_BY)} for _ in range(2))
    for seed in chosen.seeds:
        drawn = chosen.workdir / f"drawn_{seed}"
        draw(chosen, seed, drawn)
        for code in curves:
            folder = chosen.workdir / f"{code}_{seed}"
            if code == "official":
                beside_official.train_official(chosen, seed, folder)
                weights, kept = folder / "resnet50.pth", "official"
            else:
                train(chosen, seed, drawn, folder, OFF_BY[code])
                weights, kept = folder, "here"
            curves[code].append(beside_official.losses(kept, folder))
            judged[code].append(beside_official.accuracies(beside_official.judge(chosen, folder, weights)))
    text = table(curves, judged)
    (chosen.workdir / "same_views.md").write_text(text)
    print("\n" + text)


def table(curves, judged):
    """Two tables in Markdown: the official losses at some steps and how far the others are from them, and accuracies.

    Args:
      curves: {code: [losses of a seed, ...]}; judged: {code: [accuracies of a seed, ...]}.
    """
    steps = len(curves["official"][0])
    shown = sorted({step for step in (*SHOWN, steps) if step <= steps})
    rows = [["official", *(f"{curves['official'][0][step - 1]:.4g}" for step in shown)]]
    for code in OFF_BY:
        pairs = list(zip(curves[code], curves["official"], strict=True))
        rows.append([code, *(f"{max(abs(a[step - 1] / b[step - 1] - 1) for a, b in pairs):.1e}" for step in shown)])
    first = plain.markdown(["loss at step, and relative difference", *map(str, shown)], rows)
    measures = beside_official.MEASURES
    rows = [
        [code, *(beside_official.spread([100 * seed[measure] for seed in seeds]) for measure in measures)]
        for code, seeds in judged.items()
    ]
    return first + "\n\n" + plain.markdown(["", *(f"{measure}, %" for measure in measures)], rows) + "\n"


if __name__ == "__main__":
    main()
