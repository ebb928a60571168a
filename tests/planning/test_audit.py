"""The checks of a train step's text: on texts, and on programs for simulated devices."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from barlow_jax import optim, sharding
from barlow_jax.planning import audit, hlo

STEP = """
%region_1 (a.1: bf16[], b.1: bf16[]) -> bf16[] {
  %a.1 = bf16[] parameter(0)
  %b.1 = bf16[] parameter(1)
  ROOT %c.1 = bf16[] add(%a.1, %b.1)
}

%fused_scatter (p.1: bf16[64,50,50,64], p.2: s32[900,4], p.3: bf16[900]) -> bf16[64,50,50,64] {
  %p.1 = bf16[64,50,50,64]{3,2,1,0} parameter(0)
  %p.2 = s32[900,4]{1,0} parameter(1)
  %p.3 = bf16[900]{0} parameter(2)
  ROOT %scatter.1 = bf16[64,50,50,64]{3,2,1,0} scatter(%p.1, %p.2, %p.3), update_window_dims={}, \
index_vector_dim=1, UNIQUEto_apply=%region_1, metadata={op_name="jit(train_step)/transpose(jvp())/NAME"}
}

ENTRY %main.1 (x: TYPE[32,48,48,64], w: TYPE[64,3,3,64], z: f32[256,2,1024]) -> f32[] {
  %x = TYPE[32,48,48,64]{3,2,1,0} parameter(0)
  %w = TYPE[64,3,3,64]{3,2,1,0} parameter(1)
  %z = f32[256,2,1024]{2,1,0} parameter(2)
  %k.1 = f32[64,1024]{1,0} parameter(3)
  %k.2 = bf16[32,1024]{1,0} parameter(4)
  %conv.1 = (TYPE[32,48,48,64]{3,2,1,0}, u8[0]{0}) custom-call(%x, %w), window={size=3x3 pad=1_1x1_1}, \
dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convForward", metadata={op_name="jit(train_step)/jvp()/\
conv_general_dilated"}
  %views.1 = f32[256,2,1024]{2,1,0} copy(%z), metadata={op_name="jit(train_step)/views/shard_map/mul"}
  %ar.1 = (f32[512]{0}, ARRAY{1,0}) all-reduce-start(%s.1, %s.2), channel_id=1, to_apply=%region_1
  %ar.2 = (f32[512]{0}, ARRAY{1,0}) all-reduce-done(%ar.1)
  %ag.1 = ((f32[64,1024]{1,0}, bf16[32,1024]{1,0}), (f32[512,1024]{1,0}, bf16[256,1024]{1,0})) \
all-gather-start(%k.1, %k.2), channel_id=2, dimensions={0}
  ROOT %sort.1 = f32[256,2,1024]{2,1,0} sort(%z), dimensions={2}, to_apply=%compare
}
"""


def program(dtype="bf16", array="bf16[256,1024]", unique="", name="select_and_scatter"):
    text = STEP
    for old, new in {"TYPE": dtype, "ARRAY": array, "UNIQUE": unique, "NAME": name}.items():
        text = text.replace(old, new)
    return hlo.instructions(text)


@pytest.mark.parametrize(
    ("array", "wrong"),
    [
        ("bf16[256,1024]", False),  # activations in 16 bits: the projector's, on TPUs
        ("f32[256,1024]", True),  # N x D: the loss's embeddings
        ("f32[2,128,1024]", True),  # under another shape
        ("f32[255,1024]", False),
        ("bf16[1024,1024]", True),  # D x D
        ("f32[1024,1024]", True),
    ],
)
def test_what_the_loss_must_not_sum(array, wrong):
    found = audit.reductions(program(array=array), n=256, d=1024)
    assert bool(found) == wrong
    assert all(array in sentence for sentence in found)


def test_every_array_of_a_gather_is_held_to_the_bound():
    kernel = 512 * 1024 * 4
    assert not audit.gathers(program(), kernel)
    (found,) = audit.gathers(program(), kernel - 1)
    assert "f32[512,1024]" in found and "2.1 MB" in found


def test_convolutions_in_float32():
    assert not audit.convolutions(program("bf16"))
    (found,) = audit.convolutions(program("f32"))
    assert "f32[32,48,48,64]" in found


def test_scatters_that_may_collide():
    assert audit.scatters(program())
    assert not audit.scatters(program(unique="unique_indices=true, "))
    named = program(name="take_along_axis/scatter-add")
    assert audit.scatters(named) and not audit.scatters(named, allowed=("take_along_axis",))


def test_large_sorts():
    assert audit.sorts(program())
    assert not audit.sorts(program(), limit=256 * 2 * 1024)


def test_the_share_of_a_scope():
    found = program()
    views = 2 * 256 * 2 * 1024 * 4
    assert audit.share(found, "views") == pytest.approx(views / sum(size for _, size in audit.counts.traffic(found)))
    assert audit.share(found, "view") == 0


@pytest.mark.parametrize(("norm", "gathered"), [(optim.norm, False), (lambda x: jnp.linalg.norm(x.ravel()), True)])
def test_the_norm_of_a_split_matrix_is_one_number_from_each_device(norm, gathered):
    """As LARS takes it of the projector's matrices; that of the flat array gathers them, in float32."""
    split = NamedSharding(sharding.make_mesh(), P(None, "data"))
    matrix = jax.ShapeDtypeStruct((256, 512), jnp.float32)
    text = jax.jit(norm, in_shardings=split).lower(matrix).compile().as_text()
    assert bool(audit.gathers(hlo.instructions(text), bound=0)) == gathered
