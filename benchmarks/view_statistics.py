"""Statistics of all views that the official loader drew for a training, beside those that are drawn here for it.

    python benchmarks/view_statistics.py --official=barlowtwins --torch=.venv-torch/bin/python --data=cifar10.npz \\
        --workdir=runs/beside_official --images=5120 --epochs=20 --workers=1

The setting of `beside_official.py`, and in its work folder the views of the first of --seeds, which `official_views.py`
writes down where they are not yet there. Means over all views of colours, contrast, sharpness, share of grey and of
saturated values, places of light, and over pairs of how much they have in common; the difference in standard errors,
the largest first. Where both draw from the same distribution one in twenty is beyond two by chance; many go together.
"""

import beside_official
import jax
import jax.numpy as jnp
import numpy as np
import same_views

import barlow_jax
from barlow_jax import experiment, sharding
from barlow_jax.results import plain

AT_ONCE = 1024  # images
LUMINANCE = np.float32([0.299, 0.587, 0.114])


def of_one(views):
    """{name: float [n]} of views, float [n, S, S, 3] of 0 to 255."""
    light = views @ LUMINANCE
    across, down = np.diff(light, axis=2), np.diff(light, axis=1)
    bend = np.diff(across, axis=2)[:, 1:-1] + np.diff(down, axis=1)[:, :, 1:-1]  # Laplacian
    half = light.shape[1] // 2
    apart = np.abs(np.diff(views, axis=3)).mean((1, 2, 3))
    found = {f"mean of channel {c}": views[..., c].mean((1, 2)) for c in range(3)}
    found |= {f"deviation of channel {c}": views[..., c].std((1, 2)) for c in range(3)}
    found |= {"contrast": light.std((1, 2)), "differences across": _rms(across), "differences down": _rms(down)}
    found |= {"Laplacian": _rms(bend), "logarithm of it": np.log1p(_rms(bend)), "colourfulness": apart}
    found |= {"share of grey": np.float32(apart == 0), "black values": (views == 0).mean((1, 2, 3))}
    found |= {"white values": (views == 255).mean((1, 2, 3)), "median": np.median(light, (1, 2))}
    found |= {"left - right": light[:, :, :half].mean((1, 2)) - light[:, :, half:].mean((1, 2))}
    found |= {"top - bottom": light[:, :half].mean((1, 2)) - light[:, half:].mean((1, 2))}
    inner = slice(half // 2, -(half // 2))
    return found | {"middle - all": light[:, inner, inner].mean((1, 2)) - light.mean((1, 2))}


def of_both(views):
    """{name: float [n]} of pairs, float [n, 2, S, S, 3]."""
    one, other = views[:, 0] @ LUMINANCE, views[:, 1] @ LUMINANCE
    found = {"correlation": _correlation(one, other), "correlation mirrored": _correlation(one[:, :, ::-1], other)}
    found |= {"difference of means": np.abs(one.mean((1, 2)) - other.mean((1, 2)))}
    found |= {"product of contrasts": one.std((1, 2)) * other.std((1, 2))}
    sharpness = [_rms(np.diff(part, axis=2)) for part in (one, other)]
    return found | {"product of sharpness": np.log1p(sharpness[0]) * np.log1p(sharpness[1])}


def _rms(values):
    return np.sqrt((values**2).mean((1, 2)))


def _correlation(one, other):
    one, other = (part.reshape(len(part), -1) for part in (one, other))
    one, other = (part - part.mean(1, keepdims=True) for part in (one, other))
    return (one * other).mean(1) / (one.std(1) * other.std(1) + 1)


def moments(batches):
    """{name: (mean, squared standard error)} over batches of views, [n, 2, S, S, 3]."""
    kept = {}
    for views in batches:
        views = np.float32(views)
        found = {f"view {k + 1}: {name}": x for k in (0, 1) for name, x in of_one(views[:, k]).items()}
        for name, values in (found | {f"pair: {name}": x for name, x in of_both(views).items()}).items():
            kept.setdefault(name, []).append(values)
    joined = {name: np.concatenate(parts).astype(np.float64) for name, parts in kept.items()}
    return {name: (values.mean(), values.var() / len(values)) for name, values in joined.items()}


def drawn_here(chosen, seed):
    """The views of all steps as this code has them, uint8 levels as float [batch, 2, S, S, 3]."""
    config = barlow_jax.config("barlow_twins")
    config.update_from_flattened_dict(beside_official.settings(chosen, seed))
    mesh, steps_per_epoch = sharding.make_mesh(), chosen.images // beside_official.BATCH
    source, _ = experiment.sources(config)
    parts = {"channels": 3, "num_classes": source.num_classes, "steps_per_epoch": steps_per_epoch, "mesh": mesh}
    method, _ = experiment.method(config, **parts)
    views_of = jax.jit(method.views_of)
    batches = experiment.pretraining_batches(config, source, 0, mesh=mesh)
    for step, batch in zip(range(chosen.epochs * steps_per_epoch), batches, strict=False):
        views = np.asarray(views_of(jnp.int32(step), batch))
        yield np.rint((views * np.float32(config.views.std) + np.float32(config.views.mean)) * 255)


def main():
    chosen = beside_official.arguments("Statistics of the official views and of these.", seeds="0")
    beside_official.take_part(chosen)
    seed = chosen.seeds[0]
    folder = chosen.workdir / f"drawn_{seed}"
    same_views.draw(chosen, seed, folder)
    official = np.load(folder / "views.npy", mmap_mode="r")
    theirs = moments(official[start : start + AT_ONCE] for start in range(0, len(official), AT_ONCE))
    ours = moments(drawn_here(chosen, seed))
    rows = []
    for name, (mean, error) in ours.items():
        apart = (mean - theirs[name][0]) / np.sqrt(error + theirs[name][1])
        rows.append([name, f"{theirs[name][0]:.4g}", f"{mean:.4g}", f"{apart:+.1f}"])
    rows.sort(key=lambda row: -abs(float(row[-1])))
    print(plain.markdown(["", "official", "here", "difference in standard errors"], rows))
    beyond = sum(abs(float(row[-1])) > 2 for row in rows)
    print(f"\n{len(rows)} statistics of {len(official)} pairs: {beyond} beyond two standard errors.")


if __name__ == "__main__":
    main()
