"""Joining the processes of one run, agreeing between them, and leaving together.

Nothing here touches the network where there is one process only: `place` looks at the environment and at nothing else.
"""

import errno
import importlib.util
import json
import logging
import os
import re
import socket
import sys
import threading
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from barlow_jax.errors import UserError
from barlow_jax.run import last_words, trees

ADDRESS, COUNT, INDEX = VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
DEVICES = "JAX_LOCAL_DEVICE_IDS"  # read by JAX
TIMEOUT = 300.0  # seconds until all processes must have found each other
ALONE = 6  # exit status where the others are gone or did not come; JAX's client, which aborts a process, gives it too
MEETING = 5.0  # seconds between two exchanges while process 0 works for itself
HEARTBEAT = 100  # seconds without a word after which a process counts as gone

_FAMILY = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET

log = logging.getLogger(__name__)


class Place(NamedTuple):
    """The place of one process among several; what is None, JAX finds out from the launcher."""

    told_by: str  # who says so, for messages
    address: str | None = None  # host:port of process 0
    count: int | None = None
    index: int | None = None
    devices: tuple = ()  # numbers of its GPUs on this host; () is all that it sees


def place(environment, installed=lambda package: importlib.util.find_spec(package) is not None):
    """Where this process stands among those of its run; None if it is alone. Decided by the environment only.

    In this order: JAX_NUM_PROCESSES=1 is alone, whatever else is there. The three variables JAX_COORDINATOR_ADDRESS
    (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID say it all. Open MPI and SLURM tell each process its
    number; JAX_COORDINATOR_ADDRESS alone may be given beside them. Cloud TPU, from Kubernetes' variables or the
    machine's metadata; indexed Jobs of Kubernetes, where its Python package is installed.

    Args:
      environment: dict, as it is once jax is imported: jax sets TPU_SKIP_MDS_QUERY on machines without a TPU, so that
        nobody asks there for metadata.
      installed: name of a package -> whether it can be imported.
    Raises:
      UserError: the variables contradict each other or do not suffice.
    """
    if environment.get(COUNT) == "1":
        return None
    given = [name for name in VARIABLES if environment.get(name)]
    started = _of_open_mpi(environment) or _of_slurm(environment)
    if started and given in ([], [ADDRESS]):
        return started._replace(address=_address(environment) if given else None)
    if given:
        return _of_variables(environment)
    return _of_cloud_tpu(environment, installed) or _of_kubernetes(environment, installed)


def _of_variables(environment):
    count, index = (environment.get(name, "") for name in (COUNT, INDEX))
    numbers = count.isdecimal() and index.isdecimal() and int(index) < int(count)
    if not numbers or not environment.get(ADDRESS):
        values = ", ".join(f"{name}={environment.get(name, '')}" for name in VARIABLES)
        raise UserError(
            f"{values} do not name a process; set all three for every process, {INDEX} from 0 to {COUNT} - 1, or none."
        )
    return Place(ADDRESS, _address(environment), int(count), int(index))


def _address(environment):
    address = environment[ADDRESS]
    if not re.fullmatch(r".+:\d+", address):
        raise UserError(f"{ADDRESS} is {address!r}; give the host of process 0 and a free port there, as host:1234.")
    return address


def _of_open_mpi(environment):
    count = int(environment.get("OMPI_COMM_WORLD_SIZE") or 1)
    if count == 1:
        return None
    if not environment.get(ADDRESS) and "OMPI_MCA_orte_hnp_uri" not in environment:  # gone since Open MPI 5
        raise UserError(
            f"This Open MPI does not say where process 0 of {count} is; add "
            f"`-x {ADDRESS}=HOST:PORT` to mpirun, HOST being the first of its hosts."
        )
    one_a_host = environment.get("OMPI_COMM_WORLD_LOCAL_SIZE") == "1"
    devices = () if one_a_host else (int(environment["OMPI_COMM_WORLD_LOCAL_RANK"]),)
    return Place("Open MPI", None, count, int(environment["OMPI_COMM_WORLD_RANK"]), devices)


def _of_slurm(environment):
    # Of the step, which srun starts; a script, or a shell in an allocation, has the numbers of the job beside it.
    count = int(environment.get("SLURM_STEP_NUM_TASKS") or 1)
    if count == 1:
        return None
    # Left to itself JAX takes the GPU of the task's number: right for tasks that see all GPUs of a host and share them.
    # One task a host of 8 would have one, and one that SLURM has bound to its GPU would not find its number.
    own = environment.get("SLURM_STEP_NUM_NODES") == str(count) or "SLURM_GPUS_PER_TASK" in environment
    devices = () if own else (int(environment["SLURM_LOCALID"]),)
    return Place("SLURM", None, count, int(environment["SLURM_PROCID"]), devices)


def _of_cloud_tpu(environment, installed):
    platforms = environment.get("JAX_PLATFORMS", "")
    if (platforms and "tpu" not in platforms) or not ("TPU_LIBRARY_PATH" in environment or installed("libtpu")):
        return None
    hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES")
    if hosts:  # on Kubernetes
        several = "," in hosts or int(environment.get("MEGASCALE_NUM_SLICES") or 1) > 1
        return Place("Cloud TPU on Kubernetes") if several else None
    return None if "TPU_SKIP_MDS_QUERY" in environment else Place("Cloud TPU")


def _of_kubernetes(environment, installed):
    indexed = "KUBERNETES_SERVICE_HOST" in environment and "JOB_COMPLETION_INDEX" in environment
    return Place("Kubernetes") if indexed and installed("kubernetes") else None


def join(timeout=TIMEOUT):
    """Connects the processes of a run that has several, before JAX is used; see `place` for who belongs to it.

    Args:
      timeout: seconds to wait for the others.
    Raises:
      UserError: they could not be reached. After `timeout` the process ends with the same sentence and status 6: JAX
        would abort it with a dump of its stack.
    """
    if jax.distributed.is_initialized():  # by an earlier call in this process
        return
    here = place(os.environ)
    if here is None:
        tasks = os.environ.get("SLURM_NTASKS", "1")
        if tasks != "1" and "SLURM_STEP_NUM_TASKS" not in os.environ:
            log.warning("SLURM has room for %s tasks, and this process was not started by srun: it runs alone", tasks)
        return
    who = "This process" if here.index is None else f"Process {here.index} of {here.count}"
    where = f"at {here.address}" if here.address else f"where {here.told_by} says that process 0 is"
    remedy = "see that all of them were started, that this host can reach that one, and that no firewall is between"
    listens = {"coordinator_bind_address": _listening(here.address)} if here.address and here.index == 0 else {}

    def give_up():
        print(f"error: {who} did not meet the others {where} within {timeout:.0f} s; {remedy}.", file=sys.stderr)
        _exit(ALONE)

    watch = threading.Timer(timeout, give_up)
    watch.daemon = True
    watch.start()
    try:
        jax.distributed.initialize(
            *here[1:4],
            local_device_ids=None if DEVICES in os.environ else list(here.devices),  # None: JAX reads the variable
            initialization_timeout=round(timeout) + 60,
            heartbeat_timeout_seconds=HEARTBEAT,
            **listens,
        )
    except (OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise UserError(f"{who} could not join the others {where} ({reason}); {remedy}.") from error
    finally:
        watch.cancel()
    last_words.witness(
        f"{who} has ended, because another process is gone or because it was killed itself; the logs of the others say "
        "more. Start the same line again on all, the run goes on from its last checkpoint."
    )


def _listening(address):
    """The address where process 0 listens: the one that was named, or all of this host's if that is not one of them.

    An address may be that of a router in front of the host, or of a service of Kubernetes: there nobody can listen.

    Raises:
      UserError: the port is taken: there JAX would crash.
    """
    host, port = address.rsplit(":", 1)
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    except (OSError, OverflowError, ValueError):
        found = []
    for named, family, place in [*((True, one[0], one[4]) for one in found), (False, _FAMILY, ("", int(port)))]:
        try:
            with socket.socket(family) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(place)
                return address if named else f"[::]:{port}"
        except (OSError, OverflowError) as error:
            if named and getattr(error, "errno", None) in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                continue
            raise UserError(
                f"Process 0 cannot open port {port} of {ADDRESS}={address} "
                f"({getattr(error, 'strerror', None) or error}); give every process another port."
            ) from error


def check_agreement(facts):
    """Raises UserError on all processes where they were told different things.

    Args:
      facts: {name: text}, the same names on every process.
    """
    if jax.process_count() == 1:
        return
    everyone = [json.loads(text) for text in gathered(json.dumps(facts).encode())]
    for index, others in enumerate(everyone):
        for name, (ours, theirs) in trees.differences(everyone[0], others, told=str).items():
            raise UserError(
                f"Process {index} has {name} {theirs} and process 0 has {ours}; start all processes of a run with the "
                "same line, code and data."
            )


def gathered(told):
    """The bytes of every process, a list in the order of their numbers; as bytes nothing is rounded."""
    if jax.process_count() == 1:
        return [told]
    lengths = multihost_utils.process_allgather(np.int32(len(told)))
    padded = np.frombuffer(told.ljust(int(lengths.max()), b"\0"), np.uint8)
    rows = multihost_utils.process_allgather(padded)
    return [row[:length].tobytes() for row, length in zip(rows, lengths.ravel(), strict=True)]


def on_process_0(work):
    """Runs work() on process 0 alone. A UserError there is raised on all processes, so that none waits for ever."""
    sentence = ""
    if jax.process_index() == 0:
        try:
            work()
        except UserError as error:
            sentence = str(error)
    _raise_on_all(sentence)


def long_on_process_0(work):
    """As `on_process_0`, of work of minutes."""
    long_on_all(work if jax.process_index() == 0 else lambda: None)


def long_on_all(work):
    """What work() returns, of minutes on some process: in a thread, as all processes meet every few seconds meanwhile.

    A collective that waits for one process is given up, on CPUs after 30 s where it is the first of its kind. A
    UserError of one process is raised on all, at the end.
    """
    if jax.process_count() == 1:
        return work()
    found, failure, ended = [], [], threading.Event()

    def run():
        try:
            found.append(work())
        except Exception as error:
            failure.append(error)
        finally:
            ended.set()

    threading.Thread(target=run, daemon=True).start()
    while on_any_process(not ended.wait(MEETING)):
        pass
    if failure and not isinstance(failure[0], UserError):
        raise failure[0]
    _raise_on_all(str(failure[0]) if failure else "")
    return found[0]


def _raise_on_all(sentence):
    """Raises UserError on all processes where one gives a sentence, the first of them."""
    if sentences := [text.decode() for text in gathered(sentence.encode()) if text]:
        raise UserError(sentences[0])


def on_any_process(flag):
    """Whether the flag is set on at least one process; every process asks at the same point."""
    return bool(flag if jax.process_count() == 1 else multihost_utils.process_allgather(np.int32(flag)).any())


def leave(status, sentence, patience=10.0):
    """Ends one of several processes after a failure, told in a sentence, without waiting for ever for the others.

    JAX says good-bye when a process ends, and waits 5 minutes for all others to do the same; if they still train, they
    wait for this one in turn. If all have failed alike they are there within `patience` seconds. Otherwise this process
    goes, and that ends the others: at once where they wait for it, after 100 s at the latest.
    """
    last_words.farewell(sentence)  # now, as that another is gone may end this process while it parts
    parting = threading.Thread(target=jax.distributed.shutdown, daemon=True)
    parting.start()
    parting.join(patience)
    _exit(status)


def _exit(status):
    last_words.farewell()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
