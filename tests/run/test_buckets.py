"""Work folders in buckets, by a cloud in this process; test_buckets_emulated.py has the library and servers."""

import contextlib
import json
import sys
import threading
import time

import numpy as np
import pytest
import stored_runs
from source_kinds import one_sentence

from barlow_jax.data.remote import bucket, objects
from barlow_jax.errors import UserError
from barlow_jax.run import manifest, metric_writers, workdir
from barlow_jax.run.buckets import lease, mirror, reading, staging
from barlow_jax.run.checkpoint import FOLDER, Checkpoints, restore_params

RUN = "gs://b/runs/r"


@pytest.fixture
def cloud(monkeypatch, tmp_path):
    monkeypatch.setenv(staging.VARIABLE, str(tmp_path / "host"))
    for module, name, seconds in (
        (lease, "HOLD", 0.5),
        (lease, "RENEW", 0.05),
        (lease, "LOOK", 0.01),
        (mirror, "LOOK", 0.01),
        (mirror, "EVERY", 0.05),
        (objects, "PATIENCE", 0.05),
        (bucket, "FIRST_PAUSE", 0.01),
    ):
        monkeypatch.setattr(module, name, seconds)
    monkeypatch.setattr(objects.Folder.__init__, "__defaults__", (0.05,))
    with stored_runs.on(stored_runs.Cloud(), monkeypatch) as found:
        yield found


def another_host(monkeypatch, tmp_path, name="other"):
    monkeypatch.setenv(staging.VARIABLE, str(tmp_path / name))


def a_lease(process, place="here"):
    return lease.Lease(objects.Folder(RUN), {"process": process, "host": "h", "since": "noon", "staging": place})


def state(step):
    return {"params": {"w": np.full(300, step, np.float32)}, "step": np.full(1, step)}


def trained(steps, keep=2, scores=(), fault=None):
    """A run that saves these steps, and says what it restored at its start: a step, or None."""
    with workdir.opened(RUN, {"lr": 0.1}) as folder:
        with Checkpoints(folder / FOLDER, keep=keep, best_of="knn") as checkpoints:
            begun = None
            if checkpoints.latest_step() is not None:
                restored, meta = checkpoints.restore(state(0))
                begun = int(restored["step"][0])
                assert (restored["params"]["w"] == begun).all() and meta["at"] == begun
            with contextlib.closing(metric_writers.JsonLines(folder / metric_writers.FILE, begun)) as writer:
                for step in steps:
                    writer.scalars(step, {"loss": step / 7})
                    if fault:
                        fault(step)
                    checkpoints.save(step, state(step), {"at": step}, {"knn": dict(scores).get(step, 0.0)})
        return begun


def steps_in(cloud, complete=True):
    found = {}
    for name in cloud.below("runs/r/checkpoints"):
        step, _, rest = name.partition("/")
        found[int(step)] = found.get(int(step), False) or rest == manifest.FILE
    return sorted(step for step, whole in found.items() if whole or not complete)


# The lease.


def test_of_two_runs_one_is_refused_by_the_name_of_the_other(cloud):
    first = a_lease(1, "one")
    first.take()
    with pytest.raises(UserError, match=r"in use by another run \(process 1 on h, since noon\)") as caught:
        a_lease(2, "two").take()
    one_sentence(caught)
    first.release()
    second = a_lease(2, "two")
    begun = time.monotonic()
    second.take()
    assert time.monotonic() - begun < 0.3 and second.before["ended"] and second.before["staging"] == "one"
    second.release()


def test_of_many_that_want_it_at_once_one_gets_it(cloud):
    got, threads = [], []

    def want(number):
        one = a_lease(number, f"host {number}")
        try:
            one.take()
            got.append(one)
        except UserError:
            pass

    for number in range(8):
        threads.append(threading.Thread(target=want, args=(number,)))
        threads[-1].start()
    for thread in threads:
        thread.join()
    assert len(got) == 1
    got[0].release()


def test_a_dead_run_is_waited_for_and_then_taken_for_gone(cloud, caplog):
    dead = a_lease(1, "one")
    dead.take()
    dead._ended.set()  # its process is killed
    dead._thread.join()
    heir, begun = a_lease(2, "two"), time.monotonic()
    heir.take()
    assert 0.5 < time.monotonic() - begun < 3 and "taken for gone" in caplog.text
    heir.release()
    same, begun = a_lease(3, "two"), time.monotonic()  # on the same host the kernel knows
    same.take()
    assert time.monotonic() - begun < 0.3
    same.release()


def test_a_run_that_slept_writes_nothing_over_its_heir(cloud):
    slept = a_lease(1, "one")
    slept.take()
    slept._ended.set()
    slept._thread.join()
    slept.check()
    heir = a_lease(2, "two")
    heir.take()
    with pytest.raises(UserError, match="taken over by another run .process 2") as caught:
        slept.check()
    one_sentence(caught)
    slept.release()
    heir.check()
    heir.release()
    assert json.loads(cloud.contents["runs/r/run.lock"][0])["process"] == 2


def test_a_lease_that_somebody_removed_is_written_anew(cloud):
    one = a_lease(1)
    one.take()
    del cloud.contents["runs/r/run.lock"]
    until = time.monotonic() + 5
    while "runs/r/run.lock" not in cloud.contents and time.monotonic() < until:
        time.sleep(0.01)
    one.check()
    one.release()
    assert json.loads(cloud.contents["runs/r/run.lock"][0])["ended"]


def test_an_answer_that_was_lost_is_no_other_run(cloud):
    faults = [OSError("connection closed")]
    cloud.fault = lambda what, name: (_ for _ in ()).throw(faults.pop()) if what == "stored" and faults else None
    one = a_lease(1)
    one.take()
    assert not faults and one.before == {}
    one.release()


# Checkpoints.


def test_a_run_goes_on_elsewhere(cloud, monkeypatch, tmp_path, caplog):
    caplog.set_level("INFO")
    assert trained([10, 20, 30, 40], scores={20: 0.9}) is None
    assert steps_in(cloud, complete=False) == [20, 30, 40]  # the best, and the newest two
    assert "step 40 is in gs://b/runs/r" in caplog.text
    another_host(monkeypatch, tmp_path)
    assert trained([50], scores={50: 0.5}) == 40
    assert steps_in(cloud, complete=False) == [20, 40, 50]  # the best is known to be the best there too
    lines = [json.loads(line) for line in cloud.below("runs/r")["metrics.jsonl"].splitlines()]
    assert [line["step"] for line in lines] == [10, 20, 30, 40, 50]
    assert json.loads(cloud.below("runs/r")["config.json"]) == {"lr": 0.1}
    assert b"step 50 is in" in cloud.below("runs/r")["log.txt"] and b"step 10 is in" in cloud.below("runs/r")["log.txt"]
    with pytest.raises(UserError, match="config.lr was 0.1 and is 0.2"), workdir.opened(RUN, {"lr": 0.2}):
        pass


def test_after_a_kill_at_any_moment_there_is_a_whole_checkpoint(cloud, monkeypatch, tmp_path):
    trained([10])
    before = dict(cloud.contents)
    cloud.done.clear()
    trained([20], keep=1)  # the one before is removed, too
    writes = [one for one in cloud.done if one[0] != "runs/r/run.lock"]
    assert len(writes) > 15
    found = []
    sealed = next(k for k, one in enumerate(writes) if one[0].endswith("checkpoints/20/manifest.json") and one[1])
    counts = [0, 1, *range(2, sealed - 2, 5), *range(sealed - 1, sealed + 4), len(writes)]
    for count in counts:
        contents = dict(before)
        for number, (name, content) in enumerate(writes[:count]):
            contents.pop(name, None) if content is None else contents.update({name: (content, f'"w{number}"')})
        with stored_runs.on(stored_runs.Cloud(contents), monkeypatch):
            remote, folder = objects.Folder(RUN), tmp_path / str(count)
            staging.brought(remote, folder / "run", ours=False)
            (step,) = (int(one.name) for one in (folder / "run" / FOLDER).iterdir())
            assert manifest.damage(folder / "run" / FOLDER / str(step)) is None
            lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
            assert len(lines) >= step / 10  # what was written up to the checkpoint is there
            found.append(step)
    assert found == [10 if count <= sealed else 20 for count in counts]


def test_what_a_kill_left_is_cleared_and_the_step_saved_anew(cloud, monkeypatch, tmp_path):
    trained([10])
    cloud.contents["runs/r/checkpoints/20/state/d/half"] = b"x", '"h"'
    another_host(monkeypatch, tmp_path)
    assert trained([20]) == 10
    assert steps_in(cloud) == [10, 20] and "runs/r/checkpoints/20/state/d/half" not in cloud.contents


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(cloud, monkeypatch, tmp_path, caplog):
    trained([10, 20])
    name = max((n for n in cloud.contents if "checkpoints/20/state" in n), key=lambda n: len(cloud.contents[n][0]))
    content, version = cloud.contents[name]
    cloud.contents[name] = content[:-1] + bytes([content[-1] ^ 1]), version
    another_host(monkeypatch, tmp_path)
    assert trained([20]) == 10
    assert "checkpoints/20 is damaged" in caplog.text
    another_host(monkeypatch, tmp_path, "third")
    assert trained([]) == 20  # which was saved anew


@pytest.mark.parametrize("fault", ["full", "vanished", "gone"])
def test_a_bucket_that_fails_is_one_sentence_and_the_local_copy_goes_up_later(fault, cloud, tmp_path):
    def fails(what, name):
        if fault == "full" and what == "put" and "checkpoints/20" in name:
            raise OSError("status code: 507 Insufficient Storage")
        if fault == "vanished" and what == "stored" and name.endswith("checkpoints/20/state/_METADATA"):
            del cloud.contents[name]
        if fault == "gone" and what == "put" and "checkpoints/20" in name:
            raise FileNotFoundError("<Code>NoSuchBucket</Code>")

    def begin(step):
        cloud.fault = fails if step == 20 else cloud.fault

    words = {"full": "507", "vanished": "_METADATA has vanished", "gone": "does not exist"}[fault]
    with pytest.raises(UserError, match=words) as caught:
        trained([10, 20, 30], fault=begin)
    one_sentence(caught)
    local = tmp_path / "host" / "runs"
    assert str(local) in str(caught.value) and list(local.glob("r-*/r/checkpoints/20/manifest.json"))
    assert steps_in(cloud) == [10]
    cloud.fault = lambda what, name: None
    assert trained([]) == 20  # on the same host
    assert steps_in(cloud) == [10, 20]


def test_what_lies_here_is_not_taken_where_another_host_has_gone_on(cloud, monkeypatch, tmp_path):
    def begin(step):
        if step == 20:
            cloud.fault = lambda what, name: (_ for _ in ()).throw(OSError("507")) if "points/20" in name else None

    with pytest.raises(UserError):
        trained([10, 20, 30], fault=begin)  # 20 is here alone
    cloud.fault = lambda what, name: None
    another_host(monkeypatch, tmp_path)
    assert trained([15]) == 10
    another_host(monkeypatch, tmp_path, "host")
    assert trained([]) == 15
    assert steps_in(cloud) == [10, 15]


def test_files_follow_as_they_change_and_an_evaluation_inside_is_left_alone(cloud):
    trained([10])
    with workdir.opened(f"{RUN}/eval", {}) as folder:
        (folder / "results.jsonl").write_text("1\n")
    with workdir.opened(RUN, {"lr": 0.1}) as folder:
        (folder / "views.png").write_bytes(b"old")
        with workdir.opened(f"{RUN}/eval", {}) as inner:
            (inner / "results.jsonl").write_text("2\n")
        until = time.monotonic() + 5
        while cloud.below("runs/r").get("views.png") != b"old" and time.monotonic() < until:
            time.sleep(0.01)
        (folder / "views.png").write_bytes(b"new!")
        (folder / ".half").write_bytes(b"")
    there = cloud.below("runs/r")
    assert there["views.png"] == b"new!" and there["eval/results.jsonl"] == b"2\n" and ".half" not in there
    with workdir.opened(RUN, {"lr": 0.1}) as folder:
        (folder / "views.png").unlink()
    assert "views.png" not in cloud.below("runs/r") and cloud.below("runs/r")["eval/results.jsonl"] == b"2\n"


# Reading.


def test_readers_bring_down_what_they_need_and_nothing_stale(cloud, tmp_path):
    trained([10, 20])
    gets = []
    cloud.fault = lambda what, name: gets.append(name) if what == "get" else None
    for address, at in ((RUN, 20), (f"{RUN}/checkpoints/10", 10), (f"{RUN}/checkpoints/", 20)):
        params, _, meta = restore_params(address)
        assert meta["at"] == meta["step"] == at and (params["w"] == at).all()
    assert restore_params(RUN, step=10)[2]["at"] == 10
    assert gets and not any("metrics" in name for name in gets)
    gets.clear()
    restore_params(RUN)
    assert not gets  # it is here
    with workdir.opened(RUN, {"lr": 0.1}) as folder, Checkpoints(folder / FOLDER) as checkpoints:
        checkpoints._manager.delete(20)
        checkpoints.save(20, state(7), {"at": 7})
    assert restore_params(RUN)[2]["at"] == 7  # the same step, written anew
    with pytest.raises(
        UserError, match=r"step 5 was expected in gs://b/runs/r, which holds steps \[10, 20\]"
    ) as caught:
        restore_params(RUN, step=5)
    one_sentence(caught)
    folder = reading.files("gs://b/runs")
    assert {str(one.relative_to(folder)) for one in folder.rglob("*") if one.is_file()} == {
        f"r/{name}" for name in ("config.json", "log.txt", "metrics.jsonl")
    }
    cloud.put(None, "runs/r/views.png", b"picture")
    cloud.put(None, "runs/r/config.json", b"{}")
    del cloud.contents["runs/r/log.txt"]
    gets.clear()
    assert reading.files("gs://b/runs/") == folder and sorted(gets) == ["runs/r/config.json", "runs/r/views.png"]
    assert (folder / "r" / "config.json").read_text() == "{}" and not (folder / "r" / "log.txt").exists()
    cloud.put(None, "runs/r/config.json", b'{"lr": 0.1}')
    assert workdir.began_with(RUN, ["lr"]) == {"lr": 0.1} and workdir.began_with("gs://b/none", ["lr"]) == {}


@pytest.mark.parametrize("left", ["", "{", "[]", '{"config.json": 3}'])
def test_notes_of_this_host_that_are_damaged_are_none(left, cloud, tmp_path):
    trained([10])
    folder = reading.files("gs://b/runs")
    for file in (*(tmp_path / "host").rglob("known.json"), *(tmp_path / "host").rglob("identity")):
        file.write_text(left)
    (identity,) = (tmp_path / "host").rglob("identity")
    trained([20])
    assert steps_in(cloud) == [10, 20] and (bool(left) or len(identity.read_text()) == 16)
    assert (reading.files("gs://b/runs") / "r" / "config.json").read_text() == (
        folder / "r" / "config.json"
    ).read_text()


def test_addresses():
    assert reading.run_of("gs://b/r/checkpoints/12") == ("gs://b/r", 12)
    assert reading.run_of("gs://b/r/checkpoints") == reading.run_of("gs://b/r/") == ("gs://b/r", None)
    run = reading.named("gs://b/r/")
    assert reading.is_in(run, run) and reading.is_in(run, "gs://b") and not reading.is_in(run, "gs://b/r/eval")
    assert not reading.is_in(run, reading.named("runs")) and reading.is_in(
        reading.named("runs/a"), reading.named("runs")
    )
    with pytest.raises(UserError, match="no name of a file"):
        staging.inside(reading.named("runs"), "a/../../b")


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("gs://b/r", r"pip install 'barlow-jax\[buckets\]'"),
        ("ftp://b/r", "no address"),
        ("https://h/r", "nothing can be written"),
    ],
)
def test_addresses_that_cannot_be_work_folders(address, words, monkeypatch, tmp_path):
    monkeypatch.setenv(staging.VARIABLE, str(tmp_path))
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(UserError, match=words) as caught, workdir.opened(address, {}):
        pass
    one_sentence(caught)
