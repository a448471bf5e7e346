"""What the guards cost: `make bench` runs this and rewrites docs/benchmarks/guards.md. Needs the default corpus.

The quick start's run on two processes, with the defaults of configs/guards and with as little as can be asked for, in
turn: A B A B ... Their ratio drowns in the noise of a machine, so in one run more every call of a guard is timed. There
a barrier before each call keeps out what a rank waits for its partner anyway, at whatever collective comes next.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from datetime import UTC, datetime
from functools import wraps
from importlib.metadata import version
from pathlib import Path

import torch.distributed as dist

from loopcoder_train.runtime import heartbeat
from loopcoder_train.training.bad_steps import BadStepHook
from loopcoder_train.training.loop import Run
from loopcoder_train.training.metrics import METRICS_FILE, read_metrics
from loopcoder_train.training.replicas import ReplicaHook
from loopcoder_train.training.slow_ranks import SlowRankHook
from loopcoder_train.training.stop_hook import StopHook

ROOT = Path(__file__).parents[2]
TARGET = ROOT / "docs" / "benchmarks" / "guards.md"
LOOPCODER = Path(sys.executable).with_name("loopcoder")
ROUNDS, STEPS, WARM_UP = 3, 210, 10
RUN = ["experiment=quickstart", f"training.stop_after_step={STEPS}", "evaluation.every_steps=100000",
       "telemetry.every_steps=100000", "launch.start_workers=false"]  # fmt: skip
OFF = ["guards.spike=ignore", "guards.compare_replicas_every_steps=null", "guards.slow_rank_every_steps=null",
       "guards.hang_timeout_seconds=null"]  # fmt: skip
TIMED = {
    "judging each step (bad steps)": (BadStepHook, ("accepts", "after_step")),
    "agreeing on a stop": (StopHook, ("after_step",)),
    "comparing replicas (200 steps, and before saves)": (ReplicaHook, ("after_step",)),
    "comparing speeds (50 steps)": (SlowRankHook, ("after_step",)),
}
VARIABLE = "BENCHMARK_TIMES_GUARDS"  # environment variable of the run whose guards are timed
LAUNCH = """
import sys
from pathlib import Path
from launch.local import run_workers
run_dir = Path(sys.argv[1])
sys.exit(run_workers(run_dir / "run.yaml", 2, 0, run_dir / "logs", module="tests.benchmarks.guards"))
"""


def worker() -> int:
    """The real worker; if asked, guards are timed from step WARM_UP on, and rank 0 leaves the sums in its run_dir."""
    seconds: Counter[str] = Counter()
    began: list[float] = []

    def timed(name: str, method):
        @wraps(method)
        def call(hook, run: Run, *arguments):
            dist.barrier()
            start = time.perf_counter()
            result = method(hook, run, *arguments)
            if run.state.step >= WARM_UP:
                began.append(start)
                seconds[name] += time.perf_counter() - start
                seconds["whole"] = time.perf_counter() - began[0]
                if run.state.step == STEPS and os.environ["RANK"] == "0":
                    (run.run_dir / "guards.json").write_text(json.dumps(seconds))
            return result

        return call

    for name, (hook, methods) in TIMED.items() if VARIABLE in os.environ else ():
        for method in methods:
            setattr(hook, method, timed(name, getattr(hook, method)))
    from loopcoder_train import worker as real

    return real.main()


def run(run_dir: Path, options: list[str], **variables: str) -> None:
    """One run to its end."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([LOOPCODER, "pretrain", *RUN, *options, f"run_dir={run_dir}"], check=True, cwd=ROOT, env=environment)
    subprocess.run([sys.executable, "-c", LAUNCH, str(run_dir)], check=True, cwd=ROOT, env=environment | variables)


def step_seconds(run_dir: Path) -> float:
    """Wall time per step from WARM_UP to the end, everything between two steps included."""
    times = {record["step"]: record["time"] for record in read_metrics(run_dir / METRICS_FILE, ["train"])}
    first, last = min(step for step in times if step >= WARM_UP), max(times)
    return (times[last] - times[first]) / (last - first)


def heartbeat_seconds() -> float:
    """One `enter`, of which a step has about ten."""
    count = 100_000
    start = time.perf_counter()
    for number in range(count):
        heartbeat.enter(f"step {number}")
    return (time.perf_counter() - start) / count


def main() -> None:
    """All runs, then the page."""
    ratios, steps = [], []
    with tempfile.TemporaryDirectory() as folder:
        timed = Path(folder, "timed")
        run(timed, [], **{VARIABLE: "1"})
        told = json.loads((timed / "guards.json").read_text())
        shares = {name: told.get(name, 0.0) / told["whole"] for name in TIMED}
        for number in range(ROUNDS):
            guarded, bare = Path(folder, f"guarded-{number}"), Path(folder, f"bare-{number}")
            run(guarded, [])
            run(bare, OFF)
            steps.append(step_seconds(guarded))
            ratios.append(steps[-1] / step_seconds(bare))
    TARGET.write_text("\n".join(page(shares, ratios, steps)) + "\n")
    print(f"written: {TARGET.relative_to(ROOT)}")


def page(shares: dict[str, float], ratios: list[float], steps: list[float]) -> list[str]:
    """The page as lines."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "megatron-core"))
    machine = f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, {packages}"
    return [
        "# What the guards cost",
        "",
        f"`python -m tests.benchmarks.guards` (in `make bench`) on {datetime.now(UTC):%Y-%m-%d}: {machine}.",
        f"The quick start's run on two processes, {STEPS} steps of 2,048 tokens,",
        f"{1e3 * statistics.median(steps):.0f} ms each.",
        "",
        "| inside | share of the step time |",
        "|---|---|",
        *(f"| {name} | {share:.3%} |" for name, share in shares.items()),
        f"| **all of these** | {sum(shares.values()):.3%} |",
        "",
        f"One heartbeat takes {1e6 * heartbeat_seconds():.1f} us; a step has about ten.",
        f"Whole step, guards as they are / as little as can be, {ROUNDS} pairs: {statistics.median(ratios):.3f} "
        f"({min(ratios):.3f} to {max(ratios):.3f}).",
    ]


if __name__ == "__main__":
    sys.exit(worker()) if "--config" in sys.argv else main()
