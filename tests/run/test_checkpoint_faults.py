"""Checkpoints survive what happens to them: damaged files, full disks, kills, a notice to one of two processes."""

import asyncio
import gc
import json
import logging
import re
import shutil
import signal
import zlib

import commands
import foreign_json
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_states import assert_same, folders, like, make_state, saved_run, with_string_keys

from barlow_jax.errors import UserError
from barlow_jax.run.checkpoint import Checkpoints, restore_params
from barlow_jax.run.quiet import hide_tracebacks


def flip_bit(file, position=0.5):
    data = bytearray(file.read_bytes())
    data[int(len(data) * position)] ^= 4
    file.write_bytes(data)


def largest(folder):
    return max((f for f in (folder / "state").rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)


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


def sealed(content):
    """A manifest with the checksum that it asks for."""
    return json.dumps(content | {"crc32": zlib.crc32(json.dumps(content, sort_keys=True).encode())}).encode()


def test_manifests_of_others(tmp_path):
    """Whatever stands in the place of one: the checkpoint is damaged, and the one before it is used."""
    saved_run(tmp_path, steps=(1, 2))
    parts = json.loads((tmp_path / "2" / "manifest.json").read_bytes())
    del parts["crc32"]
    foreign = [sealed(parts | {part: value}) for part in parts for value in ([], None, 3, "x")]
    foreign += [sealed({k: v for k, v in parts.items() if k != part}) for part in parts] + [sealed({})]
    foreign += [sealed(parts | {"files": {"state": value}}) for value in (None, [], [1], {}, ["a", "b"])]
    for content in (*foreign_json.NO_OBJECTS, *foreign):
        (tmp_path / "2" / "manifest.json").write_bytes(content)
        assert restore_params(tmp_path)[2]["step"] == 1, content[:80]
    with Checkpoints(tmp_path, best_of="knn") as checkpoints:
        assert checkpoints.latest_step() == 2
    (tmp_path / "2" / "manifest.json").write_bytes(foreign[0])
    with pytest.raises(UserError, match="manifest.json cannot be read"):
        restore_params(tmp_path / "2")


def test_evaluation_does_not_touch_the_folder(tmp_path):
    saved_run(tmp_path)
    shutil.copytree(tmp_path / "3", tmp_path / "4.orbax-checkpoint-tmp")  # a save in progress, or half-written
    flip_bit(largest(tmp_path / "3"))
    before = folders(tmp_path)
    assert restore_params(tmp_path)[2]["step"] == 2
    assert folders(tmp_path) == before


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
from barlow_jax.run import checkpoint, manifest
write = manifest.write
def killed(folder, meta, metrics):
    if meta["step"] == 2:
        os.kill(os.getpid(), signal.SIGKILL)  # the arrays are written, the folder is not yet in place
    write(folder, meta, metrics)
manifest.write = killed
with checkpoint.Checkpoints({folder!r}) as checkpoints:
    for step in (1, 2):
        checkpoints.save(step, {{"params": jnp.full(3, step)}}, {{"step": step}})
"""


def test_killed_while_saving(tmp_path):
    code = CHILD.format(root=str(commands.ROOT), folder=str(tmp_path))
    status, output = commands.run("-c", code, timeout=120)
    assert status == -signal.SIGKILL, output
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
from barlow_jax.run import checkpoint
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
    code = PROCESS.format(root=str(commands.ROOT), folder=str(folder), port=commands.free_port())
    running = [commands.start("-c", code, i, devices=2) for i in range(2)]
    for process in running:
        commands.wait_for(process, lambda process=process: "ready\n" in process.printed(), timeout=120)
    running[1].send_signal(signal.SIGTERM)
    outputs = [commands.finish(process, timeout=60) for process in running]
    assert [process.returncode for process in running] == [0, 0], outputs
    ends = [re.findall(r"^preempted (\d+)$", output, re.M) for output in outputs]
    assert len(ends[0]) == 1 and ends[0] == ends[1], outputs
    [step] = ends[0]
    assert {"2", "3.damaged", step} <= set(folders(folder))
    assert restore_params(folder)[0]["b"].tolist() == [float(step)] * 3


@pytest.mark.parametrize("file", ["orbax/checkpoint/serialization.py", "somewhere/else.py"])
def test_writes_that_fail_beside_the_first_are_not_printed(file, caplog):
    """asyncio prints the traceback of each task that failed and that nobody asked; one sentence tells of it."""
    hide_tracebacks()
    names = {}
    exec(compile("async def write():\n    raise ValueError('No space left on device')", file, "exec"), names)

    async def save():
        asyncio.ensure_future(names["write"]())
        await asyncio.sleep(0)

    asyncio.run(save())
    gc.collect()
    assert ("No space left" in caplog.text) == ("orbax" not in file)
