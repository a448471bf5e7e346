"""Parts of the Megatron engine that need no processes: which rows lie where, what is refused, who saves what."""

from types import SimpleNamespace

import pytest
import torch

from loopcoder_train.engines.megatron import setup
from loopcoder_train.engines.megatron.context import ZigZag, chunks_of
from loopcoder_train.engines.megatron.optimizer import evenly
from loopcoder_train.engines.megatron.shift import Seams
from tests.unit.config.test_config_layout import run
from tests.unit.engines.played_ranks import Group, check_split_attention


def mesh(context_rank, ranks, part, parts):
    return SimpleNamespace(
        rows=Group(part + parts * context_rank, ranks * parts), row_parts=parts, context=Group(context_rank, ranks)
    )


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("parts", [1, 2, 3, 4, 5])
def test_every_stretch_knows_which_row_stands_before_it_and_after_it(ranks, parts):
    """Against the row itself: every rank's rows by their positions in it."""
    if ranks * parts == 1:
        return
    length = 2 * ranks * parts * 3
    whole = torch.arange(length)[None]
    rows, seams = [], []
    for context_rank in range(ranks):
        own = ZigZag(Group(context_rank, ranks)).cut(whole)[0]
        for part in range(parts):
            rows.append(own.chunk(parts)[part])
            seams.append(Seams(mesh(context_rank, ranks, part, parts)))
    stretches = [own.chunk(len(seam.before)) for own, seam in zip(rows, seams, strict=True)]
    for rank, seam in enumerate(seams):
        for own, before, after in zip(stretches[rank], seam.before, seam.after, strict=True):
            assert own.diff().eq(1).all()
            assert (own[0] == 0) if before is None else (stretches[before[0]][before[1]][-1] == own[0] - 1)
            assert (own[-1] == length - 1) if after is None else (stretches[after[0]][after[1]][0] == own[-1] + 1)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_rows_are_cut_and_put_together_again(ranks):
    whole = torch.arange(2 * ranks * 5 * 3).view(-1, 3)
    parts = [ZigZag(Group(rank, ranks)).cut(whole, dim=0) for rank in range(ranks)]
    zigzag = ZigZag(Group(0, ranks))
    if ranks > 1:
        assert torch.equal(zigzag.in_order(torch.stack(parts), 0), whole)
        assert torch.equal(zigzag.by_rank(whole, 0), torch.stack(parts))
    assert torch.equal(torch.cat([whole[a:b] for a, b in zigzag.starts(len(whole))]), parts[0])


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_both_branches_over_split_rows_equal_whole_rows(ranks, packed):
    check_split_attention("sdpa", ranks, packed, torch.device("cpu"), torch.float32, tolerance=1e-5)


def test_the_split_is_balanced():
    """Every rank sees as many (query, key) pairs of causal attention, but for the rounding of chunks."""
    for ranks in (2, 4, 8):
        work = [sum(2 * chunk + 1 for chunk in chunks_of(rank, ranks)) for rank in range(ranks)]
        assert len(set(work)) == 1


@pytest.mark.parametrize(
    ("num_loops", "stages", "flags"),
    [(1, 1, (False, True)), (2, 1, (False, True)), (1, 2, (False, True)), (2, 2, (True, False))],
)
def test_messages_between_stages_are_sent_one_by_one_when_loops_are_chunks(num_loops, stages, flags):
    config = setup.transformer_config(run(num_loops=num_loops, pipeline_parallel_size=stages))
    assert (config.overlap_p2p_comm, config.batch_p2p_comm) == flags
    assert not config.deallocate_pipeline_outputs


def test_settings_that_train_something_else_are_refused():
    config = setup.transformer_config(run(pipeline_parallel_size=2))
    config.overlap_p2p_comm = False
    with pytest.raises(AssertionError, match="swaps messages"):
        setup.refuse_silent_mistakes(config)
    config = setup.transformer_config(run())
    config.deallocate_pipeline_outputs = True
    with pytest.raises(AssertionError, match="frees what is still being sent"):
        setup.refuse_silent_mistakes(config)


def test_replicas_share_the_saving():
    assert evenly({"a": 8, "b": 3, "c": 3, "d": 1}, 2) == {"a": 0, "b": 1, "c": 1, "d": 1}
    assert evenly({"a": 1}, 3) == {"a": 0}
