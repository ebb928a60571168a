"""Work folders in s3://, gs:// and az://, by the library and servers in place of the clouds: faults, kills, two runs.

Needs what requirements-buckets.txt lists; `make test-buckets` runs it.
"""

import filecmp
import os
import random
import signal
import time

import bucket_server
import cloud_servers
import commands
import numpy as np
import pytest
from source_kinds import one_sentence

from barlow_jax.data.remote import bucket, objects
from barlow_jax.errors import UserError
from barlow_jax.run import workdir
from barlow_jax.run.buckets import lease, mirror, staging
from barlow_jax.run.checkpoint import FOLDER, Checkpoints, restore_all, restore_params

pytest.importorskip("obstore", reason="see requirements-buckets.txt")


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A bucket server, with short pauses and time-outs."""
    monkeypatch.setenv(staging.VARIABLE, str(tmp_path / "host"))
    monkeypatch.setattr(bucket, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(bucket, "TIME_OUT", "1s")
    monkeypatch.setattr(mirror, "LOOK", 0.05)
    monkeypatch.setattr(objects.Folder.__init__, "__defaults__", (4.0,))
    with bucket_server.serving() as found:
        for name, value in found.environment().items():
            monkeypatch.setenv(name, value)
        yield found


@pytest.fixture(params=["s3", "gs"])
def address(request, server):
    return f"{request.param}://{bucket_server.BUCKET}/exp/r"


def saved(address, *steps):
    with workdir.opened(address, {}) as folder, Checkpoints(folder / FOLDER) as checkpoints:
        for step in steps:
            checkpoints.save(step, {"params": {"w": np.full(3_000_000, step, np.float32)}}, {"at": step})


def test_conditions(address):
    folder = objects.Folder(address)
    first = folder.put("x", b"1", only=objects.ABSENT)
    second = folder.put("x", b"2", only=first)
    for only in (objects.ABSENT, first):
        with pytest.raises(objects.Changed):
            folder.put("x", b"3", only=only)
    assert folder.get("x") == (b"2", second) and list(folder.names()) == ["x"]
    folder.remove(["x", "never"])
    with pytest.raises(bucket.Gone):
        folder.get("x")
    with pytest.raises(objects.Changed):
        folder.put("x", b"3", only=second)


@pytest.mark.parametrize("fault", ["503", "slow", "lost", "cut"])
def test_faults_that_pass_are_tried_again(fault, address, server, tmp_path):
    folder, large = objects.Folder(address), tmp_path / "large"
    large.write_bytes(os.urandom(2 * objects.LARGE + 5))
    if fault != "cut":  # of an answer to a write nothing is lost by that
        server.faults += [("PUT", "r/x", fault), ("PUT", "large", fault)]
    version = folder.put("x", b"1", only=objects.ABSENT)
    folder.put("large", large)
    server.faults += [("GET", "r/x", fault), ("GET", "large", fault)]
    assert folder.get("x") == (b"1", version)
    assert folder.download([(folder.names()["large"], tmp_path / "came")]) == []
    assert filecmp.cmp(large, tmp_path / "came", shallow=False) and not server.faults


@pytest.mark.parametrize(
    ("fault", "words"), [("503", "503"), ("507", "507"), ("403", "may not be written"), ("", "exist")]
)
def test_faults_that_stay_are_one_sentence_and_the_local_copy_goes_up_later(fault, words, address, server, tmp_path):
    saved(address, 1)
    server.faults += [("PUT", "checkpoints/2", fault, "*")] if fault else []
    with pytest.raises(UserError, match=words) as caught, workdir.opened(address, {}) as folder:
        with Checkpoints(folder / FOLDER) as checkpoints:
            server.gone = not fault
            checkpoints.save(2, {"params": {"w": np.zeros(9)}}, {"at": 2})
    one_sentence(caught)
    assert str(tmp_path / "host" / "runs") in str(caught.value)
    server.faults.clear()
    server.gone = False
    assert restore_params(address)[2]["at"] == 1
    saved(address)  # the same line on the same host
    assert restore_params(address)[2]["at"] == 2


def test_a_part_that_vanished_keeps_the_checkpoint_from_being_one(address, server):
    saved(address, 1)
    server.faults.append(("PUT", "checkpoints/2/state/_METADATA", "dropped"))
    with pytest.raises(UserError, match="_METADATA has vanished"):
        saved(address, 2, 3)
    assert restore_params(address)[2]["at"] == 1


def test_large_weights_come_back(address):
    saved(address, 1, 2)
    params, _, meta = restore_params(address)
    assert meta["at"] == 2 and (params["w"] == 2).all()
    assert restore_params(f"{address}/checkpoints/1")[2]["at"] == 1


@pytest.mark.parametrize("scheme", ["s3", "az"])
def test_the_servers_of_others_agree(scheme, monkeypatch, tmp_path):
    """moto for s3://, Azurite for az://: conditions, weights of more than a part, another host, a run that is in it."""
    monkeypatch.setenv(staging.VARIABLE, str(tmp_path / "one"))
    end = cloud_servers.BEGIN[scheme](monkeypatch, {})
    try:
        address = f"{scheme}://sets/exp/r"
        test_conditions(address)
        saved(address, 1, 2)
        monkeypatch.setenv(staging.VARIABLE, str(tmp_path / "two"))
        with workdir.opened(address, {}) as folder:
            (folder / "lines").write_text("a line\n")
            monkeypatch.setenv(staging.VARIABLE, str(tmp_path / "three"))
            monkeypatch.setattr(lease, "RENEW", 0.2)
            with pytest.raises(UserError, match="in use by another run"):
                saved(address, 9)
        saved(address, 3)
        assert restore_params(address)[2]["at"] == 3 and restore_params(address, step=2)[2]["at"] == 2
        assert objects.Folder(address).get("lines")[0] == b"a line\n"
    finally:
        end()


# Processes that are killed.

COUNTING = """
import sys, time
import numpy as np
from barlow_jax.run import workdir
from barlow_jax.run.buckets import lease, mirror
from barlow_jax.run.checkpoint import FOLDER, Checkpoints

lease.HOLD, lease.RENEW, mirror.LOOK = 4.0, 0.5, 0.05
with workdir.opened(sys.argv[1], {}) as folder, Checkpoints(folder / FOLDER, keep=2) as checkpoints:
    state, step = {"w": np.full(400_000, 0.1), "v": np.arange(7.0)}, 0
    if checkpoints.latest_step() is not None:
        state, meta = checkpoints.restore(state)
        step = meta["step"]
        assert (folder / "lines").read_text().count("\\n") >= step
    lines = (folder / "lines").read_text().splitlines()[:step] if step else []
    while step < 40:
        step += 1
        state = {"w": np.sin(state["w"] * 1.7 + step), "v": state["v"] * 1.01}
        lines.append(f"{step} {state['w'][0]!r}")
        (folder / "lines").write_text("".join(f"{line}\\n" for line in lines))
        checkpoints.save(step, state, {"step": step})
"""


def counted(server, address, host):
    """A process that computes and saves 40 steps, on a host, that is with a folder of its own to work in."""
    return commands.start("-c", COUNTING, address, **server.environment(), **{staging.VARIABLE: str(host)})


@pytest.mark.slow
def test_killed_at_random_moments_of_uploads_and_on_another_host_it_ends_with_the_same_bits(server, tmp_path):
    commands.finish(counted(server, "gs://runs/exp/whole", tmp_path / "whole"), timeout=900)
    server.slowness = 0.02  # so that uploads take most of the time
    rng, address, told = random.Random(3), "gs://runs/exp/killed", []
    for _ in range(10):
        run = counted(server, address, tmp_path / f"host{rng.randrange(3)}")
        seen = len(server.log)

        def uploads(seen=seen):
            return any(method == "PUT" and "killed/checkpoints" in name for method, name in server.log[seen:])

        commands.wait_for(run, uploads, timeout=600)
        time.sleep(rng.uniform(0, 3.0))
        os.kill(run.pid, signal.SIGKILL)
        commands.finish(run, timeout=30)
        names = {name.split("/")[3] for name in list(server.contents) if name.startswith("exp/killed/checkpoints/")}
        whole = [step for step in names if f"exp/killed/checkpoints/{step}/manifest.json" in server.contents]
        told.append((max(map(int, whole), default=0), len(names - {*whole})))
    print("newest whole, and half-written, after each kill:", told)
    server.slowness = 0.0
    last = counted(server, address, tmp_path / "last")
    assert commands.finish(last, timeout=900) is not None and last.returncode == 0
    (one, _), (other, _) = (restore_all(f"gs://runs/exp/{name}") for name in ("whole", "killed"))
    for name in ("w", "v"):
        np.testing.assert_array_equal(one[name], other[name])
    assert server.contents["exp/whole/lines"][0] == server.contents["exp/killed/lines"][0]
    assert any(half for _, half in told) and told == sorted(told, key=lambda pair: pair[0])


@pytest.mark.slow
def test_two_processes_are_two_runs_and_the_second_is_refused(server, tmp_path):
    server.slowness = 0.02
    first = counted(server, "s3://runs/exp/r", tmp_path / "one")
    commands.wait_for(first, lambda: any(name.endswith("manifest.json") for name in list(server.contents)))
    second = counted(server, "s3://runs/exp/r", tmp_path / "two")
    output = commands.finish(second, timeout=120)
    assert second.returncode and f"in use by another run (process {first.pid} on " in output
    commands.finish(first, timeout=300)
    assert first.returncode == 0 and "exp/r/checkpoints/40/manifest.json" in server.contents


TOGETHER = """
import sys
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from barlow_jax.run import cluster, workdir
from barlow_jax.run.buckets import lease, mirror
from barlow_jax.run.checkpoint import FOLDER, Checkpoints

lease.HOLD, lease.RENEW, mirror.LOOK = 4.0, 0.5, 0.05
cluster.join()
mesh = jax.sharding.Mesh(jax.devices(), ("data",))
placed = {"whole": NamedSharding(mesh, PartitionSpec()), "part": NamedSharding(mesh, PartitionSpec("data"))}
state = {"whole": np.arange(5, dtype=np.float32), "part": np.arange(8, dtype=np.float32)}
state = {name: jax.make_array_from_callback(x.shape, placed[name], lambda at, x=x: x[at]) for name, x in state.items()}
go_on = jax.jit(lambda s: jax.tree.map(lambda x: x * 1.01 + 1, s), out_shardings=placed, donate_argnums=0)
with workdir.opened(sys.argv[1], {}) as folder, Checkpoints(folder / FOLDER, keep=2) as checkpoints:
    step = 0
    if checkpoints.latest_step() is not None:
        state, meta = checkpoints.restore(state)
        step = meta["step"]
        print("from", step, flush=True)
    while step < 12:
        step, state = step + 1, go_on(state)
        checkpoints.save(step, state, {"step": step})
        assert not checkpoints.save(step, state, {"step": step})
        (folder / f"seen_{jax.process_index()}").write_text(str(step))
        assert not checkpoints.reached_preemption(step)
print("done", flush=True)
"""


def together(server, address, hosts):
    """Two processes of one run, each on a host of its own."""
    at = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{commands.free_port()}", "JAX_NUM_PROCESSES": "2"}
    return [
        commands.start(
            "-c",
            TOGETHER,
            address,
            **server.environment(),
            **at,
            JAX_PROCESS_ID=str(index),
            **{staging.VARIABLE: str(host)},
        )
        for index, host in enumerate(hosts)
    ]


@pytest.mark.slow
def test_two_processes_with_a_disk_each_go_on_elsewhere(server, tmp_path):
    address, server.slowness = "gs://runs/exp/both", 0.02
    first = together(server, address, (tmp_path / "one", tmp_path / "two"))
    commands.wait_for(first[0], lambda: "exp/both/checkpoints/4/manifest.json" in server.contents)
    for run in first:
        os.kill(run.pid, signal.SIGKILL)
        commands.finish(run, timeout=60)
    server.slowness = 0.0
    again = together(server, address, (tmp_path / "three", tmp_path / "four"))
    printed = [commands.finish(run, timeout=300) for run in again]
    starts = {text.partition("from ")[2].split()[0] for text in printed if "done" in text}
    assert len(starts) == 1 and int(starts.pop()) >= 4, printed
    expected = {"whole": np.arange(5, dtype=np.float32), "part": np.arange(8, dtype=np.float32)}
    state, meta = restore_all(address)
    assert meta["step"] == 12
    for name, x in expected.items():
        for _ in range(12):
            x = np.float32(x * np.float32(1.01) + np.float32(1))
        np.testing.assert_allclose(state[name], x, rtol=1e-6)
    assert [server.contents[f"exp/both/seen_{index}"][0] for index in range(2)] == [b"12", b"12"]
