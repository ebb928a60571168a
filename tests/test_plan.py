"""What `plan` says of a config, of a compiled program, and of machines that nobody here owns."""

import dataclasses
import importlib
import re
from types import SimpleNamespace

import commands
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from barlow_jax import plan, sharding
from barlow_jax.errors import UserError
from barlow_jax.planning import compiled, forecast, gpus, hlo, machines
from barlow_jax.results import published

PRETRAINING = commands.pretraining_configs()

TINY = {
    "arch": "convnet",
    "projector": (16, 32),
    "precision": "float32",
    "image_size": 24,
    "batch_size": 16,
}


def config_named(name, **changes):
    config = importlib.import_module(f"configs.{name}").get_config().unlock()
    for field, value in changes.items():
        config[field] = value
    return config.lock()


def images(config, canvas=32):
    return plan.Images(1000, 3, None, canvas, "made up")


# What a config means.


@pytest.mark.parametrize("name", PRETRAINING)
def test_every_config_has_a_meaning(name):
    config = config_named(name)
    plan.check(config)
    shown = plan.images_of(config, 0)
    text = "\n".join([*plan.settled(config, shown, ""), *plan.meaning(config, shown)])
    assert f"{config.optimizer.learning_rate_weights * config.batch_size / 256:g} " in text
    assert "product c" in text
    assert not published.unknown_fields(config), "a new field: say in published.py what the authors have there"


def test_the_published_run_in_figures():
    """626 steps, ResNet-50 without its classifier 23.5 M and 151 M of projector, and the three known departures."""
    config = config_named("barlow_twins")
    lines = plan.meaning(config, plan.images_of(config, 0))
    text = "\n".join(lines)
    assert "626 an epoch, 626,000 in 1000 epochs; warm-up 6,260" in text
    weights = next(line for line in lines if line.startswith("weights")).split()
    biases = next(line for line in lines if line.startswith("biases")).split()
    backbone, projector = 23_508_032, 2048 * 8192 + 2 * 8192**2 + 4 * 8192
    assert int(weights[2].replace(",", "")) + int(biases[2].replace(",", "")) == backbone + projector
    assert "1.6 " in " ".join(weights) and "0.0384" in biases
    departures = {row[0]: row[1:] for row in published.deviations(config)}
    assert departures["lambd"] == (0.0051, 0.0051, 0.005)
    assert departures["reference_world_size"] == (16, 16, 32)
    assert set(departures) == {
        "precision",
        "lambd",
        "optimizer.weight_decay",
        "reference_world_size",
        "data.last",
        "data.canvas",
    }


def test_a_checkpoint_is_as_large_as_the_state():
    config = config_named("demo", **TINY)
    _, state = plan.program(config, images(config))
    leaves = jax.tree.leaves(state)
    assert plan.nbytes(state) == sum(np.prod(leaf.shape, dtype=int) * leaf.dtype.itemsize for leaf in leaves)
    assert f"{plan.nbytes(state) / 1e6:.2f} MB each" in "\n".join(plan.meaning(config, images(config)))


def test_fields_that_the_optimizer_does_not_read_are_no_departures():
    fields = {row[0] for row in published.deviations(config_named("demo"))}
    assert "optimizer.eps" in fields and "optimizer.eta" not in fields


def test_an_order_of_blocks_is_told():
    config = importlib.import_module("configs.barlow_twins").get_config()
    images = plan.Images(10_000, 3, 1000, 224, "assumed")
    assert plan._order(config, images) == []
    config.data.block, config.data.window = 64, 32
    assert plan._order(config, images) == [
        "order         blocks of 64 images, 32 of them mixed (2,048 images): of the pairs in a batch 1 of 32 lies "
        "in one block"
    ]


def test_the_count_of_images_can_be_given():
    assert plan.images_of(config_named("barlow_twins"), 4096).count == 4096
    assert plan.images_of(config_named("demo"), 0).origin == "digits:train"


# Machines.


def test_topologies_by_name():
    v3, v4, cards, hosts = map(machines.parse, ("v3:4x4", "v4:2x2x4", "gpu:8xA100-40", "gpu:2x8xH100"))
    assert (v3.chips, v3.devices, v3.memory) == (16, 32, 16 * 2**30)  # two cores a chip, which share all
    assert (v4.chips, v4.devices, v4.memory) == (16, 16, 32 * 2**30)
    assert (cards.platform, cards.devices, cards.hosts, cards.bandwidth) == ("gpu", 8, 1, 1555e9)
    assert (hosts.devices, hosts.hosts, hosts.card) == (16, 2, "H100")
    slices = machines.parse("2xv5e:4x8")
    assert (slices.chips, slices.slices, slices.memory, v3.slices) == (64, 2, 16 * 2**30, 1)


@pytest.mark.parametrize(
    "topology",
    [
        "v9:2x2",
        "v5e",
        "v5e:0x4",
        "0xv9:2x2",
        "2x2xv5e:2x2",
        "gpu:8",
        "gpu:8xRTX",
        "gpu:0xH100",
        "gpu:0x8xH100",
        "8xH100",
    ],
)
def test_unknown_topologies_are_told_the_known(topology):
    with pytest.raises(UserError, match=rf"--topology={topology} .*v6e.*H200"):
        machines.parse(topology)


@pytest.mark.skipif(machines.has_libtpu(), reason="libtpu is installed")
def test_a_tpu_without_libtpu_asks_for_it():
    with pytest.raises(UserError, match="pip install libtpu"):
        machines.compiler(machines.parse("v5e:2x2"))


# Compiled programs.


def test_collectives_of_a_small_program():
    mesh = sharding.make_mesh()

    def local(x):  # [4, 16] on each of 8 devices
        total = jax.lax.psum(x[0], "data")  # 64 bytes
        whole = jax.lax.all_gather(x, "data", tiled=True)  # [32, 16]: 2048 bytes
        part = jax.lax.psum_scatter(whole * x[0], "data", scatter_dimension=0, tiled=True)  # of 2048 bytes
        turned = jax.lax.all_to_all(x, "data", split_axis=1, concat_axis=0, tiled=True)  # [32, 2]: 256 bytes
        return part + total, turned

    mapped = jax.shard_map(local, mesh=mesh, in_specs=P("data"), out_specs=P("data"))
    cost = compiled.cost(jax.jit(mapped).lower(jnp.ones((32, 16))).compile())
    found = {kind: total for kind, (_, total, _) in compiled.by_kind(cost.collectives).items()}
    assert found == {"all-gather": 2048, "all-reduce": 64, "reduce-scatter": 2048, "all-to-all": 256}
    assert {c.kind: c.wire for c in cost.collectives}["all-reduce"] == 128
    assert cost.arguments == 4 * 16 * 4


def test_collectives_in_the_words_of_a_tpu():
    """Layouts with tiles, tuples with comments, starts and ends apart, the all-reduce that scatters."""
    text = """
%all-reduce-scatter.1 (p.1: f32[8,128]) -> f32[1,128] {
  %p.1 = f32[8,128]{1,0:T(8,128)} parameter(0)
  %all-reduce.9 = f32[8,128]{1,0:T(8,128)} all-reduce(%p.1), channel_id=4, to_apply=%add
}

%fused_computation.2 (p.2: bf16[4,8]) -> bf16[32,8] {
  %p.2 = bf16[4,8]{1,0} parameter(0)
  %all-gather.7 = bf16[32,8]{1,0} all-gather(%p.2), channel_id=2, dimensions={0}
  ROOT %custom-call.1 = bf16[32,8]{1,0} custom-call(%p.2, %all-gather.7), custom_call_target="AsyncCollectiveDone"
}

ENTRY %main.1 (a: bf16[4,8], b: f32[2]) -> f32[2] {
  %a = bf16[4,8]{1,0:T(8,128)(2,1)} parameter(0)
  %b = f32[2]{0:T(128)} parameter(1)
  %all-reduce.1 = (bf16[4,8]{1,0:T(8,128)(2,1)}, /*index=1*/f32[2]{0:T(128)}) all-reduce(%a, %b), channel_id=1
  %all-gather-start.1 = (bf16[4,8]{1,0}, bf16[32,8]{1,0}) all-gather-start(%a), channel_id=2, dimensions={0}
  %all-gather-done.1 = bf16[32,8]{1,0} all-gather-done(%all-gather-start.1)
  ROOT %copy.1 = f32[2]{0} copy(%b), metadata={op_name="jit(train_step)/jvp()/add"}
}
"""
    found = hlo.instructions(text)
    kinds = {c.kind: (c.bytes, len(c.arrays)) for c in compiled.collectives(found)}
    assert kinds == {"all-reduce": (64 + 8, 2), "all-gather": (512, 1), "reduce-scatter": (4096, 1)}
    assert compiled.largest_arrays(found, 1)[0][:3] == (512, 1, "bf16[32,8]")
    assert (8, 2, "f32[2]", "all-reduce") in compiled.largest_arrays(found)


@pytest.fixture(scope="module")
def planned():
    """(config, images, machine, compiler, cost) of a tiny step for 8 GPUs; float32 gradients of 16 examples.

    Of the simulated devices, which every machine has; tests/planning/test_programs.py compiles for GPUs themselves.
    """
    config, machine = config_named("demo", **TINY, shard_params=False), machines.parse("gpu:8xH100")
    compiler = machines.simulated(machine, "this is a test")
    return config, images(config), machine, compiler, plan.compile_step(config, images(config), machine, compiler)


TRAIN = """
import importlib, pathlib, sys
import train
from barlow_jax import pretrain
from barlow_jax.run.signals import StopSignals

def lowered_and_left(method):
    def step(state, batch):
        pathlib.Path(sys.argv[1]).write_text(make_train_step(method).lower(state, batch).as_text())
        sys.exit()
    return step

make_train_step, pretrain.make_train_step = pretrain.make_train_step, lowered_and_left
config = importlib.import_module("configs.demo").get_config().unlock()
config.update({changes})
train.train(config, pathlib.Path(sys.argv[1]).parent, StopSignals())
"""


def functions(text):
    """The functions of a traced program, as text, but for the numbers that JAX gives to those of one name.

    What was traced before decides how many copies there are of a small one.
    """
    parts = re.split(r"(?m)^  (?=func\.func)", re.sub(r"(@\w+?)_\d+\b", r"\1", text))
    return {part.rstrip("}\n ") for part in parts}


def test_the_step_that_is_planned_is_the_step_of_train(tmp_path):
    """Word for word, as traced for eight devices: train.py's when it calls it, and plan's from shapes alone."""
    text = tmp_path / "step.txt"
    status, output = commands.run("-c", TRAIN.format(changes=TINY), text, devices=8)
    assert status == 0 and text.exists(), output

    def planned(**changes):
        config, mesh = config_named("demo", **TINY, **changes), sharding.make_mesh()
        shapes = plan.images_of(config, 0)
        return functions(plan.lowered(config, *plan.program(config, shapes, mesh), shapes).as_text())

    run = functions(text.read_text())
    assert len(run) > 20 and planned() == run
    for other in ({"lambd": 0.02}, {"on_nonfinite": "skip"}):
        assert planned(**other) != run, f"the comparison does not see {other}"


def test_the_forecast_of_a_tiny_step(planned):
    config, shapes, machine, compiler, cost = planned
    _, state = plan.program(config, shapes)
    batch = 2 * 32 * 32 * 3 + 2 * (2 * 4 * 4 + 4)  # canvas, boxes and label of 2 examples; the step reads no index
    assert cost.arguments == pytest.approx(plan.nbytes(state) + batch, rel=1e-3)
    reduced = compiled.by_kind(cost.collectives)["all-reduce"][1]
    assert plan.nbytes(state.params) < reduced < 1.2 * plan.nbytes(state.params)
    text = "\n".join(forecast.describe(config, 62, machine, compiler, cost, 900.0))
    for word in (
        "as this is a test",
        "ESTIMATE",
        "3350 GB/s",
        "upper bounds, not forecasts",
        "all-reduce",
        "host cores",
        "hours an epoch",
    ):
        assert word in text


def test_what_crosses_between_slices_is_told_by_kind():
    sent = [("all-reduce", 1000.0), ("all-reduce", 2e6), ("all-gather", 4e6)]
    transfers = tuple(compiled.Collective(kind, "", nbytes, (), "") for kind, nbytes in sent)
    lines = [line.strip() for line in forecast._between(SimpleNamespace(between=transfers), "chip")]
    assert lines[0].startswith("between slices 6.00 MB from each chip, in 3 transfers: not reckoned with")
    assert lines[1] == "all-gather 4.00 MB in 1, none above 4.00 MB; all-reduce 2.00 MB in 2, none above 2.00 MB"


def test_the_roofline_is_the_peak_rates(planned):
    _, _, machine, _, cost = planned
    seconds = forecast.roofline(machine, dataclasses.replace(cost, flops=989e12, accessed=2 * 3350e9, collectives=()))
    assert seconds == {"compute": 1.0, "memory": 2.0, "network": 0.0, "step": 2.0}


def test_too_little_memory_says_what_to_change(planned):
    config, _, machine, _, cost = planned
    forecast.check_fits(config, machine, cost)

    def with_memory(memory):
        chip = dataclasses.replace(machine.chip, memory=memory / machines.GPU_SHARE)
        return dataclasses.replace(machine, chip=chip)

    between = (cost.arguments + cost.memory) / 2
    with pytest.raises(UserError, match="does not fit on gpu:8xH100.*more chips or lower config.batch_size"):
        forecast.check_fits(config, with_memory(between), cost)
    with pytest.raises(UserError, match="the state alone takes.*config.projector"):
        forecast.check_fits(config, with_memory(cost.arguments / 2), cost)


def test_a_state_that_is_too_large_is_not_even_compiled():
    config = config_named("barlow_twins", projector=(65536, 65536, 65536), shard_params=False)
    machine = machines.parse("gpu:8xA100-40")
    with pytest.raises(UserError, match=r"the state alone takes 70.00 GB of the 32.21 GB of every chip"):
        plan.compile_step(config, plan.images_of(config, 0), machine, machines.simulated(machine, "this is a test"))


@pytest.mark.slow
def test_the_command_exits_with_1_where_it_does_not_fit():
    flags = ["--config=configs/demo.py", "--config.projector=(8,8)", "--config.image_size=12", "--config.batch_size=64"]
    status, output = commands.run("-m", "barlow_jax.plan", *flags, "--topology=gpu:2xV100", "--memory=0.004")
    assert status == 1
    assert re.search(r"^error: It does not fit on gpu:2xV100: a chip needs .* and has 3.00 MB", output, re.M), output
    assert "time  " in output  # the forecast is printed all the same


@pytest.mark.skipif(not machines.has_libtpu(), reason="libtpu, the TPU compiler, is not installed: pip install libtpu")
def test_a_tpu_step_compiles_without_a_tpu():
    config = config_named("demo", **TINY)
    machine = machines.parse("v5e:2x2")
    cost = plan.compile_step(config, images(config), machine, machines.compiler(machine))
    assert cost.optimal_seconds > 0 and cost.flops > 0
    assert "all-reduce" in compiled.by_kind(cost.collectives)
    forecast.check_fits(config, machine, cost)
    with pytest.raises(UserError, match="no slice that libtpu knows.*3x5"):
        machines.compiler(machines.parse("v5e:3x5"))


@pytest.mark.skipif(not gpus.plugin(), reason="JAX's CUDA plugin is not installed: " + gpus.INSTALL.format("(JAX's)"))
def test_a_gpu_step_compiles_without_a_gpu():
    config, machine = config_named("demo", **TINY), machines.parse("gpu:2x2xV100")
    compiler = machines.compiler(machine)
    assert compiler.platform == "cuda" and len(compiler.devices) == 4
    assert len({device.process_index for device in compiler.devices}) == 2  # hosts
    cost = plan.compile_step(config, images(config), machine, compiler)
    assert cost.flops > 0 and cost.accessed > cost.temporaries > 0
    assert "all-reduce" in compiled.by_kind(cost.collectives)
    text = "\n".join(forecast.describe(config, 62, machine, compiler, cost, 900.0))
    assert "for the card itself, Tesla V100-SXM2-32GB of compute capability 7.0" in text and "between hosts" in text
    forecast.check_fits(config, machine, cost)
