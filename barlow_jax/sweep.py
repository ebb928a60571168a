r"""Several trainings and their evaluations, one after the other, and the table they make: the paper's, or your own.

    barlow-jax sweep --config=configs/paper.py:table6 --config.data.path=/data/imagenet --workdir=runs/table6
    barlow-jax sweep --config=configs/paper.py:table5@imagenette32 --config.data.path=imagenette32.npz --seeds=0,1 \
        --evaluate=knn,probe --workdir=runs/table5

The members are what the config's file lists in its function `members` (docs/sweeps.md), each trained with every seed in
MEMBER/seed_N of the work folder, then judged, every command in a process of its own. The same line goes on where it was
stopped: what is done is not done again. A member that fails does not stop the others; it is named in the end, with
status 1. Then table.md, results.jsonl and the pictures are written, beside the paper's numbers.

With --print or --slurm nothing runs; the commands are printed, one line a run or as a job array. --table makes the
table of what is there.
"""

import contextlib
import logging
import pathlib
import re
import shlex
import sys
import time
from typing import NamedTuple

import jax

from barlow_jax import fields, model, results
from barlow_jax.errors import UserError
from barlow_jax.results import sweep as tables
from barlow_jax.run import config_files, launch, stages, writing
from barlow_jax.run.buckets import reading

COMMANDS = {"knn": "knn", "probe": "probe", "linear": "linear-eval"}
EVALUATIONS = ("knn", "linear")  # those of the paper's tables are linear

log = logging.getLogger("sweep")


def define_flags(flag):
    flag.swept("Whose members to run, such as paper:table5 or configs/paper.py:figure4@demo.")
    flag.text("workdir", "Folder of all the runs, and of the table.")
    flag.names("seeds", "Seeds of the pre-training, each a run of every member (0 if not given).")
    flag.names("evaluate", f"knn, probe, linear, each as it is or as linear:CONFIG ({','.join(EVALUATIONS)}).")
    flag.names("baselines", "Judge these too, in the place of the first member: random, pixels.")
    flag.names("only", "Of the members, these.")
    flag.switch("table", "Run nothing; make the table of what is there.")
    flag.switch("print", "Run nothing; print the commands, one line a run.")
    flag.switch("slurm", "Run nothing; print a job script for sbatch, one task a run.")
    flag.number("stopped_status", "Exit status where a signal came before the end.")


class Run(NamedTuple):
    """A member with a seed."""

    member: str
    seed: int
    folder: pathlib.Path
    commands: dict  # {stage: words behind `barlow-jax`}, in order


def main(wanted):
    if jax.distributed.is_initialized():
        raise UserError("A sweep is one process that starts others; print its commands by --slurm, or start it alone.")
    if not wanted.workdir:
        raise UserError("--workdir is missing; give the folder where the runs and the table go.")
    reading.here_alone(wanted.workdir)
    runs = plan(wanted)
    refused = {} if wanted.table else refusals(runs)
    for member, problem in refused.items() if wanted.print or wanted.slurm else ():
        log.warning("%s will not work: %s", member, problem)
    if wanted.print:
        print("\n".join(map(one_line, runs)))
        return 0
    if wanted.slurm:
        print(job_array(runs, wanted))
        return 0
    failures = {}
    if not wanted.table:
        with stages.Stages() as running:
            failures = carried_out(runs, running, refused)
        if running.stopped:
            log.info("stopped; the same line goes on from there")
            return wanted.stopped_status
    write_table(runs, pathlib.Path(wanted.workdir).expanduser())
    for label, problem in failures.items():
        print(f"{label}: {problem}", file=sys.stderr)
    return 1 if failures else 0


def plan(wanted):
    """The runs, each with its commands; UserError where a flag names what there is not."""
    if not wanted.swept:
        raise UserError("--config is missing; name a file and its members, such as --config=configs/paper.py:table5.")
    if any(word.startswith(("--config.seed=", "-config.seed=")) for word in wanted.fields):
        raise UserError("config.seed is set by the sweep; name seeds by --seeds=0,1.")
    members = config_files.members(wanted.swept)
    check_fields(members, wanted)
    for name in wanted.only:
        if name not in members:
            raise UserError(f"--only={name} is no member; there are {', '.join(members)}.")
    seeds = wanted.seeds or ["0"]
    if not all(re.fullmatch(r"\d{1,9}", seed) for seed in seeds) or len({*map(int, seeds)}) < len(seeds):
        raise UserError(f"--seeds={','.join(seeds)} are no seeds; give whole numbers, each once, such as 0,1.")
    for evaluation in wanted.evaluate:
        if named := evaluation.partition(":")[2]:
            config_files.load(named)  # now, and not behind a training: it may not be there, or fail
    for name in wanted.baselines:
        if name not in tables.BASELINES:
            raise UserError(f"--baselines={name} is unknown; take {' or '.join(tables.BASELINES)}.")
    if len({folder_of(name) for name in members}) < len(members):
        raise UserError(f"Two members of {wanted.swept} would share a folder; let their names differ in letters.")
    chosen = [name for name in members if name in (wanted.only or members)]
    return [
        run_of(wanted, name, members[name], int(seed), wanted.baselines if name == chosen[0] else ())
        for name in chosen
        for seed in seeds
    ]


def check_fields(members, wanted):
    """Raises UserError where --config.FIELD sets what the members differ in: all would be one, under several names."""
    configs = []
    for named in members.values() if wanted.fields else ():
        with contextlib.suppress(UserError):  # of one that fails, which does not stop the others: see `refusals`
            configs.append(fields.flat(config_files.load(named)))
    for word in wanted.fields:
        name = re.split(r"config\.|=", word)[1]
        if any(config.get(name) != configs[0].get(name) for config in configs):
            raise UserError(
                f"config.{name} is what the members of {wanted.swept} differ in: leave it out, or change it in a file "
                "of your own with other members."
            )


def folder_of(name):
    """The folder of a member, in the work folder."""
    return re.sub(r"[^\w.+-]+", "_", name).strip(".") or "_"


def run_of(wanted, name, config, seed, baselines):
    """The `Run` of a member and a seed; config: what --config takes."""
    folder = pathlib.Path(wanted.workdir) / folder_of(name) / f"seed_{seed}"
    train = ["train", f"--config={config}", *wanted.fields, f"--config.seed={seed}", f"--workdir={folder}"]
    commands = {"train": [*train, "--stopped_status=1"]}
    for baseline in ("", *baselines):
        for evaluation in wanted.evaluate or EVALUATIONS:
            kind, _, named = evaluation.partition(":")
            if kind not in COMMANDS:
                raise UserError(f"--evaluate={evaluation} is unknown; take some of {', '.join(COMMANDS)}.")
            words = [COMMANDS[kind], f"--config={named or 'linear'}"] if named or kind == "linear" else [COMMANDS[kind]]
            words.append(f"--checkpoint={folder}")
            if kind == "linear":
                parts = "linear", folder_of(named.removeprefix("linear_")) if named else "", baseline
                words += [f"--workdir={folder / '_'.join(filter(None, parts))}", "--stopped_status=1"]
            commands[f"{evaluation} {baseline}".strip()] = words + ([f"--baseline={baseline}"] if baseline else [])
    return Run(name, seed, folder, commands)


def refusals(runs):
    """{member: sentence} of those whose config cannot work; UserError where that is so of all."""
    problems = {}
    for run in runs:
        flag = launch.Flags()
        flag.config("")
        try:
            words = [word for word in run.commands["train"] if re.match(r"--?config[.=]", word)]
            config = flag.parsed(["train", *words]).config
            fields.check(config, fields.PRETRAINING)
            check_sizes(config, run)
        except UserError as error:
            problems.setdefault(run.member, str(error))
    if len(problems) == len({run.member for run in runs}):
        raise UserError(next(iter(problems.values())))
    return problems


def check_sizes(config, run):
    """Raises UserError where a network for images of one size is to be judged at another, which it would say later."""
    for words in run.commands.values() if config.arch in model.OF_ONE_SIZE else ():
        if words[0] == COMMANDS["linear"]:
            named = words[1].partition("=")[2]
            judged = config_files.load(named)
            for name, side in (("image_size", judged.image_size), ("eval.crop", judged.eval.crop)):
                if side not in (0, config.image_size):
                    raise UserError(
                        f"config.{name} of {named} is {side}, and the {config.arch} is for images of "
                        f"{config.image_size} pixels: name another, as --evaluate=linear:linear_demo does."
                    )


def carried_out(runs, running, refused):
    """{"MEMBER, seed N, COMMAND": what it said} of the runs that did not come to their end."""
    failures = {}
    for number, run in enumerate(runs, 1):
        label, begun = f"{run.member}, seed {run.seed}", time.monotonic()
        log.info("%d of %d: %s", number, len(runs), label)
        if run.member in refused:
            failures[label] = f"error: {refused[run.member]}"
            continue
        for stage, words in run.commands.items():
            problem = running.run(run.folder, stage, words)
            if running.stopped:
                return failures
            if problem:
                failures[f"{label}, {stage}"] = f"{problem} ({run.folder / stages.LOG})"
                log.warning("%s, %s: %s", label, stage, problem)
                break
        else:
            log.info("%d of %d: %s: done, %.0f s", number, len(runs), label, time.monotonic() - begun)
    return failures


def write_table(runs, workdir):
    """table.md, results.jsonl and the pictures of what there is."""
    folders = {}
    for run in runs:
        folders.setdefault(run.member, {})[run.seed] = str(run.folder)
    found = tables.collect(folders)
    text = tables.markdown(found, list(folders))
    with writing.told(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
    writing.text(workdir / "table.md", text)
    results.append(workdir, [line for lines in found.values() for line in lines])
    drawn = tables.draw(found, list(folders), workdir)
    print(
        f"\n{text}\nAlso in {', '.join(str(path) for path in (workdir / 'table.md', workdir / results.FILE, *drawn))}."
    )


def program():
    """How the commands of this package are called where this one was called as it was."""
    return "python -m barlow_jax.cli" if pathlib.Path(sys.argv[0]).suffix == ".py" else "barlow-jax"


def one_line(run):
    """The commands of a run as one line for a shell."""
    return " && ".join(f"{program()} {shlex.join(words)}" for words in run.commands.values())


def job_array(runs, wanted):
    """A job script whose tasks are the runs."""
    cases = []
    for number, run in enumerate(runs):
        train, *others = (f"{program()} {shlex.join(words)}" for words in run.commands.values())
        lines = [f"srun --kill-on-bad-exit=1 {train}", *(f"srun --ntasks=1 {other}" for other in others)]
        cases += [f"{number})  # {run.member}, seed {run.seed}", *(f"    {line}" for line in lines), "    ;;"]
    table = shlex.join(["sweep", f"--config={wanted.swept}", f"--workdir={wanted.workdir}", "--table"])
    return "\n".join(
        [
            "#!/bin/bash",
            f"#SBATCH --array=0-{len(runs) - 1}",
            "#SBATCH --requeue",
            "#SBATCH --signal=USR1@120        # 120 s before the limit: save, and back into the queue",
            "#SBATCH --open-mode=append",
            "# Nodes, GPUs and time are yours to add, as in deploy/slurm.sbatch. When all tasks are done:",
            f"#   {program()} {table}" + "".join(f" --{n}={','.join(v)}" for n, v in chosen(wanted).items()),
            "set -e",
            'case "$SLURM_ARRAY_TASK_ID" in',
            *cases,
            "esac",
        ]
    )


def chosen(wanted):
    """{flag: values} of those that say which runs there are."""
    return {name: values for name in ("seeds", "only") if (values := getattr(wanted, name))}


if __name__ == "__main__":
    launch.run(main, define_flags)
