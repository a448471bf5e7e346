"""How long a step would take: compute, exchanges and the pipeline's idle time, over stated speeds.

An estimate to put layouts in order, never measured on GPUs by this project:

    a pass      its FLOPs with recomputation / (peak * matmul_efficiency), stretched by the rank's tensor and context
                exchanges, none of which is assumed to hide behind compute
    a step      the schedule played with these passes and one message per pass, then the exchange of gradients and
                weights (with `overlap_grad_reduce`: what the last micro-batch's backward pass does not hide)
"""

from dataclasses import dataclass

from loopcoder_train.config.plan import PlanOptions
from loopcoder_train.planning.compute import pass_flops, run_flops, training_flops_per_token
from loopcoder_train.planning.rank import Rank
from loopcoder_train.planning.schedule import UnitCosts, extrapolated_step_seconds
from loopcoder_train.planning.traffic import Traffic, step_traffic

SECONDS_PER_DAY = 86400


@dataclass(frozen=True, slots=True, kw_only=True)
class StepEstimate:
    """Seconds of one step, and what they come to."""

    seconds: float
    idle_over_useful: float  # of the schedule, with this layout's stages
    exchange_share: float  # of a step that the slowest stage spends exchanging, gradients included
    mfu: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLength:
    """The run at the MFU that was given."""

    gflop_per_token: float  # the mean over the run's segments
    tokens_per_day: float
    days: float  # for target_tokens
    gpu_days: float
    run_tokens: int
    run_days: float


def run_length(options: PlanOptions) -> RunLength:
    """Tokens per day = GPUs * peak * MFU / FLOPs per token."""
    flops = run_flops(options) / options.total_tokens
    gpus = options.parallel.world_size
    per_day = gpus * options.peak_tflops * 1e12 * options.mfu / flops * SECONDS_PER_DAY
    days = options.target_tokens / per_day
    return RunLength(
        gflop_per_token=flops / 1e9,
        tokens_per_day=per_day,
        days=days,
        gpu_days=days * gpus,
        run_tokens=options.total_tokens,
        run_days=options.total_tokens / per_day,
    )


def compute_costs(options: PlanOptions, rank: Rank) -> UnitCosts:
    """Seconds of this stage's passes, exchanges aside."""
    speed = options.peak_tflops * 1e12 * options.matmul_efficiency
    flops = [pass_flops(rank, loop) for loop in range(1, rank.model.num_loops + 1)]
    return UnitCosts(forward=tuple(f / speed for f, _ in flops), backward=tuple(b / speed for _, b in flops))


def estimate_step(options: PlanOptions, ranks: list[Rank]) -> StepEstimate:
    """A step of the longest sequences in a layout, from one rank of every stage."""
    plain = [compute_costs(options, rank) for rank in ranks]
    traffic = [step_traffic(rank) for rank in ranks]
    exchange = [_exchange_seconds(options, *pair) for pair in zip(ranks, traffic, strict=True)]
    micro_batches = ranks[0].micro_batches
    busy = [micro_batches * (sum(costs.forward) + sum(costs.backward)) for costs in plain]
    stretched = [_stretch(costs, 1 + seconds / own) for costs, seconds, own in zip(plain, exchange, busy, strict=True)]
    schedule = extrapolated_step_seconds(stretched, micro_batches)
    useful = max(own + seconds for own, seconds in zip(busy, exchange, strict=True))
    after = max(_after_seconds(options, *triple) for triple in zip(ranks, traffic, stretched, strict=True))
    seconds = schedule + after
    segment = options.longest_segment
    flops = training_flops_per_token(options.model, segment.sequence_length) * segment.batch_tokens
    return StepEstimate(
        seconds=seconds,
        idle_over_useful=max(0.0, schedule / useful - 1),  # rounding
        exchange_share=(max(exchange) + after) / seconds,
        mfu=flops / (options.parallel.world_size * options.peak_tflops * 1e12 * seconds),
    )


def _stretch(costs: UnitCosts, factor: float) -> UnitCosts:
    return UnitCosts(
        forward=tuple(factor * seconds for seconds in costs.forward),
        backward=tuple(factor * seconds for seconds in costs.backward),
    )


def _bandwidth(options: PlanOptions, ranks_apart: int) -> float:
    """Bytes per second of a group whose ranks lie within `ranks_apart` numbers of each other."""
    inside = ranks_apart <= options.gpus_per_node
    return 1e9 * (options.node_gbytes_per_second if inside else options.network_gbytes_per_second)


def _exchange_seconds(options: PlanOptions, rank: Rank, traffic: Traffic) -> float:
    """What a stage exchanges during its passes. Ranks are numbered tensor first, then context, data, pipeline."""
    model_ranks = rank.tensor * rank.context
    context = traffic.context_gather + traffic.context_halo + traffic.shift
    return (
        traffic.tensor / _bandwidth(options, rank.tensor)
        + context / _bandwidth(options, model_ranks)
        + traffic.pipeline / _bandwidth(options, options.parallel.world_size)
    )


def _after_seconds(options: PlanOptions, rank: Rank, traffic: Traffic, costs: UnitCosts) -> float:
    """Gradients and weights, which wait for the last micro-batch unless the run overlaps them."""
    bandwidth = _bandwidth(options, rank.tensor * rank.gradient_ranks)
    gradients, weights = traffic.gradients / bandwidth, traffic.weights / bandwidth
    if options.parallel.overlap_grad_reduce:
        gradients = max(0.0, gradients - costs.backward[0])
    if options.parallel.overlap_param_gather:
        weights = max(0.0, weights - costs.forward[0])
    return gradients + weights
