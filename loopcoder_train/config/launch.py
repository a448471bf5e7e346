"""How the processes of a run start: torchrun on this machine, or a SLURM job."""

import dataclasses
import re
from dataclasses import dataclass, field
from enum import Enum

from loopcoder_train.config.errors import UserError, require, require_positive
from loopcoder_train.config.parallel import ParallelConfig


class LaunchKind(Enum):
    """Who starts the workers. `launch=slurm` on the command line chooses the file that sets it."""

    local = "local"  # this process, on this machine
    slurm = "slurm"  # sbatch, one launcher per node


# What sbatch accepts: minutes, minutes:seconds, hours:minutes:seconds, days-hours[:minutes[:seconds]].
_TIME_LIMIT = re.compile(r"\d+(:\d\d){0,2}|\d+-\d+(:\d\d){0,2}")
_NAME = re.compile(r"[\w.,:+@-]+", re.ASCII)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SBATCH_OPTION = re.compile(r"(--[a-z][a-z-]*)(?:[= ].*)?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
MAX_SIGNAL_LEAD_SECONDS = 65535  # sbatch's own limit

# sbatch option -> what sets it. Two lines for one option would hide which of them counts.
_SET_ELSEWHERE = {
    "--account": "launch.account",
    "--array": "-m, which submits one job per value",
    "--chdir": "the folder that the command is given in",
    "--cpus-per-task": "launch.cpus_per_task",
    "--dependency": "the rule that one job at a time writes into a run_dir",
    "--error": "launch=slurm",
    "--gpus-per-node": "launch.gpus_per_node",
    "--job-name": "the name of run_dir",
    "--nodes": "launch.nodes",
    "--no-requeue": "launch=slurm",
    "--ntasks": "launch=slurm: one launcher per node",
    "--ntasks-per-node": "launch=slurm: one launcher per node",
    "--open-mode": "launch=slurm",
    "--output": "launch=slurm",
    "--partition": "launch.partition",
    "--requeue": "launch=slurm",
    "--signal": "launch.signal_lead_seconds",
    "--time": "launch.time_limit",
    "--wrap": "launch=slurm",
}


@dataclass(kw_only=True, slots=True)
class LaunchConfig:
    """How processes start. The options below `kind=slurm` only exist there."""

    kind: LaunchKind = LaunchKind.local
    max_restarts: int = 0  # restarts after a crash; a user's error (exit code 2) is never restarted
    # kind=local
    start_workers: bool = True  # false: only write run.yaml and print the torchrun line for several machines
    # kind=slurm
    dry_run: bool = False  # print the batch script, submit nothing
    nodes: int = 1
    gpus_per_node: int = 0  # 0: a cluster without GPUs
    processes_per_node: int | None = None  # default: one per GPU, one on a node without
    cpus_per_task: int | None = None  # CPUs of a node for its processes together; default: one per process
    partition: str | None = None
    account: str | None = None
    time_limit: str | None = None  # as sbatch takes it: minutes, HH:MM:SS or D-HH:MM:SS; default: the partition's
    signal_lead_seconds: int = 300  # how long before the time limit SLURM asks the run to save and stop
    container_image: str | None = None  # for a SLURM with pyxis: an image that has this package
    container_mounts: str | None = None  # pyxis's SRC:DST,...; run_dir and corpus must be visible inside
    python: str | None = None  # interpreter on the nodes; default: this one, `python3` in a container
    environment: dict[str, str] = field(default_factory=dict)  # exported to the workers
    sbatch_lines: list[str] = field(default_factory=list)  # further options of sbatch, such as "--qos=long"

    def __post_init__(self) -> None:
        require(self.max_restarts >= 0, "launch.max_restarts", self.max_restarts, "must be 0 or more")
        if self.kind is LaunchKind.local:
            self._refuse_options_of_slurm()
            return
        require(
            self.start_workers,
            "launch.start_workers",
            self.start_workers,
            "is an option of launch=local",
            "launch.dry_run=true shows the job without submitting it",
        )
        self._check_resources()
        self._check_names()
        self._check_sbatch_lines()
        self._check_environment()

    @property
    def processes_on_a_node(self) -> int:
        """Workers that each node starts."""
        return self.processes_per_node or max(1, self.gpus_per_node)

    @property
    def cpus_on_a_node(self) -> int:
        """CPUs that SLURM is asked for on each node."""
        return self.cpus_per_task or self.processes_on_a_node

    def _refuse_options_of_slurm(self) -> None:
        names = [option.name for option in dataclasses.fields(self)]
        defaults = {option.name: option for option in dataclasses.fields(self)}
        for name in names[names.index("dry_run") :]:
            value, option = getattr(self, name), defaults[name]
            default = option.default if option.default is not dataclasses.MISSING else option.default_factory()
            require(value == default, f"launch.{name}", value, "is an option of launch=slurm", "add launch=slurm")

    def _check_resources(self) -> None:
        require_positive(launch__nodes=self.nodes)
        require(self.gpus_per_node >= 0, "launch.gpus_per_node", self.gpus_per_node, "must be 0 or more")
        if self.processes_per_node is not None:
            require_positive(launch__processes_per_node=self.processes_per_node)
            require(
                self.gpus_per_node in (0, self.processes_per_node),
                "launch.processes_per_node",
                self.processes_per_node,
                f"must be launch.gpus_per_node={self.gpus_per_node}: every process has a GPU of its own",
                "leave launch.processes_per_node unset",
            )
        if self.cpus_per_task is not None:
            require_positive(launch__cpus_per_task=self.cpus_per_task)
        require(
            0 < self.signal_lead_seconds <= MAX_SIGNAL_LEAD_SECONDS,
            "launch.signal_lead_seconds",
            self.signal_lead_seconds,
            f"must lie in 1..{MAX_SIGNAL_LEAD_SECONDS}",
        )

    def _check_names(self) -> None:
        for name in ("partition", "account"):
            value = getattr(self, name)
            rule = "may hold letters, digits and _ . , : + @ - only"
            require(value is None or bool(_NAME.fullmatch(value)), f"launch.{name}", repr(value), rule)
        require(
            self.time_limit is None or bool(_TIME_LIMIT.fullmatch(self.time_limit)),
            "launch.time_limit",
            repr(self.time_limit),
            "is not a time as sbatch takes it",
            "give minutes, HH:MM:SS or D-HH:MM:SS",
        )
        limit = None if self.time_limit is None else time_limit_seconds(self.time_limit)
        require(
            limit is None or limit > self.signal_lead_seconds,
            "launch.signal_lead_seconds",
            self.signal_lead_seconds,
            f"must be less than launch.time_limit={self.time_limit}, or the job is asked to stop before it begins",
            f"try {max(1, (limit or 0) // 5)}",
        )
        for name in ("container_image", "container_mounts", "python"):
            value = getattr(self, name)
            usable = value is None or (value != "" and not _CONTROL.search(value))
            require(usable, f"launch.{name}", repr(value), "must be a text of one line")
        require(
            self.container_mounts is None or self.container_image is not None,
            "launch.container_mounts",
            self.container_mounts,
            "needs a container",
            "give launch.container_image",
        )

    def _check_sbatch_lines(self) -> None:
        for line in self.sbatch_lines:
            match = _SBATCH_OPTION.fullmatch(line)
            if match is None or _CONTROL.search(line):
                raise UserError(
                    f"launch.sbatch_lines={line!r}: is not one long option of sbatch; give it as --option=value"
                )
            set_by = _SET_ELSEWHERE.get(match[1])
            require(set_by is None, "launch.sbatch_lines", repr(line), f"{match[1]} is set by {set_by}")

    def _check_environment(self) -> None:
        for name, value in self.environment.items():
            named = bool(_VARIABLE.fullmatch(name))
            require(named, "launch.environment", repr(name), "is no name of an environment variable")
            usable = not _CONTROL.search(value)
            require(usable, f"launch.environment.{name}", repr(value), "must be a text of one line")


def time_limit_seconds(text: str) -> int:
    """A time limit as sbatch reads it: minutes, M:S, H:M:S, D-H, D-H:M or D-H:M:S."""
    days, dash, rest = text.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if not dash and len(parts) < 3:
        parts.insert(0, 0)  # without days the first of two is minutes
    hours, minutes, seconds = (*parts, 0, 0)[:3]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def check_processes(launch: LaunchConfig, parallel: ParallelConfig) -> None:
    """The SLURM job starts as many processes as the model is laid over. Raises UserError with a layout that fits."""
    if launch.kind is LaunchKind.local:
        return
    each, wanted = launch.processes_on_a_node, parallel.world_size
    if launch.nodes * each == wanted:
        return
    fitting = next(size for size in range(min(each, wanted), 0, -1) if wanted % size == 0)
    per_node = "gpus_per_node" if launch.gpus_per_node else "processes_per_node"
    change = "" if fitting == each else f" launch.{per_node}={fitting}"
    raise UserError(
        f"parallel.world_size={wanted}: must equal launch.nodes x processes per node = {launch.nodes} x {each} = "
        f"{launch.nodes * each}; try launch.nodes={wanted // fitting}{change}"
    )
