"""FLOPs against torch's counter, which sees exactly the pairs that the masks leave: causal, windowed, R = 1..4."""

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from loopcoder_train.config import ActivationCheckpointing, LoopKind, ModelConfig
from loopcoder_train.model import build_model
from loopcoder_train.model.attention import AttentionKernels
from loopcoder_train.model.documents import Documents
from loopcoder_train.planning.compute import part_flops, pass_flops, row_pairs, training_flops_per_token
from loopcoder_train.planning.estimate import run_length
from loopcoder_train.planning.rank import ranks_of
from tests.conftest import small_model
from tests.unit.planning.settings import paper_options, plt_7b

ROWS, LENGTH = 2, 24
_KINDS = (ActivationCheckpointing.none, ActivationCheckpointing.selective, ActivationCheckpointing.layer)


def by_query(query: Tensor, key: Tensor, value: Tensor, documents: Documents, window_left: int | None) -> Tensor:
    """Attention one query at a time over the keys it sees, so that torch counts no masked pair."""
    repeats = query.shape[2] // key.shape[2]
    key, value = (x.repeat_interleave(repeats, dim=2).transpose(1, 2) for x in (key, value))
    outputs = []
    for index in range(query.shape[1]):
        first = 0 if window_left is None else max(0, index - window_left)
        seen = slice(first, index + 1)
        scores = query[:, index, :, None] @ key[:, :, seen].transpose(-1, -2) * query.shape[-1] ** -0.5
        outputs.append((scores.softmax(-1) @ value[:, :, seen]).squeeze(2))
    return torch.stack(outputs, dim=1)


def counted(model: ModelConfig, monkeypatch) -> int:
    """Forward and backward FLOPs of ROWS rows, by torch."""
    kernels = AttentionKernels(by_query, by_query)
    monkeypatch.setattr("loopcoder_train.model.plt.choose_kernels", lambda *_: kernels)
    with FlopCounterMode(display=False) as counter:
        build_model(model)(torch.zeros(ROWS, LENGTH, dtype=torch.long)).sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("num_loops", [1, 2, 3, 4])
@pytest.mark.parametrize("window_left", [0, 5, 100])
@pytest.mark.parametrize("kind", LoopKind)
def test_training_flops_are_torchs(num_loops, window_left, kind, monkeypatch):
    model = small_model(num_loops=num_loops, window_left=window_left, loop_kind=kind)
    options = paper_options(model, sequence_length=LENGTH)
    planned = ROWS * LENGTH * training_flops_per_token(options.model, LENGTH)
    assert planned == pytest.approx(counted(model, monkeypatch), rel=0.01)


@pytest.mark.parametrize("num_loops", [1, 2, 4])
def test_passes_of_all_ranks_are_the_whole(num_loops):
    """Without recomputation, over stages, loops, tensor and context ranks: the FLOPs of a step."""
    parallel = {"pipeline_parallel_size": 4, "tensor_parallel_size": 2, "context_parallel_size": 2}
    options = paper_options(plt_7b(num_loops), parallel)
    ranks = ranks_of(options)
    passes = [pass_flops(rank, loop) for rank in ranks for loop in range(1, num_loops + 1)]
    total = 2 * 2 * ranks[0].micro_batches * sum(map(sum, passes))
    segment = options.longest_segment
    per_token = training_flops_per_token(options.model, segment.sequence_length)
    assert total == pytest.approx(per_token * segment.batch_tokens)


def test_recomputation_adds_a_forward_pass_of_the_layers():
    none, selective, layer = (
        ranks_of(paper_options(training={"activation_checkpointing": kind}))[0] for kind in _KINDS
    )
    parts = part_flops(none)
    assert pass_flops(layer, 1) == (pass_flops(none, 1)[0], pass_flops(none, 1)[1] + 14 * parts.first_visit)
    again = pass_flops(selective, 1)[1] - pass_flops(none, 1)[1]
    assert again == 14 * 4 * 40 * 128 * row_pairs(plt_7b(), 1, 4096).causal
    assert parts.head == 2 * 4096 * 5120 * 76800


@pytest.mark.parametrize(("num_loops", "gflop"), [(1, 46.8), (2, 91.4), (3, 135.9), (4, 180.5)])
def test_days_by_hand(num_loops, gflop):
    options = paper_options(plt_7b(num_loops), {"world_size": 1024}, sequence_length=8192, mfu=0.5, peak_tflops=1000)
    length = run_length(options)
    assert length.gflop_per_token == pytest.approx(gflop, abs=0.06)
    per_day = 1024 * 1000e12 * 0.5 * 86400 / (length.gflop_per_token * 1e9)
    assert length.tokens_per_day == pytest.approx(per_day)
    assert length.days == pytest.approx(18e12 / per_day)
    assert length.gpu_days == pytest.approx(1024 * 18e12 / per_day)
