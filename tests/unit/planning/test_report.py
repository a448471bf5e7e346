"""What a person reads of a plan, and what a program does."""

import json

import pytest

from loopcoder_train.config import Device
from loopcoder_train.planning.plan import make_plan
from loopcoder_train.planning.report import plan_text
from tests.conftest import small_model
from tests.unit.planning.settings import paper_options, plt_7b

LAYOUTS = [
    {"world_size": 8, "tensor_parallel_size": 8, "sequence_parallel": True, "distributed_optimizer": True},
    {"world_size": 1024, "tensor_parallel_size": 4, "pipeline_parallel_size": 4},
    {"world_size": 128, "pipeline_parallel_size": 8, "context_parallel_size": 4, "distributed_optimizer": True},
    {},
]


@pytest.mark.parametrize("parallel", LAYOUTS)
@pytest.mark.parametrize("num_loops", [1, 3])
def test_text_fits_a_screen(parallel, num_loops):
    options = paper_options(plt_7b(num_loops), parallel)
    text = plan_text(options, make_plan(options))
    assert max(map(len, text.splitlines())) <= 100
    assert len(text.splitlines()) <= 45
    for part in ("GiB", "together", "per day", "GPU-days"):
        assert part in text
    assert ("fits into" in text) != ("DOES NOT FIT into" in text)


def test_verdict_follows_the_memory_that_there_is():
    options = paper_options(parallel=LAYOUTS[0])
    plan = make_plan(options)
    assert plan.fits and "fits into 80 GiB" in plan_text(options, plan)
    small = paper_options(parallel=LAYOUTS[0], gpu_memory_gib=20)
    plan = make_plan(small)
    assert not plan.fits and "DOES NOT FIT into 20 GiB" in plan_text(small, plan)


def test_json_has_the_numbers():
    plan = make_plan(paper_options(parallel=LAYOUTS[1]))
    values = json.loads(json.dumps(plan.to_dict()))
    assert [stage["live_pairs"] for stage in values["stages"]] == [11, 9, 7, 5]
    assert values["unit_bubble"] == pytest.approx(3 / (2 * 16))
    for stage, described in zip(plan.stages, values["stages"], strict=True):
        assert described["passes"]["total"] == sum(v for k, v in described["passes"].items() if k != "total")
        assert described["traffic"]["total"] == stage.traffic.total
    assert values["parameters"]["total"] == 7_615_749_680
    assert values["fits"] is True and values["fullest_stage"] == 0


def test_uneven_layers_and_the_head_idle_more_than_equal_passes():
    plan = make_plan(paper_options(parallel=LAYOUTS[1]))
    assert plan.bubble > plan.unit_bubble
    even = make_plan(paper_options(parallel={"pipeline_parallel_size": 2}))
    assert even.unit_bubble < even.bubble < even.unit_bubble + 0.05  # the head alone


def test_small_runs_read_well_too():
    options = paper_options(small_model(), training={"num_steps": 3, "global_batch_size": 2, "device": Device.cpu},
                            sequence_length=64)  # fmt: skip
    text = plan_text(options, make_plan(options))
    assert "nothing is sent" in text and "CPU kernels" in text and "384 tokens" in text
