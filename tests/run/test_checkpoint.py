"""Checkpoints survive what happens to them: kills, full disks, damaged files, other machines, other models."""

import contextlib
import logging
import os
import pathlib
import resource
import shutil
import signal
import socket
import subprocess
import sys
from typing import Any, NamedTuple

import commands
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from barlow_jax.errors import UserError
from barlow_jax.run import checkpoint
from barlow_jax.run.checkpoint import Checkpoints, restore_params


class State(NamedTuple):
    step: Any
    params: Any
    batch_stats: Any
    opt_state: Any


def make_state(seed=0, *, width=6):
    """A small state with every kind of node a run has: masks, several transforms, numbers as keys."""
    draw = np.random.default_rng(seed).standard_normal
    params = {
        "backbone": {
            "conv1": {"kernel": jnp.asarray(draw((3, 3, 3, width)), jnp.float32)},
            "layer1": {i: {"scale": jnp.asarray(draw(width), jnp.float32)} for i in (0, 10, 2)},
        },
        "projector": {0: {"kernel": jnp.asarray(draw((width, 64)), jnp.float32)}},
    }

    def is_weight(tree):
        return jax.tree.map(lambda x: x.ndim > 1, tree)

    labels = jax.tree.map(lambda x: "weights" if x.ndim > 1 else "biases", params)
    tx = optax.chain(
        optax.masked(optax.add_decayed_weights(1e-6), is_weight),
        optax.masked(optax.scale_by_trust_ratio(trust_coefficient=1e-3), is_weight),
        optax.trace(0.9),
        optax.scale_by_schedule(lambda count: 1.0),
        optax.multi_transform({"weights": optax.sgd(0.2, momentum=0.9), "biases": optax.sgd(0.1)}, labels),
    )
    opt_state = tx.init(params)
    _, opt_state = tx.update(params, opt_state, params)
    batch_stats = {"backbone": {"bn1": {"mean": jnp.arange(width, dtype=jnp.float32)}}}
    return State(jnp.int32(seed), params, batch_stats, opt_state)


def with_string_keys(tree):
    return {str(k): with_string_keys(v) for k, v in tree.items()} if isinstance(tree, dict) else tree


def like(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def assert_same(read, expected):
    assert jax.tree.structure(read) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(read), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def saved_run(folder, steps=(1, 2, 3), **options):
    with Checkpoints(folder, **options) as checkpoints:
        for step in steps:
            assert checkpoints.save(step, make_state(step), {"config": {"size": (32, 32)}, "step": step})
    return folder


def folders(path):
    return sorted(entry.name for entry in path.iterdir())


def flip_bit(file, position=0.5):
    data = bytearray(file.read_bytes())
    data[int(len(data) * position)] ^= 4
    file.write_bytes(data)


def largest(folder):
    return max((f for f in (folder / "state").rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)


def test_state_comes_back_bitwise_with_its_structure_and_meta(tmp_path):
    saved_run(tmp_path)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 3
        state, meta = checkpoints.restore(like(make_state()))
        assert_same(state, make_state(3))
        assert isinstance(state, State)
        assert meta == {"config": {"size": [32, 32]}, "step": 3}
        assert_same(checkpoints.restore(like(make_state()), step=1)[0], make_state(1))
        assert not checkpoints.reached_preemption(3)


def test_saving_the_same_step_again_does_nothing(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.save(1, make_state(1))
        assert not checkpoints.save(1, make_state(2))
        assert_same(checkpoints.restore(like(make_state()))[0], make_state(1))


def test_state_may_be_donated_while_it_is_being_saved(tmp_path):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, P())
    add_one = jax.jit(lambda x: x + 1, donate_argnums=0, out_shardings=sharding)
    x = add_one(jax.device_put(jnp.zeros((1024, 1024)), sharding))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"params": x})
        for _ in range(10):
            x = add_one(x)
    params, _, _ = restore_params(tmp_path)
    np.testing.assert_array_equal(params, np.ones((1024, 1024)))


def test_shardings_are_those_of_the_new_run(tmp_path):
    values = np.arange(64, dtype=np.float32).reshape(16, 4)
    sharding = {}
    for devices in (8, 2):
        mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
        sharding[devices] = NamedSharding(mesh, P("data"))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"params": jax.device_put(values, sharding[8])})
        for wanted in (sharding[2], NamedSharding(sharding[2].mesh, P())):
            target = {"params": jax.ShapeDtypeStruct(values.shape, jnp.float32, sharding=wanted)}
            read = checkpoints.restore(target)[0]["params"]
            assert read.sharding == wanted
            np.testing.assert_array_equal(read, values)


def test_newest_and_best_are_kept(tmp_path):
    scores = {1: 0.2, 2: 0.6, 3: 0.6, 4: float("nan"), 5: 0.1, 6: None, 7: 0.5}
    for step, score in scores.items():  # a new run each time: the scores are read back
        with Checkpoints(tmp_path, keep=2, best_of="knn") as checkpoints:
            checkpoints.save(step, make_state(step), metrics={} if score is None else {"knn": score, "loss": step})
    assert folders(tmp_path) == ["3", "6", "7"]


def test_keeping_nothing_is_refused(tmp_path):
    with pytest.raises(UserError, match="take 1 or more"):
        Checkpoints(tmp_path, keep=0)


def test_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="take another work folder"):
        Checkpoints(tmp_path / "file")


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_damage_to_any_file_is_found(tmp_path, damage, caplog):
    """Orbax alone restores most flips silently: see `checkpoint`'s docstring."""
    saved_run(tmp_path, steps=(1, 2))
    files = [f for f in (tmp_path / "2").rglob("*") if f.is_file() and f.stat().st_size]
    assert len(files) > 8
    late = {tmp_path / "2" / name for name in ("_CHECKPOINT_METADATA", "commit_success.txt")}  # written after ours
    for file in files:
        whole = file.read_bytes()
        if damage == "flip":
            flip_bit(file, position=0.3)
        elif damage == "truncate":
            file.write_bytes(whole[:-1])
        else:
            file.unlink()
        caplog.clear()
        params, _, meta = restore_params(tmp_path)
        file.write_bytes(whole)
        used = 2 if file in late else 1
        assert meta["step"] == used, file
        assert_same(params, with_string_keys(jax.device_get(make_state(used).params)))
        if used == 1:
            assert file.name in caplog.text and str(tmp_path / "2") in caplog.text


def test_damaged_checkpoint_is_moved_aside_and_its_step_saved_anew(tmp_path, caplog):
    saved_run(tmp_path)
    flip_bit(largest(tmp_path / "3"))
    (tmp_path / "2" / "state" / "_METADATA").unlink()
    with Checkpoints(tmp_path) as checkpoints:
        with caplog.at_level(logging.WARNING):
            state, meta = checkpoints.restore(like(make_state()))
        assert_same(state, make_state(1))
        assert meta["step"] == 1
        assert "does not match its checksum" in caplog.text and "_METADATA is missing" in caplog.text
        assert folders(tmp_path) == ["1", "2.damaged", "3.damaged"]
        assert checkpoints.latest_step() == 1
        for step in (2, 3):
            assert checkpoints.save(step, make_state(step), {"step": step})
        assert_same(checkpoints.restore(like(make_state()))[0], make_state(3))


def test_all_damaged_is_an_error_and_nothing_is_moved(tmp_path):
    saved_run(tmp_path, steps=(1, 2))
    for step in ("1", "2"):
        flip_bit(largest(tmp_path / step))
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError, match="step 2: .*; step 1: .*begin again"):
        checkpoints.restore(like(make_state()))
    assert folders(tmp_path) == ["1", "2"]


def test_damaged_metrics_do_not_stop_a_run_from_starting(tmp_path):
    with Checkpoints(tmp_path, best_of="knn") as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, make_state(step), metrics={"knn": step})
    (tmp_path / "2" / "manifest.json").write_text("{")
    with Checkpoints(tmp_path, best_of="knn") as checkpoints:
        assert_same(checkpoints.restore(like(make_state()))[0], make_state(1))


def test_other_architecture_is_named(tmp_path):
    saved_run(tmp_path)
    with Checkpoints(tmp_path) as checkpoints:
        wider = make_state(width=7)
        expected = r"does not fit.*conv1\.kernel is float32\[3, 3, 3, 6\] there and float32\[3, 3, 3, 7\] here; use"
        with pytest.raises(UserError, match=expected):
            checkpoints.restore(like(wider))
        deeper = make_state()
        deeper.params["backbone"]["layer2"] = {0: {"scale": jnp.ones(6)}}
        with pytest.raises(UserError, match=r"layer2\.0\.scale is absent there and float32\[6\] here"):
            checkpoints.restore(like(deeper))
        shallower = make_state()
        del shallower.params["projector"]
        with pytest.raises(UserError, match=r"params\.projector\.0\.kernel is float32\[6, 64\] there and absent here"):
            checkpoints.restore(like(shallower))
        other_optimiser = make_state()._replace(opt_state=optax.sgd(0.1, momentum=0.9).init(make_state().params))
        with pytest.raises(UserError, match=r"opt_state"):
            checkpoints.restore(like(other_optimiser))
        half = make_state()._replace(batch_stats={"backbone": {"bn1": {"mean": jnp.ones(6, jnp.bfloat16)}}})
        with pytest.raises(UserError, match=r"bn1\.mean is float32\[6\] there and bfloat16\[6\] here"):
            checkpoints.restore(like(half))


def test_params_without_the_model(tmp_path):
    saved_run(tmp_path / "checkpoints")
    for path, step, expected in [
        (tmp_path, None, 3),
        (tmp_path / "checkpoints", None, 3),
        (tmp_path / "checkpoints" / "2", None, 2),
        (str(tmp_path), 1, 1),
    ]:
        params, batch_stats, meta = restore_params(path, step=step)
        assert meta["step"] == expected
        assert_same(params, with_string_keys(jax.device_get(make_state(expected).params)))
        assert_same(batch_stats, jax.device_get(make_state(expected).batch_stats))
        assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(params))


def test_nothing_to_restore(tmp_path):
    with pytest.raises(UserError, match=r"expected in .*nowhere, which holds none"):
        restore_params(tmp_path / "nowhere")
    with pytest.raises(UserError, match="which holds none"):
        restore_params(tmp_path)
    saved_run(tmp_path / "run")
    with pytest.raises(UserError, match=r"A checkpoint of step 9 .* holds steps \[1, 2, 3\]"):
        restore_params(tmp_path / "run", step=9)
    with Checkpoints(tmp_path / "other") as checkpoints:
        assert checkpoints.latest_step() is None
        with pytest.raises(UserError, match="which holds none"):
            checkpoints.restore(like(make_state()))
        checkpoints.save(1, {"weights": jnp.ones(3)})
    with pytest.raises(UserError, match=r"holds \['weights'\] and no params"):
        restore_params(tmp_path / "other")


def test_evaluation_does_not_touch_the_folder(tmp_path):
    saved_run(tmp_path)
    shutil.copytree(tmp_path / "3", tmp_path / "4.orbax-checkpoint-tmp")  # a save in progress, or half-written
    flip_bit(largest(tmp_path / "3"))
    before = folders(tmp_path)
    assert restore_params(tmp_path)[2]["step"] == 2
    assert folders(tmp_path) == before


@pytest.fixture
def full_disk():
    """No file may grow beyond 64 kB, which the operating system reports in the middle of a write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, hard))
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_full_disk_is_one_sentence_and_loses_nothing(tmp_path, full_disk):
    large = {"params": jnp.asarray(np.random.default_rng(0).standard_normal((300, 300)), jnp.float32)}
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, {"params": jnp.ones((300, 300))})
    checkpoints.save(2, large)
    with pytest.raises(UserError, match="step 2 could not be written.*File too large.*step 1 is still there") as error:
        checkpoints.wait()
    assert "\n" not in str(error.value)
    assert checkpoints.latest_step() == 1
    full_disk()  # space again
    np.testing.assert_array_equal(restore_params(tmp_path)[0], np.ones((300, 300)))
    assert checkpoints.save(2, large)
    checkpoints.close()
    assert folders(tmp_path) == ["2"]


def test_failed_save_does_not_hide_the_error_that_ends_the_run(tmp_path, full_disk, caplog):
    large = {"params": jnp.asarray(np.random.default_rng(0).standard_normal((300, 300)), jnp.float32)}
    with pytest.raises(FloatingPointError), Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, large)
        raise FloatingPointError
    assert "step 1 could not be written" in caplog.text


CHILD = """
import os, sys, signal
sys.path[:0] = [{root!r}, {root!r} + "/tests"]
import jax, jax.numpy as jnp
from barlow_jax import checkpoint
write = checkpoint._write_manifest
def killed(folder, meta, metrics):
    if meta["step"] == 2:
        os.kill(os.getpid(), signal.SIGKILL)  # the arrays are written, the folder is not yet in place
    write(folder, meta, metrics)
checkpoint._write_manifest = killed
with checkpoint.Checkpoints({folder!r}) as checkpoints:
    for step in (1, 2):
        checkpoints.save(step, {{"params": jnp.full(3, step)}}, {{"step": step}})
"""


def test_killed_while_saving(tmp_path):
    code = CHILD.format(root=str(commands.ROOT), folder=str(tmp_path))
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120)
    assert child.returncode == -signal.SIGKILL, child.stderr.decode()
    assert any(name.startswith("2.") for name in folders(tmp_path))
    assert restore_params(tmp_path)[2] == {"step": 1}
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 1
        assert checkpoints.save(2, {"params": jnp.full(3, 2)}, {"step": 2})
    assert folders(tmp_path) == ["1", "2"]


PROCESS = """
import os, sys, time
sys.path.insert(0, {root!r})
import jax, jax.numpy as jnp, numpy as np
jax.distributed.initialize("localhost:{port}", 2, int(sys.argv[1]))
from jax.experimental.multihost_utils import sync_global_devices
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from barlow_jax import checkpoint
mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
def state(step):
    spread = lambda v, spec: jax.make_array_from_callback(v.shape, NamedSharding(mesh, spec), lambda i: v[i])
    return {{"params": {{"w": spread(np.arange(64.0, dtype=np.float32) + step, P("data")),
                         "b": spread(np.full(3, step, np.float32), P())}}}}
like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state(0))
folder = {folder!r}
with checkpoint.Checkpoints(folder, keep=2) as checkpoints:
    for step in (1, 2, 3):
        checkpoints.save(step, state(step), {{"process_count": jax.process_count()}})
    checkpoints.wait()
    sync_global_devices("saved")
    if jax.process_index() == 0:
        os.remove(os.path.join(folder, "3", "state", "_METADATA"))
    sync_global_devices("damaged")
    read, meta = checkpoints.restore(like)
    assert meta == {{"process_count": 2}}
    for a, b in zip(jax.tree.leaves(read), jax.tree.leaves(state(2)), strict=True):
        for x, y in zip(a.addressable_shards, b.addressable_shards, strict=True):
            np.testing.assert_array_equal(x.data, y.data)
    params, _, _ = checkpoint.restore_params(folder)
    np.testing.assert_array_equal(params["w"], np.arange(64) + 2)
    print("ready", flush=True)
    for step in range(3, 6000):
        if checkpoints.reached_preemption(step):
            checkpoints.save(step, state(step))
            print("preempted", step, flush=True)
            break
        sync_global_devices("step")
        time.sleep(0.01)
"""


def test_two_processes_and_a_preemption_notice_to_one_of_them(tmp_path):
    folder = tmp_path / "checkpoints"
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    code = PROCESS.format(root=str(commands.ROOT), folder=str(folder), port=port)
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    with contextlib.ExitStack() as stack:
        running = []
        for i in range(2):
            errors = stack.enter_context((tmp_path / f"stderr{i}").open("w"))
            command = [sys.executable, "-c", code, str(i)]
            process = subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=errors)
            running.append(stack.enter_context(process))
            stack.callback(process.kill)
        for i, process in enumerate(running):
            ready = any("ready" in line for line in iter(process.stdout.readline, ""))
            assert ready, (tmp_path / f"stderr{i}").read_text()[-3000:]
        running[1].send_signal(signal.SIGTERM)
        ends = [process.communicate(timeout=60)[0].split() for process in running]
        assert [process.returncode for process in running] == [0, 0]
    assert ends[0][:1] == ["preempted"] and ends[0] == ends[1], ends
    assert {"2", "3.damaged", ends[0][1]} <= set(folders(folder))
    assert restore_params(folder)[0]["b"].tolist() == [float(ends[0][1])] * 3


def test_only_this_module_imports_orbax():
    others = [
        p for p in (commands.ROOT / "barlow_jax").rglob("*.py") if p.name != pathlib.Path(checkpoint.__file__).name
    ]
    assert others and not any("import orbax" in p.read_text() or "from orbax" in p.read_text() for p in others)
