"""Everything that is to be measured on the day a GPU is there, in one command that may be stopped at any moment.

    python benchmarks/gpu.py --out=runs/gpu [--cifar=cifar10.npz] [--images=FOLDER]
    python benchmarks/gpu.py --out=runs/gpu --only=bits,bits-deterministic      # these, done before or not
    python benchmarks/gpu.py --out=runs/gpu --leave_after=550                   # where a command may take 10 minutes

Each step is a process of its own and takes less than 9 minutes. Its rows are in OUT/gpu.json as they come, and in the
end, or whenever it is stopped, all of them are printed as one table. Started again with the same line it goes on: what
is done stays, what failed is tried again. What takes longer (CIFAR-10) comes in slices, each of which goes on where the
one before was stopped.

Needs what train.py needs on arrays; TensorFlow for the step `input` alone, PyTorch and torchvision for what stands
beside ours. --small, or a machine without an accelerator, runs small versions of all steps from start to end, which
says nothing about a GPU.
"""

import argparse
import os
import pathlib
import signal
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent))

from gpu_steps import record, steps

LIMIT = 530  # seconds of a slice; what goes on afterwards stops itself earlier
GOES_ON, SKIPPED = 75, 76  # exit statuses of a slice


def arguments(words=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("runs/gpu"), help="folder of all that it makes"
    )
    parser.add_argument("--cifar", type=pathlib.Path, help=".npz with x_train, y_train, x_test, y_test")
    parser.add_argument("--minutes", type=float, default=30.0, help="of pre-training on CIFAR-10")
    parser.add_argument("--epochs", type=int, default=1000, help="of its schedule")
    parser.add_argument("--images", type=pathlib.Path, help="folder of JPEGs for the step `input`; else it draws some")
    parser.add_argument("--small", action="store_true", help="small versions of all steps")
    parser.add_argument("--only", help="names of steps, separated by commas; done ones are done again")
    parser.add_argument(
        "--leave_after", type=float, default=float("inf"), help="seconds; no slice begins that may end later"
    )
    parser.add_argument("--step", help=argparse.SUPPRESS)  # in the process of a slice
    return parser.parse_args(words)


def one_slice(chosen):
    """In the process of a slice: measures; returns its exit status."""
    step = steps.named(chosen.step, small=chosen.small)
    context = record.Context(chosen, step.name, deadline=time.monotonic() + step.seconds)
    try:
        finished = step.measure(context)
    except record.Skipped as reason:
        context.why(str(reason))
        return SKIPPED
    return GOES_ON if finished is False else 0


def run(chosen, name, small):
    """Runs the slices of a step until it is done; returns the status that its record has: done, skipped, failed."""
    began, log = time.monotonic(), chosen.out / "steps" / f"{name}.log"
    line = [sys.executable, __file__, f"--step={name}", *steps.options(chosen, small)]
    environment = steps.environment(steps.named(name, small=small))
    while True:
        slice_began = time.monotonic()
        with log.open("ab") as output:
            process = subprocess.Popen(
                line, stdout=output, stderr=subprocess.STDOUT, start_new_session=True, env=environment
            )
            status, why = wait(process)
        seconds = time.monotonic() - slice_began
        record.add_seconds(chosen.out, name, seconds)
        if status != GOES_ON:
            break
        if chosen.leave_after < time.monotonic() - chosen.began + LIMIT:
            return record.finish(chosen.out, name, "to be continued", "")
        print(f"  {name}: goes on after {time.monotonic() - began:.0f} s", flush=True)
    if status == 0:
        return record.finish(chosen.out, name, "done", "")
    if status == SKIPPED:
        return record.finish(chosen.out, name, "skipped", None)
    return record.finish(chosen.out, name, "failed", why or last_line(log))


def wait(process):
    """(exit status, why it is not 0 where that is ours) of a slice, which is ended with all it started."""
    try:
        return process.wait(LIMIT), ""
    except subprocess.TimeoutExpired:
        return 1, f"not done after {LIMIT} s"
    finally:
        end(process)


def end(process):
    """Ends a slice and whatever it has left running; its session has no other processes."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # all of it has ended by itself
    process.wait()


def last_line(log):
    """The last line of a log that says something, for the table."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"


def main(words=None):
    chosen = arguments(words)
    if chosen.step:
        return one_slice(chosen)
    chosen.began = time.monotonic()
    chosen.out = chosen.out.expanduser().resolve()
    (chosen.out / "steps").mkdir(parents=True, exist_ok=True)
    record.begin(chosen.out, "machine")
    if run(chosen, "machine", True) != "done":
        raise SystemExit(f"error: JAX does not start ({record.load(chosen.out, 'machine')['why']}).")
    machine = record.machine(chosen.out)
    small = chosen.small or machine["platform"] == "cpu"
    record.check_same(chosen.out, {"small": small, "devices": f"{machine['count']} x {machine['kind']}"})
    wanted = steps.chosen(chosen.only, small)
    left = []
    try:
        for step in wanted:
            before = record.load(chosen.out, step.name)
            if not chosen.only and before.get("status") in ("done", "skipped"):
                continue
            if chosen.leave_after < time.monotonic() - chosen.began + LIMIT:
                left.append(step.name)
                continue
            if before.get("status") != "to be continued":
                record.begin(chosen.out, step.name, anew=bool(chosen.only))
            print(f"{step.name}: {step.says}", flush=True)
            status = run(chosen, step.name, small)
            record.merge(chosen.out, [step.name for step in steps.all_of(small)])
            print(f"  {status}, {record.load(chosen.out, step.name)['seconds']:.0f} s in all", flush=True)
    finally:
        print("\n" + record.table(chosen.out, [step.name for step in steps.all_of(small)]))
    names = [step.name for step in wanted]
    left += [name for name in names if record.load(chosen.out, name).get("status") == "to be continued"]
    if left:
        print(f"\nleft: {', '.join(left)}; the same line goes on")
    failed = [name for name in names if record.load(chosen.out, name).get("status") == "failed"]
    return 1 if failed else GOES_ON if left else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a slice ends with its parent
    sys.exit(main())
