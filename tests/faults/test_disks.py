"""The run folder's disk becomes read-only under a run; a run folder is asked for by two."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from loopcoder_train.checkpoint import checkpoints_of
from tests.faults.conftest import SLOWLY, TWO
from tests.integration.conftest import (
    NUM_STEPS,
    assert_one_line_error,
    loopcoder,
    losses,
    pretrain,
    pretrain_arguments,
)
from tests.integration.running import Running, newest_step

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """`folder` cannot be written to, also by root; files that are open stay so (root and mount are needed)."""
    for options in (["--bind", str(folder), str(folder)], ["-o", "remount,ro,bind", str(folder)]):
        if subprocess.run(["mount", *options], capture_output=True, check=False).returncode:
            pytest.skip("nothing can be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.faults
def test_a_disk_that_becomes_read_only_keeps_what_was_saved(tmp_path, corpus):
    straight, run_dir = tmp_path / "straight", tmp_path / "run"
    assert pretrain(straight, corpus, TWO, *SLOWLY).code == 0
    with Running(run_dir, pretrain_arguments(run_dir, corpus, TWO, *SLOWLY)) as run:
        run.wait_for(lambda: [checkpoint.step for checkpoint in checkpoints_of(run_dir)] == [4], "a save")
        with read_only(run_dir):
            outcome = run.end()
    assert_one_line_error(outcome, "last good checkpoint: step 4", "Read-only file system")
    assert max(losses(run_dir)) == NUM_STEPS, "training did not go on"
    with read_only(run_dir):
        assert_one_line_error(pretrain(run_dir, corpus, TWO, *SLOWLY), str(run_dir), "Read-only file system")
    outcome = pretrain(run_dir, corpus, TWO, *SLOWLY)
    assert outcome.code == 0 and "resuming after step 4" in outcome.stdout, outcome.stderr
    assert losses(run_dir) == losses(straight)


def test_the_second_of_two_jobs_on_one_run_folder_refuses_and_the_first_goes_on(tmp_path, corpus):
    run_dir = tmp_path / "run"
    arguments = pretrain_arguments(
        run_dir, corpus, TWO, *SLOWLY, "training.num_steps=10000", "data.max_repeats=1000000"
    )
    with Running(run_dir, arguments) as run:
        run.wait_for_step(2)
        assert_one_line_error(loopcoder(*arguments), str(run_dir), f"process {run.process.pid}")
        seen = newest_step(run_dir)
        run.wait_for_step(seen + 2)
        assert loopcoder("stop", str(run_dir)).code == 0
        assert run.end().code == 143
