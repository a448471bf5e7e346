"""The search finds what fits, says what does not, and its numbers are those of the plan."""

import pytest

from loopcoder_train.config import ActivationCheckpointing
from loopcoder_train.planning.estimate import estimate_step
from loopcoder_train.planning.memory import peak_memory
from loopcoder_train.planning.rank import ranks_of
from loopcoder_train.planning.report import search_text
from loopcoder_train.planning.search import layouts, search, search_dict
from tests.unit.planning.settings import paper_options, plt_7b


def test_one_gpu_cannot_hold_the_7b():
    """16 bytes for each of 7.6 B parameters are 114 GiB."""
    options = paper_options(gpus=1, search=True)
    result = search(options)
    assert result.fitting == [] and result.smallest.memory.total > 114 * 2**30
    assert result.smallest.options.training.activation_checkpointing is not ActivationCheckpointing.none
    text = search_text(options, result)
    assert "none of" in text and "optimizer" in text and "too" in text


def test_eight_gpus_hold_it_in_several_ways_best_first():
    options = paper_options(gpus=8, search=True)
    result = search(options)
    assert len(result.fitting) >= 10
    seconds = [candidate.estimate.seconds for candidate in result.fitting]
    assert seconds == sorted(seconds)
    for candidate in result.fitting:
        parallel, ranks = candidate.options.parallel, ranks_of(candidate.options)
        assert parallel.world_size == 8
        assert max(peak_memory(rank).total for rank in ranks) == candidate.memory.total <= options.usable_bytes
        assert estimate_step(candidate.options, ranks) == candidate.estimate
    laid_out = [(c.options.parallel.tensor_parallel_size, c.options.parallel.pipeline_parallel_size,
                 c.options.parallel.context_parallel_size, c.options.parallel.sequence_parallel)
                for c in result.fitting]  # fmt: skip
    assert len(set(laid_out)) == len(laid_out), "a layout is listed twice"


def test_less_memory_leaves_fewer_layouts_and_more_recomputation():
    plenty, little = (search(paper_options(gpus=8, search=True, gpu_memory_gib=size)) for size in (141, 40))
    assert len(little.fitting) < len(plenty.fitting)
    assert {c.options.training.activation_checkpointing for c in plenty.fitting} == {ActivationCheckpointing.none}
    assert {c.options.training.activation_checkpointing for c in little.fitting} > {ActivationCheckpointing.none}
    assert plenty.fitting[0].estimate.seconds < little.fitting[0].estimate.seconds


def test_slow_networks_favour_layouts_that_send_less():
    def sent(gbytes_per_second: float) -> float:
        options = paper_options(gpus=64, search=True, network_gbytes_per_second=gbytes_per_second)
        return search(options).fitting[0].estimate.seconds

    assert sent(5) > sent(500)


def test_rules_of_a_run_hold_in_a_search():
    options = paper_options(plt_7b(3), gpus=64, search=True)
    assert any(parallel.pipeline_parallel_size == 8 for parallel in layouts(options))
    for candidate in search(options).fitting:
        parallel, training = candidate.options.parallel, candidate.options.training
        count = 1024 // (training.micro_batch_size * parallel.data_parallel_size)
        assert parallel.pipeline_parallel_size == 1 or count % parallel.pipeline_parallel_size == 0


def test_impossible_numbers_of_gpus_name_their_rules():
    options = paper_options(gpus=7, search=True, training={"global_batch_size": 6})
    result = search(options)
    assert result.fitting == [] and result.smallest is None and result.tried == 0
    text = search_text(options, result)
    assert "no layout of 7 GPUs" in text and "model.num_attention_heads=40" in text
    assert search_dict(options, result)["smallest"] is None


@pytest.mark.parametrize(("gpus", "results"), [(8, 3), (64, 10)])
def test_text_fits_and_gives_the_options(gpus, results):
    options = paper_options(gpus=gpus, search=True, search_results=results)
    text = search_text(options, search(options))
    assert max(map(len, text.splitlines())) <= 100
    assert f"parallel.world_size={gpus}" in text
    assert len(search_dict(options, search(options))["fitting"]) == results
