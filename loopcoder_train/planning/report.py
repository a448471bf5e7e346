"""A plan and a search as text of at most 100 columns."""

from dataclasses import fields
from textwrap import wrap

from loopcoder_train.config.plan import GIB, PlanOptions
from loopcoder_train.planning.memory import Memory
from loopcoder_train.planning.plan import Plan, StagePlan
from loopcoder_train.planning.rank import plan_kernels
from loopcoder_train.planning.search import Candidate, SearchResult
from loopcoder_train.planning.traffic import Traffic

_MEMORY = {
    "weights": "in the run's precision",
    "gradients": "fp32, summed over ranks",
    "optimizer": "Adam's moments; bf16: also fp32 masters",
    "activations": "kept for the backward pass",
    "shared_kv": "K1, V1 of loop 1, for the later loops",
    "shared_kv_gradients": "theirs, and E's",
    "logits": "fp32",
    "weight_gradients": "added up over loops that share a graph",
    "buffers": "gathered rows, messages, masks, tables",
    "workspace": "for a moment: recomputation, temporaries",
}
_TRAFFIC = {
    "tensor": "tensor and sequence parallelism",
    "pipeline": "hidden states between stages",
    "context_gather": "K1, V1 and their gradients",
    "context_halo": "windows across the seams",
    "shift": "rows before each stretch",
    "gradients": "summed over data x context ranks",
    "weights": "gathered after the step",
}
_MOST_COLUMNS = 4  # stages shown side by side


def plan_text(options: PlanOptions, plan: Plan) -> str:
    """The whole plan."""
    parts = [_header(options, plan), _memory(options, plan), _traffic(plan), _time(options, plan)]
    return "\n\n".join(parts)


def _header(options: PlanOptions, plan: Plan) -> str:
    model, training, parallel = options.model, options.training, options.parallel
    segment = options.longest_segment
    count = segment.global_batch_size // (training.micro_batch_size * parallel.data_parallel_size)
    longest = " (the longest segment's)" if options.data.segments else ""
    kernels = plan_kernels(options.kernels, training.device, training.precision)
    where = "CUDA kernels" if kernels.on_cuda else "CPU kernels"
    return "\n".join(
        [
            f"{_billions(plan.parameters.total)} parameters, R = {model.num_loops}, {model.num_layers} layers, "
            f"sequences of {segment.sequence_length:,} tokens{longest}",
            layout_line(options),
            f"{training.precision.value}, recomputation: {training.activation_checkpointing.value}, {where}",
            f"{segment.batch_tokens:,} tokens per step: {count:,} micro-batch{'es' * (count > 1)} of "
            f"{training.micro_batch_size} on every data-parallel rank",
        ]
    )


def layout_line(options: PlanOptions) -> str:
    """`1,024 GPUs = tensor 8 x pipeline 4 x context 1 x data 32; sequence parallel, distributed optimizer`."""
    parallel = options.parallel
    extras = [name for name, on in (("sequence parallel", parallel.sequence_parallel),
                                    ("distributed optimizer", parallel.distributed_optimizer)) if on]  # fmt: skip
    sizes = (
        f"tensor {parallel.tensor_parallel_size} x pipeline {parallel.pipeline_parallel_size} x "
        f"context {parallel.context_parallel_size} x data {parallel.data_parallel_size}"
    )
    return f"{parallel.world_size:,} GPUs = {sizes}" + (f"; {', '.join(extras)}" if extras else "")


def _shown_stages(plan: Plan) -> list[StagePlan]:
    """All stages, or the first, the fullest and the last of many."""
    if len(plan.stages) <= _MOST_COLUMNS:
        return plan.stages
    chosen = {plan.stages[0].stage, plan.stages[1].stage, plan.fullest.stage, plan.stages[-1].stage}
    return [plan.stages[stage] for stage in sorted(chosen)]


def _memory(options: PlanOptions, plan: Plan) -> str:
    stages = _shown_stages(plan)
    lines = [
        "memory of a rank at the fullest moment of its passes, GiB",
        _row("", [f"stage {stage.stage}" for stage in stages]),
        _row("layers", [str(stage.num_layers) for stage in stages]),
        _row("live passes", [str(stage.live_pairs) for stage in stages], "(loop, micro-batch) pairs at most"),
    ]
    for field in fields(Memory):
        values = [getattr(stage.passes, field.name) for stage in stages]
        if any(values):
            lines.append(_row(_words(field.name), [_gib(value) for value in values], _MEMORY[field.name]))
    lines.append(_row("together", [_gib(stage.passes.total) for stage in stages]))
    lines.append(_row("in AdamW's step", [_gib(stage.update.total) for stage in stages], "without activations"))
    return "\n".join([*lines, _verdict(options, plan)])


def _verdict(options: PlanOptions, plan: Plan) -> str:
    free = (plan.usable_bytes - plan.fullest.memory_bytes) / GIB
    limit = f"{options.gpu_memory_gib:g} GiB, of which {options.reserved_memory_gib:g} are reserved"
    if free >= 0:
        return f"fits into {limit}: {free:.1f} GiB free"
    return f"DOES NOT FIT into {limit}: stage {plan.fullest.stage} needs {-free:.1f} GiB more; try search=true"


def _traffic(plan: Plan) -> str:
    stages = _shown_stages(plan)
    lines = []
    for field in fields(Traffic):
        values = [getattr(stage.traffic, field.name) for stage in stages]
        if any(values):
            lines.append(_row(_words(field.name), list(map(_gb, values)), _TRAFFIC[field.name], width=10))
    if not lines:
        return "nothing is sent: one rank"
    head = ["sent by a rank per step, GB", _row("", [f"stage {stage.stage}" for stage in stages], width=10)]
    return "\n".join([*head, *lines, _row("together", [_gb(stage.traffic.total) for stage in stages], width=10)])


def _time(options: PlanOptions, plan: Plan) -> str:
    length, estimate = plan.length, plan.estimate
    lines = []
    if len(plan.stages) > 1:
        lines.append(
            f"pipeline: idle / useful time {plan.unit_bubble:.1%} with equal passes, {plan.bubble:.1%} with these "
            "stages and the head"
        )
    lines += [
        f"training: {length.gflop_per_token:,.4g} GFLOP per token, forward and backward, one document per row",
        f"at MFU {options.mfu:.0%} of {options.peak_tflops:g} TFLOP/s: {_tokens(length.tokens_per_day)} per day",
        f"  {_tokens(options.target_tokens)}: {_days(length.days)}, {length.gpu_days:,.0f} GPU-days",
        f"  this run's {_tokens(length.run_tokens)}: {_days(length.run_days)}",
        f"estimate for this layout (matmuls at {options.matmul_efficiency:.0%}, no exchange hidden): "
        f"{estimate.seconds:,.3g} s per step, MFU {estimate.mfu:.0%}",
    ]
    return "\n".join(lines)


def search_text(options: PlanOptions, result: SearchResult) -> str:
    """The best layouts, or why there is none."""
    if result.smallest is None:
        rules = [rule for rule, _ in result.refusals.most_common(3)]
        return "\n".join(
            [f"no layout of {options.gpus:,} GPUs is allowed; the rules most often met:", *_wrapped(rules)]
        )
    if not result.fitting:
        return _nothing_fits(options, result)
    shown = result.fitting[: options.search_results]
    lines = [
        f"{len(result.fitting)} layouts of {options.gpus:,} GPUs fit "
        f"{options.gpu_memory_gib:g} - {options.reserved_memory_gib:g} GiB; the fastest {len(shown)} by estimate:",
        "",
        f"{'tensor':>6} {'pipe':>5} {'context':>7} {'data':>5}  {'seq.par.':8} {'recompute':9} "
        f"{'micro':>5} {'GiB':>6} {'s/step':>7} {'idle':>6} {'exchange':>8} {'MFU':>5}",
        *[_candidate_row(candidate) for candidate in shown],
        "",
        "the first as options:",
        *[f"  {line}" for line in _as_options(shown[0].options)],
    ]
    return "\n".join(lines)


def _candidate_row(candidate: Candidate) -> str:
    parallel, training, estimate = candidate.options.parallel, candidate.options.training, candidate.estimate
    return (
        f"{parallel.tensor_parallel_size:>6} {parallel.pipeline_parallel_size:>5} "
        f"{parallel.context_parallel_size:>7} {parallel.data_parallel_size:>5}  "
        f"{'yes' if parallel.sequence_parallel else 'no':8} {training.activation_checkpointing.value:9} "
        f"{training.micro_batch_size:>5} {_gib(candidate.memory.total):>6} {estimate.seconds:>7.3g} "
        f"{estimate.idle_over_useful:>6.1%} {estimate.exchange_share:>8.1%} {estimate.mfu:>5.0%}"
    )


def _as_options(options: PlanOptions) -> list[str]:
    parallel, training = options.parallel, options.training
    return [
        f"parallel.world_size={parallel.world_size} parallel.tensor_parallel_size={parallel.tensor_parallel_size}",
        f"parallel.pipeline_parallel_size={parallel.pipeline_parallel_size} "
        f"parallel.context_parallel_size={parallel.context_parallel_size}",
        f"parallel.sequence_parallel={str(parallel.sequence_parallel).lower()} "
        f"parallel.distributed_optimizer={str(parallel.distributed_optimizer).lower()}",
        f"training.activation_checkpointing={training.activation_checkpointing.value} "
        f"training.micro_batch_size={training.micro_batch_size}",
    ]


def _nothing_fits(options: PlanOptions, result: SearchResult) -> str:
    smallest = result.smallest
    over = (smallest.memory.total - options.usable_bytes) / GIB
    largest = max(fields(Memory), key=lambda field: getattr(smallest.memory, field.name)).name
    kinds = [
        f"  {_words(field.name):21}{_gib(getattr(smallest.memory, field.name)):>8}  {_MEMORY[field.name]}"
        for field in fields(Memory)
        if getattr(smallest.memory, field.name)
    ]
    return "\n".join(
        [
            f"none of {result.tried} layouts of {options.gpus:,} GPUs fits "
            f"{options.gpu_memory_gib:g} - {options.reserved_memory_gib:g} GiB; the smallest is {over:.1f} GiB too "
            "large:",
            f"  {layout_line(smallest.options)}",
            f"  recomputation: {smallest.options.training.activation_checkpointing.value}, micro-batch of "
            f"{smallest.options.training.micro_batch_size}",
            *kinds,
            f"most is {_words(largest)}; give more GPUs, a smaller model or shorter sequences",
        ]
    )


def _wrapped(texts: list[str]) -> list[str]:
    """One item each, over as many lines as it needs."""
    return [line for text in texts for line in wrap(text, 98, initial_indent="  - ", subsequent_indent="    ")]


def _row(name: str, values: list[str], note: str = "", *, width: int = 8) -> str:
    line = f"  {name:23}" + "".join(f"{value:>{width}}" for value in values)
    return f"{line}  {note}" if note else line


def _words(name: str) -> str:
    return name.replace("_", " ").replace("kv", "K1 V1")


def _billions(count: int) -> str:
    return f"{count / 1e9:.3f} B" if count >= 1e9 else f"{count / 1e6:.2f} M"


def _tokens(count: float) -> str:
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if count >= size:
            return f"{count / size:,.4g} {letter} tokens"
    return f"{count:,.0f} tokens"


def _days(days: float) -> str:
    return f"{days:,.1f} days" if days >= 0.1 else "less than 0.1 days"


def _gib(size: float) -> str:
    return "<0.01" if 0 < size < 0.005 * GIB else f"{size / GIB:.2f}"


def _gb(size: float) -> str:
    return "<0.01" if 0 < size < 5e6 else f"{size / 1e9:,.2f}"
