"""Segments in the configuration: what each inherits, and the rules that hold for every one of them."""

import re

import pytest

from loopcoder_train.config import DataConfig, ParallelConfig, RunConfig, TrainingConfig, UserError
from loopcoder_train.config.compare import differences, refuse_changes, result_options
from loopcoder_train.config.data import SegmentConfig
from loopcoder_train.config.io import from_dict, read_run_config, to_dict, write_run_config
from tests.unit.config.test_config_io import make_config
from tests.unit.config.test_config_layout import SEVEN_BILLION


def run(segments=(), *, num_steps=100, parallel=None, **data) -> RunConfig:
    return RunConfig(
        run_dir="r",
        model=SEVEN_BILLION,
        training=TrainingConfig(num_steps=num_steps, global_batch_size=64, micro_batch_size=2),
        data=DataConfig(segments=[SegmentConfig(**segment) for segment in segments], **data),
        parallel=ParallelConfig(**(parallel or {})),
    )


def test_a_run_without_segments_is_one():
    (segment,) = run().segments
    assert (segment.first_batch, segment.planned_batches, segment.batch_tokens) == (0, 100, 64 * 4096)
    assert run().total_tokens == 100 * 64 * 4096


def test_absent_values_are_those_of_the_segment_before():
    config = run(
        [
            {"from_batch": 40, "sequence_length": 8192, "shares": {"c": 0.5}},
            {"from_batch": 60, "global_batch_size": 32, "planned_batches": 90, "text_share": 0.0, "shares": {}},
            {"from_batch": 70, "corpus_dir": "corpora/more", "max_repeats": 2.0},
        ],
        planned_batches=100,
        shares={"python": 0.2},
    )
    first, second, third, last = config.segments
    assert [s.first_batch for s in config.segments] == [0, 40, 60, 70]
    assert [s.planned_batches for s in config.segments] == [100, 20, 90, 30]
    assert [s.sequence_length for s in config.segments] == [4096, 8192, 8192, 8192]
    assert [s.global_batch_size for s in config.segments] == [64, 64, 32, 32]
    assert [s.text_share for s in config.segments] == [0.5, 0.5, 0.0, 0.0]
    assert [s.shares for s in config.segments] == [{"python": 0.2}, {"c": 0.5}, {}, {}]
    assert (first.corpus_dir, last.corpus_dir, last.max_repeats) == ("corpora/default", "corpora/more", 2.0)
    assert first.options["global_batch_size"] == "training.global_batch_size"
    assert third.options["sequence_length"] == "data.segments[0].sequence_length"
    assert second.options["planned_batches"] == "data.segments[0].planned_batches"
    assert config.total_tokens == 40 * 64 * 4096 + 20 * 64 * 8192 + 40 * 32 * 8192
    assert config.longest_segment == second


@pytest.mark.parametrize(
    ("segments", "options", "message"),
    [
        ([{"from_batch": 0}], {}, "data.segments[0].from_batch=0: must be greater than 0"),
        ([{"from_batch": 50}, {"from_batch": 50}], {}, "data.segments[1].from_batch=50: must be more than 50"),
        ([{"from_batch": 100}], {}, "data.segments[0].from_batch=100: must be less than training.num_steps=100"),
        ([], {"planned_batches": 90}, "data.planned_batches=90: must reach training.num_steps=100"),
        ([], {"planned_batches": 90}, "append {from_batch: 90} to data.segments"),
        ([], {"planned_batches": 0}, "data.planned_batches=0: must be greater than 0"),
        ([{"from_batch": 50, "planned_batches": 49}], {}, "append {from_batch: 99} to data.segments"),
        (
            [{"from_batch": 50, "global_batch_size": 65}],
            {},
            "data.segments[0].global_batch_size=65: must be a multiple of training.micro_batch_size",
        ),
        (
            [{"from_batch": 50, "global_batch_size": 32}],
            {"parallel": {"pipeline_parallel_size": 2, "world_size": 32}},
            "data.segments[0].global_batch_size=32: must be a multiple of training.micro_batch_size",
        ),
        (
            [{"from_batch": 50, "sequence_length": 4098}],
            {"parallel": {"context_parallel_size": 2}},
            "data.segments[0].sequence_length=4098: must be divisible by 4",
        ),
        (
            [{"from_batch": 50, "sequence_length": 128}],
            {"parallel": {"context_parallel_size": 2}},
            "must fit into a chunk: data.segments[0].sequence_length / (2",
        ),
        (
            [{"from_batch": 50, "sequence_length": 1 << 20}],
            {},
            "data.segments[0].sequence_length=1048576: must not exceed model.max_position_embeddings",
        ),
        ([{"from_batch": 50, "text_share": 1.5}], {}, "data.segments[0].text_share=1.5: must lie between 0 and 1"),
        ([{"from_batch": 50, "shares": {"c": -1}}], {}, "data.segments[0].shares.c=-1: must be 0 or more"),
        ([{"from_batch": 50, "max_repeats": 0}], {}, "data.segments[0].max_repeats=0: must be greater than 0"),
        ([{"from_batch": 50, "corpus_dir": ""}], {}, "data.segments[0].corpus_dir='': must name a folder"),
    ],
)
def test_rules_name_the_segments_option(segments, options, message):
    with pytest.raises(UserError, match=re.escape(message)):
        run(segments, **options)


def test_run_yaml_keeps_segments(tmp_path):
    config = run([{"from_batch": 40, "shares": {"c": 0.5}}, {"from_batch": 60, "sequence_length": 8192}])
    write_run_config(config, tmp_path / "run.yaml")
    assert read_run_config(tmp_path / "run.yaml") == config
    values = to_dict(config)
    values["data"]["segments"][1]["from_batch"] = "60"
    with pytest.raises(UserError, match=r"data\.segments\[1\]\.from_batch='60': must be of type int"):
        from_dict(RunConfig, values)
    values["data"]["segments"][1] = {"from_batch": 60, "sequence_lenght": 1}
    with pytest.raises(UserError, match=r"data\.segments\[1\]\.sequence_lenght: unknown option"):
        from_dict(RunConfig, values)


def test_a_longer_run_may_be_accepted_and_the_refusal_says_how():
    old, new = (
        make_config(),
        make_config(training=TrainingConfig(num_steps=20, global_batch_size=4, micro_batch_size=2)),
    )
    changes = differences(result_options(old), result_options(new))
    with pytest.raises(UserError, match=r"accept_config_changes=true.*append a segment.*\{from_batch: ") as refusal:
        refuse_changes("run_dir=r", changes, accepted=False)
    assert "\n" not in str(refusal.value)
    refuse_changes("run_dir=r", [("training.num_steps", 10, 20)], accepted=True)
    refuse_changes("run_dir=r", [("data.shares.c", 0.1, 0.2)], accepted=True)
    with pytest.raises(UserError, match=r"seed 0 -> 1; start over with fresh=true, or give another run_dir$"):
        refuse_changes("run_dir=r", [("seed", 0, 1), ("training.num_steps", 10, 20)], accepted=True)


def test_a_checkpoint_of_a_run_without_these_options_has_none_of_them_changed():
    options = result_options(make_config())
    older = {key: value for key, value in options.items() if key not in ("data.segments", "data.planned_batches")}
    assert differences(older, options) == []
