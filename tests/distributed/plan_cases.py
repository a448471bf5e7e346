"""Runs whose planned memory and traffic are held against what is counted on them, as data (no torch here)."""

from dataclasses import dataclass, fields

from loopcoder_train.config import (
    ActivationCheckpointing,
    DataConfig,
    Device,
    GateInput,
    LoopKind,
    ModelConfig,
    ParallelConfig,
    Precision,
    RunConfig,
    TrainingConfig,
)


@dataclass(frozen=True, kw_only=True)
class PlanCase:
    """One layout of a small model."""

    tensor: int = 1
    pipeline: int = 1
    context: int = 1
    data: int = 1
    sequence_parallel: bool = False
    distributed_optimizer: bool = False
    num_loops: int = 2
    recompute: str = "none"
    precision: str = "fp32"
    gate: str = "hidden"
    loop_kind: str = "parallel"
    tied: bool = False
    kv_heads: int = 2
    rows: int = 2  # of a micro-batch
    micro_batches: int = 2
    vocab: int = 512
    window: int = 32
    length: int = 192

    @property
    def world_size(self) -> int:
        """Processes the case needs."""
        return self.tensor * self.pipeline * self.context * self.data

    @property
    def id(self) -> str:
        """What differs from the defaults."""
        changed = [f"{f.name}={getattr(self, f.name)}" for f in fields(self) if getattr(self, f.name) != f.default]
        return ",".join(changed) or "defaults"


def run_config(case: PlanCase) -> RunConfig:
    """The run of a case, on CPUs."""
    preset = {} if case.loop_kind == "sequential" else {"embedding_scale": 0.7, "normalize_between_loops": True}
    return RunConfig(
        run_dir="unused",
        model=ModelConfig(
            hidden_size=96,
            intermediate_size=224,
            num_layers=3,
            num_attention_heads=8,
            num_key_value_heads=case.kv_heads,
            head_dim=12,
            vocab_size=case.vocab,
            num_loops=case.num_loops,
            loop_kind=LoopKind[case.loop_kind],
            window_left=case.window,
            gate_input=GateInput[case.gate],
            tie_embeddings=case.tied,
            **preset,
        ),
        training=TrainingConfig(
            num_steps=10,
            global_batch_size=case.rows * case.micro_batches * case.data,
            micro_batch_size=case.rows,
            precision=Precision[case.precision],
            activation_checkpointing=ActivationCheckpointing[case.recompute],
            device=Device.cpu,
        ),
        data=DataConfig(sequence_length=case.length),
        parallel=ParallelConfig(
            tensor_parallel_size=case.tensor,
            pipeline_parallel_size=case.pipeline,
            context_parallel_size=case.context,
            data_parallel_size=case.data,
            sequence_parallel=case.sequence_parallel,
            distributed_optimizer=case.distributed_optimizer,
        ),
    )


def plan_cases() -> list[PlanCase]:
    """R = 1..4 and every recomputation on one process; every kind of parallelism on two; combinations on four."""
    kinds = ("none", "layer", "selective")
    cases = [PlanCase(num_loops=loops, recompute=recompute) for loops in (1, 2, 3, 4) for recompute in kinds]
    cases += [PlanCase(precision="bf16", recompute=recompute, num_loops=3) for recompute in kinds]
    cases += [PlanCase(gate="query", recompute="layer"), PlanCase(tied=True), PlanCase(kv_heads=8)]
    cases += [PlanCase(rows=1, recompute="selective"), PlanCase(window=150), PlanCase(vocab=8192, length=32)]
    cases += [PlanCase(loop_kind="sequential", recompute="layer")]
    for recompute in kinds:
        cases.append(PlanCase(tensor=2, sequence_parallel=True, recompute=recompute, num_loops=3))
        cases.append(PlanCase(pipeline=2, recompute=recompute, micro_batches=6))
        cases.append(PlanCase(context=2, recompute=recompute, num_loops=3))
    cases += [PlanCase(tensor=2, recompute="layer"), PlanCase(tensor=2, gate="query", num_loops=3)]
    cases += [PlanCase(pipeline=2, num_loops=loops, micro_batches=4, rows=1) for loops in (1, 4)]
    cases += [PlanCase(pipeline=2, tied=True, precision="bf16"), PlanCase(pipeline=2, loop_kind="sequential")]
    cases += [PlanCase(context=2, num_loops=1), PlanCase(data=2)]
    cases += [PlanCase(data=2, distributed_optimizer=True, precision="bf16", recompute="layer")]
    cases += [PlanCase(tensor=2, sequence_parallel=True, rows=1, tied=True, precision="bf16")]
    cases += [PlanCase(pipeline=2, tensor=2, sequence_parallel=True, recompute="layer", num_loops=3, micro_batches=4)]
    cases += [PlanCase(pipeline=2, context=2, distributed_optimizer=True)]
    cases += [PlanCase(tensor=2, context=2, sequence_parallel=True, recompute="layer")]
    return cases
