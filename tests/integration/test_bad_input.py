"""What goes wrong in real runs: one line and exit code 2, or handled, said, and nothing lost."""

import json
import shutil
import subprocess
import sys

import pytest

from loopcoder_train.checkpoint import checkpoints_of
from loopcoder_train.training.metrics import METRICS_FILE, read_metrics
from tests.integration.conftest import (
    NUM_STEPS,
    assert_one_line_error,
    environment,
    loopcoder,
    losses,
    make_corpus,
    pretrain,
)

PLAIN = ["engine=plain", "parallel.world_size=1"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, corpus):
    """A finished run on one process, the plain engine."""
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    outcome = pretrain(run_dir, corpus, *PLAIN)
    assert outcome.code == 0, outcome.stderr + outcome.stdout
    return run_dir


def copy_of(run_dir, tmp_path):
    target = tmp_path / "run"
    shutil.copytree(run_dir, target)
    return target


def test_flipped_byte_in_a_shard_stops_the_run_with_file_and_offset(tmp_path, corpus):
    damaged = tmp_path / "corpus"
    shutil.copytree(corpus, damaged)
    manifest = json.loads((damaged / "manifest.json").read_text())
    shards = [damaged / shard["file"] for source in manifest["sources"] for shard in source["train"]["shards"]]
    for shard in shards:
        content = bytearray(shard.read_bytes())
        for offset in range(len(content) // 20, len(content) * 19 // 20, 500):  # whichever block is read first
            content[offset] ^= 1
        shard.write_bytes(content)
    outcome = pretrain(tmp_path / "run", damaged, "parallel.world_size=2", "data.max_repeats=1000")
    assert_one_line_error(outcome, "at byte", str(damaged))


def test_truncated_newest_checkpoint_falls_back_and_says_so(tmp_path, corpus, finished):
    run_dir = copy_of(finished, tmp_path)
    newest = run_dir / "checkpoints" / f"step-{NUM_STEPS:08d}"
    (tensors,) = newest.glob("*.safetensors")
    tensors.write_bytes(tensors.read_bytes()[:-100])
    outcome = pretrain(run_dir, corpus, *PLAIN)
    assert outcome.code == 0, outcome.stderr
    assert "WARNING" in outcome.stdout and "falling back to the previous good checkpoint, step 8" in outcome.stdout
    assert losses(run_dir) == losses(finished)
    assert [checkpoint.step for checkpoint in checkpoints_of(run_dir)] == [4, 8, NUM_STEPS]
    assert list(run_dir.glob("checkpoints-set-aside-*/*")), "a later start could jump back to the abandoned one"


def test_a_worker_started_by_hand_with_an_edited_configuration_is_refused(tmp_path, finished):
    run_dir = copy_of(finished, tmp_path)
    edited = (
        (run_dir / "run.yaml").read_text().replace(str(finished), str(run_dir)).replace("beta2: 0.95", "beta2: 0.9")
    )
    (run_dir / "run.yaml").write_text(edited)
    line = [sys.executable, "-m", "loopcoder_train.worker", "--config", str(run_dir / "run.yaml")]
    result = subprocess.run(line, capture_output=True, text=True, env=environment(), check=False)
    assert result.returncode == 2 and "optimizer.beta2 0.95 -> 0.9" in result.stderr, result.stderr


def test_nothing_good_left_is_an_error_and_starts_nothing_over(tmp_path, corpus, finished):
    run_dir = copy_of(finished, tmp_path)
    for state in run_dir.glob("checkpoints/step-*/state.json"):
        state.write_text(state.read_text().replace("}", " ", 1))
    outcome = pretrain(run_dir, corpus, *PLAIN)
    assert_one_line_error(outcome, "no good checkpoint is left", "fresh=true")


def test_another_tokenizer_than_the_shards_is_refused(tmp_path, corpus):
    damaged = tmp_path / "corpus"
    shutil.copytree(corpus, damaged)
    (tokenizer,) = damaged.rglob("tokenizer.json")
    tokenizer.write_text(tokenizer.read_text().replace("<|im_start|>", "<|im_begin|>"))
    assert_one_line_error(pretrain(tmp_path / "run", damaged, *PLAIN), "tokenizer")


def test_a_corpus_may_move_but_not_change(tmp_path, corpus, finished):
    run_dir = copy_of(finished, tmp_path)
    shutil.rmtree(run_dir / "checkpoints" / f"step-{NUM_STEPS:08d}")
    other = make_corpus(tmp_path / "other", seed=1)
    for words in ([], ["accept_config_changes=true"]):
        assert_one_line_error(pretrain(run_dir, other, *PLAIN, *words), "manifest_hash")
    shutil.copytree(corpus, tmp_path / "moved")
    outcome = pretrain(run_dir, tmp_path / "moved", *PLAIN)
    assert outcome.code == 0 and losses(run_dir) == losses(finished), outcome.stderr


def test_missing_corpus_and_run(tmp_path, corpus):
    assert_one_line_error(pretrain(tmp_path / "run", tmp_path / "none", *PLAIN), "none", "loopcoder data build")
    assert_one_line_error(loopcoder("evaluate", str(tmp_path / "nothing")), "nothing")
    assert_one_line_error(loopcoder("generate", str(tmp_path / "nothing"), "prompt=x"), "nothing")


def test_changed_options_are_refused_and_named(tmp_path, corpus, finished):
    outcome = pretrain(finished, corpus, *PLAIN, "optimizer.peak_lr=0.5", "checkpoint.every_steps=5")
    assert_one_line_error(outcome, "optimizer.peak_lr", "0.001 -> 0.5", "accept_config_changes=true")
    assert "every_steps" not in outcome.stderr


def test_evaluate_and_generate(finished):
    outcome = loopcoder("evaluate", str(finished))
    assert outcome.code == 0 and "unigram entropy" in outcome.stdout, outcome.stderr
    assert (finished / "loss.png").stat().st_size > 10_000
    again = json.loads((finished / "evaluation.json").read_text())
    last = read_metrics(finished / METRICS_FILE, ["evaluation"])[-1]
    assert again["overall"]["loop_losses"][-1] == pytest.approx(last["loss"], abs=1e-3)
    outcome = loopcoder("generate", str(finished), "prompt=def ", "max_new_tokens=5", "temperature=0")
    assert outcome.code == 0 and outcome.stdout.startswith("def "), outcome.stderr
    assert_one_line_error(loopcoder("generate", str(finished), "prompt="), "prompt")


@pytest.fixture
def small_disk(tmp_path):
    """A real file system with room for one checkpoint, not for three (root and mount are needed)."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2500k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("tmpfs cannot be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_full_disk_while_saving_keeps_the_last_good_checkpoint(small_disk, corpus, finished):
    run_dir = small_disk / "run"
    first = pretrain(run_dir, corpus, *PLAIN, "training.stop_after_step=4")
    assert first.code == 0, first.stderr
    size = sum(path.stat().st_size for path in run_dir.rglob("checkpoints/**/*") if path.is_file())
    (small_disk / "filler").write_bytes(bytes(max(0, 2500 * 1024 - int(1.6 * size) - 200_000)))
    outcome = pretrain(run_dir, corpus, *PLAIN)
    assert_one_line_error(outcome, "could not be written", "last good checkpoint: step 4")
    assert "training goes on" in outcome.stdout
    assert max(losses(run_dir)) == NUM_STEPS
    (small_disk / "filler").unlink()
    shutil.move(run_dir, small_disk.parent / "run")
    outcome = pretrain(small_disk.parent / "run", corpus, *PLAIN)
    assert outcome.code == 0 and "resuming after step 4" in outcome.stdout, outcome.stderr
    assert losses(small_disk.parent / "run") == losses(finished)
