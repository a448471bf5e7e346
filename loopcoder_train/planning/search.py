"""Which layouts of a number of GPUs hold a run, the fastest by estimate first.

Tried are all sizes of tensor (within a node), pipeline and context parallelism that divide the GPUs, with and without
sequence parallelism, the least recomputation that fits, and micro-batches of 1, 2, 4, ... sequences. The
distributed optimizer is on wherever gradients are summed over several ranks: it needs less memory and, with 2-byte
weights, sends less. A combination that the rules of a run forbid is left out.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from loopcoder_train.config import ActivationCheckpointing, ParallelConfig, UserError
from loopcoder_train.config.plan import PlanOptions
from loopcoder_train.planning.estimate import StepEstimate, estimate_step
from loopcoder_train.planning.memory import Memory, peak_memory
from loopcoder_train.planning.rank import Rank, ranks_of

MOST_CONTEXT_RANKS = 64
MOST_MICRO_BATCH = 64
_WORTH_IT = 0.995  # of the step's time: less gain is no reason for a larger micro-batch
# What is recomputed only adds time: the first that fits is the fastest.
_BY_COST = (ActivationCheckpointing.none, ActivationCheckpointing.selective, ActivationCheckpointing.layer)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One layout, with the fullest rank of its fullest stage."""

    options: PlanOptions
    memory: Memory
    estimate: StepEstimate | None  # of layouts that fit


@dataclass(slots=True, kw_only=True)
class SearchResult:
    """What was found.

    Attributes:
        fitting: parallel layouts that fit, each with its best checkpointing and micro-batch, fastest first.
        smallest: the layout that needs least memory, whether it fits or not; None when the rules allow none.
        tried: layouts whose memory was computed.
        refusals: what the rules of a run said about layouts that they forbid, and how often.
    """

    fitting: list[Candidate]
    smallest: Candidate | None
    tried: int
    refusals: Counter[str]


def search(options: PlanOptions) -> SearchResult:
    """Try every layout of `options.gpus` GPUs; everything else of the run stays as it is."""
    result = SearchResult(fitting=[], smallest=None, tried=0, refusals=Counter())
    for parallel in layouts(options):
        for checkpointing in _BY_COST:
            candidate = _best_micro_batch(options, parallel, checkpointing, result)
            if candidate is not None:
                result.fitting.append(candidate)
                break
    result.fitting.sort(key=_order)
    return result


def _order(candidate: Candidate) -> tuple[float, int]:
    return candidate.estimate.seconds, candidate.memory.total


def _best_micro_batch(
    options: PlanOptions, parallel: ParallelConfig, checkpointing: ActivationCheckpointing, result: SearchResult
) -> Candidate | None:
    """The fastest micro-batch that fits, None when none does. What was seen on the way is noted in `result`.

    A larger micro-batch needs more memory and, by this estimate, only lengthens the pipeline's idle time; the search
    goes on to the next size while that makes the step faster.
    """
    best = None
    for micro_batch_size in micro_batch_sizes(options, parallel):
        try:
            changed = changed_options(options, parallel, checkpointing, micro_batch_size)
        except UserError as error:
            if micro_batch_size == 1:  # said of the layout, not of the micro-batch
                result.refusals[str(error)] += 1
            continue
        ranks = ranks_of(changed)
        memory = fullest(ranks)
        result.tried += 1
        fits = memory.total <= options.usable_bytes
        candidate = Candidate(options=changed, memory=memory, estimate=estimate_step(changed, ranks) if fits else None)
        if result.smallest is None or memory.total < result.smallest.memory.total:
            result.smallest = candidate
        if not fits or (best is not None and candidate.estimate.seconds > _WORTH_IT * best.estimate.seconds):
            break
        best = candidate
    return best


def fullest(ranks: list[Rank]) -> Memory:
    """Memory of the fullest stage: the first (most passes in flight, the embedding) or the last (the head)."""
    ends = [ranks[0], ranks[-1]] if len(ranks) > 1 else ranks
    return max((peak_memory(rank) for rank in ends), key=lambda memory: memory.total)


def layouts(options: PlanOptions) -> Iterator[ParallelConfig]:
    """Every way to lay the GPUs out."""
    world, given = options.gpus, options.parallel
    for tensor in divisors(world, options.gpus_per_node):
        for pipeline in divisors(world // tensor, options.model.num_layers):
            for context in divisors(world // (tensor * pipeline), MOST_CONTEXT_RANKS):
                several = world > tensor * pipeline
                for sequence_parallel in (True, False) if tensor > 1 else (False,):
                    yield ParallelConfig(
                        world_size=world,
                        tensor_parallel_size=tensor,
                        pipeline_parallel_size=pipeline,
                        context_parallel_size=context,
                        sequence_parallel=sequence_parallel,
                        distributed_optimizer=several,
                        overlap_grad_reduce=given.overlap_grad_reduce,
                        overlap_param_gather=given.overlap_param_gather and several,
                    )


def divisors(number: int, most: int) -> list[int]:
    """Divisors of `number` up to `most`."""
    return [size for size in range(1, min(number, most) + 1) if number % size == 0]


def micro_batch_sizes(options: PlanOptions, parallel: ParallelConfig) -> Iterator[int]:
    """1, 2, 4, ... as far as a rank's share of the global batch goes."""
    share = options.longest_segment.global_batch_size // parallel.data_parallel_size
    size = 1
    while size <= min(share, MOST_MICRO_BATCH):
        yield size
        size *= 2


def changed_options(
    options: PlanOptions, parallel: ParallelConfig, checkpointing: ActivationCheckpointing, micro_batch_size: int
) -> PlanOptions:
    """The same run in another layout. Raises UserError for what the rules of a run forbid."""
    training = replace(options.training, micro_batch_size=micro_batch_size, activation_checkpointing=checkpointing)
    return replace(options, parallel=parallel, training=training)


def search_dict(options: PlanOptions, result: SearchResult) -> dict[str, Any]:
    """For `json=true`."""
    return {
        "tried": result.tried,
        "fitting": [_candidate_dict(candidate) for candidate in result.fitting[: options.search_results]],
        "smallest": None if result.smallest is None else _candidate_dict(result.smallest),
        "refusals": dict(result.refusals),
    }


def _candidate_dict(candidate: Candidate) -> dict[str, Any]:
    training = candidate.options.training
    return {
        "parallel": asdict(candidate.options.parallel),
        "activation_checkpointing": training.activation_checkpointing.value,
        "micro_batch_size": training.micro_batch_size,
        "memory": asdict(candidate.memory) | {"total": candidate.memory.total},
        "estimate": None if candidate.estimate is None else asdict(candidate.estimate),
    }
