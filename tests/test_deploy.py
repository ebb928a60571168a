"""deploy/: what its manifests and scripts start is ours; the script for TPU VMs runs against a gcloud of the test's."""

import json
import os
import re
import shutil
import subprocess
import sys

import commands
import pytest
import yaml

from barlow_jax import cli, fields
from barlow_jax.run import launch

DEPLOY = commands.ROOT / "deploy"
MANIFESTS = ("gpus.yaml", "tpus.yaml")
LINE = ("train", "--config=barlow_twins", "--config.projector=(32,32)", "--workdir=/runs/r50")

# Plays a machine: states come from a file, one a call; what is for the hosts runs in a home of the test's, or is told.
GCLOUD = f"""#!{sys.executable} -SE
import json, os, pathlib, subprocess, sys  # none of site-packages
here, words = pathlib.Path(os.environ["HOME"]), sys.argv[1:]
with open(here / "calls", "a") as calls:
    calls.write(json.dumps(words) + "\\n")
answers = json.loads((here / "answers").read_text())
kind = " ".join(words[2:4])
if kind == "queued-resources describe":
    answer = answers.pop(0)
    (here / "answers").write_text(json.dumps(answers))
    print(answer, file=sys.stderr if answer.startswith("ERROR") else sys.stdout)
    sys.exit(answer.startswith("ERROR"))
if kind == "tpu-vm describe":
    print("READY")
[command] = [word.split("=", 1)[1] for word in words if word.startswith("--command=")] or [""]
if kind == "tpu-vm ssh" and command.startswith(("cd ~/barlow", "pkill", "tail")):
    sys.exit(subprocess.run(["bash", "-c", command]).returncode)
"""

NONE = "ERROR: (gcloud.compute.tpus.queued-resources.describe) NOT_FOUND: Resource was not found"


@pytest.fixture
def home(tmp_path):
    """Where the script's gcloud keeps its calls, and the hosts their runs; `starts` has the lines of barlow-jax."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "gcloud").write_text(GCLOUD)
    program = tmp_path / "barlow" / "env" / "bin" / "barlow-jax"
    program.parent.mkdir(parents=True)
    program.write_text('#!/bin/bash\necho "$@" >> ~/starts\nexit "$(cat ~/ends)"\n')
    for file in (tmp_path / "bin" / "gcloud", program):
        file.chmod(0o755)
    return tmp_path


def script(home, *words, states=(), **more):
    """Exit status and output of tpu_vm.sh, and the calls of gcloud as lists of words."""
    (home / "answers").write_text(json.dumps(states))
    (home / "calls").write_text("")
    settings = {"ZONE": "us-west4-a", "ACCELERATOR": "v5litepod-32", "RUNTIME": "v2-alpha-tpuv5-lite"}
    settings |= {"RUNS": "10.0.0.2:/runs", "DATA": "gs://bucket/imagenet", "POLL": "0.05"}
    path = {"HOME": str(home), "PATH": f"{home / 'bin'}:{os.environ['PATH']}"}
    done = subprocess.run(
        [DEPLOY / "tpu_vm.sh", *words], env=path | settings | more, capture_output=True, text=True, timeout=60
    )
    calls = [json.loads(line) for line in (home / "calls").read_text().splitlines()]
    return done.returncode, done.stdout + done.stderr, calls


def kinds(calls):
    """What the calls that change something did, in order."""
    names = {"python3 -m pip": "install", "sudo mkdir": "data", "nohup": "start"}
    found = []
    for call in calls:
        if call[3] in ("create", "delete"):
            found.append(call[3])
        found += [name for sign, name in names.items() if call[3] == "ssh" and sign in call[-2]]
    return found


def test_a_tpu_vm_from_nothing_over_a_preemption_to_the_end(home):
    """The run is stopped with 75 and started again; the machine is preempted, made anew, and the same line ends it."""
    (home / "ends").write_text("75")
    states = [NONE, "WAITING_FOR_RESOURCES", "ACTIVE", "ACTIVE"]  # asked for, and made
    states += ["ACTIVE", "ERROR: the network is down", "SUSPENDED", "SUSPENDED", NONE, "ACTIVE", *["ACTIVE"] * 50]
    program = home / "barlow" / "env" / "bin" / "barlow-jax"
    program.write_text(program.read_text().replace("exit", "[ $(wc -l < ~/starts) -lt 4 ] || echo 0 > ~/ends\nexit"))
    status, output, calls = script(home, "run", *LINE, states=states)
    assert status == 0 and output.rstrip().endswith("finished"), output
    assert "barlow is WAITING_FOR_RESOURCES" in output and "barlow was preempted" in output
    done = kinds(calls)
    prepared = ["install", "data", "start"]
    assert [name for name in done if name != "start"] == [
        "create",
        "install",
        "data",
        "delete",
        "create",
        "install",
        "data",
    ]
    again = done.index("delete")
    assert done[:4] == ["create", *prepared] and done[again : again + 5] == ["delete", "create", *prepared]
    starts = (home / "starts").read_text().splitlines()
    assert len(starts) >= 4 and {*starts} == {" ".join([*LINE, "--stopped_status=75"])}
    [create, _] = [call for call in calls if call[3] == "create"]
    assert create[4:] == [
        "barlow",
        "--accelerator-type=v5litepod-32",
        "--runtime-version=v2-alpha-tpuv5-lite",
        "--node-id=barlow",
        "--spot",
        "--zone=us-west4-a",
    ]
    [mount, *_] = [call[-2] for call in calls if "gcsfuse" in call[-2]]
    assert "--only-dir imagenet bucket /data" in mount and "mount -t nfs 10.0.0.2:/runs /runs" in mount


def test_a_run_that_fails_is_not_started_for_ever(home):
    (home / "ends").write_text("1")
    status, output, calls = script(home, "run", *LINE, states=["ACTIVE"] * 50)
    assert status == 1 and "error: the run has ended with status 1" in output
    assert kinds(calls) == ["install", "data", "start"]
    (home / "ends").write_text("6")
    status, output, calls = script(home, "run", *LINE, states=["ACTIVE"] * 50, RESTARTS="2")
    assert status == 1 and "error: the run has ended with 6 after 2 starts" in output
    assert kinds(calls) == ["install", "data", *["start"] * 3]


@pytest.mark.parametrize(
    ("words", "more", "sentence"),
    [
        (("run", *LINE), {"RUNS": ""}, "error: RUNS is not set"),
        (("run",), {}, "error: run needs a line"),
        (("create",), {"RUNTIME": ""}, "error: ACCELERATOR or RUNTIME is not set"),
        (("stop",), {"ZONE": ""}, "error: ZONE is not set"),
        (("create",), {"states": [NONE, "FAILED"]}, "error: barlow was not made, its request is FAILED"),
    ],
)
def test_what_cannot_work_is_a_sentence(home, words, more, sentence):
    status, output, _ = script(home, *words, **more)
    assert status == 1 and sentence in output, output


def test_two_slices_and_a_dry_run(home):
    """A dry run calls nothing and prints all; each slice has its hosts."""
    status, output, calls = script(home, "run", *LINE, SLICES="2", SPOT="0", DRY_RUN="1")
    assert status == 0 and not calls
    printed = [line for line in output.splitlines() if line.startswith("gcloud compute tpus ")]
    [create] = {line for line in printed if " create " in line}
    assert "--node-count=2 --node-prefix=barlow" in create and "--spot" not in create
    assert sum("nohup" in line for line in printed) == 2
    assert {line.split()[5] for line in printed if "nohup" in line} == {"barlow-0", "barlow-1"}


def test_slurm_stages_a_copy_on_each_host_and_trains_on_it(tmp_path):
    """srun and rsync write down what they are asked for; the steps run here."""
    for name, rest in {"srun": 'shift; exec "$@"', "rsync": "", "python": ""}.items():
        (tmp_path / name).write_text(f'#!/bin/bash\necho {name} "$@" >> {tmp_path / "calls"}\n{rest}\n')
        (tmp_path / name).chmod(0o755)
    script = DEPLOY / "slurm.sbatch"
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SCRATCH": str(tmp_path / "scratch")}
    line = ["--config=demo", "--workdir=/runs/x"]
    for stage, copied in (("", []), ("/data/imagenet/", ["--config.data.path=" + str(tmp_path / "scratch/imagenet")])):
        (tmp_path / "calls").write_text("")
        subprocess.run(["bash", script, *line], env=environment | {"STAGE": stage}, check=True)
        calls = (tmp_path / "calls").read_text().splitlines()
        train = " ".join(["train.py", *line, *copied])
        assert calls[-2:] == [f"srun --kill-on-bad-exit=1 python {train}", f"python {train}"]
        copies = [call for call in calls if call.startswith("rsync")]
        assert copies == [f"rsync --archive /data/imagenet {tmp_path / 'scratch'}"] * bool(stage)
        assert (tmp_path / "scratch").is_dir() == bool(stage)


@pytest.mark.slow
def test_gcloud_has_the_flags(home):
    """By the help of the real one; nothing is asked of a cloud."""
    gcloud = shutil.which("gcloud") or pytest.skip("gcloud is not installed")
    _, _, calls = script(home, "run", *LINE, states=[NONE, *["ACTIVE"] * 9, "SUSPENDED", "SUSPENDED", *["ACTIVE"] * 9])
    used = {}
    for words in calls:
        used.setdefault(tuple(words[:4]), set()).update(w.partition("=")[0] for w in words[4:] if w.startswith("--"))
    assert {call[2:] for call in used} >= {("queued-resources", "create"), ("queued-resources", "describe")}
    for command, flags in used.items():
        told = subprocess.run([gcloud, *command, "--help"], capture_output=True, text=True, timeout=120).stdout
        told = re.sub(r"\x1b\[[0-9;]*m", "", told)
        assert not (missing := {flag for flag in flags if flag not in told}), (command, missing)


def documents(name):
    return [*yaml.safe_load_all((DEPLOY / name).read_text())]


def jobs(name):
    """The Jobs of a manifest: its own, or those that a JobSet makes."""
    for document in documents(name):
        if document["kind"] == "Job":
            yield document
        for one in document["spec"].get("replicatedJobs", ()):
            yield {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": one["name"]}, **one["template"]}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_starts_our_command(name, monkeypatch):
    """With flags and fields that there are; a stop is told from the end, and not counted as a failure."""
    monkeypatch.chdir(commands.ROOT)
    [job] = jobs(name)
    pod = job["spec"]["template"]["spec"]
    [container] = pod["containers"]
    program, *words = container["args"]
    flag = launch.Flags()
    cli.program(program)[1](flag)
    wanted = flag.parsed([program, *words])
    fields.check(wanted.config, fields.PRETRAINING)
    rules = [rule["onExitCodes"] for rule in job["spec"]["podFailurePolicy"]["rules"] if "onExitCodes" in rule]
    assert [rule["values"] for rule in rules] == [[6, wanted.stopped_status]]
    assert rules[0]["containerName"] == container["name"] and pod["restartPolicy"] == "Never"
    assert job["spec"]["parallelism"] == job["spec"]["completions"] and pod["terminationGracePeriodSeconds"] >= 120
    mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert mounted.keys() >= {"/data", "/runs"} and set(mounted.values()) == volumes.keys()
    assert "persistentVolumeClaim" in volumes[mounted["/runs"]] and wanted.workdir.startswith("/runs/")
    environment = {variable["name"]: variable.get("value") for variable in container["env"]}
    beat = environment["BARLOW_JAX_HEARTBEAT"]
    probes = [container[probe]["exec"]["command"] for probe in ("startupProbe", "livenessProbe")]
    assert all(beat in " ".join(probe) for probe in probes)
    if "JAX_NUM_PROCESSES" in environment:
        assert environment["JAX_NUM_PROCESSES"] == str(job["spec"]["completions"])
        assert environment["JAX_COORDINATOR_ADDRESS"].startswith(f"{job['metadata']['name']}-0.{pod['subdomain']}:")


def test_a_slice_has_all_its_chips():
    [job] = jobs("tpus.yaml")
    pod = job["spec"]["template"]["spec"]
    rows, columns = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    chips = pod["containers"][0]["resources"]["limits"]["google.com/tpu"]
    assert rows * columns == chips * job["spec"]["completions"]
    [rule] = documents("tpus.yaml")[0]["spec"]["failurePolicy"]["rules"]
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"] and job["spec"]["backoffLimit"] == 0


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_by_the_schemas_of_kubernetes(name):
    validator = pytest.importorskip("kubernetes_validate")
    for document in [*(one for one in documents(name) if one["kind"] != "JobSet"), *jobs(name)]:
        validator.validate(document, "1.33", strict=True)


def test_the_image_is_made_of_what_its_build_lets_through():
    """Each file that the wheel is made of passes .dockerignore, and tests do not."""
    lines = (commands.ROOT / ".dockerignore").read_text().splitlines()
    let = {line[1:] for line in lines if line.startswith("!")}
    assert "*" in lines and all((commands.ROOT / name).exists() for name in let) and "tests" not in let
    project = (commands.ROOT / "pyproject.toml").read_text()
    included = re.findall(r'^"([\w./]+)" = "barlow_jax/programs', project, re.M)
    assert len(included) == 3 and let >= {*included, "barlow_jax", "pyproject.toml", "requirements.txt", "README.md"}
    platforms = re.search(r"^ +(cuda12[^)]*)\) jax=", (DEPLOY / "Dockerfile").read_text(), re.M)[1].split(" | ")
    assert all(re.search(rf'^{platform} = \["jax\[{platform}\]"\]', project, re.M) for platform in platforms)


@pytest.mark.parametrize(
    ("tool", "names"), [("shellcheck", ("tpu_vm.sh", "slurm.sbatch")), ("hadolint", ("Dockerfile",))]
)
def test_by_the_linters_where_they_are(tool, names):
    beside = os.path.join(os.path.dirname(sys.executable), tool)
    found = shutil.which(tool) or shutil.which(beside) or pytest.skip(f"{tool} is not installed")
    done = subprocess.run([found, *(DEPLOY / name for name in names)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
