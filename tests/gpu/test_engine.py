"""The Megatron engine on one GPU, and context parallelism's attention with each rank played in turn.

pytest -m gpu tests/gpu
"""

import pytest
import torch
from torch import distributed

from tests.distributed.megatron_cases import Case
from tests.distributed.megatron_setting import micro_batches, randomize, run_config
from tests.unit.engines.played_ranks import check_split_attention

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.fixture
def alone(tmp_path):
    """A job of one process over NCCL."""
    torch.cuda.set_device(0)
    distributed.init_process_group("nccl", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize("num_loops", [1, 2, 3])
def test_a_step_and_every_loops_losses_are_near_the_plain_engines(alone, num_loops):
    from loopcoder_train.engines.megatron import MegatronEngine
    from loopcoder_train.engines.plain import PlainEngine

    case = Case(kind="bf16", layout="single", num_loops=num_loops, precision="bf16")
    engines = [kind(run_config(case, "plain"), torch.device("cuda", 0)) for kind in (MegatronEngine, PlainEngine)]
    for engine in engines:
        randomize(engine)
    batches = micro_batches(2, packed=True)
    losses = [engine.token_losses(batches[0]).cpu() for engine in engines]
    assert losses[0].shape == losses[1].shape and (losses[0] - losses[1]).abs().max() < 0.2
    results = [engine.train_step(batches, 1e-3) for engine in engines]
    assert abs(results[0].loss - results[1].loss) < 5e-3
    assert results[0].grad_norm == pytest.approx(results[1].grad_norm, rel=0.05)
    engines[0].close()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_split_rows_equal_whole_rows(ranks, packed):
    check_split_attention("varlen", ranks, packed, torch.device("cuda"), torch.bfloat16, tolerance=2e-2)
