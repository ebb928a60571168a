"""The train step as TPUs and GPUs would run it, compiled without one: `make test-programs` installs and runs this."""

import compiled_steps
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from barlow_jax import sharding
from barlow_jax.planning import audit, compiled, hlo, machines

pytestmark = pytest.mark.programs

N, D = compiled_steps.N, compiled_steps.D
WHOLE = P()
# The probe's labels: one index a row, so that none collides.
DISTINCT = ("take_along_axis",)


@pytest.fixture(scope="module", params=compiled_steps.MACHINES)
def topology(request):
    if compiled_steps.missing(request.param):
        pytest.skip(compiled_steps.missing(request.param))
    return request.param


@pytest.fixture(scope="module")
def found(topology):
    """The instructions of the step."""
    return compiled_steps.program(topology)[1]


def test_the_loss_sums_nothing_of_size_n_by_d_or_d_by_d(found):
    assert not audit.reductions(found, N, D)


def test_no_gather_above_the_activations_and_the_kernels_of_the_backbone(found):
    activations = 2 * N * D * 2  # of both views, in bfloat16
    assert not audit.gathers(found, max(activations, compiled_steps.backbone_kernel()))


def test_no_convolution_in_float32(found):
    assert not audit.convolutions(found)


def test_no_scatter_with_indices_that_may_collide(found):
    assert not audit.scatters(found, allowed=DISTINCT)


def test_no_sort_of_large_arrays(found):
    assert not audit.sorts(found)


def test_the_figures_are_those_of_the_table(topology):
    committed = compiled_steps.committed(topology)
    versions = compiled_steps.versions(topology)
    if versions != committed.pop("compiled by"):
        pytest.skip(f"the table is of other compilers than {versions}; `make programs` writes it anew")
    here = compiled_steps.figures(*compiled_steps.program(topology))
    assert not compiled_steps.apart(here, committed), "if that is meant: make programs"


# What must not come back, planted.


@pytest.fixture(scope="module")
def compile_for(topology):
    """(function, [(shape, dtype, PartitionSpec)], PartitionSpec of the result) -> its instructions on that machine."""
    compiler = machines.compiler(machines.parse(topology))
    mesh = sharding.make_mesh(compiler.devices)

    def instructions(function, arrays, result=WHOLE):
        shapes = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype, _ in arrays]
        splits = tuple(NamedSharding(mesh, spec) for *_, spec in arrays)
        jitted = jax.jit(function, in_shardings=splits, out_shardings=NamedSharding(mesh, result))
        lowered = jitted.trace(*shapes).lower(lowering_platforms=(compiler.platform,))
        return hlo.instructions(lowered.compile().as_text())

    return instructions


def convolve(x, w):
    return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


@pytest.mark.parametrize(("dtype", "wrong"), [(jnp.float32, True), (jnp.bfloat16, False)])
def test_a_convolution_in_float32_is_seen(compile_for, dtype, wrong):
    def gradient(x, w):
        return jax.grad(lambda w: convolve(x, w).astype(jnp.float32).sum())(w)

    found = compile_for(gradient, [((64, 24, 24, 64), dtype, P("data")), ((3, 3, 64, 64), dtype, P())])
    assert bool(audit.convolutions(found)) == wrong


def test_a_cross_correlation_summed_over_the_devices_is_seen(compile_for):
    embeddings = ((N, D), jnp.float32, P("data"))
    found = compile_for(lambda z1, z2: z1.T @ z2, [embeddings, embeddings])
    assert audit.reductions(found, N, D)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_gathered_matrix_of_the_projector_is_seen(compile_for, dtype):
    found = compile_for(lambda w: 2 * w, [((D, D), dtype, P(None, "data"))])
    assert audit.gathers(found, max(2 * N * D * 2, compiled_steps.backbone_kernel()))


def test_a_sort_of_embeddings_is_seen(compile_for):
    found = compile_for(jnp.sort, [((N, D), jnp.float32, P("data"))], P("data"))
    assert audit.sorts(found)


def test_a_scatter_that_may_collide_is_seen(compile_for, topology):
    if not topology.startswith("gpu"):
        pytest.skip("a TPU adds up one after the other")

    def pooled(x):
        windows = ((1, 3, 3, 1), (1, 2, 2, 1))
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, *windows, "SAME").astype(jnp.float32).sum()

    image = ((64, 24, 24, 64), jnp.bfloat16, P("data"))
    assert audit.scatters(compile_for(jax.grad(pooled), [image], P("data")), DISTINCT)

    def added(x, index):
        return jnp.zeros((10, 64), x.dtype).at[index].add(x)

    assert audit.scatters(compile_for(added, [((N, 64), jnp.float32, P()), ((N,), jnp.int32, P())]), DISTINCT)


def test_two_slices_are_one_mesh_and_what_crosses_between_them_is_counted():
    """A sum over 16 devices of two slices: each sums with its slice, and hands an eighth to the network."""
    if not machines.has_libtpu():
        pytest.skip("libtpu is not installed")
    machine = machines.parse("2xv5e:2x4")
    mesh = sharding.make_mesh(machines.compiler(machine).devices)
    assert [device.slice_index for device in mesh.devices] == [0] * 8 + [1] * 8
    split, whole = sharding.by_example(mesh), sharding.replicated(mesh)
    summed = jax.jit(lambda x: x.sum(0), in_shardings=split, out_shardings=whole)
    cost = compiled.cost(summed.lower(jax.ShapeDtypeStruct((32, 2**20), jnp.float32)).compile())
    [transfer] = cost.between
    assert (transfer.kind, transfer.bytes) == ("all-reduce", 2**20 * 4 / 8)
