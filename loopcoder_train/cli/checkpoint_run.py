"""What the `loopcoder checkpoint` commands need to know of a run: is it one, and what does its run.yaml say."""

from pathlib import Path

from loopcoder_train.config.errors import require
from loopcoder_train.config.io import RUN_CONFIG_FILE, read_run_config
from loopcoder_train.config.run import CheckpointConfig


def checkpoint_options(run_dir: Path) -> CheckpointConfig | None:
    """The run's `checkpoint.*` options; None for a folder with checkpoints and no run.yaml, such as a mirror's.

    Raises UserError where there is no run, or its run.yaml is damaged.
    """
    run_yaml = run_dir / RUN_CONFIG_FILE
    if run_yaml.exists():
        return read_run_config(run_yaml).checkpoint
    exists = (run_dir / "checkpoints").is_dir()
    require(exists, "run_dir", run_dir, "holds no run", "`loopcoder runs` lists those there are")
    return None
