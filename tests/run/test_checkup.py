"""Checks of a machine: planted faults are told with their remedy, and what hangs is not waited for."""

import importlib.metadata
import pathlib
import resource
import threading
import time

import jax
import jax.numpy as jnp
import pytest

from barlow_jax import sharding
from barlow_jax.errors import UserError
from barlow_jax.run import checkup, checkup_devices, checkup_host


def the(lines, about=None):
    """The one line that there is, of this."""
    (line,) = [checkup.Line(*line) for line in lines if about in (None, line[1])]
    return line


def test_what_hangs_or_breaks_is_a_line(caplog):
    ever = threading.Event()

    def refuses():
        raise UserError("it is not there.")

    def breaks():
        raise RuntimeError("of another kind")

    checks = {"hangs": ever.wait, "refuses": refuses, "breaks": breaks, "works": lambda: [("ok", "works", "well")]}
    begun = time.monotonic()
    lines = list(checkup.examine(checks, 0.2))
    assert time.monotonic() - begun < 5
    assert checkup.hanging() == ["hangs"]
    ever.set()
    assert [line.verdict for line in lines] == ["problem", "problem", "problem", "ok"]
    assert lines[0].said.startswith("no answer within 0 s") and lines[1].said == "it is not there."
    assert "RuntimeError: of another kind" in lines[2].said
    assert str(lines[3]) == "ok       works          well"
    assert checkup.table(lines) == "3 problems, 0 warnings, 1 ok"


def test_a_folder_that_works_is_left_as_it_was(tmp_path):
    lines = checkup_host.disk(tmp_path / "runs" / "new", written=10**6)
    assert [line[1] for line in lines] == ["work folder", "disk space"] and not list(tmp_path.iterdir())
    assert "MB/s with fsync" in lines[0][2] and "GB free" in lines[1][2]
    line = the(checkup_host.disk(tmp_path, needed=10**18, written=10**6), "disk space")
    assert line.verdict == "problem" and "config.keep_checkpoints" in line.said


def test_folders_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    assert "is no folder" in the(checkup_host.disk(tmp_path / "file", written=1)).said
    line = the(checkup_host.disk(pathlib.Path("/proc/self"), written=1))  # root may write to what is read-only
    assert line.verdict == "problem" and "cannot be written" in line.said


def test_a_full_disk(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, hard))
    try:
        line = the(checkup_host.disk(tmp_path, written=3 * 10**6))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert line.verdict == "problem" and "File too large" in line.said and "free some space" in line.said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("version", [1, 2])
def test_a_control_group_that_gives_half_the_cpus(tmp_path, version):
    files = (
        {"cpu.max": "200000 100000"} if version == 2 else {"cpu.cfs_quota_us": "200000", "cpu.cfs_period_us": "100000"}
    )
    folder = tmp_path if version == 2 else tmp_path / "cpu"
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    line = the(checkup_host.cpus(16, 4, tmp_path))
    assert line.verdict == "warning"
    assert "4 of 16 usable, the control group gives the time of 2, and 4 threads" in line.said
    assert "config.data.threads=2" in line.said
    assert "threads would read" not in the(checkup_host.cpus(16, 4, tmp_path, threads=2)).said
    (folder / next(iter(files))).write_text("max 100000" if version == 2 else "-1")
    assert "control group" not in the(checkup_host.cpus(16, 4, tmp_path)).said


def test_memory_of_a_control_group(tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal: 64000000 kB\nMemAvailable: 60000000 kB\n")
    found = {}
    for limit in (10**9, 10**10):
        (tmp_path / "memory.max").write_text(str(limit))
        found[limit] = the(checkup_host.memory(root=tmp_path, meminfo=tmp_path / "meminfo"))
    assert [line.verdict for line in found.values()] == ["warning", "ok"]
    assert "61.4 of 65.5 GB available, the control group allows 1.0" in found[10**9].said


def test_few_descriptors_little_shared_memory_a_user_without_a_name_a_wrong_clock(tmp_path, monkeypatch):
    assert the(checkup_host.descriptors((256, 1048576))).said.endswith("`ulimit -n 4096` before.")
    assert the(checkup_host.descriptors((65536, 65536))).verdict == "ok"
    usage = checkup_host.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(checkup_host.shutil, "disk_usage", lambda path: usage._replace(free=64 * 2**20))
    assert "a shm-size of 1g" in the(checkup_host.shared_memory(tmp_path)).said

    def nameless():
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr(checkup_host.getpass, "getuser", nameless)
    assert "set USER and HOME" in the(checkup_host.user()).said
    assert "set it" in the(checkup_host.clock(tmp_path, lambda: 1e9)).said
    line = the(checkup_host.clock(tmp_path, lambda: time.time() + 3600))
    assert line.verdict == "warning" and "files are stamped -3600 s" in line.said
    assert the(checkup_host.clock(tmp_path)).verdict == "ok" and not list(tmp_path.iterdir())


def test_packages_that_are_missing_or_of_another_version():
    there = {"jax": "0.9.1", "numpy": "2.1.0", "optax": "0.2.8"}

    def version(name):
        if name not in there:
            raise importlib.metadata.PackageNotFoundError(name)
        return there[name]

    wanted = [
        "# a comment",
        "jax>=0.10,<0.12",
        "numpy>=2.0,<3  # arrays",
        "flax>=0.12",
        'optax>=1; python_version < "3"',
    ]
    lines = [checkup.Line(*line) for line in checkup_host.packages(wanted, version)]
    assert [line.verdict for line in lines] == ["ok", "warning", "problem", "ok"]
    assert lines[1].said == "jax is 0.9.1; pip install 'jax<0.12,>=0.10'."
    assert lines[2].said == "flax is missing; pip install 'flax>=0.12'."
    assert lines[3].said == "2 found: jax 0.9.1, numpy 2.1.0"


def test_what_is_installed_here_is_what_is_asked_for():
    lines = checkup_host.packages(checkup_host.requirements(pathlib.Path(__file__).parents[2]))
    assert [line for line in lines if line[0] == "problem"] == []


class Device:
    def __init__(self, platform, kind="NVIDIA H100", stats=None, id=0):
        self.platform, self.device_kind, self.id, self._stats = platform, kind, id, stats

    def memory_stats(self):
        return self._stats


DRIVER = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  {}.54.15  Tue"


@pytest.mark.parametrize(
    ("platform", "plugins", "driver", "said"),
    [
        ("gpu", {"jax-cuda12-plugin": "0.10.2"}, DRIVER.format(550), None),
        ("cpu", {}, None, None),
        ("cpu", {"jax-cuda12-plugin": "0.10.2"}, None, None),  # to plan with
        ("cpu", {"jax-cuda13-plugin": "0.10.2"}, DRIVER.format(550), "the driver is 550.54, and jax-cuda13-plugin"),
        ("cpu", {"jax-cuda12-plugin": "0.10.2"}, DRIVER.format(550), "JAX uses no GPU"),
        ("cpu", {}, DRIVER.format(550), "JAX runs on the CPU; pip install"),
        ("cpu", {"libtpu": "0.0.52"}, None, "JAX uses no TPU"),
    ],
)
def test_devices_that_the_packages_or_the_driver_promise(platform, plugins, driver, said):
    lines = checkup_devices.found([Device(platform)] * 2, plugins, driver)
    assert lines[0] == ("ok", "devices", f"2 x NVIDIA H100 ({platform})")
    assert [said in line[2] for line in lines[1:]] == ([True] if said else [])


def test_memory_that_others_hold():
    stats = {"bytes_limit": 80 * 10**9, "bytes_in_use": 79 * 10**9}
    lines = checkup_devices.memory(
        [Device("gpu", stats=stats), Device("cpu"), Device("gpu", stats={**stats, "bytes_in_use": 0})]
    )
    assert [line[0] for line in lines] == ["warning", "ok"]
    assert lines[0][2].startswith("device 0: 1.0 of 80.0 GB free for JAX; end what else")


def test_a_device_that_rounds_or_computes_wrongly():
    here = jax.devices()[0]
    assert the(checkup_devices.computes(here)).verdict == "ok"

    def rounds(a, b, **options):
        return jnp.matmul(a.astype(jnp.float16).astype(a.dtype), b, **options)

    assert "rounds the inputs" in the(checkup_devices.computes(here, rounds)).said

    def forgets(*arguments, **options):
        return jax.lax.conv_general_dilated(*arguments, **options).at[3, 2, 1, 0].add(5.0)

    line = the(checkup_devices.computes(here, convolution=forgets))
    assert line.verdict == "problem" and "computes wrongly" in line.said


def test_an_all_reduce_is_timed_and_its_sum_looked_at():
    mesh = sharding.make_mesh(jax.devices()[:2])
    latency, bandwidth = checkup_devices.reduce_times(mesh, 3, 2**16, 2)
    assert 0 < latency < 10 and bandwidth > 0
    assert checkup_devices.network(mesh) == []  # one process
