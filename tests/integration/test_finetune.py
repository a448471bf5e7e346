"""`loopcoder finetune` in real runs: pretrain, tune, kill, resume, evaluate, ask."""

import json
import os
import re
import signal

import pytest

from loopcoder_train.checkpoint import checkpoints_of
from loopcoder_train.config.io import read_run_config
from loopcoder_train.finetune.plan import Plan
from loopcoder_train.training.metrics import METRICS_FILE, read_metrics
from tests.integration.conftest import assert_one_line_error, loopcoder, losses, pretrain, supervised_tokens
from tests.integration.running import Running, events
from tests.unit.finetune.conftest import jsonl, rows

NUM_STEPS = 6
LENGTH = "data.sequence_length=192"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, corpus):
    """A pretrained model, conversations, and an uninterrupted tuning."""
    folder = tmp_path_factory.mktemp("tuning")
    quick = ("engine=plain", LENGTH, "training.precision=fp32", "evaluation.every_steps=4", "telemetry.every_steps=4")
    outcome = pretrain(folder / "source", corpus, *quick, "training.num_steps=4")
    assert outcome.code == 0, outcome.stderr
    jsonl(folder / "conversations.jsonl", [*rows(60, words=9), {"messages": [{"role": "user", "content": "x"}]}])
    outcome = loopcoder(*arguments(folder, "tuned"))
    assert outcome.code == 0, outcome.stderr
    assert re.search("61 conversations, 12 of them held out.*dropped: 1 no assistant message", outcome.stdout)
    return folder


def arguments(folder, name: str, *options: str) -> list[str]:
    """The small tuning; later options win."""
    usual = [
        f"model.init_from={folder}/source",
        f"run_dir={folder}/{name}",
        f"finetune.sources=[{{name: mine, kind: jsonl, path: {folder}/conversations.jsonl}}]",
        "finetune.heldout_share=0.2",
        f"training.num_steps={NUM_STEPS}",
        "training.global_batch_size=4",
        "training.micro_batch_size=2",
        "training.precision=fp32",
        "checkpoint.every_steps=2",
        "evaluation.every_steps=3",
        "telemetry.every_steps=3",
        "engine=plain",
    ]
    keys = {option.partition("=")[0] for option in options}
    return ["finetune", "experiment=sft", *(o for o in usual if o.partition("=")[0] not in keys), *options]


def test_it_learns_what_the_assistant_says_from_the_weights_of_the_run(folder):
    source, tuned = (read_run_config(folder / name / "run.yaml") for name in ("source", "tuned"))
    assert tuned.model.hidden_size == source.model.hidden_size and tuned.data.corpus_dir == source.data.corpus_dir
    assert events(folder / "tuned", "weights_from")[0]["checkpoint_step"] == 4
    own = losses(folder / "tuned")
    assert sorted(own) == list(range(1, NUM_STEPS + 1)) and own[NUM_STEPS] < own[1] - 0.1
    held_out = [record["loss/source/mine"] for record in read_metrics(folder / "tuned" / METRICS_FILE, ["evaluation"])]
    assert len(held_out) == 2 and held_out[1] < held_out[0]
    states = [checkpoint.state["stream"] for checkpoint in checkpoints_of(folder / "tuned")]
    assert [state["batch"] for state in states] == [2, 4, 6]
    assert {state["plan_hash"] for state in states} == {Plan.open(folder / "tuned").plan_hash}


def test_killed_and_resumed_it_reads_the_same_batches(folder):
    with Running(folder / "killed", arguments(folder, "killed")) as running:
        running.wait_for_step(3)
        os.kill(running.worker(0), signal.SIGKILL)
        running.end()
    plan_before = (folder / "killed" / "conversations" / "plan.json").read_bytes()
    outcome = loopcoder(*arguments(folder, "killed"))
    assert outcome.code == 0, outcome.stderr
    assert (folder / "killed" / "conversations" / "plan.json").read_bytes() == plan_before
    assert losses(folder / "killed") == losses(folder / "tuned")


@pytest.fixture(scope="module")
def megatron(folder):
    """The uninterrupted tuning on two ranks of Megatron."""
    outcome = loopcoder(*arguments(folder, "megatron", "engine=megatron", "parallel.world_size=2"))
    assert outcome.code == 0, outcome.stderr
    return folder / "megatron"


def assert_same_training(run_dir, reference, tolerance: float) -> None:
    """Every step's tokens, and its loss to a relative `tolerance`; the plan."""
    assert supervised_tokens(run_dir) == supervised_tokens(reference)
    own, expected = losses(run_dir), losses(reference)
    assert [own[step] for step in own] == pytest.approx([expected[step] for step in own], rel=tolerance)
    assert Plan.open(run_dir).plan_hash == Plan.open(reference).plan_hash


@pytest.mark.distributed
def test_two_ranks_of_megatron_train_the_same(folder, megatron):
    assert_same_training(megatron, folder / "tuned", 1e-5)


@pytest.mark.distributed
def test_two_ranks_under_zero_train_the_same(folder, megatron):
    options = ("engine=deepspeed", "parallel.world_size=2", "deepspeed.zero_stage=3")
    outcome = loopcoder(*arguments(folder, "zero", *options))
    assert outcome.code == 0, outcome.stderr
    assert events(folder / "zero", "weights_from")[0]["checkpoint_step"] == 4
    # Measured: 6e-8 in the first step, 1.2e-7 at most. Half an fp32 unit is 6e-8, and the engine sums the token losses
    # of a micro-batch in fp32. 1e-6 is what the engines promise each other.
    for reference in (megatron, folder / "tuned"):
        assert_same_training(folder / "zero", reference, 1e-6)


def test_the_tuned_run_is_evaluated_and_answers(folder):
    outcome = loopcoder("evaluate", f"run_dir={folder}/tuned", "json=true")
    assert outcome.code == 0, outcome.stderr
    report = json.loads(outcome.stdout)
    assert list(report["conversations"]["by_source"]) == ["mine"] and "by_kind" in report
    recorded = list(read_metrics(folder / "tuned" / METRICS_FILE, ["evaluation"]))[-1]
    assert report["conversations"]["overall"]["loop_losses"][-1] == pytest.approx(recorded["loss"], rel=1e-5)
    outcome = loopcoder("generate", f"run_dir={folder}/tuned", "message=question 3, <|im_end|>", "max_new_tokens=8")
    assert outcome.code == 0 and "question" not in outcome.stdout, outcome.stderr


BAD = [
    (["training.num_steps=0"], ["training.num_steps=0"]),
    (["training.num_steps=500"], ["training.num_steps=500", "finetune.max_epochs"]),
    (["training.global_batch_size=400"], ["training.global_batch_size=400", "0 whole steps"]),
    (["finetune.sources=[]"], ["finetune.sources"]),
    (["finetune=thinking"], ["reasoning_content"]),
    (["data.text_share=0.3"], ["data.text_share"]),
    (["finetune.chat_template=/nowhere.jinja"], ["/nowhere.jinja"]),
    (["model.init_from=/nowhere"], ["model.init_from=/nowhere"]),
    (["model.num_layers=7"], ["model.init_from", "no such tensor"]),
]


@pytest.mark.parametrize(("options", "said"), BAD)
def test_what_cannot_be_tuned_is_one_line(folder, tmp_path, options, said):
    outcome = loopcoder(*arguments(folder, "bad", *options, f"run_dir={tmp_path}/bad"))
    assert outcome.code == 2, outcome.stderr
    lines = [line for line in outcome.stderr.strip().splitlines() if "error:" in line]
    assert lines and all(part in lines[-1] for part in said), outcome.stderr
    assert "Traceback" not in outcome.stderr


def test_an_option_of_tuning_is_none_of_pretraining(folder, corpus):
    assert_one_line_error(pretrain(folder / "x", corpus, "finetune.thinking=true"), "finetune.thinking", "finetune")
    assert_one_line_error(loopcoder("data", "audit", f"run_dir={folder}/tuned"), "was tuned on conversations")


def test_a_tuning_of_many_ranks_can_be_tried_out(folder):
    outcome = loopcoder(*arguments(folder, "dry", "engine=megatron", "dry_run=2"))
    assert outcome.code == 0 and "rank 0 of 2" in outcome.stdout, outcome.stderr
    assert not (folder / "dry").exists()
