"""Who belongs to a run, told from the environment; and what happens when they do not meet."""

import os
import time

import commands
import in_threads
import jax
import pytest

from barlow_jax.errors import UserError
from barlow_jax.run import cluster
from barlow_jax.run.cluster import Place, place

LAPTOP = {"PATH": "/bin", "TPU_SKIP_MDS_QUERY": "1"}  # jax sets this one where there is no TPU
VARIABLES = {"JAX_COORDINATOR_ADDRESS": "host0:1234", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}
# As srun sets them for the second task of four.
SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_NTASKS": "4",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NODELIST": "node[01-02]",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "1",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1:34911",
}
OPEN_MPI_5 = {k: v for k, v in OPEN_MPI.items() if k != "OMPI_MCA_orte_hnp_uri"}
TPU_VM = {"PATH": "/bin"}
GKE = {"TPU_SKIP_MDS_QUERY": "true", "TPU_WORKER_ID": "0", "KUBERNETES_SERVICE_HOST": "10.0.0.1"}
INDEXED_JOB = LAPTOP | {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}

PLACES = {
    "laptop": (LAPTOP, None),
    "laptop with libtpu, for planning": (LAPTOP | {"TPU_LIBRARY_PATH": "/lib"}, None),
    "three variables": (LAPTOP | VARIABLES, Place("JAX_COORDINATOR_ADDRESS", "host0:1234", 4, 3)),
    "three variables win": (SLURM | VARIABLES, Place("JAX_COORDINATOR_ADDRESS", "host0:1234", 4, 3)),
    "empty variables": (LAPTOP | dict.fromkeys(VARIABLES, ""), None),
    "alone by wish": (SLURM | {"JAX_NUM_PROCESSES": "1"}, None),
    "SLURM, two tasks a host": (LAPTOP | SLURM, Place("SLURM", None, 4, 1, (1,))),
    "SLURM, one task a host": (SLURM | {"SLURM_STEP_NUM_NODES": "4"}, Place("SLURM", None, 4, 1)),
    "SLURM, GPUs bound to tasks": (SLURM | {"SLURM_GPUS_PER_TASK": "1"}, Place("SLURM", None, 4, 1)),
    "SLURM, address given": (
        SLURM | {"JAX_COORDINATOR_ADDRESS": "node01:99"},
        Place("SLURM", "node01:99", 4, 1, (1,)),
    ),
    "SLURM, one task": (LAPTOP | SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, None),
    "SLURM, a script outside srun": (LAPTOP | {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, None),
    "Open MPI": (LAPTOP | OPEN_MPI, Place("Open MPI", None, 4, 2, (0,))),
    "Open MPI, one a host": (OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, Place("Open MPI", None, 4, 2)),
    "Open MPI inside SLURM": (SLURM | OPEN_MPI, Place("Open MPI", None, 4, 2, (0,))),
    "Open MPI 5, address given": (
        OPEN_MPI_5 | {"JAX_COORDINATOR_ADDRESS": "node01:99"},
        Place("Open MPI", "node01:99", 4, 2, (0,)),
    ),
    "Open MPI, one process": (LAPTOP | {"OMPI_COMM_WORLD_SIZE": "1"}, None),
    "Cloud TPU": (TPU_VM | {"TPU_LIBRARY_PATH": "/lib"}, Place("Cloud TPU")),
    "Cloud TPU, but on its CPU": (TPU_VM | {"TPU_LIBRARY_PATH": "/lib", "JAX_PLATFORMS": "cpu"}, None),
    "no TPU library": (TPU_VM, None),
    "GKE, two hosts": (
        GKE | {"TPU_LIBRARY_PATH": "/lib", "TPU_WORKER_HOSTNAMES": "a,b"},
        Place("Cloud TPU on Kubernetes"),
    ),
    "GKE, two slices of one host": (
        GKE | {"TPU_LIBRARY_PATH": "/lib", "TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"},
        Place("Cloud TPU on Kubernetes"),
    ),
    "GKE, one host": (GKE | {"TPU_LIBRARY_PATH": "/lib", "TPU_WORKER_HOSTNAMES": "a"}, None),
    "indexed Job": (INDEXED_JOB | {"package": "kubernetes"}, Place("Kubernetes")),
    "indexed Job without the package": (INDEXED_JOB, None),
    "a pod": (LAPTOP | {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "package": "kubernetes"}, None),
}


@pytest.mark.parametrize("case", PLACES)
def test_place(case):
    environment, expected = PLACES[case]
    assert place(environment, installed=lambda package: environment.get("package") == package) == expected


@pytest.mark.parametrize(
    "environment,sentence",
    [
        (
            {"JAX_COORDINATOR_ADDRESS": "host0:1234"},
            "JAX_COORDINATOR_ADDRESS=host0:1234, JAX_NUM_PROCESSES=, .* set all",
        ),
        (
            VARIABLES | {"JAX_PROCESS_ID": "4"},
            "JAX_PROCESS_ID=4 do not name a process; .* from 0 to JAX_NUM_PROCESSES - 1",
        ),
        (VARIABLES | {"JAX_PROCESS_ID": "-1"}, "do not name a process"),
        (VARIABLES | {"JAX_NUM_PROCESSES": "four"}, "JAX_NUM_PROCESSES=four"),
        ({"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}, "JAX_COORDINATOR_ADDRESS=, JAX_NUM_PROCESSES=2"),
        (VARIABLES | {"JAX_COORDINATOR_ADDRESS": "host0"}, "JAX_COORDINATOR_ADDRESS is 'host0'; give .* host:1234"),
        (OPEN_MPI_5, "does not say where process 0 of 4 is; add `-x JAX_COORDINATOR_ADDRESS=HOST:PORT` to mpirun"),
    ],
)
def test_what_does_not_suffice_is_one_sentence(environment, sentence):
    with pytest.raises(UserError, match=sentence):
        place(LAPTOP | environment)


def test_jax_says_that_there_is_no_tpu_here():
    """What keeps a laptop from asking for a TPU's metadata."""
    assert os.environ.get("TPU_SKIP_MDS_QUERY") == "1"


JOIN = """
from barlow_jax.run import cluster, launch
cluster.join.__defaults__ = (4.0,)
launch.run(lambda wanted: print("joined"), lambda flag: None)
"""


def test_processes_that_do_not_meet_end_with_one_sentence():
    """Process 1 where nobody listens, process 0 where nobody comes; JAX would abort both with a dump of its stack."""
    ports = [commands.free_port() for _ in range(2)]
    began = time.monotonic()
    processes = [
        commands.start(
            "-c", JOIN, JAX_COORDINATOR_ADDRESS=f"localhost:{port}", JAX_NUM_PROCESSES="2", JAX_PROCESS_ID=str(index)
        )
        for index, port in enumerate(ports)
    ]
    for index, (process, port) in enumerate(zip(processes, ports, strict=True)):
        output = commands.finish(process, timeout=60)
        assert process.returncode == cluster.ALONE and time.monotonic() - began < 40
        assert output.splitlines()[-1].startswith(
            f"error: Process {index} of 2 did not meet the others at localhost:{port} within 4 s; see that all"
        )
        assert "Check failure" not in output and "Traceback" not in output


def test_a_port_that_is_taken_is_one_sentence():
    with cluster.socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        address = f"localhost:{taken.getsockname()[1]}"
        variables = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}
        status, output = commands.run("-c", JOIN, **variables)
    assert status == 1 and "Traceback" not in output
    assert "error: Process 0 cannot open port" in output.splitlines()[-1] and address in output


@pytest.mark.parametrize("count", [1, 3])
def test_long_work_is_done_on_all_and_what_one_says_against_it_is_raised_on_all(monkeypatch, count):
    """The first process takes longer than several meetings; the last one fails."""
    done = []

    def work():
        index = jax.process_index()

        def long(error=None):
            time.sleep(0.1 if index == 0 else 0)
            done.append(index)
            if error and index == count - 1:
                raise error
            return f"of {index}"

        assert cluster.long_on_all(long) == f"of {index}" and cluster.gathered(b"x" * index) == [
            b"x" * one for one in range(count)
        ]
        cluster.long_on_process_0(lambda: done.append("first"))
        assert done.count("first") == 1
        with pytest.raises(UserError, match="the disk is full"):
            cluster.long_on_all(lambda: long(UserError("the disk is full.")))
        with pytest.raises(UserError, match="a port is taken"):
            cluster.on_process_0(lambda: (_ for _ in ()).throw(UserError("a port is taken.")))

    assert in_threads.processes(monkeypatch, count, work) == [None] * count
    assert sorted(map(str, done)) == sorted([*map(str, range(count))] * 2 + ["first"])
