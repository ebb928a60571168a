"""Damaged and hostile files of weights: what reading them executes, how much memory it takes, and how long.

    python benchmarks/hostile_weights.py [--mutations=2000] [--seed=0] [--keep=FOLDER]

Small files of every format (.pth of today and of before torch 1.6, .pkl of detectron2, .safetensors of ours) are
changed at random, half of them inside, so that checksums and lengths are right again; and some 300 files are made by
hand to hang, fill memory or run a command. All are read by `as_run.restore` in a process of their own, with an address
space of `ADDRESS_SPACE` more than it begins with. Prints a table; exit status 1 if anything was executed, ended
otherwise than by weights or one sentence, took longer than `SECONDS` of a core, or more memory than twice the file and
`MEMORY`.
"""

import argparse
import collections
import json
import pathlib
import re
import resource
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import weight_files

from barlow_jax.errors import UserError

SECONDS, MEMORY = 1.0, 128 * 2**20  # of one core, and besides twice its own bytes, that a file may take
ADDRESS_SPACE = 2**30
HANG = 30  # seconds after which a reader is killed
CANARY = "executed"  # a file that the payloads make


def peak():
    """The most memory that this process has held, in bytes, since `forget_peak`."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024


def forget_peak():
    pathlib.Path("/proc/self/clear_refs").write_text("5")


def child(paths):
    """Reads files and prints a line of JSON about each."""
    import logging

    from barlow_jax.weights import as_run, files

    logging.disable()
    heard = []
    harmful = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket", "pickle.find_class")
    sys.addaudithook(lambda event, _: heard.append(event) if event.startswith(harmful) else None)
    space = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (space + ADDRESS_SPACE,) * 2)
    for path in map(pathlib.Path, paths):
        forget_peak()
        before, begun, loaded, said = peak(), time.process_time(), False, ""
        try:
            files.load(path)
            loaded = True
            as_run.restore(path, whole=True)
        except UserError as error:
            said = str(error)
        except BaseException as error:
            said = f"TRACEBACK {error!r}"[:300]
        seconds = time.process_time() - begun
        answer = {"file": str(path), "loaded": loaded, "said": said, "seconds": seconds}
        print(json.dumps(answer | {"memory": peak() - before, "heard": heard}), flush=True)
        heard.clear()


def read_all(paths):
    """What `child` says about each file; a file at which it hangs or dies is named, and the rest go on without it."""
    answers, left = [], [str(path) for path in paths]
    while left:
        command = [sys.executable, __file__, "--child"]
        with tempfile.TemporaryFile("w+") as listed, tempfile.TemporaryFile("w+") as output:
            listed.write("\n".join(left))
            listed.seek(0)
            process = subprocess.Popen(command, stdin=listed, stdout=output, stderr=subprocess.DEVNULL)
            size, quiet = -1, time.monotonic()
            while process.poll() is None and time.monotonic() < quiet + HANG + 30 * (size <= 0):
                time.sleep(0.05)
                now = output.seek(0, 2)
                size, quiet = (now, time.monotonic()) if now != size else (size, quiet)
            process.kill()
            process.wait()
            output.seek(0)
            found = [json.loads(line) for line in output.read().splitlines() if line.endswith("}")]
        answers += found
        left = left[len(found) :]
        if left:
            how = {"loaded": False, "said": f"TRACEBACK ended by {process.returncode}", "seconds": HANG, "memory": 0}
            answers.append({"file": left.pop(0), "heard": [], **how})
    return answers


def faults(answer):
    """What is wrong with how a file was read, as words; [] if nothing is."""
    size = pathlib.Path(answer["file"]).stat().st_size
    return [
        *([f"took {answer['seconds']:.1f} s"] if answer["seconds"] > SECONDS else []),
        *([f"took {answer['memory'] / 2**20:.0f} MB"] if answer["memory"] > 2 * size + MEMORY else []),
        *([answer["said"]] if answer["said"].startswith("TRACEBACK") else []),
        *(["a sentence that is too long"] if len(answer["said"]) > 1000 or "\n" in answer["said"] else []),
        *([f"executed {answer['heard']}"] if answer["heard"] else []),
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", help="folder for the files; else they are removed")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(sys.stdin.read().splitlines())
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(given.keep or temporary)
        folder.mkdir(exist_ok=True)
        canary, whole = folder / CANARY, weight_files.whole_files(folder / "whole")
        kinds = {
            "mutated": weight_files.mutations(whole, given.mutations, given.seed),
            "hostile": weight_files.hostile(whole, canary),
        }
        wrong = 0
        for kind, made in kinds.items():
            (folder / kind).mkdir(exist_ok=True)
            for name, data in made:
                (folder / kind / name).write_bytes(data)
            answers = read_all(sorted((folder / kind).iterdir()))
            wrong += report(kind, answers, canary)
    return min(wrong, 1)


def report(kind, answers, canary):
    """Prints what was seen; returns how many files were read wrongly."""
    bad = {answer["file"]: faults(answer) for answer in answers if faults(answer)}
    slowest, largest = (max(answers, key=lambda answer, by=by: answer[by]) for by in ("seconds", "memory"))
    loaded = sum(answer["loaded"] for answer in answers)
    executed = sum(bool(answer["heard"]) for answer in answers) + canary.exists()
    print(f"{kind}: {len(answers)} files, {loaded} loaded, {len(answers) - loaded} refused in a sentence")
    print(f"    executed {executed}")
    print(f"    peak memory {largest['memory'] / 2**20:.1f} MB ({pathlib.Path(largest['file']).name})")
    print(f"    slowest {slowest['seconds']:.3f} s ({pathlib.Path(slowest['file']).name})")
    words = collections.Counter(" ".join(re.sub(r"\S*/\S+|\d+", "", a["said"]).split()[:5]) for a in answers)
    for said, count in words.most_common(8):
        print(f"    {count:5} {said or '(weights)'}")
    for name, what in bad.items():
        print(f"    WRONG {pathlib.Path(name).name}: {'; '.join(what)}")
    return len(bad) + executed


if __name__ == "__main__":
    sys.exit(main())
