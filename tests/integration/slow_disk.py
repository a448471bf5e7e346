"""A worker whose disk stops in the middle of one checkpoint: `python -m tests.integration.slow_disk --config run.yaml`.

Every rank's tensor file of SLOW_STEP is written halfway and then no further. What is on the disk is what a real kill in
the middle of a write leaves.
"""

import sys
import time
from pathlib import Path

from loopcoder_train import worker
from loopcoder_train.checkpoint import save

SLOW_STEP = 8


def slow_from(write):
    """`write` (`save.write_tensors`) that never gets to the second half of the file of SLOW_STEP."""

    def write_slowly(path: Path, tensors):
        if not path.parent.name.startswith(f"step-{SLOW_STEP:08d}"):
            return write(path, tensors)
        hidden = path.with_name(f"{path.name}.whole")
        write(hidden, tensors)
        content = hidden.read_bytes()
        hidden.unlink()
        with path.open("xb") as file:
            file.write(content[: len(content) // 2])
        time.sleep(600)
        raise AssertionError("nobody killed this process")

    return write_slowly


if __name__ == "__main__":
    save.write_tensors = slow_from(save.write_tensors)
    sys.exit(worker.main())
