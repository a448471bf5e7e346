"""Real runs that are extended, re-weighted and lengthened: what was read stays, and every count agrees to the token."""

import json
import shutil

import pytest

from loopcoder_train.config.io import read_run_config
from loopcoder_train.training.metrics import METRICS_FILE, read_metrics
from loopcoder_train.training.token_stream import open_stream
from tests.integration.conftest import (
    assert_one_line_error,
    loopcoder,
    losses,
    pretrain,
    pretrain_arguments,
    supervised_tokens,
)
from tests.integration.running import Running

NEVER = 1_000_000
STEPS = [
    "engine=plain", "training.num_steps=8", "checkpoint.every_steps=3", f"evaluation.every_steps={NEVER}",
    f"telemetry.every_steps={NEVER}", "training.micro_batch_size=2",
]  # fmt: skip
# From batch 4 on: more code, shorter sequences, more of them: a step keeps its tokens, and so the schedule its shape.
CHANGE = [
    "data.planned_batches=8",
    "data.segments=[{from_batch: 4, text_share: 0.25, sequence_length: 32, global_batch_size: 8}]",
]
EXTENDED = [
    "data.planned_batches=8", "training.num_steps=10",
    "data.segments=[{from_batch: 4, text_share: 0.25, sequence_length: 32, global_batch_size: 8},"
    "{from_batch: 8, text_share: 0.5, sequence_length: 64, global_batch_size: 4}]",
]  # fmt: skip
ACCEPT = "accept_config_changes=true"


@pytest.fixture(scope="module")
def straight(tmp_path_factory, corpus):
    """An uninterrupted run that knew its segments from the start."""
    run_dir = tmp_path_factory.mktemp("straight") / "run"
    outcome = pretrain(run_dir, corpus, *STEPS, *CHANGE)
    assert outcome.code == 0, outcome.stderr
    return run_dir


def recomputed(run_dir) -> dict[int, tuple[int, int]]:
    """(supervised tokens, tokens) of every step so far, from the stream alone."""
    sums, supervised, tokens = {}, 0, 0
    with open_stream(read_run_config(run_dir / "run.yaml")) as stream:
        for batch in range(10):
            rows = stream.read(batch)
            supervised += int((rows.labels != -100).sum())
            tokens += rows.labels.size
            sums[batch + 1] = supervised, tokens
    return sums


def test_the_segments_are_the_streams(straight):
    expected = recomputed(straight)
    records = read_metrics(straight / METRICS_FILE, ["train"])
    assert [(r["supervised_tokens"], r["tokens"]) for r in records] == [expected[step] for step in range(1, 9)]
    assert [r["batches"] for r in records] == list(range(1, 9))
    assert [r["text_tokens"] for r in records] == [128, 256, 384, 512, 576, 640, 704, 768]


def test_decided_in_mid_run_and_killed_it_equals_the_run_that_knew_bit_for_bit(tmp_path, corpus, straight):
    run_dir = tmp_path / "run"
    paused = pretrain(run_dir, corpus, *STEPS, "training.stop_after_step=4")
    assert paused.code == 0, paused.stderr
    refused = pretrain(run_dir, corpus, *STEPS, *CHANGE)
    assert_one_line_error(refused, "data.segments [] -> [{", "accept_config_changes=true", "append a segment")
    with Running(run_dir, pretrain_arguments(run_dir, corpus, *STEPS, *CHANGE, ACCEPT)) as running:
        running.wait_for_step(5)
    resumed = pretrain(run_dir, corpus, *STEPS, *CHANGE, ACCEPT)
    assert resumed.code == 0, resumed.stderr
    assert losses(run_dir) == losses(straight)
    assert supervised_tokens(run_dir) == supervised_tokens(straight)
    audit = loopcoder("data", "audit", str(run_dir))
    assert audit.code == 0 and "audit matches: 8 train records" in audit.stdout, audit.stderr


def test_two_ranks_of_megatron_cross_the_boundary_with_the_same_tokens(tmp_path, corpus, straight):
    """Longer and shorter sequences through one engine, and counts that are summed over ranks."""
    run_dir = tmp_path / "run"
    steps = [option for option in STEPS if option != "engine=plain"]
    outcome = pretrain(run_dir, corpus, *steps, *CHANGE, "parallel.world_size=2")
    assert outcome.code == 0, outcome.stderr
    assert supervised_tokens(run_dir) == supervised_tokens(straight)
    assert losses(run_dir)[1] == pytest.approx(losses(straight)[1], rel=2e-3)
    audit = loopcoder("data", "audit", str(run_dir))
    assert audit.code == 0 and "audit matches: 8 train records" in audit.stdout, audit.stderr


def test_a_finished_run_is_extended_and_audited(tmp_path, corpus, straight):
    run_dir = tmp_path / "run"
    shutil.copytree(straight, run_dir)
    longer = pretrain(run_dir, corpus, *STEPS, *CHANGE, "training.num_steps=10", ACCEPT)
    assert_one_line_error(longer, "planned_batches was 4, is 6", "data.segments[0].planned_batches=4", "from_batch: 8")
    extended = pretrain(run_dir, corpus, *STEPS, *EXTENDED, ACCEPT)
    assert extended.code == 0, extended.stderr
    assert {step: losses(run_dir)[step] for step in range(1, 9)} == losses(straight)
    expected = recomputed(run_dir)
    assert supervised_tokens(run_dir) == {step: supervised for step, (supervised, _) in expected.items()}
    audit = loopcoder("data", "audit", str(run_dir))
    assert audit.code == 0 and "audit matches: 10 train records and 3 checkpoint(s)" in audit.stdout, audit.stderr
    assert "2,560 tokens trained" in audit.stdout
    path = run_dir / METRICS_FILE
    lines = path.read_text().splitlines()
    at = next(i for i, line in enumerate(lines) if json.loads(line)["kind"] == "train")
    record = json.loads(lines[at])
    lines[at] = json.dumps(record | {"text_tokens": record["text_tokens"] + 1})
    path.write_text("\n".join(lines) + "\n")
    audit = loopcoder("data", "audit", str(run_dir))
    assert audit.code == 2 and "step 1: metrics.jsonl has text_tokens=129, the stream gives 128" in audit.stderr
