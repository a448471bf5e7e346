"""What a run has recorded about itself, as far as it must match another run: from its folder alone.

run.yaml -> options; checkpoints -> data position, what was read, ledger; metrics.jsonl -> initial values, learning
rates and supervised tokens by trained tokens; the corpus -> an audit of these; plan.json -> the conversations;
evaluation_documents.json -> what was held out.
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_pipeline.errors import DataError
from loopcoder_train.checkpoint import checkpoints_of
from loopcoder_train.config import RunConfig, UserError
from loopcoder_train.config.io import RUN_CONFIG_FILE, read_run_config, to_dict
from loopcoder_train.config.keys import flatten
from loopcoder_train.evaluation.command import EVALUATION_FILE, documents_path
from loopcoder_train.finetune.plan import PLAN_FOLDER, Plan
from loopcoder_train.model.counts import AttentionPairs, training_flops
from loopcoder_train.training.audit import audit_run
from loopcoder_train.training.first_weights import INITIAL_VALUES
from loopcoder_train.training.metrics import METRICS_FILE, all_records, read_metrics
from loopcoder_train.training.resume import RunSnapshot
from loopcoder_train.training.token_stream import open_stream

WEIGHTS_FROM = "weights_from"  # event


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFacts:
    """`snapshots`: by step, of every checkpoint that is left; the others are of the newest one's weights."""

    run_dir: Path
    config: RunConfig
    snapshots: dict[int, RunSnapshot]
    step: int
    initial: dict[str, int]  # parameter -> recorded fingerprint of its first value; empty where there is no record
    first_weights: str | None  # in words, where these come from; None: nothing tells
    origin_commit: str | None  # hash of the checkpoint that they come from; None: from none
    commit: str  # hash of the newest checkpoint
    pretraining_commit: str | None = None  # of a tuned run: the checkpoint that it must come from, if one is told
    steps: dict[int, tuple[float, int]]  # trained tokens -> (learning rate, supervised tokens) as recorded
    audit: list[str]  # what the records and the stream disagree about
    plan_hash: str | None = None
    heldout: str | None = None  # digest of the held-out documents that it was evaluated on
    options: dict[str, Any] = field(default_factory=dict)  # run.yaml, flat

    @property
    def newest(self) -> RunSnapshot:
        """Of the weights that evaluations see."""
        return self.snapshots[self.step]

    @property
    def finished(self) -> bool:
        """Whether all its steps were made."""
        return self.step == self.config.training.num_steps

    @property
    def training_flops(self) -> int:
        """Model FLOPs that the weights cost, forward and backward, by the documents that were really read."""
        state = self.newest.training
        return training_flops(self.config.model, state.tokens, AttentionPairs(state.causal_pairs, state.window_pairs))


def read_facts(run_dir: Path) -> RunFacts:
    """Of a run that has a checkpoint. Raises UserError naming what is missing."""
    if not (run_dir / RUN_CONFIG_FILE).is_file():
        raise UserError(f"{run_dir}: no run there ({RUN_CONFIG_FILE} is missing); give the folder of a run, or a sweep")
    config = read_run_config(run_dir / RUN_CONFIG_FILE)
    checkpoints = checkpoints_of(run_dir)
    snapshots = {saved.step: RunSnapshot.from_json(saved.state) for saved in checkpoints}
    if not snapshots:
        raise UserError(f"{run_dir}: has no checkpoint yet; train it first")
    if not (run_dir / METRICS_FILE).exists():
        raise UserError(f"{run_dir / METRICS_FILE}: cannot be read (it is missing); bring it back")
    first = _first_weights(run_dir)
    return RunFacts(
        run_dir=run_dir,
        config=config,
        snapshots=snapshots,
        step=max(snapshots),
        initial=first.get("fingerprints", {}),
        first_weights=first.get("checkpoint", "from the seed") if first else None,
        origin_commit=first.get("commit"),
        commit=checkpoints[-1].commit,
        steps=_steps(run_dir),
        audit=_audit(run_dir, config, snapshots),
        plan_hash=Plan.open(run_dir).plan_hash if (run_dir / PLAN_FOLDER).is_dir() else None,
        heldout=_heldout(run_dir),
        options=flatten(to_dict(config)),
    )


def _first_weights(run_dir: Path) -> dict[str, Any]:
    """The event in which the run recorded what it began with; empty without one."""
    events = read_metrics(run_dir / METRICS_FILE, ["event"])
    found = [event for event in events if event["event"] in (INITIAL_VALUES, WEIGHTS_FROM)]
    return found[-1] if found else {}


def _steps(run_dir: Path) -> dict[int, tuple[float, int]]:
    records = read_metrics(run_dir / METRICS_FILE, ["train"])
    return {record["tokens"]: (record["lr"], record["supervised_tokens"]) for record in records}


def _audit(run_dir: Path, config: RunConfig, snapshots: dict[int, RunSnapshot]) -> list[str]:
    """Differences between what was recorded and what the stream must have given; conversations have a hash instead."""
    if config.finetune is not None:
        return []
    try:
        with open_stream(config) as stream:
            return audit_run(stream, all_records(run_dir / METRICS_FILE), sorted(snapshots.items())).differences
    except (DataError, UserError) as error:
        return [f"its tokens cannot be audited: {error}"]


def _heldout(run_dir: Path) -> str | None:
    path = documents_path(run_dir / EVALUATION_FILE)
    if not path.exists():
        return None
    table = json.loads(path.read_bytes())
    return hashlib.sha256(json.dumps([table["sources"], table["tokens"]]).encode()).hexdigest()
