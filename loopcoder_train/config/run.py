"""A whole run: every group, the rules that cross groups, and what may change between attempts."""

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from loopcoder_train.config.data import DataConfig
from loopcoder_train.config.errors import UserError, require, require_positive
from loopcoder_train.config.finetune import FinetuneConfig, check_finetune
from loopcoder_train.config.guards import GuardsConfig
from loopcoder_train.config.kernels import KernelConfig
from loopcoder_train.config.launch import LaunchConfig, check_processes
from loopcoder_train.config.model import ModelConfig
from loopcoder_train.config.optimizer import OptimizerConfig, ScheduleConfig
from loopcoder_train.config.parallel import ParallelConfig
from loopcoder_train.config.segments import RunSegment, run_segments
from loopcoder_train.config.training import ActivationCheckpointing, TrainingConfig


class EngineKind(Enum):
    """Who runs the model."""

    megatron = "megatron"  # Megatron-core: every kind of parallelism
    plain = "plain"  # the plain-torch model on one process: the definition that megatron is held against


class WandbMode(Enum):
    """Weights & Biases. The sink may fail; training goes on."""

    offline = "offline"
    online = "online"
    disabled = "disabled"


@dataclass(kw_only=True, slots=True)
class CheckpointConfig:
    """When checkpoints are written and which are kept."""

    every_steps: int = 1000
    asynchronous: bool = True  # write in a thread while training goes on; false: training waits for every save
    keep_last: int = 3  # newest committed checkpoints that pruning leaves
    keep_every_steps: int | None = None  # checkpoints at these multiples are never pruned
    mirror_dir: str | None = None  # each checkpoint is copied to <mirror_dir>/<name of run_dir> too
    mirror_keep_last: int = 1  # newest checkpoints that stay there

    def __post_init__(self) -> None:
        require_positive(
            checkpoint__every_steps=self.every_steps,
            checkpoint__keep_last=self.keep_last,
            checkpoint__mirror_keep_last=self.mirror_keep_last,
        )
        named = self.mirror_dir is None or bool(self.mirror_dir)
        require(named, "checkpoint.mirror_dir", repr(self.mirror_dir), "must name a folder")
        if self.keep_every_steps is not None:
            require_positive(checkpoint__keep_every_steps=self.keep_every_steps)

    def mirror_of(self, run_dir: str | Path) -> Path | None:
        """The folder that has the copies of the checkpoints of `run_dir`, laid out like it; None without a mirror."""
        return None if self.mirror_dir is None else Path(self.mirror_dir) / Path(run_dir).resolve().name


@dataclass(kw_only=True, slots=True)
class EvaluationConfig:
    """Held-out evaluation while training: per source, per language and per loop."""

    every_steps: int = 1000
    max_sequences_per_source: int = 8
    batch_size: int = 8  # sequences per forward pass on one process

    def __post_init__(self) -> None:
        require_positive(
            evaluation__every_steps=self.every_steps,
            evaluation__max_sequences_per_source=self.max_sequences_per_source,
            evaluation__batch_size=self.batch_size,
        )


@dataclass(kw_only=True, slots=True)
class TelemetryConfig:
    """Loop telemetry on one held-out batch: gate means, step sizes, scale of the two input terms, output KL."""

    every_steps: int = 100
    num_sequences: int = 2

    def __post_init__(self) -> None:
        require_positive(telemetry__every_steps=self.every_steps, telemetry__num_sequences=self.num_sequences)


@dataclass(kw_only=True, slots=True)
class LoggingConfig:
    """`metrics.jsonl` is the record; the rest are sinks that may fail."""

    every_steps: int = 1
    wandb: WandbMode = WandbMode.disabled
    wandb_project: str = "loopcoder"
    tensorboard: bool = False

    def __post_init__(self) -> None:
        require_positive(logging__every_steps=self.every_steps)


@dataclass(kw_only=True, slots=True)
class RunConfig:
    """Everything a worker needs; written to `run.yaml` by the launcher."""

    run_dir: str
    model: ModelConfig
    training: TrainingConfig
    engine: EngineKind = EngineKind.megatron
    seed: int = 0
    fresh: bool = False  # start over: an existing run_dir is set aside, not deleted
    accept_config_changes: bool = False  # resume although the configuration differs in what changes the result
    dry_run: int | None = None  # try out one rank of a job of this many on no machine at all; nothing is trained
    dry_run_rank: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    kernels: KernelConfig = field(default_factory=KernelConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    telemetry: TelemetryConfig = field(default_factory=TelemetryConfig)
    guards: GuardsConfig = field(default_factory=GuardsConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    finetune: FinetuneConfig | None = None  # set: conversations instead of the corpus's token stream

    def __post_init__(self) -> None:
        require(bool(self.run_dir), "run_dir", repr(self.run_dir), "must name a folder")
        require(self.seed >= 0, "seed", self.seed, "must be 0 or more")
        self._check_dry_run()
        if self.finetune is not None:
            check_finetune(self.data, self.model)
        self._check_tensor_parallel()
        self._check_engine()
        self._check_stages()
        check_processes(self.launch, self.parallel)
        for segment in self.segments:
            self._check_batch(segment)
            self._check_pipeline(segment)
            self._check_context(segment)
            require(
                segment.sequence_length <= self.model.max_position_embeddings,
                segment.options["sequence_length"],
                segment.sequence_length,
                f"must not exceed model.max_position_embeddings={self.model.max_position_embeddings}",
            )

    def _check_dry_run(self) -> None:
        require(
            self.dry_run is None or self.engine is EngineKind.megatron,
            "dry_run",
            self.dry_run,
            "tries out ranks of engine=megatron only",
        )
        require(self.dry_run is None or self.dry_run >= 1, "dry_run", self.dry_run, "must be at least 1 rank")
        ranks = 1 if self.dry_run is None else self.dry_run
        require(
            0 <= self.dry_run_rank < ranks,
            "dry_run_rank",
            self.dry_run_rank,
            f"must lie in 0..{ranks - 1}" if self.dry_run is not None else "needs dry_run=RANKS",
        )

    def _check_batch(self, segment: RunSegment) -> None:
        unit, size = self.training.micro_batch_size * self.parallel.data_parallel_size, segment.global_batch_size
        require(
            size % unit == 0,
            segment.options["global_batch_size"],
            size,
            f"must be a multiple of training.micro_batch_size * parallel.data_parallel_size = {unit}",
            f"try {max(1, size // unit) * unit}",
        )

    def _check_tensor_parallel(self) -> None:
        tensor_parallel_size = self.parallel.tensor_parallel_size
        for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size", "vocab_size"):
            value = getattr(self.model, name)
            require(
                value % tensor_parallel_size == 0,
                f"model.{name}",
                value,
                f"must be divisible by parallel.tensor_parallel_size={tensor_parallel_size}",
            )

    def _check_engine(self) -> None:
        if self.engine is EngineKind.plain and self.parallel.world_size != 1:
            raise UserError(
                f"engine=plain: runs on one process, not parallel.world_size={self.parallel.world_size}; "
                "use engine=megatron"
            )
        require(
            self.engine is not EngineKind.plain
            or self.training.activation_checkpointing is ActivationCheckpointing.none,
            "training.activation_checkpointing",
            self.training.activation_checkpointing.value,
            "is not done by engine=plain",
            "use engine=megatron",
        )

    def _check_stages(self) -> None:
        stages = self.parallel.pipeline_parallel_size
        require(
            stages <= self.model.num_layers,
            "parallel.pipeline_parallel_size",
            stages,
            f"must not exceed model.num_layers={self.model.num_layers}: every stage needs a layer",
            f"try {self.model.num_layers}",
        )

    def _check_pipeline(self, segment: RunSegment) -> None:
        stages, loops = self.parallel.pipeline_parallel_size, self.model.num_loops
        if stages == 1 or loops == 1:
            return
        unit = self.training.micro_batch_size * self.parallel.data_parallel_size * stages
        require(
            segment.global_batch_size % unit == 0,
            segment.options["global_batch_size"],
            segment.global_batch_size,
            "must be a multiple of training.micro_batch_size * parallel.data_parallel_size * "
            f"parallel.pipeline_parallel_size = {unit}: the {loops} loops take turns on the {stages} stages",
            f"try {-(-segment.global_batch_size // unit) * unit}",
        )

    def _check_context(self, segment: RunSegment) -> None:
        parallel, length = self.parallel, segment.sequence_length
        ranks, parts = parallel.context_parallel_size, parallel.sequence_parts
        require(
            length % parts == 0,
            segment.options["sequence_length"],
            length,
            f"must be divisible by {parts}"
            + (f", two chunks for each of parallel.context_parallel_size={ranks}" if ranks > 1 else "")
            + (
                f", split over parallel.tensor_parallel_size={parallel.tensor_parallel_size} by sequence parallelism"
                if parallel.sequence_parallel
                else ""
            ),
            f"try {-(-length // parts) * parts}",
        )
        chunk = length // (2 * ranks)
        if ranks > 1 and self.model.has_gates and self.model.window_left > chunk:
            require(
                False,
                "model.window_left",
                self.model.window_left,
                f"must fit into a chunk: {segment.options['sequence_length']} / (2 * parallel.context_parallel_size) = "
                f"{chunk}",
                f"try parallel.context_parallel_size={self._most_context_ranks(length)}",
            )

    def _most_context_ranks(self, length: int) -> int:
        """The most context ranks whose chunks of sequences of `length` tokens hold a window."""
        parts_per_rank = self.parallel.sequence_parts // self.parallel.context_parallel_size
        most = length // (2 * self.model.window_left)
        fitting = (ranks for ranks in range(most, 1, -1) if length % (parts_per_rank * ranks) == 0)
        return next(fitting, 1)

    @property
    def segments(self) -> list[RunSegment]:
        """What the run reads, from batch to batch; one segment unless `data.segments` has more."""
        return run_segments(self.data, self.training)

    @property
    def longest_segment(self) -> RunSegment:
        """The segment whose steps need most memory: the longest sequences, then the largest batches."""
        return max(self.segments, key=lambda segment: (segment.sequence_length, segment.global_batch_size))

    @property
    def total_tokens(self) -> int:
        """Tokens (positions) of the whole run, if no batch is discarded; the schedule's length."""
        return sum(count * segment.batch_tokens for segment, count in self.steps_of_segments())

    def steps_of_segments(self) -> list[tuple[RunSegment, int]]:
        """Every segment with the number of steps that are made in it, if no batch is discarded."""
        segments = self.segments
        ends = [*(segment.first_batch for segment in segments[1:]), self.training.num_steps]
        return [(segment, end - segment.first_batch) for segment, end in zip(segments, ends, strict=True)]
