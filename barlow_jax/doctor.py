"""Is this machine fit to train on, are these images, and what made a step go wrong?

    barlow-jax doctor                                                       # the machine
    barlow-jax doctor --config=demo --workdir=runs/demo                     # and what a run of this config would read
    barlow-jax doctor --config=image_folder --config.data.path=photographs
    barlow-jax doctor --replay=runs/demo/nonfinite/37                       # a step that was not finite, run again

A line for each thing that was looked at: ok, warning (it runs, but) or problem (it will not), with the remedy. About a
minute; what does not answer within --seconds is a problem and is not waited for. Started as a run of several processes
is, it measures the way between them too. Exits with status 1 if there is a problem.
"""

import contextlib
import os
import pathlib
import sys

import jax
from ml_collections import ConfigDict

from barlow_jax import experiment, fields, pretrain, sharding
from barlow_jax.data import checkup as images
from barlow_jax.data import order, walk
from barlow_jax.errors import UserError
from barlow_jax.run import checkup, checkup_devices, checkup_host, config_files, json_lines, launch
from barlow_jax.run.buckets import reading
from barlow_jax.training import evidence, first_fault, presets, remedies

MOST_DEVICES = 8  # whose arithmetic is checked, of one process
PATIENCE = 6  # times as long as other checks may opening a set take, all files on a network, and starting to read it


def define_flags(flag):
    flag.config("File or name of an experiment, whose images are looked at.", default="barlow_twins")
    flag.text("workdir", "Folder of the run, which is tried.", default=".")
    flag.text("replay", "Folder nonfinite/STEP of a run: runs that step again, operation by operation.")
    flag.number("seconds", "Time limit of each check.", default=20.0)
    flag.switch("json", "Print one object of JSON.")


def main(wanted):
    if wanted.replay:
        return replay(pathlib.Path(wanted.replay).expanduser(), wanted.json)
    if not wanted.seconds > 0:
        raise UserError(f"--seconds is {wanted.seconds:g}; it must be above 0.")
    several = jax.distributed.is_initialized()
    head = f"[{jax.process_index()}] " if several else ""
    lines = []
    for line in examined(wanted.config, reading.here_alone(wanted.workdir), wanted.seconds):
        lines.append(line)
        if not wanted.json:
            print(f"{head}{line}", flush=True)
    if wanted.json:
        told = {"process": jax.process_index() if several else 0, "lines": [one._asdict() for one in lines]}
        print(json_lines.text(told))
    else:
        print(f"{head}{checkup.table(lines)}")
    status = int(any(line.verdict == "problem" for line in lines))
    if checkup.hanging():  # Python would wait for what never comes
        sys.stdout.flush()
        os._exit(status)
    return status


def examined(config, folder, seconds):
    """The lines of all checks, as they are found."""
    fields.fill_in(config, fields.PRETRAINING)
    given = bool(config.data.path) or config.data.kind not in (*fields.together.NEED_PATH, "tfds")
    settled = []
    yield from checkup.examine(of_host(config, folder, given, settled), seconds)
    yield from checkup.examine(of_devices(), seconds)
    if given:
        opened = []
        yield from checkup.examine({"set": lambda: open_images(config, opened, settled)}, PATIENCE * seconds)
        for source in opened:
            yield from checkup.examine(of_images(config, source, seconds), PATIENCE * seconds)


def of_host(config, folder, given, settled):
    """{name: check} of the machine beside its devices.

    given: whether there is a config to measure it by. settled: list that gets the images if they had to be opened.
    """

    def disk():
        if given:
            with contextlib.suppress(UserError):  # the check of the set tells it
                settled.append(experiment.settle(config, str(folder)))
        known = given and not presets.left_open(config)
        return checkup_host.disk(folder, checkpoint_bytes(config) if known else 0)

    return {
        "packages": lambda: checkup_host.packages(checkup_host.requirements(config_files.PROGRAMS)),
        "CPUs": lambda: checkup_host.cpus(threads=config.data.threads),
        "host memory": checkup_host.memory,
        "work folder": disk,
        "open files": checkup_host.descriptors,
        "shared memory": checkup_host.shared_memory,
        "user": checkup_host.user,
        "clock": lambda: checkup_host.clock(folder),
    }


def of_devices():
    """{name: check} of the devices of this process, and of the way to others."""

    def devices():
        plugins, driver = checkup_devices.installed_plugins(), checkup_devices.driver()
        return checkup_devices.found(jax.local_devices(), plugins, driver)

    def arithmetic():
        some = jax.local_devices()[:MOST_DEVICES]
        return [line for device in some for line in checkup_devices.computes(device)]

    return {
        "devices": devices,
        "CUDA": lambda: checkup_devices.libraries(jax.local_devices()),
        "device memory": lambda: checkup_devices.memory(jax.local_devices()),
        "arithmetic": arithmetic,
        "network": lambda: checkup_devices.network(sharding.make_mesh()),
    }


def checkpoint_bytes(config):
    """Bytes of the checkpoints that are kept at a time: the newest, the best, and one that is being written."""
    channels = config.data.channels or len(config.views.mean)
    options = {"channels": channels, "num_classes": None, "steps_per_epoch": 1, "abstract": True}
    _, state = experiment.method(config, mesh=sharding.make_mesh(jax.devices()[:1]), **options)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)) * (config.keep_checkpoints + 2)


def open_images(config, opened, settled=()):
    """Opens the images as train.py does, but for leaving them where they are; what it refuses is a problem.

    opened: list that gets the source. settled: what `of_host` left: looking through a large folder once is enough.
    """
    already = experiment.settle(config) or next(filter(None, settled), None)
    where_they_are = config.copy_and_resolve_references().unlock()
    where_they_are.data.resident_bytes = 0
    source, held_out = experiment.sources(where_they_are, already)
    mesh = sharding.make_mesh()
    sharding.check_batch_size(config.batch_size, mesh)
    experiment.check_microbatches(config, mesh)
    experiment.check_last_batch(config, len(source), mesh)
    opened.append(source)
    steps = order.steps_per_epoch(len(source), config.batch_size, config.data.last)
    beside = f", {len(held_out)} to judge by ({held_out.name})" if held_out else ""
    said = f"{source.name}: {len(source)} images{beside}, {steps} steps of {config.batch_size} an epoch"
    few = len(source) < config.batch_size
    remedy = f"; a batch holds images more than once, take config.batch_size={max(2, len(source) // 2 * 2)} or less."
    return [("warning" if few else "ok", "set", said + (remedy if few else ""))]


def of_images(config, source, seconds):
    """{name: check} of a source that is open."""
    canvas, threads = experiment.canvas(config, source), config.data.threads or None
    checks = {
        "classes": lambda: images.classes(source),
        "images": lambda: images.files(source, config.image_size, config.data.max_bad_fraction),
        "reading": lambda: images.speed(source, config.batch_size, canvas, seconds / 3, threads),
    }
    if config.data.kind == "folder" and not walk.is_remote(config.data.path):
        checks["duplicates"] = lambda: images.duplicates(source.paths)
    return checks


def replay(folder, as_json):
    """Runs a step that was not finite again and names its first operation; 0 if it was found, else 1."""
    case, batch, names = evidence.read(folder)
    config = ConfigDict(case["config"])
    fields.fill_in(config, fields.PRETRAINING)
    mesh = sharding.make_mesh(jax.local_devices()[:1])
    facts = {name: case[name] for name in ("channels", "num_classes", "steps_per_epoch")}
    method, shapes = experiment.method(config, mesh=mesh, abstract=True, **facts)
    whole = sharding.replicated(mesh)
    state = evidence.restored(
        folder, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), shapes)
    )
    batch = {name: x if name == "size" else jax.device_put(x, whole) for name, x in batch.items()}

    def step(state, batch):
        return pretrain.train_step(method, state, batch)

    fault = first_fault.of_inputs(state) or first_fault.first(step, state, batch)
    lines = remedies.told(fault, case, names, config)
    if as_json:
        found = None if fault is None else fault._asdict() | {"images": [names[row] for row in fault.rows]}
        print(json_lines.text({"step": case["step"], "fault": found, "told": lines}, default=str))
    else:
        print("\n".join(lines))
    return int(fault is None)


if __name__ == "__main__":
    launch.run(main, define_flags)
