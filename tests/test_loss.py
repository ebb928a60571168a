"""The loss against the official code (float64 to 1e-9), numpy, and itself on several devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from programs import precisions

from barlow_jax import sharding
from barlow_jax.loss import barlow_twins_loss, cross_correlation, standardize
from barlow_jax.planning import compiled, hlo

CASES = [
    "tiny",
    "n_lt_d",
    "n_gt_d",
    "indep",
    "offset",
    "smallvar",
    "partial",
    "lambda39",
    "bigoffset",
    "d512_n_lt_d",
]
FORMS = ["direct", "dual"]


def relative(got, want):
    return np.abs(np.asarray(got, np.float64) - want).max() / max(np.abs(want).max(), 1e-30)


def run(golden, name, form, dtype):
    arrays, described = golden("loss")
    case = next(c for c in described["cases"] if c["name"] == name)
    z1, z2 = (jnp.asarray(arrays[f"{name}.{z}"], dtype) for z in ("z1", "z2"))

    def loss(z1, z2):
        return barlow_twins_loss(z1, z2, lambd=case["lambd"], form=form, batch_size=case["batch_size"])

    (value, terms), grads = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(z1, z2)
    want = {k.removeprefix(f"{name}.f64."): v for k, v in arrays.items() if k.startswith(f"{name}.f64.")}
    return case, (z1, z2), value, terms, grads, want


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", CASES)
def test_float64_equals_official(golden, x64, name, form):
    case, (z1, z2), value, terms, grads, want = run(golden, name, form, jnp.float64)
    for got, key in [(value, "loss"), *((terms[k], k) for k in terms), *zip(grads, ("dz1", "dz2"), strict=True)]:
        assert relative(got, want[key]) < 1e-9, key
    c = cross_correlation(z1, z2, batch_size=case["batch_size"])
    assert relative(jnp.diagonal(c), want["c_diag"]) < 1e-9


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", CASES)
def test_float32_is_within_rounding_of_official(golden, name, form):
    *_, value, terms, grads, want = run(golden, name, form, jnp.float32)
    # The dual form's off_diag is a difference of sums; the bound on the loss is the same.
    assert relative(value, want["loss"]) < 1e-5
    assert relative(terms["on_diag"], want["on_diag"]) < 2e-5
    for got, key in zip(grads, ("dz1", "dz2"), strict=True):
        assert relative(got, want[key]) < 5e-5, key


def test_c_is_the_correlation_matrix_of_numpy():
    rng = np.random.default_rng(0)
    z1, z2 = rng.normal(3, 2, (2, 400, 6))
    want = np.corrcoef(z1, z2, rowvar=False)[:6, 6:]
    # numpy has no epsilon: 1e-5 on a variance of 4.
    np.testing.assert_allclose(cross_correlation(jnp.asarray(z1), jnp.asarray(z2)), want, atol=1e-5)


def test_identical_whitened_views_reach_zero():
    z = np.linalg.qr(np.random.default_rng(0).normal(size=(64, 9)))[0]
    z = np.linalg.qr(np.c_[np.ones(64), z])[0][:, 1:] * 8  # zero mean, orthogonal, variance 1
    loss, terms = barlow_twins_loss(jnp.asarray(z), jnp.asarray(z), lambd=1.0)
    assert loss < 1e-8 and terms["off_diag"] < 1e-8


def test_bfloat16_embeddings_are_promoted():
    z1, z2 = jnp.asarray(np.random.default_rng(0).normal(size=(2, 32, 8)), jnp.bfloat16)
    loss, _ = barlow_twins_loss(z1, z2, lambd=0.005)
    assert loss.dtype == jnp.float32
    exact, _ = barlow_twins_loss(z1.astype(jnp.float32), z2.astype(jnp.float32), lambd=0.005)
    assert loss == exact


def test_auto_takes_the_dual_form_for_wide_embeddings():
    def widest(n, d):
        z = jnp.ones((n, d))
        jaxpr = jax.make_jaxpr(lambda a, b: barlow_twins_loss(a, b, lambd=1.0)[0])(z, z)
        return max(np.prod(v.aval.shape) for eqn in jaxpr.eqns for v in eqn.outvars)

    assert widest(16, 128) == 16 * 128  # nothing of size D x D
    assert widest(128, 128) == 128 * 128


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("devices", [2, 8])
def test_sharded_equals_one_device(x64, form, devices):
    z1, z2 = np.random.default_rng(1).normal(size=(2, 32, 48))
    mesh = sharding.make_mesh(jax.devices()[:devices])

    def value_and_grad(mesh):
        return jax.jit(
            jax.value_and_grad(lambda a, b: barlow_twins_loss(a, b, lambd=0.01, form=form, mesh=mesh)[0], (0, 1))
        )

    one = value_and_grad(None)(z1, z2)
    split = jax.device_put((z1, z2), NamedSharding(mesh, P("data")))
    many = value_and_grad(mesh)(*split)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14), one, many)


def gradient_program(form, n, d):
    """The loss's gradient compiled for 8 devices, as text."""
    mesh = sharding.make_mesh()
    z = jax.device_put(np.ones((n, d), np.float32), NamedSharding(mesh, P("data")))
    step = jax.jit(jax.grad(lambda a, b: barlow_twins_loss(a, b, lambd=0.01, form=form, mesh=mesh)[0], (0, 1)))
    return step.lower(z, z).compile().as_text()


def test_direct_form_reduces_nothing_of_size_d_by_d():
    text = gradient_program("direct", 32, 256)
    assert "f32[256,256]" not in text
    assert "f32[32,256]" in text  # the slab


def moved(form, n, d):
    """Bytes of every collective operation of the gradient on 8 devices, by kind."""
    found = compiled.collectives(hlo.instructions(gradient_program(form, n, d)))
    return {kind: [c.bytes for c in found if c.kind == kind] for kind in compiled.COLLECTIVES}


def test_direct_form_gathers_one_view_and_all_reduces_no_embeddings():
    n, d = 64, 256
    sizes = moved("direct", n, d)
    assert max(sizes["all-reduce"]) < n * d  # statistics of the columns, a fraction of the 4 n d bytes of z
    assert sizes["all-gather"] == sizes["reduce-scatter"] == [4 * n * d]


def test_dual_form_moves_n_by_n_matrices_and_no_embeddings_in_whole():
    n, d, devices = 64, 256, 8
    sizes = moved("dual", n, d)
    assert max(sizes["all-gather"] + sizes["all-reduce"] + sizes["reduce-scatter"]) <= 4 * n * n
    assert max(sizes["all-to-all"]) <= 2 * 4 * n * d / devices  # to columns, and back


def test_unknown_form_is_named():
    with pytest.raises(ValueError, match="'primal'.*auto, direct, dual"):
        barlow_twins_loss(jnp.ones((2, 2)), jnp.ones((2, 2)), lambd=1.0, form="primal")


@pytest.mark.parametrize("form", FORMS)
def test_products_are_asked_for_in_full(form):
    """Of c or the Gram matrices, and of their gradients; on a CPU nothing else would show it."""
    z = jnp.ones((8, 6))
    gradient = jax.grad(lambda a, b: barlow_twins_loss(a, b, lambd=0.1, form=form)[0], (0, 1))
    asked = precisions(jax.make_jaxpr(gradient)(z, z))
    # The matrix and two products back from it; two matrices, each with one back.
    assert asked == [jax.lax.Precision.HIGHEST] * {"direct": 3, "dual": 4}[form]
    mesh = sharding.make_mesh(jax.devices()[:2])
    split = jax.make_jaxpr(lambda a, b: barlow_twins_loss(a, b, lambd=0.1, form=form, mesh=mesh)[0])(z, z)
    assert set(precisions(split)) == {jax.lax.Precision.HIGHEST}
    assert precisions(jax.make_jaxpr(cross_correlation)(z, z)) == [jax.lax.Precision.HIGHEST]


def test_the_epsilon_is_that_of_the_official_batch_norm(x64):
    """1e-5 on the variance, wherever it is left out; it shows where the variance is as small."""
    z = 3e-3 * np.random.default_rng(0).normal(size=(16, 4))
    want = (z - z.mean(0)) / np.sqrt(z.var(0) + 1e-5)
    np.testing.assert_allclose(standardize(jnp.asarray(z)), want, rtol=1e-12)
    c = want.T @ want / 16
    np.testing.assert_allclose(cross_correlation(jnp.asarray(z), jnp.asarray(z)), c, rtol=1e-12, atol=1e-15)
    _, terms = barlow_twins_loss(jnp.asarray(z), jnp.asarray(z), lambd=1.0)
    np.testing.assert_allclose(terms["on_diag"], ((1 - np.diagonal(c)) ** 2).sum(), rtol=1e-12)
