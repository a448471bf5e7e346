"""A real SLURM on loopback: munged, slurmctld and one slurmd per node, as this user, without systemd or cgroups.

Everything lies in one folder of its own, on free ports, so that several clusters live beside each other. The settings
that differ from a production cluster's are short waits. By hand:

    python -m tests.slurm.cluster 2        # starts two nodes, prints what to export, stops on Ctrl-C
"""

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "squeue", "scontrol")
_SEARCH = os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin"

# cred_expire: a requeued job starts again after this time instead of 120 s (5 is the least; a machine under load needs
# more for launching). KillWait: between SIGTERM and SIGKILL when SLURM ends a job. SlurmdTimeout: a silent node is
# given up. "urgent" jobs pre-empt those of the default partition, which are then requeued.
CONFIGURATION = """\
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=8
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=2,builtin_interval=2
ReturnToService=2
SlurmctldTimeout=30
SlurmdTimeout=20
KillWait=30
MailProg=/bin/true
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=n[1-{nodes}] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{ports}] CPUs={cpus} RealMemory=8000 State=UNKNOWN
PartitionName=cpu Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


def missing_program() -> str | None:
    """The first program of SLURM that this machine lacks; None when it has them all."""
    return next((name for name in PROGRAMS if _which(name) is None), None)


def _which(name: str) -> str | None:
    return shutil.which(name, path=_SEARCH)


class Cluster:
    """`with Cluster(nodes=2) as cluster: ...`; commands of SLURM need `cluster.environment`."""

    def __init__(self, *, nodes: int, cpus: int = 2) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # short: a socket's path has at most 108 characters
        self.nodes = [f"n{number}" for number in range(1, nodes + 1)]
        self.environment = os.environ | {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": _SEARCH}
        self._daemons: dict[str, subprocess.Popen] = {}
        self._cpus = cpus

    def __enter__(self) -> "Cluster":
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if "slurmctld" in self._daemons:
            self.cancel_all()
        for daemon in reversed(self._daemons.values()):
            daemon.terminate()
        for daemon in self._daemons.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(10)
            daemon.kill()
            daemon.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, *command: str) -> str:
        """The output of one of SLURM's commands."""
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=60, check=False
        ).stdout.strip()

    def state(self, job_id: str) -> str:
        """`RUNNING`, `PENDING`, ... or `` when the job is no longer in the queue."""
        return self.run("squeue", "--noheader", f"--jobs={job_id}", "--format=%T")

    def wait_for(self, job_id: str, *states: str, seconds: float = 90) -> str:
        """Wait until the job is in one of `states` (`` for: left the queue)."""
        wait_until(lambda: self.state(job_id) in states, seconds, f"job {job_id} is {states}, not {self.state(job_id)}")
        return self.state(job_id)

    def details(self, job_id: str) -> dict[str, str]:
        """What `scontrol show job` says, also of a job that ended some minutes ago."""
        words = self.run("scontrol", "show", "job", job_id, "--oneliner").split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def cancel_all(self) -> None:
        """Empty the queue, as far as a minute goes."""
        self.run("scancel", "--user", getpass.getuser())
        wait_until(lambda: not self.run("squeue", "--noheader"), 60, "the queue is empty", required=False)

    def start_node(self, name: str) -> None:
        """Start a node's slurmd (again)."""
        (self.folder / "spool" / name).mkdir(parents=True, exist_ok=True)
        self._spawn(name, "slurmd", "-D", "-N", name)

    def kill_node(self, name: str) -> None:
        """SIGKILL a node's slurmd, and what its jobs run there: a machine that went down."""
        daemon = self._daemons.pop(name)
        daemon.kill()
        daemon.wait()
        processes = self._processes_on(name)
        # SLURM's step daemons first: one that outlived its script would report the job as failed, not the node as lost.
        daemons = {process.ppid() for process in processes if process.parent().name() == "slurmstepd"}
        for pid in (*daemons, *(process.pid for process in processes)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _processes_on(self, name: str) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):  # gone, or another user's
                variables = process.environ()
                if variables.get("SLURMD_NODENAME") == name and self._is_mine(variables) and process.parent():
                    found.append(process)
        return found

    def _is_mine(self, variables: Mapping[str, str]) -> bool:
        return variables.get("SLURM_CONF") == self.environment["SLURM_CONF"]

    def _start(self) -> None:
        for name in ("state", "spool", "log"):
            (self.folder / name).mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        controller, *ports = _free_ports(1 + len(self.nodes))
        configuration = CONFIGURATION.format(
            host=socket.gethostname(),
            user=getpass.getuser(),
            folder=self.folder,
            controller_port=controller,
            nodes=len(self.nodes),
            ports=",".join(map(str, ports)),
            cpus=self._cpus,
        )
        (self.folder / "slurm.conf").write_text(configuration)
        munge = [f"--{name}-file={self.folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
        self._spawn("munged", "munged", "--foreground", "--force", f"--socket={self.folder}/munge.sock", *munge)
        wait_until((self.folder / "munge.sock").exists, 10, "munged listens")
        self._spawn("slurmctld", "slurmctld", "-D", "-c")
        for name in self.nodes:
            self.start_node(name)
        self.wait_for_nodes(len(self.nodes))

    def wait_for_nodes(self, count: int, seconds: float = 60) -> None:
        """Wait until `count` nodes are up and idle."""
        idle = lambda: self.run("sinfo", "--noheader", "--partition=cpu", "--states=idle", "--format=%D")  # noqa: E731
        wait_until(lambda: idle() == str(count), seconds, f"{count} nodes are idle; see {self.folder}/log")

    def _spawn(self, name: str, program: str, *arguments: str) -> None:
        # A killed test process must not leave daemons behind.
        command = ["setpriv", "--pdeathsig", "KILL", str(_which(program)), *arguments]
        with (self.folder / "log" / f"{name}.log").open("ab") as log:
            self._daemons[name] = subprocess.Popen(
                command, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def wait_until(condition: Callable[[], bool], seconds: float, what: str, *, required: bool = True) -> None:
    """Look five times a second until `condition` is true; AssertionError after `seconds` when it is required."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            assert not required, f"not true within {seconds:.0f} s: {what}"
            return
        time.sleep(0.2)


if __name__ == "__main__":
    with Cluster(nodes=int(sys.argv[1])) as own:
        print(f"export SLURM_CONF={own.environment['SLURM_CONF']}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()
