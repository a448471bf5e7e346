"""`loopcoder pretrain ... dry_run=RANKS`: one rank of a job that is not there, built and tried out in this process."""

import os
import sys
import time
from itertools import pairwise

from loopcoder_train.config.kernels import GlobalKernel, KernelConfig, LocalKernel
from loopcoder_train.config.plan import PlanOptions
from loopcoder_train.config.run import RunConfig
from loopcoder_train.planning.plan import make_plan
from loopcoder_train.planning.report import layout_line, plan_text

_MEANING = {
    "tensor": "parts of the same matrices",
    "context": "parts of the same sequences",
    "pipeline": "layers one after the other",
    "data": "other sequences",
    "replicas": "the same parameters: gradients are summed",
    "rows": "parts of the same rows between the linears",
}


def dry_run_pretrain(config: RunConfig) -> int:
    """Check the job, then print what the rank is part of and the plan. Nothing is written; returns 0."""
    rank = config.dry_run_rank
    options = PlanOptions.of_run(config)
    plan = make_plan(options)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # read when torch is imported: nothing may be allocated
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # c10d warns that fake groups have no hooks
    print(f"dry run of {layout_line(options)}", file=sys.stderr, flush=True)
    from loopcoder_train.engines.megatron.dry_run import dry_run  # imports torch and Megatron

    began = time.perf_counter()
    built = dry_run(config, rank)
    planned = plan.stages[built.stage_index]
    assert built.parameters == planned.parameters, (built.parameters, planned.parameters)
    assert built.weight_bytes == planned.passes.weights, (built.weight_bytes, planned.passes.weights)
    loops = config.model.num_loops
    print(
        f"rank {rank} of {config.dry_run:,}: stage {built.stage_index}, layers {ranks_text(built.layers)}; "
        f"{built.parameters / 1e6:,.1f} M parameters, as planned"
    )
    for name, members in built.groups.items():
        print(f"  {name:9}{ranks_text(members):42}{_MEANING[name]}")
    print(
        f"checked in {time.perf_counter() - began:.1f} s: Megatron's schedule of loops 1..{loops} on meta tensors, "
        f"messages {list(built.message_shape)},"
    )
    print(f"  {built.pieces} parameters, each held exactly once over {len(plan.stages)} stage(s) and all tensor ranks")
    if config.kernels != KernelConfig() and _flash(config.kernels):
        print("  attention by torch's SDPA in place of the kernels that CUDA alone has")
    print(f"\n{plan_text(options, plan)}")
    return 0


def _flash(kernels: KernelConfig) -> bool:
    portable = (GlobalKernel.auto, GlobalKernel.sdpa, LocalKernel.auto, LocalKernel.sdpa, LocalKernel.block_window)
    return kernels.global_attention not in portable or kernels.local_attention not in portable


def ranks_text(numbers: list[int]) -> str:
    """`0..7`, `0, 8, 16 .. 1016 (128)`, `5`."""
    if len(numbers) <= 3:
        return ", ".join(map(str, numbers))
    steps = {later - earlier for earlier, later in pairwise(numbers)}
    if steps == {1}:
        return f"{numbers[0]}..{numbers[-1]}"
    return f"{numbers[0]}, {numbers[1]}, {numbers[2]} .. {numbers[-1]} ({len(numbers)})"
