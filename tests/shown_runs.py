"""Work folders as runs leave them, made up in no time: metrics, log, config, pictures."""

import json
import math

import numpy as np
from PIL import Image

import barlow_jax

LOG = """\
2026-01-31 10:00:00 digits:train: 3591 images, {steps} steps an epoch, {whole} in all
2026-01-31 10:00:01 starting at step 0 of {whole}
2026-01-31 10:00:01 compiling the train step: seconds for a small network, minutes for a ResNet-50
2026-01-31 10:00:30 epoch 1: loss 358.5, on_diag 263.7, off_diag 3162
"""


def config(**fields):
    """That of the demo, as config.json has it."""
    changed = barlow_jax.config("demo").unlock()
    changed.update(fields)
    return json.loads(json.dumps(changed.to_dict()))


def line(step, whole, seed=0):
    """What train.py writes of a step, of a run that learns."""
    wave = 1 + 0.05 * math.sin(step * 12.9898 + seed)
    fallen = math.exp(-3 * step / whole)
    return {
        "step": step,
        "loss": wave * (60 + 480 * fallen),
        "on_diag": wave * (20 + 400 * fallen),
        "off_diag": wave * (2000 + 1500 * fallen),
        "grad_norm": wave * (90 + 600 * fallen),
        "learning_rate_weights": 0.1 * math.cos(step / whole * math.pi / 2),
        "learning_rate_biases": 0.01 * math.cos(step / whole * math.pi / 2),
        "probe_loss": wave * (0.2 + 2 * fallen),
        "probe_accuracy": 0.9 - 0.7 * fallen * wave,
        "z_mean": wave * 0.2,
        "z_std": wave * 0.5,
        "dead_dims": 0.0,
        "skipped": 0,
        "images_per_second": wave * 2000,
        "data_wait": wave * 0.01,
    }


def made(folder, *, epochs=20, steps=14, every=7, pictures=2, seed=0, side=64, **fields):
    """A finished run in the folder; `fields` change its config. Its path.

    Args:
      epochs, steps: how long it was, and steps an epoch; every: steps between two lines.
      pictures, side: how many correlation matrices there are, and how large.
    """
    folder.mkdir(parents=True, exist_ok=True)
    whole = epochs * steps
    lines = [line(step, whole, seed) for step in (1, *range(every, whole + 1, every))]
    for epoch in range(5, epochs + 1, max(5, epochs // 100)):
        share = epoch / epochs
        scores = {"effective_rank": 60 + 90 * share, "knn": 0.3 + 0.5 * share, "probe": 0.3 + 0.45 * share}
        lines.append({"step": epoch * steps} | scores)
    lines.sort(key=lambda one: one["step"])
    (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    (folder / "config.json").write_text(json.dumps(config(epochs=epochs, **fields)))
    (folder / "log.txt").write_text(LOG.format(steps=steps, whole=whole))
    rng = np.random.default_rng(seed)
    (folder / "correlation").mkdir(exist_ok=True)
    for number in range(pictures):
        pixels = rng.normal(220 - 60 * number / max(pictures, 1), 12, (side, side, 3)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "correlation" / f"{number * whole // max(pictures - 1, 1):08d}.png")
    return folder
