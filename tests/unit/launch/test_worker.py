"""The worker's own checks, without torch."""

import json
import subprocess
import sys

import pytest

from loopcoder_train import worker
from loopcoder_train.config import ParallelConfig, UserError
from loopcoder_train.runtime.failure import FailureRecorded, record_failure
from tests.unit.config.test_config_io import make_config


def test_number_of_processes_must_match():
    config = make_config(parallel=ParallelConfig(world_size=2))
    worker.check_world_size(config, 2)
    worker.check_world_size(make_config(), None)
    for started in (None, 1, 4):
        with pytest.raises(UserError, match=r"parallel\.world_size=2: .*torchrun --nproc-per-node 2"):
            worker.check_world_size(config, started)


def test_error_is_recorded_as_torchrun_reads_it(tmp_path, monkeypatch):
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

    file = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
    with pytest.raises(UserError), FailureRecorded():
        raise UserError("what happened")
    record_failure(RuntimeError("a consequence"))  # does not replace the first
    assert json.loads(file.read_text())["message"]["extraInfo"]["user_error"] is True
    failure = ProcessFailure(local_rank=0, pid=1, exitcode=2, error_file=str(file))
    assert "what happened" in str(failure.message) and failure.timestamp > 0


def test_missing_configuration_is_one_line_and_needs_no_torch(tmp_path):
    program = (
        "import sys; from loopcoder_train.worker import main; "
        f"code = main(['--config', '{tmp_path}/none.yaml']); print(code, 'torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert result.stdout == "2 False\n"
    assert result.stderr.startswith(f"error: {tmp_path}/none.yaml: cannot be read") and result.stderr.count("\n") == 1
