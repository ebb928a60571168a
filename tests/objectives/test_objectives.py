"""Every objective against formulas written down once more in numpy, float64: values, and gradients by differences."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from programs import precisions

from barlow_jax import sharding
from barlow_jax.loss import barlow_twins_loss
from barlow_jax.objectives import OBJECTIVES, lejepa, mixed, over_pairs, stopped
from barlow_jax.planning import compiled, hlo

N, D = 12, 7


def correlation(z1, z2, n=None):
    """Equation 2, with the epsilon of the official BatchNorm."""
    u1, u2 = ((z - z.mean(0)) / np.sqrt(z.var(0) + 1e-5) for z in (z1, z2))
    return u1.T @ u2 / (n or len(z1))


def diagonals(c):
    off = c[~np.eye(len(c), dtype=bool)]
    return ((1 - np.diag(c)) ** 2).sum(), off


def invariance_only(z1, z2, n=None):
    return diagonals(correlation(z1, z2, n))[0]


def redundancy_only(z1, z2, n=None, *, lambd):
    return lambd * (diagonals(correlation(z1, z2, n))[1] ** 2).sum()


def feature_normalized(z1, z2, n=None, *, lambd):
    u1, u2 = ((z - z.mean(0)) / np.sqrt(z.var(0) + 1e-5) for z in (z1, z2))
    u1, u2 = (u / np.linalg.norm(u, axis=1, keepdims=True) for u in (u1, u2))
    on, off = diagonals(sum(np.outer(a, b) for a, b in zip(u1, u2, strict=True)))
    return on + lambd * (off**2).sum()


def cross_covariance(z1, z2, n=None, *, lambd):
    scale = (len(z1) - 1) / (n or len(z1))
    c = scale * np.cov(z1, z2, rowvar=False)[: z1.shape[1], z1.shape[1] :]
    on, off = diagonals(c)
    return on + lambd * (off**2).sum()


def cross_entropy(z1, z2, n=None, *, temperature, lambd):
    c = correlation(z1, z2, n)
    off = np.maximum(diagonals(c)[1], 0)
    return -np.log(np.exp(np.diag(c) / temperature).sum()) + lambd * np.log(np.exp(off / temperature).sum())


def hsic(z1, z2, n=None, *, lambd):
    on, off = diagonals(correlation(z1, z2, n))
    return on + lambd * ((1 + off) ** 2).sum()


def mixed_barlow_twins(z1, z2, zm, n=None, *, lambd, weight):
    a, partner = SHARE, [(b - 1) % len(z1) for b in range(len(z1))]
    on, off = diagonals(correlation(z1, z2, n))
    both = functools.partial(correlation, n=n)
    # C^MA and C^MB of the paper, and what they should be.
    shuffled = z2[partner]
    ma = both(zm, z1) - a * both(z1, z1) - (1 - a) * both(shuffled, z1)
    mb = both(zm, z2) - a * both(z1, z2) - (1 - a) * both(shuffled, z2)
    return on + lambd * (off**2).sum() + weight * lambd * ((ma**2).sum() + (mb**2).sum()) / 2


def vicreg(z1, z2, n=None, *, invariance, variance, covariance):
    rows, d = z1.shape
    similarity = ((z1 - z2) ** 2).mean()
    spread, products = 0.0, 0.0
    for z in (z1, z2):
        spread += np.maximum(0, 1 - np.sqrt(z.var(0, ddof=1) + 1e-4)).mean() / 2
        c = np.cov(z, rowvar=False) * (rows - 1) / ((n or rows) - 1)
        products += (diagonals(c)[1] ** 2).sum() / d
    return invariance * similarity + variance * spread + covariance * products


def nt_xent(z1, z2, n=None, *, temperature):
    u = np.concatenate([z / np.linalg.norm(z, axis=1, keepdims=True) for z in (z1, z2)])
    s, i = np.exp(u @ u.T / temperature), np.arange(2 * len(z1))
    return -np.mean(np.log(s[i, (i + len(z1)) % (2 * len(z1))] / (s.sum(1) - s[i, i])))


def sigreg(*views, n=None, large=None, lambd, slices):
    a = np.asarray(lejepa.directions(KEY, views[0].shape[1], slices, jnp.float64))
    centre, t = np.mean(views[:large], axis=0), np.linspace(-5, 5, 17)
    invariance = np.stack([(z - centre) ** 2 for z in views]).mean()
    window, tests = np.exp(-(t**2) / 2), []
    for z in views:
        phi = np.exp(1j * (z @ a)[:, :, None] * t).mean(0)
        tests.append(len(z) * np.trapezoid(np.abs(phi - window) ** 2 * window, t))
    return (1 - lambd) * invariance + lambd * np.mean(tests)


KEY = jax.random.key(3)
SHARE = float(mixed.share(KEY))
LAMBD = {"lambd": 0.03}
CASES = {
    "invariance_only": (invariance_only, {}),
    "redundancy_only": (redundancy_only, LAMBD),
    "feature_normalized": (feature_normalized, LAMBD),
    "cross_covariance": (cross_covariance, LAMBD),
    "cross_entropy": (cross_entropy, {"temperature": 0.2, "lambd": 0.7}),
    "hsic": (hsic, LAMBD),
    "mixed_barlow_twins": (mixed_barlow_twins, LAMBD | {"weight": 3.0}),
    "vicreg": (vicreg, {"invariance": 25.0, "variance": 25.0, "covariance": 1.0}),
    "nt_xent": (nt_xent, {"temperature": 0.3}),
    "lejepa": (sigreg, {"lambd": 0.05, "slices": 5}),
}


def embeddings(name, n=N, d=D, seed=0, more=0):
    """Views that are alike, of dimensions that are correlated and of unequal scales."""
    rng = np.random.default_rng(seed)
    base, mix = rng.normal(size=(1, n, d)), np.eye(d) + 0.4 * rng.normal(size=(d, d))
    z = (base + 0.6 * rng.normal(size=(2 + (name == "mixed_barlow_twins") + more, n, d))) @ mix
    return [*(0.3 + 0.7 * z * np.linspace(0.4, 1.3, d))]


def in_form(name, form):
    """The form, of those that have two. Both are held to each other on any number of devices in test_loss.py."""
    return form if "form" in OBJECTIVES[name].reads else None


def objective(name, form=None, **more):
    options = CASES[name][1] | ({"form": form} if form else {}) | ({"key": KEY} if OBJECTIVES[name].draws else {})
    return functools.partial(OBJECTIVES[name].loss, **options, **more)


def value_and_grad(name, form=None, **more):
    def of(z):
        return objective(name, form, **more)(*z)

    return jax.jit(jax.value_and_grad(of, has_aux=True))


def differences(function, z, step=1e-5):
    """The gradient of a function of several arrays, by central differences."""
    found = [np.zeros_like(one) for one in z]
    for one, gradient in zip(z, found, strict=True):
        for place in np.ndindex(one.shape):
            kept = one[place]
            values = []
            for moved in (kept + step, kept - step):
                one[place] = moved
                values.append(function(*z))
            one[place] = kept
            gradient[place] = (values[0] - values[1]) / (2 * step)
    return found


def test_every_objective_has_a_reference():
    assert CASES.keys() | {"barlow_twins"} == OBJECTIVES.keys()  # barlow_twins has the official code's, in test_loss.py


def assert_as_numpy(got, name, z, n=None):
    """(loss, terms), gradient against the reference."""
    reference, options = CASES[name]
    want = functools.partial(reference, n=n, **options)
    (value, terms), gradient = got
    np.testing.assert_allclose(value, want(*z), rtol=1e-11)
    for one, expected in zip(gradient, differences(want, z), strict=True):
        np.testing.assert_allclose(one, expected, rtol=1e-6, atol=1e-7 * np.abs(expected).max())
    assert {*terms} == {*OBJECTIVES[name].terms} and all(np.isfinite(term) for term in terms.values())


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_are_those_of_numpy(x64, name):
    """On one device, in the dual form, of an epoch's smaller last batch, whose sums are divided by the nominal size."""
    z = embeddings(name)
    assert_as_numpy(value_and_grad(name, in_form(name, "dual"), batch_size=N + 4)(z), name, z, N + 4)


@pytest.mark.parametrize("name", CASES)
def test_on_eight_devices_in_the_direct_form_too(x64, name):
    z = embeddings(name, 16, 8)
    mesh = sharding.make_mesh()
    split = jax.device_put(z, NamedSharding(mesh, P("data")))
    assert_as_numpy(value_and_grad(name, in_form(name, "direct"), mesh=mesh)(split), name, z)


@pytest.mark.parametrize("name", ["cross_entropy", "nt_xent"])
def test_where_the_devices_divide_neither_rows_nor_columns(x64, name):
    z = embeddings(name)
    assert_as_numpy(value_and_grad(name, mesh=sharding.make_mesh())(z), name, z)


def test_terms_and_weights_make_the_loss(x64):
    """What is shown is before the weights."""

    @jax.jit
    def all_of_them(z):
        return {name: objective(name)(*z) for name in ("vicreg", "lejepa", "hsic")}

    found = all_of_them(embeddings("vicreg"))
    for name, weights in {
        "vicreg": {"invariance": 25, "variance": 25, "covariance": 1},
        "lejepa": {"invariance": 0.95, "sigreg": 0.05},
        "hsic": {"on_diag": 1, "off_diag": 0.03},
    }.items():
        loss, terms = found[name]
        np.testing.assert_allclose(loss, sum(weight * terms[term] for term, weight in weights.items()))


@pytest.mark.parametrize("name", CASES)
def test_bfloat16_embeddings_are_promoted_and_products_asked_for_in_full(name):
    def program(dtype):
        z = [jax.ShapeDtypeStruct((N, D), dtype)] * len(embeddings(name))
        return jax.make_jaxpr(jax.value_and_grad(lambda z: objective(name)(*z), has_aux=True))(z)

    (loss, *terms), gradient = (lambda out: (out[: -len(embeddings(name))], out[-1]))(program(jnp.bfloat16).out_avals)
    assert {x.dtype for x in (loss, *terms)} == {jnp.dtype(jnp.float32)} and gradient.dtype == jnp.bfloat16
    asked = precisions(program(jnp.float32))
    assert set(asked) <= {jax.lax.Precision.HIGHEST}
    assert bool(asked) == (name != "invariance_only")  # which multiplies no matrices


def test_embeddings_that_are_all_alike_have_a_finite_gradient():
    """A collapse, which these objectives are studied for: no length and no spread."""

    @jax.jit
    def all_of_them(z):
        return {name: value_and_grad(name)(z) for name in ("feature_normalized", "nt_xent", "vicreg", "cross_entropy")}

    found = all_of_them([jnp.zeros((8, 6))] * 2)
    assert not [name for name, one in found.items() if not all(np.isfinite(x).all() for x in jax.tree.leaves(one))]


def test_a_small_temperature_loses_nothing(x64):
    """exp(c / t) itself is 1e434 here."""
    z1, z2 = map(jnp.asarray, embeddings("cross_entropy"))
    loss, _ = jax.jit(functools.partial(OBJECTIVES["cross_entropy"].loss, temperature=0.001, lambd=1.0))(z1, z2)
    c = correlation(np.asarray(z1), np.asarray(z2))
    want = (diagonals(c)[1].max() - np.diag(c).max()) / 0.001
    assert abs(float(loss) - want) < np.log(D * D)


def test_all_reduces_are_small_where_the_objective_allows_it():
    """Nothing of the size of the embeddings is gathered for the diagonal or the characteristic functions."""
    n, d = 64, 256
    for name, largest in (("invariance_only", d), ("lejepa", 2 * 5 * 8 * 2)):
        mesh = sharding.make_mesh()
        z = jax.device_put([np.ones((n, d), np.float32)] * 2, NamedSharding(mesh, P("data")))
        text = value_and_grad(name, mesh=mesh).lower(z).compile().as_text()
        found = compiled.collectives(hlo.instructions(text))
        assert found and {c.kind for c in found} == {"all-reduce"}
        assert max(c.bytes for c in found) <= 4 * 2 * largest, name


def test_the_test_of_epps_and_pulley_tells_a_normal_sample(x64):
    rng = np.random.default_rng(0)
    normal, uniform = rng.normal(size=(2000, 1)), rng.uniform(-(3**0.5), 3**0.5, (2000, 1))
    few, many = jax.jit(lejepa.epps_pulley)(np.stack([normal, uniform]))[:, 0]
    assert few < 1 < 5 < many
    np.testing.assert_allclose(jnp.linalg.norm(lejepa.directions(KEY, 6, 9, jnp.float64), axis=0), 1, rtol=1e-12)


# More than two views.


def barlow_twins(z1, z2, *, lambd):
    on, off = diagonals(correlation(z1, z2))
    return on + lambd * (off**2).sum()


@pytest.mark.parametrize(("devices", "number", "large"), [(8, 3, None), (1, 4, None), (1, 4, 2)])
def test_of_more_views_the_mean_over_pairs_or_all_at_once(x64, devices, number, large):
    """Value, and gradient along a direction, against numpy; what is pairwise of each pair, LeJEPA of all views.

    With small views: each large one with every other view, in a plain loop, and LeJEPA's centre of the large ones.
    """
    references = {"lejepa": CASES["lejepa"], "barlow_twins": (barlow_twins, LAMBD)}
    mesh, z = sharding.make_mesh(jax.devices()[:devices]), embeddings("", 16, 8, more=number - 2)

    def ours(name):
        draws = {"key": KEY} if OBJECTIVES[name].draws else {}
        one = functools.partial(OBJECTIVES[name].loss, **references[name][1], **draws, mesh=mesh)
        return over_pairs(one, large) if OBJECTIVES[name].pairwise else functools.partial(one, large=large)

    def numpys(name, *z):
        reference = functools.partial(references[name][0], **references[name][1])
        if name == "lejepa":
            return reference(*z, large=large)
        if large is None:
            return np.mean([reference(one, other) for one, other in itertools.combinations(z, 2)])
        return np.mean([reference(z[i], z[k]) for i in range(large) for k in range(number) if i != k])

    @jax.jit
    def all_of_them(z):
        return {name: jax.value_and_grad(lambda z, n=name: ours(n)(*z), has_aux=True)(z) for name in references}

    assert [name for name, one in OBJECTIVES.items() if not one.pairwise] == ["mixed_barlow_twins", "lejepa"]
    towards = [np.random.default_rng(k).normal(size=one.shape) for k, one in enumerate(z)]
    found = all_of_them(jax.device_put(z, NamedSharding(mesh, P("data"))))
    for name, ((value, terms), gradient) in found.items():
        np.testing.assert_allclose(value, numpys(name, *z), rtol=1e-11)
        ahead, back = ([one + h * way for one, way in zip(z, towards, strict=True)] for h in (1e-6, -1e-6))
        want = (numpys(name, *ahead) - numpys(name, *back)) / 2e-6
        along = sum((np.asarray(one) * way).sum() for one, way in zip(gradient, towards, strict=True))
        np.testing.assert_allclose(along, want, rtol=1e-6)
        assert {*terms} == {*OBJECTIVES[name].terms}


# Table 6.


def test_a_stopped_branch_gets_no_gradient_and_the_other_its_own(x64):
    z1, z2 = map(jnp.asarray, embeddings("barlow_twins"))
    plain = functools.partial(barlow_twins_loss, lambd=0.01)
    both = jax.jit(jax.grad(lambda z: plain(*z)[0]))([z1, z2])
    one = jax.jit(jax.grad(lambda z: stopped(plain)(*z)[0]))([z1, z2])
    np.testing.assert_allclose(one[0], both[0], rtol=1e-12)
    assert not one[1].any() and both[1].any()
