"""Started by torchrun: works through the cases of its world size and writes every result to one JSON file.

torchrun --nproc-per-node 2 -m tests.distributed.megatron_worker --set ci --output results.json
"""

import argparse
from pathlib import Path

import torch
from torch import distributed

from tests.distributed.megatron_cases import ci_cases, exhaustive_cases
from tests.distributed.torchrun import timed, work_through


def main() -> None:
    """One result per case: errors by name. A failing case ends the run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--set", choices=("ci", "exhaustive"), required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--only", default="", help="cases whose id contains this")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    from tests.distributed.megatron_checks import check  # heavy imports after the processes have met

    cases = {"ci": ci_cases, "exhaustive": exhaustive_cases}[arguments.set]()
    wanted = [c for c in cases if c.world_size == distributed.get_world_size() and arguments.only in c.id]
    in_order = sorted(wanted, key=lambda case: (case.layout, case.other_layout))  # new groups when the layout changes
    work_through(in_order, timed(check), arguments.output)


if __name__ == "__main__":
    main()
