"""A worker that does what its --config file says: a JSON object `{"<rank>": "<what to do>"}`."""

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path

from loopcoder_train.config.errors import UserError
from loopcoder_train.config.process import LAUNCHER_BEGAN
from loopcoder_train.runtime.failure import record_failure
from loopcoder_train.worker import _prepare_process


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", type=Path, required=True)
    config = parser.parse_args().config
    rank = os.environ["RANK"]
    behaviour = json.loads(config.read_text()).get(rank, "end")
    requests = _prepare_process()
    (config.parent / f"pid-{rank}").write_text(str(os.getpid()))
    with (config.parent / f"began-{rank}").open("a") as began:
        began.write(os.environ.get(LAUNCHER_BEGAN, "") + "\n")
    print(f"rank {rank} tty={sys.stdout.isatty()} threads={os.environ['OMP_NUM_THREADS']}", flush=True)
    if behaviour in ("wait", "hang", "run out of time"):
        return stop(behaviour, rank, requests)
    return fail(behaviour, rank, config)


def stop(behaviour, rank, requests) -> int:
    if behaviour == "run out of time":
        return 75
    if behaviour == "hang":
        time.sleep(120)
    while requests.cause is None:
        time.sleep(0.01)
    time.sleep(0.5)  # the save
    print(f"rank {rank} saved for {requests.cause.name}", flush=True)
    requests.finish()
    return requests.cause.exit_code


def fail(behaviour, rank, config) -> int:
    if behaviour == "user error":
        record_failure(UserError(f"corpus of rank {rank} is damaged"))
        return 2
    if behaviour == "user error, slow to close":
        record_failure(UserError(f"corpus of rank {rank} is damaged"))
        (config.parent / f"pid-{rank}").write_text("0")  # the partner takes it for gone
        time.sleep(120)
    if behaviour == "exit 2":
        return 2
    if behaviour == "raise":
        raise RuntimeError(f"rank {rank} is broken")
    if behaviour == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if behaviour == "lose partner":
        # What a partner does when its neighbour is gone: fails a moment before the launcher looks.
        partner = config.parent / f"pid-{1 - int(rank)}"
        while not (partner.exists() and partner.read_text()) or is_alive(int(partner.read_text())):
            time.sleep(0.001)
        raise ConnectionError("closed by peer")
    return 0


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(main())
