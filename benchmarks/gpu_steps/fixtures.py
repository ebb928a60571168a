"""How far the device is from the official code's numbers (tests/fixtures): its float64 results, here in less precision.

On GPUs and TPUs a float32 product is one of TF32 or bfloat16 unless more is asked for, so float32 is measured twice: as
the package asks, and with jax.default_matmul_precision("highest"). A row holds the largest error, relative to the
largest value (losses, gradients, weights) or of the norm (features). Its bound leaves room for another order of sums,
and for products of TF32 or bfloat16 where there may be some; beyond it the row says so, and the step has failed.
"""

import contextlib
import json

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from .paths import FIXTURES

import detw  # isort: skip
import official  # isort: skip
from barlow_jax import model, optim  # isort: skip
from barlow_jax.loss import barlow_twins_loss  # isort: skip

KINDS = {
    "float32": (jnp.float32, None),
    "float32, highest": (jnp.float32, "highest"),
    "bfloat16": (jnp.bfloat16, None),
}
BOUNDS = {  # what: (float32, float32 highest, bfloat16); None is not measured
    "loss": (1e-3, 1e-4, None),
    "gradient of the loss": (1e-3, 1e-4, None),
    "LARS, five steps": (1e-5, 1e-5, None),
    "features of resnet18, evaluation": (5e-3, 1e-5, 0.05),
    "features of resnet18, training": (2e-2, 1e-4, None),
    "features of resnet50, evaluation": (5e-3, 1e-5, 0.05),
    "features of resnet50, training": (0.1, 5e-4, None),
    "losses of eight official steps": (1e-2, 1e-3, 0.2),
}


def golden(name):
    arrays = FIXTURES / f"{name}.npz"
    return dict(np.load(arrays)) if arrays.exists() else {}, json.loads((FIXTURES / f"{name}.json").read_text())


def off(got, want):
    """The largest error, relative to the largest value."""
    return float(np.abs(np.asarray(got, np.float64) - want).max() / max(np.abs(want).max(), 1e-30))


def loss(dtype, small):
    """The largest errors of loss and gradient over all cases and both forms."""
    arrays, described = golden("loss")
    errors = {"loss": 0.0, "gradient of the loss": 0.0}
    for case in described["cases"][: 2 if small else None]:
        name = case["name"]
        z1, z2 = (jnp.asarray(arrays[f"{name}.{z}"], dtype) for z in ("z1", "z2"))
        for form in ("direct", "dual"):

            def value(z1, z2, case=case, form=form):
                options = {"lambd": case["lambd"], "batch_size": case["batch_size"]}
                return barlow_twins_loss(z1, z2, form=form, **options)[0]

            got, gradients = jax.jit(jax.value_and_grad(value, (0, 1)))(z1, z2)
            found = off(got, arrays[f"{name}.f64.loss"])
            errors["loss"] = max(errors["loss"], found)
            for gradient, which in zip(gradients, ("dz1", "dz2"), strict=True):
                found = off(gradient, arrays[f"{name}.f64.{which}"])
                errors["gradient of the loss"] = max(errors["gradient of the loss"], found)
    return errors


def lars(dtype, small):
    """The largest error of the parameters after five steps."""
    arrays, described = golden("lars")
    config, names = described["configs"]["default"], [name for name, *_ in described["params"]]
    rates = [jnp.asarray(described[group], dtype) for group in ("lr_weights", "lr_biases")]
    options = {key: config[key] for key in ("weight_decay", "momentum", "eta")}
    tx = optim.make_optimizer("lars", lambda step: rates[0][step], lambda step: rates[1][step], **options)
    params = {name: jnp.asarray(arrays[f"init.{name}"], dtype) for name in names}
    state, update = tx.init(params), jax.jit(tx.update)
    for step in range(len(rates[0])):
        grads = {name: jnp.asarray(arrays[f"grad.{name}"][step], dtype) for name in names}
        updates, state = update(grads, state, params)
        params = {name: params[name] + updates[name] for name in names}
    want = {name: arrays[f"default.f64.param.{name}"][-1] for name in names}
    return {"LARS, five steps": max(off(params[name], want[name]) for name in names)}


def features(arch, dtype):
    """The errors of the norm of features at 64 pixels: of an evaluation pass, and in float32 of a training pass.

    Batch statistics of four images of 2 x 2 pixels would make a third of a ResNet-50's features of the rounding of
    bfloat16, on any device.
    """
    arrays, described = golden(arch)
    listing = golden("state_dicts")[1][arch]["backbone"]
    state_dict = detw.state_dict([(name, shape) for name, shape, _ in listing], described["weights_seed"])
    params, batch_stats = jax.tree.map(jnp.asarray, official.load(state_dict, np.float32))
    graphdef, *_ = model.split(model.BACKBONES[arch](dtype=dtype, rngs=nnx.Rngs(0)))
    source = described["input_seeds"]["a64"]
    n, _, height, width = source["shape"]
    images = jnp.asarray(detw.images(source["seed"], n, height, width).transpose(0, 2, 3, 1), dtype)

    def passed(params, batch_stats, train):
        network = model.merge(graphdef, params, batch_stats)
        return network(images[:, None], train=True)[:, 0] if train else network(images, train=False)

    errors = {}
    for kind, train in (("eval_features_rawstats", False), ("train_features", True)):
        if not train or dtype == jnp.float32:
            got = np.asarray(jax.jit(passed, static_argnums=2)(params, batch_stats, train), np.float64)
            want = arrays[f"a64.f64.{kind}"]
            what = f"features of {arch}, {'training' if train else 'evaluation'}"
            errors[what] = float(np.linalg.norm(got - want) / np.linalg.norm(want))
    return errors


def official_steps(dtype):
    """The largest error of the losses of the first eight steps of the official model and optimiser."""
    arrays, described = golden("minitrain")
    config, name = described["configs"]["gentle"], "gentle"
    network, params, batch_stats = official.official_model(
        described["state_dict_order"], described["projector"], config["weights_seed"], dtype, zero_init_residual=True
    )
    params, batch_stats = jax.tree.map(lambda x: np.asarray(x, np.float32), (params, batch_stats))
    rates = [optim.warmup_cosine(config[k] * config["B"] / 256, 10, described["epochs"]) for k in ("lw", "lb")]
    tx = optim.make_optimizer("lars", *rates, weight_decay=config["wd"])
    inputs = config["inputs"][:8]
    batches = [official.two_views(i["seed"], config["B"], config["noise"], np.float32) for i in inputs]
    losses, *_ = official.run(network, params, batch_stats, tx, batches, lambd=config["lambd"])
    return {"losses of eight official steps": float(np.max(np.abs(losses / arrays[f"{name}.f64.losses"][:8] - 1)))}


def errors(kind, small):
    """{what: error} of one kind of arithmetic."""
    dtype, precision = KINDS[kind]
    asked = jax.default_matmul_precision(precision) if precision else contextlib.nullcontext()
    with asked:
        found = {} if dtype == jnp.bfloat16 else loss(dtype, small) | lars(dtype, small)
        found |= features("resnet18", dtype)
        return found if small else found | features("resnet50", dtype) | official_steps(dtype)


def measure(context):
    wrong = []
    for place, kind in enumerate(KINDS):
        for what, error in errors(kind, context.small).items():
            bound = BOUNDS[what][place]
            verdict = f"bound {bound:g}" if error <= bound else f"BEYOND its bound of {bound:g}"
            wrong += [] if error <= bound else [f"{what} in {kind}"]
            context.row(f"{what}, {kind}", f"{error:.2g}", verdict, error=error, bound=bound)
    if wrong:
        raise SystemExit(f"beyond the bound: {', '.join(wrong)}")
