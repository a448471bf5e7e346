"""Memory by hand arithmetic for the 7B, and what must grow with what. Real runs: tests/distributed/test_plan.py."""

from dataclasses import replace

import pytest

from loopcoder_train.config import ActivationCheckpointing, Device, GlobalKernel, KernelConfig, Precision
from loopcoder_train.model.counts import count_parameters
from loopcoder_train.planning.layer import play_visit
from loopcoder_train.planning.memory import Memory, pass_memory, peak_memory, rest_memory, update_memory
from loopcoder_train.planning.parts import play_head
from loopcoder_train.planning.rank import AttentionMemory, Rank, plan_kernels, ranks_of
from loopcoder_train.planning.weights import stage_parameters
from tests.unit.planning.settings import paper_options, plt_7b

NODE = {"world_size": 8, "tensor_parallel_size": 8, "sequence_parallel": True}


def rank_of(parallel: dict, stage: int = 0, **options) -> Rank:
    return ranks_of(paper_options(parallel=parallel, **options))[stage]


@pytest.mark.parametrize("num_loops", [1, 2, 4])
@pytest.mark.parametrize("stages", [1, 2, 4, 7])
def test_stages_hold_the_model_once(num_loops, stages):
    options = paper_options(plt_7b(num_loops), {"pipeline_parallel_size": stages}, {"global_batch_size": 28 * stages})
    ranks = ranks_of(options)
    assert sum(map(stage_parameters, ranks)) == count_parameters(options.model).total
    assert sum(rank.num_layers for rank in ranks) == 14


def test_tensor_ranks_hold_the_model_once_but_for_norms_and_gates():
    model = plt_7b()
    whole_on_every_rank = 14 * (2 * 5120 + 40 * 5120 + 40 + 5120) + 5120
    assert 8 * stage_parameters(rank_of(NODE)) == count_parameters(model).total + 7 * whole_on_every_rank


def test_a_tied_head_on_another_stage_is_a_copy():
    tied = replace(plt_7b(), tie_embeddings=True)
    one = ranks_of(paper_options(tied))
    two = ranks_of(paper_options(tied, {"pipeline_parallel_size": 2}))
    assert sum(map(stage_parameters, two)) - stage_parameters(one[0]) == 76800 * 5120


def test_bytes_at_rest_by_hand():
    """bf16: 2 B weights, 4 B gradients, 12 B optimizer; the distributed optimizer shares the last over 16 ranks."""
    spread = NODE | {"world_size": 128, "distributed_optimizer": True}
    rank = rank_of(spread)
    count = stage_parameters(rank)
    rest = rest_memory(rank)
    assert (rest.weights, rest.gradients, rest.optimizer) == (2 * count, 4 * count, 12 * -(-count // 16))
    assert rest.buffers == 4096 * 5120 * 2  # what sequence parallelism gathers
    full = rest_memory(rank_of(NODE, training={"precision": Precision.fp32}))
    assert (full.weights, full.gradients, full.optimizer) == (4 * count, 4 * count, 8 * count)
    assert update_memory(rank).workspace == 4 * -(-count // 16)


def test_what_a_visit_keeps_by_hand():
    """7B on 8 tensor ranks with sequence parallelism, one row of 4096 tokens, CUDA in bf16; bytes per row.

    Outer rows are 512, inner 4096. Per rank: 5 query heads and 1 key head of 128, 3456 of the MLP, d 5120.
    """
    outer, inner = 512, 4096
    norm = 2 * 5120 + 4  # its input, and one fp32 number
    normed = 2 * 5120  # what the linear after it keeps
    query, kv = 640, 128
    first = outer * 2 * (norm + normed)
    first += inner * 2 * (query + kv)  # rotated q and k
    first += inner * 2 * (query + 2 * kv)  # q, k, v before: v is a view of them
    first += inner * (2 * query + 4 * 5)  # attention's output and log-sum-exp
    first += inner * 2 * (2 * 3456 + 3456 + 3456)  # gate and up, silu(gate), the product
    rank = rank_of(NODE, training={"activation_checkpointing": ActivationCheckpointing.none})
    assert play_visit(rank, full=True, gradients_wait=False).kept == first
    # later loops: the gate with its own norm of the same input, and a second attention
    gate = outer * (4 + normed) + inner * 2 * 5
    later = first + gate + inner * (2 * query + 4 * 5) + inner * 2 * query  # its output, and the blend's
    assert play_visit(rank, full=False, gradients_wait=False).kept == later
    layer = rank_of(NODE, training={"activation_checkpointing": ActivationCheckpointing.layer})
    assert play_visit(layer, full=True, gradients_wait=False).kept == outer * 2 * 5120
    selective = rank_of(NODE, training={"activation_checkpointing": ActivationCheckpointing.selective})
    saved = inner * (2 * 2 * 3456 + 4 * 5)  # silu(gate), the product, log-sum-exp; the output stays as o_proj's input
    assert play_visit(selective, full=True, gradients_wait=False).kept == first - saved


def test_the_head_keeps_fp32_probabilities():
    rank = rank_of(NODE)
    kept = 4 * 4096 * 9600 + 512 * (2 * 5120 + 4) + 512 * 2 * 5120
    assert play_head(rank).kept == kept


def test_loops_add_activations_but_no_state():
    memories = [pass_memory(ranks_of(paper_options(plt_7b(loops), NODE))[0]) for loops in (2, 3, 4)]
    assert len({(memory.weights, memory.gradients, memory.optimizer) for memory in memories}) == 1
    assert memories[0].total < memories[1].total < memories[2].total


@pytest.mark.parametrize("parallel", [NODE, {"pipeline_parallel_size": 2}, {"context_parallel_size": 2}])
def test_more_recomputation_keeps_less(parallel):
    totals = [
        pass_memory(rank_of(parallel, training={"activation_checkpointing": kind})).total
        for kind in (ActivationCheckpointing.none, ActivationCheckpointing.selective, ActivationCheckpointing.layer)
    ]
    assert totals == sorted(totals, reverse=True) and len(set(totals)) == 3


def test_more_rows_and_longer_rows_need_more():
    base = pass_memory(rank_of(NODE)).total
    assert pass_memory(rank_of(NODE, training={"micro_batch_size": 2})).total > base
    assert pass_memory(rank_of(NODE, sequence_length=8192)).total > base
    assert pass_memory(rank_of({"world_size": 16} | NODE | {"world_size": 16, "context_parallel_size": 2})).total < base


def test_earlier_stages_hold_more_passes():
    ranks = ranks_of(paper_options(parallel={"pipeline_parallel_size": 7, "tensor_parallel_size": 2},
                                   training={"global_batch_size": 7 * 32}))  # fmt: skip
    kept = [pass_memory(rank).activations for rank in ranks]
    assert kept == sorted(kept, reverse=True)


def test_one_graph_holds_a_weights_gradients_over_its_loops():
    layer = {"activation_checkpointing": ActivationCheckpointing.layer}
    one = pass_memory(rank_of({"world_size": 1}, training=layer))
    layers = stage_parameters(rank_of({"world_size": 1})) - 2 * 76800 * 5120 - 5120
    assert one.weight_gradients == pytest.approx(2 * layers, rel=0.08)  # all layers, or all but the one at hand
    assert pass_memory(rank_of({"pipeline_parallel_size": 2}, training=layer)).weight_gradients == 0
    alone = ranks_of(paper_options(plt_7b(1), training=layer))[0]
    assert pass_memory(alone).weight_gradients == 0


def test_the_fullest_moment_may_be_adamws():
    rank = rank_of(NODE, training={"activation_checkpointing": ActivationCheckpointing.layer})
    assert peak_memory(rank) == update_memory(rank)
    assert peak_memory(rank).total > pass_memory(rank).total
    assert Memory(weights=1, workspace=2).total == 3


def test_kernels_are_those_that_the_engine_would_choose():
    cuda = plan_kernels(KernelConfig(), Device.auto, Precision.bf16)
    assert cuda.on_cuda and cuda.fused_norm and cuda.global_attention is AttentionMemory.flash
    cpu = plan_kernels(KernelConfig(), Device.cpu, Precision.fp32)
    assert (cpu.global_attention, cpu.local_in_blocks) == (AttentionMemory.fused, True)
    assert plan_kernels(KernelConfig(), Device.cpu, Precision.bf16).local_attention is AttentionMemory.written_out
    by_name = plan_kernels(KernelConfig(global_attention=GlobalKernel.sdpa), Device.cuda, Precision.bf16)
    assert by_name.global_attention is AttentionMemory.fused and by_name.local_attention is AttentionMemory.flash
