"""What a program moves and computes, counted from its text: by hand, and against XLA where it counts too."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from barlow_jax import sharding
from barlow_jax.planning import compiled, counts, hlo

# In the words of a GPU's program: a loop, a fusion that reads a slice, one that writes one, cuDNN, cuBLAS, a gather.
GPU = """
%fused_slice (p.1: f32[100,64], p.2: s32[]) -> f32[4,64] {
  %p.1 = f32[100,64]{1,0} parameter(0)
  %b.1 = f32[1,100,64]{2,1,0} bitcast(%p.1)
  %p.2 = s32[] parameter(1)
  %c.1 = s32[] constant(0)
  %s.1 = f32[1,4,64]{2,1,0} dynamic-slice(%b.1, %c.1, %p.2, %c.1), dynamic_slice_sizes={1,4,64}
  %b.2 = f32[4,64]{1,0} bitcast(%s.1)
  ROOT %m.1 = f32[4,64]{1,0} multiply(%b.2, %b.2)
}

%fused_write (p.3: f32[100,64], p.4: f32[4,64], p.5: s32[]) -> f32[100,64] {
  %p.3 = f32[100,64]{1,0} parameter(0)
  %p.4 = f32[4,64]{1,0} parameter(1)
  %p.5 = s32[] parameter(2)
  %c.2 = s32[] constant(0)
  ROOT %u.1 = f32[100,64]{1,0} dynamic-update-slice(%p.3, %p.4, %p.5, %c.2)
}

%body.1 (t.1: (s32[], f32[100,64])) -> (s32[], f32[100,64]) {
  %t.1 = (s32[], f32[100,64]{1,0}) parameter(0)
  %g.1 = s32[] get-tuple-element(%t.1), index=0
  %g.2 = f32[100,64]{1,0} get-tuple-element(%t.1), index=1
  %f.1 = f32[4,64]{1,0} fusion(%g.2, %g.1), kind=kLoop, calls=%fused_slice
  %f.2 = f32[100,64]{1,0} fusion(%g.2, %f.1, %g.1), kind=kLoop, calls=%fused_write
  ROOT %t.2 = (s32[], f32[100,64]{1,0}) tuple(%g.1, %f.2)
}

%condition.1 (t.3: (s32[], f32[100,64])) -> pred[] {
  %t.3 = (s32[], f32[100,64]{1,0}) parameter(0)
  ROOT %c.3 = pred[] constant(false)
}

ENTRY %main.1 (a: bf16[2,8,8,16], w: bf16[32,3,3,16], x: f32[100,64]) -> bf16[2,8,8,32] {
  %a = bf16[2,8,8,16]{3,2,1,0} parameter(0)
  %w = bf16[32,3,3,16]{3,2,1,0} parameter(1)
  %x = f32[100,64]{1,0} parameter(2)
  %c.4 = s32[] constant(0)
  %t.4 = (s32[], f32[100,64]{1,0}) tuple(%c.4, %x)
  %w.1 = (s32[], f32[100,64]{1,0}) while(%t.4), condition=%condition.1, body=%body.1
  %conv.1 = (bf16[2,8,8,32]{3,2,1,0}, u8[0]{0}) custom-call(%a, %w), window={size=3x3 pad=1_1x1_1}, \
dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convForward"
  %y.1 = bf16[2,8,8,32]{3,2,1,0} get-tuple-element(%conv.1), index=0
  %conv.2 = (bf16[2,8,8,16]{3,2,1,0}, u8[0]{0}) custom-call(%y.1, %w), window={size=3x3 pad=1_1x1_1}, \
dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardInput"
  %conv.3 = (bf16[32,3,3,16]{3,2,1,0}, u8[0]{0}) custom-call(%a, %y.1), window={size=3x3 pad=1_1x1_1}, \
dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardFilter"
  %mm.1 = (f32[100,100]{1,0}, s8[64]{0}) custom-call(%x, %x), custom_call_target="__cublas$gemm", \
backend_config={"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["1"]}}
  %ag.1 = (f32[100,64]{1,0}, f32[800,64]{1,0}) all-gather-start(%x), channel_id=1, dimensions={0}
  %ag.2 = f32[800,64]{1,0} all-gather-done(%ag.1)
  ROOT %r.1 = bf16[2,8,8,32]{3,2,1,0} copy(%y.1)
}
"""
SLICE, WHOLE = 4 * 64 * 4, 100 * 64 * 4
INPUTS, WEIGHTS, OUTPUTS = 2 * 64 * 16 * 2, 32 * 9 * 16 * 2, 2 * 64 * 32 * 2


def test_the_bytes_of_a_gpus_program():
    moved = {i.name: size for i, size in counts.traffic(hlo.instructions(GPU))}
    convolution = INPUTS + WEIGHTS + OUTPUTS
    assert moved == {
        "f.1": SLICE + 4 + SLICE,  # of the large array the slice alone; the index
        "f.2": SLICE + 4 + SLICE,  # into the large array
        "conv.1": convolution,
        "conv.2": convolution,
        "conv.3": convolution,
        "mm.1": 2 * WHOLE + 4 * 100 * 100,  # its scratch memory is no traffic
        "ag.1": WHOLE + 8 * WHOLE,
        "r.1": 2 * OUTPUTS,
    }


def test_the_flops_of_a_gpus_program():
    convolution = 2 * (2 * 64 * 32) * (9 * 16)  # outputs x window x channels, the same for both gradients
    assert counts.flops(hlo.instructions(GPU)) == 3 * convolution + 2 * 100 * 100 * 64


def test_names_are_of_their_computation():
    """A loop's body may hold names that the program has too."""
    text = GPU.replace("%g.2 = f32[100,64]{1,0} get", "%y.1 = f32[100,64]{1,0} get").replace("(%g.2,", "(%y.1,")
    moved = {i.name: size for i, size in counts.traffic(hlo.instructions(text))}
    assert moved["f.1"] == 2 * SLICE + 4 and moved["r.1"] == 2 * OUTPUTS


@pytest.fixture(scope="module")
def trained():
    """A compiled step of a small network on 8 devices, for which XLA counts as well."""
    mesh = sharding.make_mesh()

    def loss(parameters, x):
        kernel, matrix = parameters
        x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return jnp.sum(jax.nn.relu(x).mean((1, 2)) @ matrix)

    shapes = ((16, 12, 12, 8), (3, 3, 8, 32), (32, 64))
    x, kernel, matrix = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
    split = NamedSharding(mesh, P("data"))
    step = jax.jit(jax.grad(loss), in_shardings=(None, split))
    return step.lower((kernel, matrix), x).compile()


def test_as_many_as_xla_counts(trained):
    counted, found = trained.cost_analysis(), hlo.instructions(trained.as_text())
    forward = 2 * 2 * (10 * 10 * 32) * (9 * 8)  # two examples on each device
    assert counts.flops(found) == pytest.approx(2 * forward + 4 * 2 * 32 * 64, rel=0.02)  # no gradient of the input
    assert counts.flops(found) == pytest.approx(counted["flops"], rel=0.05)
    assert sum(size for _, size in counts.traffic(found)) == pytest.approx(counted["bytes accessed"], rel=0.1)


def test_a_program_that_nobody_counts_is_counted_here(trained):
    class Uncounted:
        memory_analysis, as_text = trained.memory_analysis, trained.as_text

        def cost_analysis(self):
            return None  # as of a GPU's that was compiled without one

    cost, known = compiled.cost(Uncounted()), compiled.cost(trained)
    assert cost.flops == pytest.approx(known.flops, rel=0.05)
    assert cost.accessed == pytest.approx(known.accessed, rel=0.1)
    assert cost.optimal_seconds is None and cost.temporaries == known.temporaries
