"""How long the train step takes to compile: anew, and where the compilation cache of an earlier process has it."""

import json
import os
import shutil
import subprocess
import sys
import time

from . import configs
from .paths import ROOT


def measure(context):
    folder = context.out / "compiled"
    shutil.rmtree(folder, ignore_errors=True)
    size = ("convnet", 24, 16) if context.small else ("resnet50", 224, 256)
    words = configs.words(*size, context.machine()["precision"], context.small)
    for what in ("cold", "from the cache"):
        found = in_a_process(folder, words)
        entries = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        context.row(
            what,
            f"{found['compile']:.1f} s",
            f"{found['trace']:.1f} s of tracing before; {entries / 1e6:.3g} MB in the cache",
            seconds=found["compile"],
            trace=found["trace"],
            bytes=entries,
        )


def in_a_process(folder, words):
    """{"trace", "compile"}: seconds, of a process that starts with nothing but the folder."""
    line = [sys.executable, "-m", "gpu_steps.compile_time", str(folder), *words]
    environment = os.environ | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    told = subprocess.run(line, cwd=ROOT / "benchmarks", capture_output=True, text=True, env=environment)
    if told.returncode:
        raise RuntimeError(told.stderr[-2000:])
    return json.loads(told.stdout.splitlines()[-1])


def compiled(folder, *words):
    """What the process finds."""
    from barlow_jax import plan, sharding
    from barlow_jax.run import compilation_cache

    config, mesh = configs.of_words(*words), sharding.make_mesh()
    images = configs.shapes(config)
    with compilation_cache.used(folder, None):
        began = time.perf_counter()
        lowered = plan.lowered(config, *plan.program(config, images, mesh), images)
        traced = time.perf_counter()
        lowered.compile()
        return {"trace": traced - began, "compile": time.perf_counter() - traced}


if __name__ == "__main__":
    print(json.dumps(compiled(*sys.argv[1:])))
