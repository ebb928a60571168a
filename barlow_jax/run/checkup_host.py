"""What a run needs of the machine beside its devices: disk, memory, CPUs, descriptors, user, clock, packages.

Functions of `checkup.examine`: each returns lines (verdict, about, said).
"""

import contextlib
import getpass
import importlib.metadata
import os
import pathlib
import platform
import resource
import secrets
import shutil
import sys
import time

from packaging.requirements import InvalidRequirement, Requirement

from barlow_jax.run import writing

GB, MB = 10**9, 10**6
WRITTEN = 64 * MB  # of the trial file
FEW = 1024  # file descriptors; checkpoints of Orbax open some hundreds at a time
CGROUP = pathlib.Path("/sys/fs/cgroup")
_SHARED = pathlib.Path("/dev/shm")


def disk(folder, needed=0, written=WRITTEN):
    """Whether a folder can be written to as a run does it: a file, fsync, a rename; how fast, and what is free.

    Args:
      folder: of the run; the nearest one above it that exists is tried.
      needed: bytes of the checkpoints that are kept.
      written: bytes of the trial file, which is removed.
    """
    there = next(one for one in [folder.absolute(), *folder.absolute().parents] if one.exists())
    if not there.is_dir():
        return [("problem", "work folder", f"{there} is no folder; take another --workdir.")]
    name = there / f".doctor-{secrets.token_hex(4)}"
    moved = name.with_suffix(".moved")
    try:
        begun = time.monotonic()
        with name.open("wb") as file:
            block = os.urandom(MB)  # what compresses would be told too fast
            for _ in range(max(1, written // MB)):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        seconds = time.monotonic() - begun
        os.replace(name, moved)
        begun = time.monotonic()
        _sync_folder(there)
        synced = time.monotonic() - begun
    except OSError as error:
        full = error.errno in writing.NO_SPACE
        remedy = "free some space, or take another --workdir" if full else "take another --workdir, or see to its owner"
        return [("problem", "work folder", f"{there} cannot be written ({error.strerror}); {remedy}.")]
    finally:
        for trial in (name, moved):
            with contextlib.suppress(OSError):  # what could not be written is not there
                trial.unlink()
    free, speed = shutil.disk_usage(there).free, max(1, written // MB) * MB / seconds
    said = f"{there}: {speed / MB:.0f} MB/s with fsync, a folder's fsync {1000 * synced:.0f} ms, rename works"
    slow = speed < 20 * MB
    lines = [("warning" if slow else "ok", "work folder", said + "; checkpoints will hold the run up." * slow)]
    space = f"{free / GB:.1f} GB free"
    if free < needed:
        said = f"{space}, and the checkpoints that are kept take {needed / GB:.1f}; free some, or lower "
        return [*lines, ("problem", "disk space", f"{said}config.keep_checkpoints.")]
    if free < GB:
        return [*lines, ("warning", "disk space", f"{space}; checkpoints may not find room, free some.")]
    return [*lines, ("ok", "disk space", space + (f", {needed / GB:.1f} of it for checkpoints" if needed else ""))]


def _sync_folder(folder):
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def memory(needed=0, root=CGROUP, meminfo=pathlib.Path("/proc/meminfo")):
    """Memory of the host, and what of it a control group allows. needed: bytes, of images kept in memory."""
    if not meminfo.exists():  # macOS
        return []
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in meminfo.read_text().splitlines() if line}
    total, free = (1024 * kilobytes[name] for name in ("MemTotal", "MemAvailable"))
    limit = _limit_of_memory(root)
    said = f"{free / GB:.1f} of {total / GB:.1f} GB available"
    if limit and limit < total:
        said += f", the control group allows {limit / GB:.1f}"
        free = min(free, limit)
    if free < max(needed, 2 * GB):
        return [("warning", "host memory", f"{said}; reading and checkpoints take 2 GB or more, end other programs.")]
    return [("ok", "host memory", said)]


def _limit_of_memory(root):
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # "max", or the other version's file
            return int((root / name).read_text())
    return None


def cpus(count=None, usable=None, root=CGROUP, threads=0):
    """CPUs that there are, that this process may run on, and the share that a control group gives it.

    Args:
      count, usable: of the machine and of this process; None looks.
      threads: config.data.threads, 0 for one a usable CPU.
    """
    count = count or os.cpu_count() or 1
    usable = usable or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else count)
    quota = _quota(root)
    said = f"{usable} of {count} usable" if usable < count else f"{count}"
    readers = threads or usable
    if quota and quota < usable:
        said += f", the control group gives the time of {quota:g}"
        if readers > quota + 0.5:
            take = max(1, int(quota))
            said += f", and {readers} threads would read images; set config.data.threads={take}, or raise the limit"
            return [("warning", "CPUs", f"{said}.")]
    load = os.getloadavg()[0]
    if load > 1.5 * usable:
        return [("warning", "CPUs", f"{said}, and {load:.1f} programs want to run; end some, or reading will wait.")]
    return [("ok", "CPUs", f"{said}, load {load:.1f}")]


def _quota(root):
    """The CPUs whose time a control group gives, or None where it sets no limit."""
    with contextlib.suppress(OSError, ValueError):  # "max 100000", or version 1
        allowed, period = (root / "cpu.max").read_text().split()
        return int(allowed) / int(period)
    with contextlib.suppress(OSError, ValueError):
        allowed, period = (int((root / f"cpu/cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        return allowed / period if allowed > 0 else None
    return None


def descriptors(limits=None):
    """How many files this process may hold open. limits: (soft, hard); None asks."""
    soft, hard = limits or resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < FEW:
        return [
            ("warning", "open files", f"{soft} at most; checkpoints want more, `ulimit -n {min(4096, hard)}` before.")
        ]
    return [("ok", "open files", "no limit" if soft < 0 else f"{soft} at most")]


def shared_memory(folder=_SHARED):
    """Room in /dev/shm, through which NCCL passes data between the GPUs of a host."""
    if not folder.is_dir():
        return []
    free = shutil.disk_usage(folder).free
    if free < 256 * MB:
        remedy = "several GPUs of one host want more, start the container with a shm-size of 1g"
        return [("warning", "shared memory", f"{free / MB:.0f} MB free in {folder}; {remedy}.")]
    return [("ok", "shared memory", f"{free / MB:.0f} MB free in {folder}")]


def user():
    """Whether the user has a name and a home folder: in containers with --user some have neither."""
    home = pathlib.Path(os.path.expanduser("~"))
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        return [("warning", "user", f"number {os.getuid()} has no name, which some libraries want; set USER and HOME.")]
    if not os.access(home, os.W_OK):
        remedy = "libraries keep things there, set HOME to a folder of yours"
        return [("warning", "user", f"{name}, whose home {home} cannot be written; {remedy}.")]
    return [("ok", "user", f"{name}, home {home}")]


def clock(folder, now=time.time):
    """Whether the clock is set, and agrees with that of the file system, which file servers keep themselves.

    `make` and caches go by it; metrics and logs of several hosts are compared by it.
    """
    there = next(one for one in [folder.absolute(), *folder.absolute().parents] if one.is_dir())
    name = there / f".doctor-{secrets.token_hex(4)}"
    here = now()
    try:
        name.touch()
        ahead = name.stat().st_mtime - here
    except OSError:
        ahead = 0.0  # `disk` says that nothing can be written
    finally:
        name.unlink(missing_ok=True)
    told = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(here))
    if here < 1_750_000_000:  # June 2025
        return [("warning", "clock", f"{told} is before this program was written; set it.")]
    if abs(ahead) > 5:
        return [("warning", "clock", f"{told}, and files are stamped {ahead:+.0f} s; set one of the two clocks.")]
    return [("ok", "clock", f"{told}, files are stamped alike")]


def packages(wanted, version=importlib.metadata.version):
    """Whether the installed packages are those that this one asks for.

    Args:
      wanted: lines of requirements, as in requirements.txt.
      version: name -> the version that is installed; raises PackageNotFoundError.
    """
    found, lines = [], []
    for line in wanted:
        try:
            requirement = Requirement(line.split("  #")[0].strip())
        except InvalidRequirement:
            continue  # a comment, or an option of pip
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            there = version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            lines.append(("problem", "packages", f"{requirement.name} is missing; pip install '{requirement}'."))
            continue
        if not requirement.specifier.contains(there, prereleases=True):
            asked = f"{requirement.name}{requirement.specifier}"
            lines.append(("warning", "packages", f"{requirement.name} is {there}; pip install '{asked}'."))
        found.append(requirement.name)
    told = {name: version(name) for name in found if name in ("jax", "flax", "optax", "numpy")}
    about = f"{len(found)} of the right versions" if not lines else f"{len(found)} found"
    shown = ", ".join(f"{name} {number}" for name, number in told.items())
    python = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    too_old = sys.version_info < (3, 11)
    return [
        ("problem" if too_old else "ok", "Python", python + "; 3.11 or newer is needed." * too_old),
        *lines,
        ("ok", "packages", f"{about}: {shown}"),
    ]


def requirements(checkout):
    """The lines of requirements: of the checkout if this is one, else of the installed package."""
    file = checkout / "requirements.txt"
    if file.is_file():
        return file.read_text().splitlines()
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.requires("barlow-jax") or []
    return []
