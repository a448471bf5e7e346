"""`loopcoder plan` and dry runs, as typed."""

import json
import subprocess
import sys
import time

import pytest

from tests.unit.cli.conftest import QUICK


def test_plan_needs_no_corpus_and_leaves_nothing(tmp_path, monkeypatch, loopcoder):
    monkeypatch.chdir(tmp_path)
    code, out, error = loopcoder("plan", "experiment=paper_r2", "parallel.world_size=1024")
    assert (code, error) == (0, "")
    assert "1,024 GPUs = tensor 8 x pipeline 1 x context 1 x data 128" in out
    assert list(tmp_path.iterdir()) == []


def test_plan_in_json_and_by_search(loopcoder):
    plan = json.loads(loopcoder("plan", "experiment=paper_r3", "json=true", "mfu=0.5")[1])
    assert plan["length"]["gflop_per_token"] == pytest.approx(130.2, abs=0.5)
    found = json.loads(loopcoder("plan", "experiment=paper_r3", "json=true", "search=true", "gpus=16")[1])
    assert found["fitting"] and all(layout["parallel"]["world_size"] == 16 for layout in found["fitting"])


def test_a_search_is_not_bound_to_the_experiments_layout(loopcoder):
    """paper_r2 has 8 tensor ranks; 4 GPUs have not."""
    code, out, _ = loopcoder("plan", "experiment=paper_r2", "parallel.world_size=4", "search=true")
    assert code == 0 and "layouts of 4 GPUs" in out


def test_plans_over_several_values(loopcoder):
    code, out, error = loopcoder("plan", "-m", "experiment=paper_r1,paper_r2,paper_r4")
    assert (code, error) == (0, "")
    assert [line.split("R = ")[1][0] for line in out.splitlines() if "R = " in line] == ["1", "2", "4"]


@pytest.mark.parametrize(
    ("line", "fragments"),
    [
        ("plan experiment=paper_r2 gpu_memory=3", ["gpu_memory", "did you mean gpu_memory_gib?"]),
        ("plan experiment=paper_r2 mfu=40", ["mfu=40.0", "(0, 1]"]),
        ("plan experiment=paper_r2 reserved_memory_gib=90", ["reserved_memory_gib=90.0", "gpu_memory_gib=80"]),
        ("plan experiment=quickstart engine=plain parallel.world_size=1", ["engine=plain", "engine=megatron"]),
        ("plan experiment=paper_r2 parallel.tensor_parallel_size=3 parallel.world_size=3", ["num_attention_heads=40"]),
        ("plan experiment=paper_r2 parallel.world_size=12", ["parallel.world_size=12", "multiple"]),
        ("plan", ["experiment: is not set"]),
        (f"pretrain {' '.join(QUICK)} dry_run=0", ["dry_run=0", "at least 1"]),
        (f"pretrain {' '.join(QUICK)} dry_run_rank=1", ["dry_run_rank=1", "needs dry_run"]),
        (f"pretrain {' '.join(QUICK)} dry_run=2 dry_run_rank=2", ["dry_run_rank=2", "0..1"]),
        (f"pretrain {' '.join(QUICK)} dry_run=3", ["training.global_batch_size=8", "multiple"]),
        ("pretrain experiment=paper_r2 dry_run=1024 parallel.tensor_parallel_size=16", ["num_attention_heads=40"]),
        (f"pretrain {' '.join(QUICK)} dry_run=1 engine=plain", ["dry_run=1", "engine=megatron"]),
    ],
)
def test_one_line_that_helps(line, fragments, workplace, loopcoder):
    code, out, error = loopcoder(*line.split())
    assert code == 2 and out == ""
    assert error.startswith("loopcoder: error: ") and error.count("\n") == 1, error
    for fragment in fragments:
        assert fragment in error


def test_plan_does_not_import_torch():
    program = (
        "import sys; from loopcoder_train.cli.main import main; "
        "code = main(['plan', 'experiment=paper_r2', 'json=true']); "
        "print(code, 'torch' in sys.modules, file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stderr.splitlines()[-1] == "0 False"


@pytest.mark.parametrize(
    ("options", "rank", "stage"),
    [
        ("parallel.tensor_parallel_size=8", 1023, 0),
        ("parallel.tensor_parallel_size=4 parallel.pipeline_parallel_size=4 model.num_loops=3", 700, 2),
        ("parallel.tensor_parallel_size=2 parallel.context_parallel_size=2 training.micro_batch_size=2 "
         "parallel.pipeline_parallel_size=2 training.activation_checkpointing=selective", 0, 0),
    ],
)  # fmt: skip
def test_dry_run_of_1024_ranks(options, rank, stage, workplace, started, loopcoder, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # so that what the command sets goes away after the test
    monkeypatch.setenv("TORCH_CPP_LOG_LEVEL", "ERROR")
    began = time.process_time()  # the machine may be shared
    code, out, error = loopcoder(
        "pretrain", "experiment=paper_r2", "dry_run=1024", f"dry_run_rank={rank}", *options.split()
    )
    assert code == 0, error
    assert f"rank {rank} of 1,024: stage {stage}" in out and "as planned" in out
    assert "each held exactly once" in out and "GPU-days" in out
    assert max(map(len, out.splitlines())) <= 100
    assert started == [] and list(workplace.iterdir()) == []
    assert time.process_time() - began < 30
