"""The memory that the train step takes against what plan has forecast for the machine, before anybody had it.

The forecast is made by plan's own functions in a process without an accelerator, and for the same config.
"""

import json
import os
import subprocess
import sys

from . import configs, steps
from .paths import ROOT


def measure(context):
    sizes = [step for step in steps.all_of(context.small) if step.module == "step_time"]
    name, count = context.machine()["name"], context.machine()["count"]
    if context.small:
        name = name or "H100"  # a CPU stands in for any
    if name is None:
        context.row("forecast", "none", f"plan does not know {context.machine()['kind']}")
        return
    for step in sizes:
        measured = context.values(step.name, "memory")
        if not measured:
            context.row(step.name, "not measured", f"run --only={step.name} first")
            continue
        if context.values("memory", step.name):
            continue  # of an earlier slice
        if context.late():
            return False
        forecast = planned(context, step.options, f"gpu:{count}x{name}")
        if "bytes" not in forecast:
            context.row(step.name, "no forecast", forecast["error"])
            continue
        used = measured["peak_bytes"] or measured["program_bytes"]
        what = "most in use" if measured["peak_bytes"] else "by the compiler's reckoning"
        context.row(
            step.name,
            f"{used / 1e9:.3g} GB {what}",
            f"forecast {forecast['bytes'] / 1e9:.3g} GB: {forecast['bytes'] / used:.2f} times that",
            measured=used,
            forecast=forecast["bytes"],
        )


def planned(context, size, topology):
    """{"bytes"} of one device that plan forecasts, or {"error"}."""
    words = configs.words(**size, precision=context.machine()["precision"], small=context.small)
    line = [sys.executable, "-m", "gpu_steps.memory", topology, *words]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    told = subprocess.run(line, cwd=ROOT / "benchmarks", env=environment, capture_output=True, text=True)
    if told.returncode:
        lines = told.stderr.strip().splitlines()
        return {"error": lines[-1] if lines else f"plan ended with status {told.returncode}"}
    return json.loads(told.stdout.splitlines()[-1])


def forecast(topology, *words):
    """The forecast itself, in a process of its own, which has no accelerator."""
    import jax

    from barlow_jax import plan
    from barlow_jax.errors import UserError
    from barlow_jax.planning import machines

    config = configs.of_words(*words)
    machine = machines.parse(topology)
    jax.config.update("jax_num_cpu_devices", machine.devices)
    try:
        cost = plan.compile_step(config, configs.shapes(config), machine, machines.compiler(machine))
    except UserError as error:
        sys.exit(str(error))
    return {"bytes": cost.memory, "temporaries": cost.temporaries}


if __name__ == "__main__":
    print(json.dumps(forecast(*sys.argv[1:])))
