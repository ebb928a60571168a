"""Which steps there are, in which order, and how their processes are started."""

import functools
import importlib
import importlib.util
import os
from collections.abc import Mapping
from typing import NamedTuple

SECONDS = 440  # a slice that is to go on stops by itself after so many


class Step(NamedTuple):
    """One step; module: of this package, whose `measure` takes a record.Context and the options."""

    name: str
    says: str
    module: str
    options: Mapping = {}
    seconds: float = SECONDS

    def measure(self, context):
        """False where it is to go on in another slice."""
        return importlib.import_module(f"gpu_steps.{self.module}").measure(context, **self.options)


def _speed(arch, side, batch_size):
    says = f"{arch} at {side} pixels, batch {batch_size}: time of a step, its shares, memory; PyTorch beside it"
    return Step(f"step-{arch}-{batch_size}", says, "step_time", {"arch": arch, "side": side, "batch_size": batch_size})


FULL_SIZES = (
    *(("resnet50", 224, batch_size) for batch_size in (64, 128, 256, 512)),
    *(("resnet18", 32, batch_size) for batch_size in (512, 1024)),
)
SMALL_SIZES = (("convnet", 24, 16),)


@functools.cache
def all_of(small):
    """Every step, in the order of what is cheap and what others need."""
    deterministic = "the same with config.deterministic=True"
    return (
        Step("machine", "what is there", "machine"),
        Step("fixtures", "the official code's numbers, in float32 and bfloat16", "fixtures"),
        Step("views", "views on the device against the CPU's", "exact_views"),
        *(_speed(*size) for size in (SMALL_SIZES if small else FULL_SIZES)),
        # A forecast takes some minutes of compiling, and a slice begins none after so many seconds.
        Step("memory", "what the step takes against plan's forecast", "memory", seconds=200),
        Step("compile", "compiling, cold and from the cache", "compile_time"),
        Step("bits", "runs again, killed in between, compiled anew: the same bits?", "same_bits"),
        Step("bits-deterministic", deterministic, "same_bits", {"deterministic": True}),
        Step("input", "the input pipeline feeding the step", "input_wait"),
        Step("cifar", "CIFAR-10: accuracy against time", "accuracy"),
        Step("cifar-linear", "CIFAR-10: linear evaluation of that run", "accuracy", {"linear": True}),
    )


def named(name, *, small):
    return next(step for step in all_of(small) if step.name == name)


def chosen(only, small):
    """The steps of --only, or all but `machine`, which comes before them by itself."""
    steps = all_of(small)
    if not only:
        return steps[1:]
    unknown = {*only.split(",")} - {step.name for step in steps}
    if unknown:
        there = ", ".join(step.name for step in steps)
        raise SystemExit(f"error: --only={only} names {', '.join(sorted(unknown))}; there are {there}.")
    return [step for step in steps if step.name in only.split(",")]


def options(chosen, small):
    """The words for the process of a slice."""
    paths = {"out": chosen.out, "cifar": chosen.cifar, "images": chosen.images}
    words = [f"--{name}={path.expanduser().resolve()}" for name, path in paths.items() if path]
    return [*words, f"--minutes={chosen.minutes}", f"--epochs={chosen.epochs}", *(["--small"] if small else [])]


def environment(step):
    """Of the process of a slice. Where PyTorch wants memory in the same process, JAX takes it as it needs it."""
    shared = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} if step.module == "step_time" else {}
    return os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"} | shared


def has(package):
    return importlib.util.find_spec(package) is not None
