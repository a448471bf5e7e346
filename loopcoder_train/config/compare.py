"""Which options may change between two attempts of one run.

`RESULT_CHANGING` is the only place that says so. A run refuses to resume when one of these differs, because the
weights it would end with are no longer those of the run that was started. Everything else - layout, workers, logging,
intervals - may change, and the run continues.
"""

from collections.abc import Collection
from typing import Any

from loopcoder_train.config.errors import UserError
from loopcoder_train.config.io import to_dict
from loopcoder_train.config.keys import flatten
from loopcoder_train.config.run import RunConfig

# Option or group (every option below it) -> why a change of it is a change of the result.
RESULT_CHANGING = {
    "seed": "initial weights and order of the data",
    "model": "the function that is trained",
    "data": "the tokens and their order",
    "optimizer": "every update",
    "schedule": "the learning rate of every step",
    "training.num_steps": "the schedule's length, hence the learning rate of every step",
    "training.global_batch_size": "how many sequences a step sees",
    "training.precision": "the arithmetic of every step",
    "finetune": "the conversations, and which of their tokens are trained",
    "guards.nonfinite": "which steps are kept",
    "guards.spike": "which steps are kept",
    "guards.spike_sigmas": "which steps are kept",
    "guards.history_steps": "which steps are kept",
    "guards.spike_warmup_steps": "which steps are kept",
}

# Option or group -> why it may change. A longer name wins over a shorter one, whichever table it is in.
FREE_TO_CHANGE = {
    "run_dir": "where files lie",
    "fresh": "a request of one attempt",
    "accept_config_changes": "a request of one attempt",
    "dry_run": "a request of one attempt, which trains nothing",
    "dry_run_rank": "a request of one attempt, which trains nothing",
    "engine": "engines train the same model; they differ by rounding",
    "data.corpus_dir": "where the tokens lie; a checkpoint knows their hash and refuses others",
    "data.prefetch_steps": "how far ahead the loader reads",
    "data.on_bad_block": "what becomes of tokens that are lost already",
    "data.cache_dir": "where copies lie",
    "data.cache_bytes": "how much is copied",
    "data.chunk_bytes": "how a remote is read",
    "data.read_timeout_seconds": "how patiently a remote is read",
    "data.attempt_timeout_seconds": "how patiently a remote is read",
    "data.read_threads": "how a remote is read",
    "finetune.workers": "how fast the plan is made",
    "finetune.max_epochs": "a limit",
    "parallel": "layouts train the same model; they differ by the order of sums",
    "kernels": "kernels compute the same function; they differ by rounding",
    "training.micro_batch_size": "how a batch is cut",
    "training.activation_checkpointing": "memory against time",
    "training.stop_after_step": "where this attempt pauses",
    "training.time_limit_minutes": "when this attempt pauses",
    "training.device": "where it computes",
    "training.deterministic": "how sums are ordered on CUDA",
    "training.num_threads": "how it computes",
    "checkpoint": "an interval and how files are written",
    "evaluation": "an interval; evaluation never touches the weights",
    "telemetry": "an interval; telemetry never touches the weights",
    "logging": "sinks and an interval",
    "guards": "when a run stops, what is compared and reported; never the weights",
    "launch": "how processes start",
}

# Options that `accept_config_changes` cannot accept: the saved tensors belong to a model of these sizes, and the first
# weights and the order of all tokens to this seed.
NEVER_ACCEPTED = (
    "model.hidden_size",
    "model.intermediate_size",
    "model.num_layers",
    "model.num_attention_heads",
    "model.num_key_value_heads",
    "model.head_dim",
    "model.vocab_size",
    "model.gate_input",
    "model.tie_embeddings",
    "seed",
)

# Options that make the token stream. Accepted, they still must leave the tokens that were read as they are, which the
# checkpoint's data position knows (data_pipeline/segments.py).
STREAM_OPTIONS = ("data", "training.num_steps", "training.global_batch_size")


_NOTHING = (None, {}, [])  # an option that one side lacks and the other leaves empty does not differ

SEGMENTS_HINT = (
    "more steps or other data from a batch on: leave the former data options and append a segment, as in "
    "'data.segments=[{from_batch: 1000}]' accept_config_changes=true (docs/data.md)"
)


def changed_keys(old: RunConfig, new: RunConfig) -> list[tuple[str, Any, Any]]:
    """`(dotted key, old value, new value)` of every option that differs; None where one side lacks it."""
    return differences(flatten(to_dict(old)), flatten(to_dict(new)))


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """`changed_keys` of two flat mappings, one of them perhaps from a checkpoint (`result_options`)."""
    keys = list(dict.fromkeys([*before, *after]))
    differing = [(key, before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)]
    return [change for change in differing if not (change[1] in _NOTHING and change[2] in _NOTHING)]


def changes_result(key: str) -> bool:
    """Whether an option changes the result; its longest name in the two tables decides. KeyError if in neither."""
    while key:
        if key in RESULT_CHANGING:
            return True
        if key in FREE_TO_CHANGE:
            return False
        key = key.rpartition(".")[0]
    raise KeyError("option is in neither table of config/compare.py")


def result_changing_keys(old: RunConfig, new: RunConfig) -> list[tuple[str, Any, Any]]:
    """The part of `changed_keys` that changes the result of training."""
    return [change for change in changed_keys(old, new) if changes_result(change[0])]


def result_options(config: RunConfig) -> dict[str, Any]:
    """Every option that changes the result, by its dotted name: what a checkpoint remembers of its configuration."""
    return {key: value for key, value in flatten(to_dict(config)).items() if changes_result(key)}


def refuse_changes(where: str, changes: list[tuple[str, Any, Any]], *, accepted: bool) -> None:
    """Raise UserError for options that differ from those of the run in `where`, naming them and the ways out.

    With `accepted`, only those that no flag can make continue.
    """
    final = [change for change in changes if _lies_in(change[0], NEVER_ACCEPTED)]
    shown_changes = final if accepted else changes
    if not shown_changes:
        return
    shown = ", ".join(f"{key} {before} -> {after}" for key, before, after in shown_changes)
    accept = "" if final else "continue with accept_config_changes=true, "
    stream = any(_lies_in(change[0], STREAM_OPTIONS) for change in shown_changes)
    segments = f"; {SEGMENTS_HINT}" if stream and not final else ""
    raise UserError(
        f"{where}: holds a run with other options: {shown}; start over with fresh=true, {accept}or give another run_dir"
        f"{segments}"
    )


def _lies_in(key: str, table: Collection[str]) -> bool:
    """Whether `key` or a group that it lies in is in `table`."""
    return any(key == name or key.startswith(name + ".") for name in table)
