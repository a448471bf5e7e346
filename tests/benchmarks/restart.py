"""What a start and a restart are made of: `make bench` runs this and rewrites docs/benchmarks/restart.md.

A round is: a run is started, one of its two workers is killed after a save (SIGKILL), the launcher starts the workers
again, the launcher is killed, and the same command is given again. Every attempt records its own `ready` event. Nothing
is asserted here; medians and ranges over the rounds are shown.
"""

import os
import platform
import signal
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import psutil

from loopcoder_train.runtime.start_clock import PARTS
from loopcoder_train.training.metrics import METRICS_FILE, Record, newest_records
from tests.integration.conftest import ROOT, make_corpus, pretrain_arguments
from tests.integration.running import Running, events

TARGET = ROOT / "docs" / "benchmarks" / "restart.md"
ROUNDS = 5
NEVER = 1_000_000
OPTIONS = [
    "model=tiny",
    "parallel.world_size=2",
    "training.num_steps=100000",
    "checkpoint.every_steps=10",
    f"evaluation.every_steps={NEVER}",
    f"telemetry.every_steps={NEVER}",
]
COLUMNS = ("first start", "again by the launcher", "the same command again")


def measure_round(folder: Path, corpus: Path) -> tuple[list[Record], float]:
    """The `ready` events of the three starts, and the seconds from the kill of a worker until the second of them."""
    run_dir = folder / "run"
    arguments = pretrain_arguments(run_dir, corpus, *OPTIONS)
    with Running(run_dir, [*arguments, "launch.max_restarts=1"]) as running:
        running.wait_for(happened(run_dir, "saved", 1), "a save")
        killed = time.time()
        running.signal_worker(1, signal.SIGKILL)
        running.wait_for(happened(run_dir, "ready", 2), "the restart")
        end(running)
    with Running(run_dir, arguments) as running:
        running.wait_for(happened(run_dir, "ready", 3), "the second start")
        end(running)
    starts = events(run_dir, "ready")
    return starts, starts[1]["time"] - killed


def happened(run_dir: Path, event: str, attempt: int) -> Callable[[], bool]:
    """Whether attempt `attempt` has recorded `event`; looks at the end of the record, ten times a second."""

    def look() -> bool:
        time.sleep(0.1)  # looking costs the run time
        records = newest_records(run_dir / METRICS_FILE)
        return any(record.get("event") == event and record["attempt"] == attempt for record in records)

    return look


def end(running: Running) -> None:
    """Kill the launcher and wait until its workers, which notice, are gone."""
    workers = psutil.Process(running.process.pid).children()
    running.process.kill()
    running.process.communicate()
    psutil.wait_procs(workers, timeout=60)


def spread(values: list[float]) -> str:
    """`median (min-max)`."""
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def table(rounds: list[tuple[list[Record], float]]) -> list[str]:
    """One row per part, one column per kind of start, in seconds."""
    lines = [f"| seconds | {' | '.join(COLUMNS)} |", "|---|---|---|---|"]
    starts = list(zip(*(events for events, _ in rounds), strict=True))
    for part in PARTS:
        cells = (spread([event["parts"].get(part, 0.0) for event in column]) for column in starts)
        lines.append(f"| {part.replace('_', ' ')} | {' | '.join(cells)} |")
    totals = (spread([event["ready_seconds"] for event in column]) for column in starts)
    lines.append(f"| **all, until the first step is done** | {' | '.join(totals)} |")
    after_kill = spread([seconds for _, seconds in rounds])
    return [*lines, "", f"From the kill of a worker until the next attempt had done its first step: {after_kill} s."]


def head(load: tuple[float, float, float]) -> list[str]:
    """Title, machine, versions, date, command."""
    with Path("/proc/cpuinfo").open() as file:
        model = next((line.partition(": ")[2].strip() for line in file if line.startswith("model name")), "")
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "megatron-core"))
    return [
        "# What a start and a restart are made of",
        "",
        f"`python -m tests.benchmarks.restart` (in `make bench`) on {datetime.now(UTC):%Y-%m-%d}: "
        f"{platform.machine()}, {model}, {len(os.sched_getaffinity(0))} cores, load average at the start "
        f"{load[0]:.1f}, {packages}.",
        f"`model=tiny`, two processes of one thread, rows of 64 tokens. {ROUNDS} rounds; median (range). Nothing here "
        "was run on a GPU.",
        "",
    ]


def main() -> None:
    """Build a small corpus, measure, write the page; what was noted below the tables stays."""
    load, rounds = os.getloadavg(), []
    with tempfile.TemporaryDirectory() as name:
        corpus = make_corpus(Path(name) / "corpus")
        for number in range(ROUNDS):
            folder = Path(name) / str(number)
            folder.mkdir()
            rounds.append(measure_round(folder, corpus))
            print(f"round {number + 1} of {ROUNDS}", *(event["message"] for event in rounds[-1][0]), sep="\n  ")
    notes = TARGET.read_text().split("\n## ", 1)[1:] if TARGET.exists() else []
    lines = [*head(load), *table(rounds)]
    TARGET.write_text("\n".join(lines) + "\n" + "".join("\n## " + note for note in notes))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
