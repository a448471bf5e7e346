"""Cases in processes: a test starts torchrun once per world size, and the workers go through all of its cases."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import distributed

ROOT = Path(__file__).parents[2]


def results_of(worker: str, world_size: int, *arguments: str, timeout_seconds: float) -> tuple[dict[str, Any], str]:
    """What `python -m tests.distributed.WORKER` found, by the case's id, and the end of torchrun's output."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "results.json"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world_size)]
        command += ["-m", f"tests.distributed.{worker}", *arguments, "--output", str(output)]
        run = subprocess.run(
            command,
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
            check=False,
        )
        found = json.loads(output.read_text()) if output.exists() else {}
        return found, f"exit code {run.returncode}\n{run.stderr[-6000:]}"


def work_through(cases: Sequence[Any], result_of: Callable[[Any], Any], output: Path) -> None:
    """In a worker: the result of every case, in the order given, on rank 0 into `output`; then the group ends."""
    results = {}
    for case in cases:
        results[case.id] = result_of(case)
        if distributed.get_rank() == 0:  # after every case: when one fails, its predecessors still count
            output.write_text(json.dumps(results, indent=1))
    distributed.barrier()
    distributed.destroy_process_group()


def timed(check: Callable[[Any], dict[str, float]]) -> Callable[[Any], dict[str, Any]]:
    """The errors that a check found, and how long it took."""

    def checked(case: Any) -> dict[str, Any]:
        began = time.perf_counter()
        return {"errors": check(case), "seconds": round(time.perf_counter() - began, 3)}

    return checked
