"""Get a run_dir ready for an attempt: may this configuration continue what is there? Then write run.yaml.

Nothing in the folder is touched before the run's lock is held, so a run that still lives in it keeps its files.
"""

import dataclasses
import itertools
import sys
from contextlib import closing
from pathlib import Path

from loopcoder_train.config.compare import refuse_changes, result_changing_keys
from loopcoder_train.config.errors import require
from loopcoder_train.config.io import RUN_CONFIG_FILE, read_run_config, write_run_config
from loopcoder_train.config.run import RunConfig
from loopcoder_train.runtime.lock import RunLock
from loopcoder_train.runtime.mirror_owner import check_mirror_owner
from loopcoder_train.training.corpus import open_corpus


def prepare(config: RunConfig, launcher_lock: RunLock) -> tuple[Path, bytes | None]:
    """Write `<run_dir>/run.yaml`; returns its path and what it held before. Raises UserError for another run's folder.

    A folder without a checkpoint holds nothing that other options could spoil.

    With `fresh`, an existing run is set aside first; `launcher_lock` then moves on to the new folder. run.yaml says
    `fresh: false`, because that is done: whoever starts from it again, a restarted worker too, must resume.
    """
    run_dir = Path(config.run_dir)
    run_yaml = run_dir / RUN_CONFIG_FILE
    previous = None
    mirror = config.checkpoint.mirror_of(run_dir)
    if mirror is not None:
        check_mirror_owner(mirror, run_dir)
    with RunLock(run_dir) as lock:
        if run_yaml.exists():
            if config.fresh:
                aside = set_aside(run_dir)
                print(f"loopcoder: fresh=true: the old run was moved to {aside}", file=sys.stderr)
                launcher_lock.move_to_new_folder()
                lock.move_to_new_folder()
            elif checkpoints(run_dir):
                previous = run_yaml.read_bytes()
                changes = result_changing_keys(read_run_config(run_yaml), config)
                refuse_changes(f"run_dir={run_dir}", changes, accepted=config.accept_config_changes)
        if mirror is not None and config.fresh and mirror.exists():  # else the new run would resume from it
            print(f"loopcoder: fresh=true: its mirror was moved to {set_aside(mirror)}", file=sys.stderr)
        if config.finetune is not None:
            _prepare_conversations(config)
        write_run_config(dataclasses.replace(config, fresh=False), run_yaml)
    return run_yaml, previous


def _prepare_conversations(config: RunConfig) -> None:
    """The frozen plan of a tuning run lies in its folder before any worker starts; it is large enough for the steps."""
    from loopcoder_train.finetune.plan_making import prepare_plan  # for tuning runs only: Jinja, tokenizers
    from loopcoder_train.finetune.stream import open_conversations

    with closing(open_corpus(config.data)) as corpus:
        started = bool(checkpoints(Path(config.run_dir)))
        length = config.data.sequence_length
        plan = prepare_plan(Path(config.run_dir), config.finetune, corpus, length, started=started)
    open_conversations(config, plan)


def check_init_source(config: RunConfig) -> None:
    """The run that `model.init_from` names is there with a checkpoint; whether that is good, the workers see.

    A run that resumes does not read it again. Raises UserError.
    """
    run_dir = Path(config.run_dir)
    if config.model.init_source is None or (checkpoints(run_dir) and not config.fresh):
        return
    folder, step = config.model.init_source
    source, option, value = Path(folder), "model.init_from", config.model.init_from
    require(source.is_dir(), option, value, "no such folder", "give the folder of a run, or FOLDER@STEP")
    same = run_dir.exists() and source.samefile(run_dir)
    require(not same, option, value, "is this run's own folder", "give another run_dir")
    saved = sorted(name.removeprefix("step-") for name in checkpoints(source))
    steps = [int(name) for name in saved if name.isdecimal()]  # the others are being written
    require(bool(steps), option, value, "holds no checkpoint", "give the folder of a run that has saved one")
    if step is not None:
        has = f"it has those of steps {', '.join(map(str, steps))}"
        require(step in steps, option, value, f"holds no checkpoint of step {step}", has)


def checkpoints(run_dir: Path) -> set[str]:
    """Names of the run's checkpoint folders, good or not."""
    return {path.name for path in run_dir.glob("checkpoints/step-*")}


def set_aside(run_dir: Path) -> Path:
    """Rename the folder to the first free `<run_dir>.old-N` and return that."""
    candidates = (run_dir.with_name(f"{run_dir.name}.old-{number}") for number in itertools.count(1))
    return run_dir.rename(next(aside for aside in candidates if not aside.exists()))
