"""A worker that gets stuck, so that a test can kill it just there (`python -m tests.integration.stuck_worker`).

LOOPCODER_TEST_STUCK=save   every rank's tensor file of STUCK_SAVE is written halfway and then no further: on the disk
                            is what a kill in the middle of a write leaves
LOOPCODER_TEST_STUCK=step   rank 1 stops in STUCK_STEP, and the others wait for it in a collective of that step
"""

import os
import sys
import time
from pathlib import Path

from loopcoder_train import build, worker
from loopcoder_train.checkpoint import save

VARIABLE = "LOOPCODER_TEST_STUCK"
STUCK_SAVE, STUCK_STEP = 8, 7


def get_stuck() -> None:
    """Until this process is killed."""
    time.sleep(600)
    raise AssertionError("nobody killed this process")


def stuck_in_a_save(write):
    """`write` (`save.write_tensors`) that never gets to the second half of the file of STUCK_SAVE."""

    def write_half(path: Path, tensors):
        if not path.parent.name.startswith(f"step-{STUCK_SAVE:08d}"):
            return write(path, tensors)
        whole = path.with_name(f"{path.name}.whole")
        write(whole, tensors)
        content = whole.read_bytes()
        whole.unlink()
        with path.open("xb") as file:
            file.write(content[: len(content) // 2])
        return get_stuck()

    return write_half


def stuck_in_a_step(build_engine):
    """`build_engine` whose engine, on rank 1, stops in STUCK_STEP of this attempt."""

    def build_and_wrap(config, device):
        engine = build_engine(config, device)
        train_step, steps = engine.train_step, []

        def train_or_stop(micro_batches, learning_rate, accept):
            steps.append(None)
            if len(steps) == STUCK_STEP and os.environ["RANK"] == "1":
                get_stuck()
            return train_step(micro_batches, learning_rate, accept)

        engine.train_step = train_or_stop
        return engine

    return build_and_wrap


if __name__ == "__main__":
    if os.environ[VARIABLE] == "save":
        save.write_tensors = stuck_in_a_save(save.write_tensors)
    else:
        build.build_engine = stuck_in_a_step(build.build_engine)
    sys.exit(worker.main())
