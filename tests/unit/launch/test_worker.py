"""The worker's own checks, without torch."""

import json
import subprocess
import sys

import pytest

from launch.failures import error_file, first_failure, read_record, stderr_file
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


def test_without_room_for_a_file_the_record_goes_to_stderr_where_the_launcher_finds_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "no such folder" / "error.json"))
    record_failure(UserError("what happened"))
    stderr_file(tmp_path, 0).write_text("before\n" + capsys.readouterr().err + "after\n")
    assert read_record(tmp_path, 0)["message"] == "what happened" and read_record(tmp_path, 0)["user_error"] is True


def test_missing_configuration_is_one_line_and_needs_no_torch(tmp_path):
    program = (
        "import sys; from loopcoder_train.worker import main; "
        f"code = main(['--config', '{tmp_path}/none.yaml']); print(code, 'torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert result.stdout == "2 False\n"
    assert result.stderr.startswith(f"error: {tmp_path}/none.yaml: cannot be read") and result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("codes", "records", "cause"),
    [
        ({0: 1, 1: 2}, {0: (10.0, False), 1: (11.0, True)}, "rank 1's error"),  # a user's error explains all
        ({0: 1, 1: -9}, {0: (10.0, False)}, "rank 1 was killed by SIGKILL"),  # a killed rank records nothing
        ({0: 1, 1: 1}, {0: (11.0, False), 1: (10.0, False)}, "rank 1 failed with exit code 1 (rank 1's error)"),
        ({0: -15, 1: 1}, {}, "rank 1 failed with exit code 1"),  # rank 0 was stopped by the agent
        ({0: -15, 1: 1}, {0: (10.0, False), 1: (11.0, False)}, "rank 0 failed"),  # stopped while it closed
        ({0: 1, 1: -9}, {0: (10.0, "hang")}, "rank 0 failed with exit code 1 (rank 0's error)"),  # 1 did not answer
    ],
)
def test_the_cause_is_told_from_its_consequences(codes, records, cause, tmp_path):
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

    for rank, (when, kind) in records.items():
        details = {"timestamp": str(int(when)), "time": when, "user_error": kind is True, "hang": kind == "hang"}
        record = {"message": {"message": f"rank {rank}'s error", "extraInfo": details}}
        error_file(tmp_path, rank).write_text(json.dumps(record))
    failures = {
        rank: ProcessFailure(local_rank=rank, pid=1, exitcode=code, error_file=str(error_file(tmp_path, rank)))
        for rank, code in codes.items()
    }
    assert first_failure(failures, tmp_path).message.startswith(cause)
