"""What the diagnostics cost: `make bench` runs this and rewrites docs/benchmarks/lenses.md. Needs the default corpus.

The quick start's run on two processes, with telemetry at its default interval and without any, in turn: A B A B, for
two and for four loops. A run is as long as one interval, after its first steps, so that one measurement falls in it; it
is timed where it happens. More calls after the last step tell how much one call varies. Then `loopcoder diagnose` of
the checkpoint that such a run has left, by number of threads.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import wraps
from importlib.metadata import version
from pathlib import Path

import torch.distributed as dist

from loopcoder_train.config.commands import DiagnoseOptions
from loopcoder_train.config.run import TelemetryConfig
from loopcoder_train.training.loop import Run, Step
from loopcoder_train.training.metrics import METRICS_FILE, read_metrics
from loopcoder_train.training.telemetry_hook import TelemetryHook

ROOT = Path(__file__).parents[2]
TARGET = ROOT / "docs" / "benchmarks" / "lenses.md"
LOOPCODER = Path(sys.executable).with_name("loopcoder")
WARM_UP, CALLS = 10, 5
INTERVAL = TelemetryConfig().every_steps
STEPS = WARM_UP + INTERVAL
RUN = ["experiment=quickstart", f"training.stop_after_step={STEPS}", "evaluation.every_steps=100000",
       "launch.start_workers=false"]  # fmt: skip
ON, OFF = f"telemetry.every_steps={INTERVAL}", "telemetry.every_steps=100000"
SAMPLES, LIMIT_SECONDS, MOST_OF_TRAINING = 500, 120, 0.01  # what the diagnostics may cost
VARIABLE = "BENCHMARK_TIMES_TELEMETRY"  # environment variable of the runs whose telemetry is timed
TIMES_FILE = "telemetry.json"
LAUNCH = """
import sys
from pathlib import Path
from launch.local import run_workers
run_dir = Path(sys.argv[1])
sys.exit(run_workers(run_dir / "run.yaml", 2, 0, run_dir / "logs", module="tests.benchmarks.lenses"))
"""
# VmHWM is of this process alone; ru_maxrss would have the parent's, too.
DIAGNOSE = """
import sys
from pathlib import Path
from loopcoder_train.cli.main import main
code = main(sys.argv[1:])
status = Path("/proc/self/status").read_text().splitlines()
print(next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM")))
sys.exit(code)
"""


def worker() -> int:
    """The real worker; if asked, its telemetry is timed, and rank 0 leaves the seconds in its run_dir."""
    if VARIABLE in os.environ:
        TelemetryHook.after_step = timed(TelemetryHook.after_step)
    from loopcoder_train import worker as real

    return real.main()


def timed(method):
    """`TelemetryHook.after_step` with a clock. A barrier keeps out what a rank waits for its partner anyway."""
    due: list[float] = []

    @wraps(method)
    def call(hook: TelemetryHook, run: Run, step: Step) -> None:
        if step.number % INTERVAL == 0:
            dist.barrier()
            start = time.perf_counter()
            method(hook, run, step)
            due.append(time.perf_counter() - start)
        else:
            method(hook, run, step)
        if step.number == STEPS:  # its train record is written: what follows is in nobody's step time
            again = [seconds_of_a_call(hook, run) for _ in range(CALLS)]
            if os.environ["RANK"] == "0":
                (run.run_dir / TIMES_FILE).write_text(json.dumps({"due": due, "again": again}))

    return call


def seconds_of_a_call(hook: TelemetryHook, run: Run) -> float:
    """One call of the engine's telemetry on the hook's batch."""
    dist.barrier()
    start = time.perf_counter()
    run.engine.loop_telemetry(hook._batch)
    return time.perf_counter() - start


def train(run_dir: Path, options: list[str], **variables: str) -> float:
    """One run to its end; wall seconds from the record of step WARM_UP to the last one's, INTERVAL steps later."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([LOOPCODER, "pretrain", *RUN, *options, f"run_dir={run_dir}"], check=True, cwd=ROOT, env=environment)
    subprocess.run([sys.executable, "-c", LAUNCH, str(run_dir)], check=True, cwd=ROOT, env=environment | variables)
    times = {record["step"]: record["time"] for record in read_metrics(run_dir / METRICS_FILE, ["train"])}
    return times[STEPS] - times[WARM_UP]


@dataclass
class Cost:
    """Of one number of loops: seconds, one value per run with telemetry but for `again`, which has CALLS of each."""

    measured: list[float] = field(default_factory=list)  # inside the hook, when it was due
    again: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)  # INTERVAL steps with telemetry
    bare: list[float] = field(default_factory=list)  # and without, in the run after it

    def shares(self) -> list[float]:
        """Time inside the lenses / time of all steps."""
        return [inside / whole for inside, whole in zip(self.measured, self.whole, strict=True)]

    def ratios(self) -> list[float]:
        """Time of all steps with / without, per pair."""
        return [whole / bare for whole, bare in zip(self.whole, self.bare, strict=True)]


def telemetry_cost(folder: Path, num_loops: int, pairs: int) -> Cost:
    """A B A B."""
    cost = Cost()
    for pair in range(pairs):
        measured, bare = folder / f"measured-{num_loops}-{pair}", folder / f"bare-{num_loops}-{pair}"
        loops = f"model.num_loops={num_loops}"
        cost.whole.append(train(measured, [loops, ON], **{VARIABLE: "1"}))
        cost.bare.append(train(bare, [loops, OFF]))
        told = json.loads((measured / TIMES_FILE).read_text())
        (inside,) = told["due"]
        cost.measured.append(inside)
        cost.again += told["again"]
    return cost


@dataclass(frozen=True)
class Diagnosed:
    """One `loopcoder diagnose`; seconds of the whole command and peak bytes, None where it took too long."""

    threads: int
    seconds: float | None
    peak_bytes: int | None


def diagnose(run_dir: Path, threads: int) -> Diagnosed:
    """The command as a user gives it, imports and figures included."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    command = ["diagnose", str(run_dir), f"num_samples={SAMPLES}", f"num_threads={threads}"]
    start = time.perf_counter()
    try:
        done = subprocess.run(
            [sys.executable, "-c", DIAGNOSE, *command],
            check=True, cwd=ROOT, env=environment, timeout=LIMIT_SECONDS, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Diagnosed(threads, None, None)
    return Diagnosed(threads, time.perf_counter() - start, int(done.stdout.splitlines()[-1]))


def main() -> None:
    """All runs, then the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loops", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--pairs", type=int, default=2)
    given = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        costs = {num_loops: telemetry_cost(Path(folder), num_loops, given.pairs) for num_loops in given.loops}
        trained = Path(folder, f"measured-{given.loops[0]}-0")
        diagnosed = [diagnose(trained, threads) for threads in sorted({1, cores})]
        content = json.loads((trained / "diagnostics.json").read_text())
    TARGET.write_text("\n".join([*telemetry_part(costs), *diagnose_part(diagnosed, content)]) + "\n")
    print(f"written: {TARGET.relative_to(ROOT)}")
    if any(share > MOST_OF_TRAINING for cost in costs.values() for share in cost.shares()):
        sys.exit(f"telemetry takes more than {MOST_OF_TRAINING:.0%} of the steps' time: see the page")
    if any(one.seconds is None for one in diagnosed):
        sys.exit(f"a diagnosis of {SAMPLES} samples takes more than {LIMIT_SECONDS} s: see the page")


def telemetry_part(costs: dict[int, Cost]) -> list[str]:
    """The page's beginning."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "megatron-core"))
    load = os.getloadavg()[0]
    command = " ".join(["python -m tests.benchmarks.lenses", *sys.argv[1:]])
    return [
        "# What the diagnostics cost",
        "",
        f"`{command}` (in `make bench`) on {datetime.now(UTC):%Y-%m-%d}: {platform.machine()}, "
        f"{len(os.sched_getaffinity(0))} cores, {packages};",
        f"load at the end {load:.1f}. One seed, one size: the quick start's.",
        "",
        "## Telemetry while training",
        "",
        f"The quick start's run on two processes, telemetry every {INTERVAL} steps (the default) or not at all, in "
        "turn:",
        f"{len(next(iter(costs.values())).bare)} pairs of runs. A run's {INTERVAL} steps after its first {WARM_UP} "
        "count; one measurement falls in them.",
        "Inside: in the hook when it was due, its record included; again: calls after the last step, "
        f"{CALLS} in each run.",
        "",
        f"| R | {INTERVAL} steps, s | inside, ms | **inside / all steps** | again, ms: median (range) "
        "| again / steps without | with / without, each pair |",
        "|---|---|---|---|---|---|---|",
        *(_row(num_loops, cost) for num_loops, cost in costs.items()),
        "",
        "The cost is the fourth column. The last one has the noise of whole runs on this machine.",
        "",
    ]


def _row(num_loops: int, cost: Cost) -> str:
    again = statistics.median(cost.again)
    cells = [
        str(num_loops),
        _each(cost.whole, "{:.1f}"),
        _each(cost.measured, "{:.0f}", 1e3),
        _each(cost.shares(), "**{:.2%}**"),
        f"{1e3 * again:.0f} ({1e3 * min(cost.again):.0f} to {1e3 * max(cost.again):.0f})",
        f"{again / statistics.median(cost.bare):.2%}",
        _each(cost.ratios(), "{:.3f}"),
    ]
    return f"| {' | '.join(cells)} |"


def _each(values: list[float], template: str, scale: float = 1.0) -> str:
    return ", ".join(template.format(scale * value) for value in values)


def diagnose_part(diagnosed: list[Diagnosed], content: dict) -> list[str]:
    """`loopcoder diagnose` by number of threads."""
    default = DiagnoseOptions(run_dir="any").num_threads
    rows = []
    for one in diagnosed:
        told = f"more than {LIMIT_SECONDS} s: ended | "
        if one.seconds is not None:
            told = f"{one.seconds:.0f} s | {one.peak_bytes / 2**20:.0f} MiB"
        rows.append(f"| {one.threads}{' (default)' if one.threads == default else ''} | {told} |")
    return [
        "## `loopcoder diagnose`",
        "",
        f"All lenses on {content['num_samples']} samples of {content['num_documents']} held-out documents "
        f"({content['sample_tokens']:,} tokens) with R = {content['num_loops']};",
        "the whole command, imports and figures included.",
        "",
        "| threads | wall time | peak memory |",
        "|---|---|---|",
        *rows,
    ]


if __name__ == "__main__":
    sys.exit(worker()) if "--config" in sys.argv else main()
