"""Bytes sent, by hand. Real runs: tests/distributed/test_plan.py."""

import pytest

from loopcoder_train.config import ActivationCheckpointing
from loopcoder_train.planning.rank import ranks_of
from loopcoder_train.planning.traffic import step_traffic
from loopcoder_train.planning.weights import stage_parameters
from tests.unit.planning.settings import paper_options, plt_7b

HIDDEN = 4096 * 5120 * 2  # one row's hidden state in bf16


def traffic_of(parallel: dict, stage: int = 0, num_loops: int = 2, global_batch_size: int = 1024, **options):
    training = {"global_batch_size": global_batch_size}
    return step_traffic(ranks_of(paper_options(plt_7b(num_loops), parallel, training, **options))[stage])


def test_one_rank_sends_nothing():
    assert traffic_of({}).total == 0


@pytest.mark.parametrize("num_loops", [1, 2, 4])
def test_pipeline_messages_by_hand(num_loops):
    """4 stages: every loop forward to the right, backward to the left; the wrap-around in between."""
    four = {"pipeline_parallel_size": 4}
    per_stage = [traffic_of(four, stage, num_loops).pipeline for stage in range(4)]
    inner = 2 * num_loops * 1024 * HIDDEN
    assert per_stage == [inner - 1024 * HIDDEN, inner, inner, inner - 1024 * HIDDEN]


def test_sequence_parallelism_shortens_messages():
    split = {"pipeline_parallel_size": 4, "tensor_parallel_size": 2}
    assert traffic_of(split | {"sequence_parallel": True}, 1).pipeline == traffic_of(split, 1).pipeline / 2


def test_tensor_parallelism_by_hand():
    """R = 1, one micro-batch, 2 ranks: an all-reduce sends one h, and there are 4 per layer, 1 at each end."""
    traffic = traffic_of({"tensor_parallel_size": 2}, num_loops=1, global_batch_size=1)
    loss = 3 * 4 * 4096
    assert traffic.tensor == (14 * 4 + 1 + 1) * HIDDEN + loss


def test_gradients_and_weights_by_hand():
    parameters = stage_parameters(ranks_of(paper_options())[0])
    plain = traffic_of({"world_size": 4})
    assert (plain.gradients, plain.weights) == (round(2 * 3 / 4 * 4 * parameters), 0)
    split = traffic_of({"world_size": 4, "distributed_optimizer": True})
    assert (split.gradients, split.weights) == (round(3 / 4 * 4 * parameters), round(3 / 4 * 2 * parameters))


def test_context_parallelism_gathers_once_whatever_the_loops():
    four = {"context_parallel_size": 4}
    two_loops, four_loops = traffic_of(four), traffic_of(four, num_loops=4)
    keys_and_values = 2 * 4096 * 1024 * 2
    assert two_loops.context_gather == four_loops.context_gather == 1024 * 14 * 2 * 3 / 4 * keys_and_values
    halo = 2 * 64 * 1024 * 2  # k and v of 64 rows
    assert two_loops.context_halo == 1024 * 14 * 2 * 2 * halo  # both neighbours, both ways
    assert four_loops.context_halo == 3 * two_loops.context_halo


def test_recomputation_exchanges_again():
    parallel = {"tensor_parallel_size": 2, "context_parallel_size": 2, "sequence_parallel": True}
    training = {"activation_checkpointing": ActivationCheckpointing.layer}
    again, once = (
        step_traffic(ranks_of(paper_options(parallel=parallel, training=changes))[0]) for changes in (training, {})
    )
    assert again.tensor > once.tensor
    assert again.context_gather == 1.5 * once.context_gather and again.context_halo == 1.5 * once.context_halo
