"""Which checkpoint a run continues from: the newest that is exactly as it was saved.

Candidates are tried from the newest step down; a bad one costs one line to the log and the next one is tried. In a
distributed job every rank hashes its share of the files and all ranks come to the same decision.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from loopcoder_train.checkpoint.checkpoint import Checkpoint
from loopcoder_train.checkpoint.errors import CheckpointError
from loopcoder_train.checkpoint.layout import COMMIT, checkpoints_folder, parse_folder
from loopcoder_train.checkpoint.ranks import Ranks


@dataclass(slots=True)
class Found:
    """The outcome of a search.

    `rejected`: one line per folder that was tried before `checkpoint` and is not good, newest first. `damaged`: whether
    one of them had been committed, so that something was lost. With no checkpoint and `damaged`, a run that
    simply started over would hide the loss.
    """

    checkpoint: Checkpoint | None
    rejected: list[str] = field(default_factory=list)
    damaged: bool = False


def find_checkpoint(
    run_dir: Path, step: int | None = None, *, newer_than: int = -1, ranks: Ranks | None = None
) -> Found:
    """The newest good checkpoint of the run, verified in full; with `step`, that one or none.

    Folders of steps up to `newer_than` are not looked at.

    Collective where torch.distributed is initialised: every rank calls it and gets the same answer; pass
    `ranks=Ranks.alone()` to search in one process of a job. Never raises for what it finds on disk.
    """
    ranks = ranks or Ranks.current()
    own = [path.name for path in _candidates(run_dir, step, newer_than)] if ranks.rank == 0 else None
    candidates = ranks.gather(own)[0]
    found = Found(None)
    for name in candidates:
        checkpoint = Checkpoint(checkpoints_folder(run_dir) / name)
        verdicts = ranks.gather(_verdict(checkpoint, ranks))
        bad = next((verdict for verdict in verdicts if verdict is not None), None)
        if bad is None:
            found.checkpoint = checkpoint
            break
        reason, was_committed = bad
        found.rejected.append(reason)
        found.damaged |= was_committed
    return found


def require_checkpoint(run_dir: Path, step: int | None = None) -> Checkpoint:
    """The checkpoint that `find_checkpoint` finds; CheckpointError with the reason if there is none.

    For commands that cannot do without one (evaluate, generate, export).
    """
    found = find_checkpoint(run_dir, step)
    if found.checkpoint is not None:
        return found.checkpoint
    if found.rejected:
        raise CheckpointError(found.rejected[0])
    wanted = "no checkpoint" if step is None else f"no checkpoint of step {step}"
    raise CheckpointError(f"{run_dir}: holds {wanted}; train first, or give the run_dir of a run that has saved one")


def checkpoints_of(run_dir: Path) -> list[Checkpoint]:
    """All committed checkpoints of the run, oldest first, none of them verified."""
    return [Checkpoint(path) for path in reversed(list(_candidates(run_dir, None))) if (path / COMMIT).is_file()]


def _candidates(run_dir: Path, step: int | None, newer_than: int = -1) -> Iterable[Path]:
    """Folders that could be a checkpoint, newest step first; of one step the final folder before the former one."""
    folder = checkpoints_folder(run_dir)
    if not folder.is_dir():
        return []
    named = [(parse_folder(path.name), path) for path in folder.iterdir()]
    wanted = [
        (name.step, name.kind == "final", path)
        for name, path in named
        if name is not None and name.kind != "tmp" and step in (None, name.step) and name.step > newer_than
    ]
    return [path for _, _, path in sorted(wanted, reverse=True)]


def _verdict(checkpoint: Checkpoint, ranks: Ranks) -> tuple[str, bool] | None:
    """Why the checkpoint is not good, and whether it ever was; None if this rank's share of it is good."""
    try:
        checkpoint.verify(share=(ranks.rank, ranks.size))
    except CheckpointError as error:
        return str(error), (checkpoint.path / COMMIT).exists()
    return None
