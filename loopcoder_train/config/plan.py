"""`loopcoder plan`: a run's options, and what is assumed about the machines it is planned for."""

from dataclasses import dataclass, fields

from loopcoder_train.config.errors import require, require_positive
from loopcoder_train.config.run import EngineKind, RunConfig

GIB = 2**30


@dataclass(kw_only=True, slots=True)
class PlanOptions(RunConfig):
    """Every option of a run, and the machines. Nothing is trained, no corpus is read, `run_dir` is not used."""

    gpu_memory_gib: float = 80.0  # of one GPU
    # not counted by the plan: CUDA's context, NCCL's buffers, what the allocator cannot use. An assumption.
    reserved_memory_gib: float = 6.0
    peak_tflops: float = 989.0  # of one GPU, dense, in the run's precision (H100 SXM in bf16)
    mfu: float = 0.40  # model FLOPs / (peak * time) of the whole run, for days and GPU-days
    target_tokens: float = 18e12  # the paper's
    search: bool = False  # list the layouts that fit, best first
    gpus: int | None = None  # of a search; default: parallel.world_size
    search_results: int = 10
    # For the order of a search only, all assumptions (docs/planning.md):
    gpus_per_node: int = 8
    matmul_efficiency: float = 0.6  # of the peak while a GPU computes
    node_gbytes_per_second: float = 400.0  # sent by one GPU inside a node
    network_gbytes_per_second: float = 40.0  # sent by one GPU between nodes
    json: bool = False  # one JSON object instead of tables

    def __post_init__(self) -> None:
        RunConfig.__post_init__(self)  # super() does not work in a dataclass with slots
        require(self.engine is EngineKind.megatron, "engine", self.engine.value, "only engine=megatron is planned")
        require_positive(
            gpu_memory_gib=self.gpu_memory_gib,
            peak_tflops=self.peak_tflops,
            target_tokens=self.target_tokens,
            search_results=self.search_results,
            gpus_per_node=self.gpus_per_node,
            node_gbytes_per_second=self.node_gbytes_per_second,
            network_gbytes_per_second=self.network_gbytes_per_second,
        )
        require(self.gpus is None or self.gpus >= 1, "gpus", self.gpus, "must be at least 1")
        for name in ("mfu", "matmul_efficiency"):
            require(0 < getattr(self, name) <= 1, name, getattr(self, name), "must lie in (0, 1]")
        require(
            0 <= self.reserved_memory_gib < self.gpu_memory_gib,
            "reserved_memory_gib",
            self.reserved_memory_gib,
            f"must be 0 or more and less than gpu_memory_gib={self.gpu_memory_gib:g}",
        )

    @classmethod
    def of_run(cls, config: RunConfig) -> "PlanOptions":
        """A run on the machines that are planned for by default."""
        return cls(**{field.name: getattr(config, field.name) for field in fields(RunConfig)})

    @property
    def usable_bytes(self) -> float:
        """What the plan may fill."""
        return (self.gpu_memory_gib - self.reserved_memory_gib) * GIB
