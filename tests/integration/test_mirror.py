"""A run of two processes whose folder loses its checkpoints: it goes on from the mirror, bit for bit."""

import shutil

from loopcoder_train.checkpoint import find_checkpoint
from loopcoder_train.training.metrics import METRICS_FILE, read_metrics
from tests.integration.conftest import loopcoder, pretrain


def losses(run_dir):
    return {record["step"]: record["loss"] for record in read_metrics(run_dir / METRICS_FILE, ["train"])}


def test_a_run_that_lost_its_checkpoints_goes_on_from_the_mirror(tmp_path, corpus):
    mirror = f"checkpoint.mirror_dir={tmp_path / 'mirrors'}"
    whole = pretrain(tmp_path / "whole", corpus)
    assert whole.code == 0, whole.stderr
    run_dir = tmp_path / "run"
    first = pretrain(run_dir, corpus, mirror, "training.stop_after_step=4")
    assert first.code == 0, first.stderr
    assert find_checkpoint(tmp_path / "mirrors/run").checkpoint.step == 4
    for tensors in run_dir.glob("checkpoints/*/tensors-*"):
        tensors.write_bytes(tensors.read_bytes()[:-1])
    refused = pretrain(run_dir, corpus)
    assert refused.code == 2 and "no good checkpoint is left" in refused.stderr
    listed = loopcoder("checkpoint", "verify", str(run_dir))
    assert listed.code == 2 and listed.stderr.count("\n") == len(list(run_dir.glob("checkpoints/step-*")))
    second = pretrain(run_dir, corpus, mirror)
    assert second.code == 0, second.stderr
    assert "resuming from its mirror" in second.stdout and "resuming after step 4" in second.stdout
    assert losses(run_dir) == losses(tmp_path / "whole")
    shutil.rmtree(run_dir)
    third = pretrain(run_dir, corpus, mirror)
    assert third.code == 0 and "nothing left to do" in third.stdout, third.stderr
