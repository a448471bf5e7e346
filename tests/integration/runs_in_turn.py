"""Several runs one after the other in the same processes: a start costs ten times what a small run does.

    torchrun ... -m tests.integration.runs_in_turn RUN.YAML ... [remove:FOLDER] RUN.YAML ...

Each is `build.pretrain`, everything that a worker does after it has read its run.yaml, but for the process group, which
stays. `remove:` deletes a folder between two runs.
"""

import shutil
import sys

import torch
import torch.distributed as dist

from loopcoder_train.build import pretrain
from loopcoder_train.config.io import read_run_config
from loopcoder_train.runtime import distributed
from loopcoder_train.runtime.signals import StopRequests


def main(arguments: list[str]) -> None:
    """Do what each argument says; the first run that fails ends the process."""
    distributed.init_process_group(torch.device("cpu"))
    leave, distributed.destroy_process_group = distributed.destroy_process_group, lambda: None
    distributed.init_process_group = lambda device, timeout: None
    for argument in arguments:
        dist.barrier()
        if argument.startswith("remove:"):
            if dist.get_rank() == 0:
                shutil.rmtree(argument.removeprefix("remove:"))
        else:
            pretrain(read_run_config(argument), StopRequests())
    leave()


if __name__ == "__main__":
    main(sys.argv[1:])
