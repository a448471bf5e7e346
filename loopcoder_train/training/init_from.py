"""Start a run's weights from another run's checkpoint (`model.init_from`); optimizer, data and step 0 are its own.

The source may have any layout and another number of loops, because neither shows in the names of tensors:

    R = 1 -> R >= 2     the gates are new and keep their initial values
    R >= 2 -> R = 1     the source's gates are left behind
    R >= 2 -> R' >= 2   the same tensors

Whatever else differs is an error: a model that starts half from random weights is not what anybody asked for.
"""

from dataclasses import dataclass
from pathlib import Path

from loopcoder_train.checkpoint import Checkpoint, find_checkpoint
from loopcoder_train.config import RunConfig, UserError
from loopcoder_train.config.compare import result_options
from loopcoder_train.engines.engine import Engine
from loopcoder_train.model.names import is_gate, parameter_shapes
from loopcoder_train.model.state import MODEL_PREFIX
from loopcoder_train.training.resume import RunSnapshot

# How matrices are cut into heads, which their shapes do not tell.
_HEADS = ("model.num_attention_heads", "model.num_key_value_heads", "model.head_dim")
_GATE_INPUT = "model.gate_input"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the weights came from; `notes` are for people, one line each. `commit`: hash of the whole checkpoint."""

    checkpoint: Path
    step: int
    commit: str
    notes: list[str]


def init_weights(config: RunConfig, engine: Engine, tokenizer_hash: str) -> Origin | None:
    """Fill the engine's weights from the run that `model.init_from` names; None, and nothing done, without one.

    `tokenizer_hash`: of this run's corpus. Collective: every rank verifies its share of the files and fills its part.
    Raises UserError, the same on every rank, when there is no good checkpoint or it is not of this model.
    """
    if config.model.init_source is None:
        return None
    run_dir, step = config.model.init_source
    found = find_checkpoint(Path(run_dir), step)
    if found.checkpoint is None:
        wanted = "no good checkpoint" if step is None else f"no good checkpoint of step {step}"
        why = f" ({found.rejected[0]})" if found.rejected else ""
        raise _refusal(config, f"{wanted} is there{why}", "give a run that has one")
    notes = [f"WARNING: checkpoint passed over: {reason}" for reason in found.rejected]
    saved = RunSnapshot.from_json(found.checkpoint.state)
    shapes = _weight_shapes(found.checkpoint)
    _check_tokenizer(config, saved, tokenizer_hash)
    _check_options(config, saved, any(map(is_gate, shapes)))
    new, left = _compare(config, shapes)
    read = {MODEL_PREFIX + name for name in parameter_shapes(config.model) if name not in new}
    found.checkpoint.fill([shard for shard in engine.state_shards(loading=True) if shard.name in read])
    notes.append(f"weights from {found.checkpoint.path}, {saved.training.tokens:,} tokens trained")
    if new:
        notes.append(f"{len(new)} tensors of gates are new there and start from their initial values")
    if left:
        notes.append(f"{len(left)} tensors of gates are left behind: one loop has none")
    return Origin(found.checkpoint.path, found.checkpoint.step, found.checkpoint.commit, notes)


def _weight_shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    """Shape of every weight in the checkpoint, by its parameter's name."""
    return {
        name.removeprefix(MODEL_PREFIX): entry.global_shape
        for name, entry in checkpoint.index.items()
        if name.startswith(MODEL_PREFIX)
    }


def _check_tokenizer(config: RunConfig, saved: RunSnapshot, tokenizer_hash: str) -> None:
    trained = str(saved.stream.get("tokenizer_hash"))
    if trained != tokenizer_hash:
        raise _refusal(
            config,
            f"was trained with another tokenizer ({trained[:12]}) than that of data.corpus_dir="
            f"{config.data.corpus_dir} ({tokenizer_hash[:12]})",
            "give a corpus made with the run's tokenizer",
        )


def _check_options(config: RunConfig, saved: RunSnapshot, source_has_gates: bool) -> None:
    """Options that change what a weight means without changing its name."""
    gates_meet = source_has_gates and config.model.has_gates
    own = result_options(config)
    for key in (*_HEADS, *([_GATE_INPUT] if gates_meet else [])):
        if saved.options.get(key) != own[key]:
            raise _refusal(config, f"has {key}={saved.options.get(key)}, this run {own[key]}", f"set {key} alike")


def _compare(config: RunConfig, source: dict[str, tuple[int, ...]]) -> tuple[list[str], list[str]]:
    """Gates that only this model has, and gates that only the source has; UserError for every other difference."""
    wanted = parameter_shapes(config.model)
    new = [name for name in wanted if is_gate(name) and name not in source]
    left = [name for name in source if is_gate(name) and name not in wanted]
    for name in (*wanted, *source):
        if name in new or name in left or wanted.get(name) == source.get(name):
            continue
        there, here = (
            f"shape {list(table[name])}" if name in table else "no such tensor" for table in (source, wanted)
        )
        raise _refusal(config, f"{name}: {there} there, {here} in this model", "give a run with the same sizes")
    return new, left


def _refusal(config: RunConfig, what: str, remedy: str) -> UserError:
    return UserError(f"model.init_from={config.model.init_from}: {what}; {remedy}")
