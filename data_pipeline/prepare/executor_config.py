"""Who does the tasks of a build: this machine, a SLURM cluster or Ray. None of it changes the corpus."""

import enum
import re
from dataclasses import dataclass, field

from data_pipeline.errors import DataError

_SBATCH_OPTION = re.compile(r"[a-z][a-z0-9-]*")


class ExecutorKind(enum.Enum):
    """datatrove's executors."""

    local = "local"  # processes of this machine; the command waits
    slurm = "slurm"  # one job array per phase, each after the one before; the command submits and returns
    ray = "ray"  # a Ray cluster, or one on this machine; the command waits


@dataclass(kw_only=True, slots=True)
class ExecutorConfig:
    """Options of an executor. `workers`: tasks at the same time (None: one per core, on SLURM no limit)."""

    kind: ExecutorKind = ExecutorKind.local
    workers: int | None = None
    # kind=slurm and kind=ray
    cpus_per_task: int = 1
    memory_per_cpu_gb: int = 2
    # kind=slurm
    partition: str = ""
    time_limit: str = "1-00:00:00"  # of one task
    sbatch_options: dict[str, str] = field(default_factory=dict)  # further ones, as in {account: mine}
    max_array_size: int = 1000  # the cluster's limit for one job array
    # kind=ray
    ray_address: str = ""  # of a running cluster; empty: start one on this machine

    def __post_init__(self) -> None:
        for option in ("workers", "cpus_per_task", "memory_per_cpu_gb", "max_array_size"):
            value = getattr(self, option)
            if value is not None and value < 1:
                raise DataError(f"executor.{option}={value}: must be >= 1")
        if self.kind is ExecutorKind.slurm and not self.partition:
            raise DataError("executor.partition: is empty; name a partition of the cluster (`sinfo` lists them)")
        slurm, ray = ExecutorKind.slurm, ExecutorKind.ray
        for option, kind in (("partition", slurm), ("sbatch_options", slurm), ("ray_address", ray)):
            if self.kind is not kind and getattr(self, option):
                raise DataError(
                    f"executor.{option}={getattr(self, option)}: is an option of executor.kind={kind.name}; add that"
                )
        for name in self.sbatch_options:
            if not _SBATCH_OPTION.fullmatch(name):
                raise DataError(f"executor.sbatch_options: {name!r} is no long option of sbatch without its --")
