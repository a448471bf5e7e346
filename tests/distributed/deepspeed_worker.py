"""Started by torchrun: works through the cases of its world size and writes every result to one JSON file.

torchrun --nproc-per-node 2 -m tests.distributed.deepspeed_worker --output results.json [--only PART_OF_AN_ID]
"""

import argparse
from pathlib import Path

import torch
from torch import distributed

from tests.distributed.deepspeed_cases import all_cases
from tests.distributed.torchrun import timed, work_through


def main() -> None:
    """One result per case: errors by name. A failing case ends the run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--only", default="", help="cases whose id contains this")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    # Heavy imports after the processes have met. Megatron's first: its stand-in for torch.cuda replaces functions of
    # torch that DeepSpeed replaces, too, and puts back as it found them. A worker has one engine and never both.
    import loopcoder_train.engines.megatron  # noqa: I001
    import loopcoder_train.engines.deepspeed  # noqa: F401
    from tests.distributed.deepspeed_checks import check

    wanted = [c for c in all_cases() if c.world_size == distributed.get_world_size() and arguments.only in c.id]
    work_through(wanted, timed(check), arguments.output)


if __name__ == "__main__":
    main()
