"""Get a run_dir ready for an attempt: may this configuration continue what is there? Then write run.yaml.

Nothing in the folder is touched before the run's lock is held, so a run that still lives in it keeps its files.
"""

import dataclasses
import itertools
import sys
from pathlib import Path

from loopcoder_train.config.compare import result_changing_keys
from loopcoder_train.config.errors import UserError
from loopcoder_train.config.io import RUN_CONFIG_FILE, read_run_config, write_run_config
from loopcoder_train.config.run import RunConfig
from loopcoder_train.runtime.lock import RunLock

_SHOWN = 6  # differing options named in one error


def prepare(config: RunConfig, launcher_lock: RunLock) -> Path:
    """Write `<run_dir>/run.yaml` and return its path. Raises UserError when the run there is another one.

    With `fresh`, an existing run is set aside first; `launcher_lock` then moves on to the new folder. run.yaml says
    `fresh: false`, because that is done: whoever starts from it again, a restarted worker too, must resume.
    """
    run_dir = Path(config.run_dir)
    run_yaml = run_dir / RUN_CONFIG_FILE
    with RunLock(run_dir) as lock:
        if run_yaml.exists():
            if config.fresh:
                aside = set_aside(run_dir)
                print(f"loopcoder: fresh=true: the old run was moved to {aside}", file=sys.stderr)
                launcher_lock.move_to_new_folder()
                lock.move_to_new_folder()
            elif not config.accept_config_changes:
                refuse_other_run(read_run_config(run_yaml), config)
        write_run_config(dataclasses.replace(config, fresh=False), run_yaml)
    return run_yaml


def set_aside(run_dir: Path) -> Path:
    """Rename the folder to the first free `<run_dir>.old-N` and return that."""
    candidates = (run_dir.with_name(f"{run_dir.name}.old-{number}") for number in itertools.count(1))
    return run_dir.rename(next(aside for aside in candidates if not aside.exists()))


def refuse_other_run(old: RunConfig, new: RunConfig) -> None:
    """Raise UserError when `new` differs from `old` in what changes the result, naming the options and ways out."""
    changes = result_changing_keys(old, new)
    if not changes:
        return
    shown = ", ".join(f"{key} {before} -> {after}" for key, before, after in changes[:_SHOWN])
    more = f" and {len(changes) - _SHOWN} more" if len(changes) > _SHOWN else ""
    raise UserError(
        f"run_dir={new.run_dir}: holds a run with other options: {shown}{more}; "
        "start over with fresh=true, continue with accept_config_changes=true, or give another run_dir"
    )
