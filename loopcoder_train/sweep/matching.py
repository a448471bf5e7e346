"""Do runs differ in the swept option and in nothing else? Proof, check by check, or the difference.

Runs are compared with the first of them. What the swept option changes by its nature (a sweep over `optimizer.peak_lr`
has other learning rates) is called swept, not the same; everything else must be the same, or the runs are not matched.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from loopcoder_train.config.compare import changes_result, differences
from loopcoder_train.model.names import is_gate
from loopcoder_train.sweep.facts import RunFacts

# Options that give another result by their nature -> which check they then explain.
_SHAPES = ("hidden_size", "intermediate_size", "num_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
           "vocab_size", "init_std", "tie_embeddings", "gate_input")  # fmt: skip
_INITIAL = tuple(f"model.{name}" for name in _SHAPES)
_LENGTH = ("training.num_steps", "training.global_batch_size", "data.sequence_length", "data.segments")
_STREAM = ("data", "training.num_steps", "training.global_batch_size")
_SCHEDULE = ("optimizer.peak_lr", "schedule", *_LENGTH)
_OWN_WEIGHTS = "model.init_from"  # a tuned arm starts from its own pretraining


class Status(Enum):
    """The outcome of a check."""

    same = "same"
    swept = "swept"  # differs, as the swept option makes it
    different = "different"


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the proof. `evidence`: what was compared, of the first run; `found`: every difference, in a line."""

    name: str
    status: Status
    evidence: str
    found: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Match:
    """The proof of one set of runs. `free`: options that differ and change no result but by rounding."""

    axis: str | None
    checks: tuple[Check, ...]
    free: tuple[str, ...] = ()

    @property
    def matched(self) -> bool:
        """Whether the runs may be called matched."""
        return all(check.status is not Status.different for check in self.checks)

    @property
    def first_difference(self) -> str | None:
        """Why not, in one line."""
        found = (f"{c.name}: {c.found[0]}" for c in self.checks if c.status is Status.different)
        return next(found, None)


Runs = Sequence[tuple[str, RunFacts]]


def match_runs(runs: Runs, axis: str | None, *, other_seeds: bool = False) -> Match:
    """Compare all of one stage, pretrained or tuned, at least one. `axis`: the swept option; None: none may differ.

    other_seeds: the runs have a seed each, and are matched only in what no seed changes.
    """
    tuned = runs[0][1].config.finetune is not None
    allowed = {axis, *(["seed"] if other_seeds else []), *([_OWN_WEIGHTS] if tuned else [])}
    checks = [
        _check("finished", runs, _finished, axis, ()),
        _check("options", runs, lambda first, other: _options(first, other, allowed), axis, ()),
        _check("tokenizer", runs, lambda a, b: _stream_keys(a, b, ("tokenizer_hash",)), axis, ("data",)),
        _check("schedule", runs, _schedule, axis, _SCHEDULE),
        _check("skipped batches", runs, _ledgers, axis, ("guards",)),
        _check("held-out documents", runs, _heldout, axis, ("data",)),
    ]
    if not other_seeds:
        checks.insert(3, _check("token stream", runs, _stream, axis, _STREAM))
    if tuned:
        checks.insert(2, _check("conversations", runs, _plans, axis, ("data.sequence_length",)))
    else:
        checks.insert(2, _check("corpus", runs, lambda a, b: _stream_keys(a, b, ("manifest_hash",)), axis, ("data",)))
        if not other_seeds:
            checks.insert(2, _check("initial values", runs, _initial, axis, _INITIAL))
    return Match(axis, tuple(checks), tuple(_free(runs, allowed)))


_EVIDENCE: dict[str, Callable[[RunFacts], str]] = {
    "finished": lambda facts: f"step {facts.step:,}, {facts.newest.training.tokens:,} tokens",
    "options": lambda facts: f"{sum(map(changes_result, facts.options))} that change the result, compared one by one",
    "initial values": lambda facts: (
        f"{len(facts.initial)} tensors, {_digest(sorted(facts.initial.items()))}"
        if facts.initial
        else str(facts.first_weights)
    ),
    "corpus": lambda facts: str(facts.newest.stream["manifest_hash"])[:12],
    "tokenizer": lambda facts: str(facts.newest.stream["tokenizer_hash"])[:12],
    "token stream": lambda facts: (
        f"{facts.newest.training.data_digest[:12]} at step {facts.step:,}"
        + ("" if facts.config.finetune else ", audited")
    ),
    "schedule": lambda facts: f"{len(facts.steps):,} learning rates by trained tokens",
    "skipped batches": lambda facts: f"{len(facts.newest.history['ledger'])}",
    "held-out documents": lambda facts: (facts.heldout or "not evaluated")[:12],
    "conversations": lambda facts: f"plan {(facts.plan_hash or 'missing')[:12]}",
}


def _check(
    name: str,
    runs: Runs,
    compare: Callable[[RunFacts, RunFacts], list[str]],
    axis: str | None,
    explained: Sequence[str],
) -> Check:
    """Every run beside the first, and the first beside itself: a rule for one run holds for it, too."""
    first_label, first = runs[0]
    found = [
        f"{label}: {text}" if label == first_label else f"{label} against {first_label}: {text}"
        for label, facts in runs
        for text in compare(first, facts)
    ]
    lies_in = axis is not None and any(axis == option or axis.startswith(option + ".") for option in explained)
    status = Status.same if not found else Status.swept if lies_in else Status.different
    return Check(name, status, _EVIDENCE[name](first), tuple(found))


def _finished(_: RunFacts, facts: RunFacts) -> list[str]:
    done, steps = facts.step, facts.config.training.num_steps
    return [] if facts.finished else [f"stands at step {done} of {steps}"]


def _options(first: RunFacts, facts: RunFacts, allowed: set[str | None]) -> list[str]:
    changes = differences(first.options, facts.options)
    return [
        f"{key} is {after}, not {before}"
        for key, before, after in changes
        if key not in allowed and changes_result(key)
    ]


def _free(runs: Runs, allowed: set[str | None]) -> list[str]:
    (_, first), found = runs[0], {}
    for _, facts in runs[1:]:
        for key, _, _ in differences(first.options, facts.options):
            if key not in allowed and key != "run_dir" and not changes_result(key):
                found[key] = None
    return list(found)


def _initial(first: RunFacts, facts: RunFacts) -> list[str]:
    if facts.first_weights is None:
        return ["has no record of the weights that it began with"]
    if first.first_weights != facts.first_weights:
        return [f"first weights {facts.first_weights}, not {first.first_weights}"]
    names = list(dict.fromkeys([*first.initial, *facts.initial]))
    differing = [
        name
        for name in names
        if first.initial.get(name) != facts.initial.get(name)
        and not (is_gate(name) and (name not in first.initial or name not in facts.initial))
    ]
    return [f"{len(differing)} tensors begin with other values, such as {differing[0]}"] if differing else []


def _stream_of(facts: RunFacts, step: int) -> dict[str, Any]:
    """All that decides which tokens were read up to a checkpoint, and count and hash of those that were."""
    saved = facts.snapshots[step]
    read = {"source_tokens": saved.training.source_tokens, "data_digest": saved.training.data_digest}
    return {**saved.stream, **read}


def _stream_keys(first: RunFacts, facts: RunFacts, keys: Sequence[str]) -> list[str]:
    a, b = first.newest.stream, facts.newest.stream
    return [f"{key} is {_short(b.get(key))}, not {_short(a.get(key))}" for key in keys if a.get(key) != b.get(key)]


def _stream(first: RunFacts, facts: RunFacts) -> list[str]:
    found = [f"the audit says: {line}" for line in facts.audit]
    if not facts.newest.training.data_digest:
        found.append("has no record of the tokens that it read")
    common = sorted(first.snapshots.keys() & facts.snapshots.keys())
    if not common:
        found.append("no checkpoints of the same step are left to compare")
    for step in common:
        a, b = _stream_of(first, step), _stream_of(facts, step)
        keys = [key for key in dict.fromkeys([*a, *b]) if a.get(key) != b.get(key)]
        found += [f"step {step}: {key} is {_short(b.get(key))}, not {_short(a.get(key))}" for key in keys]
    for tokens in sorted(first.steps.keys() & facts.steps.keys()):
        ours, theirs = first.steps[tokens][1], facts.steps[tokens][1]
        if ours != theirs:
            found.append(f"after {tokens:,} tokens {theirs:,} had a label, not {ours:,}")
            break
    return found


def _schedule(first: RunFacts, facts: RunFacts) -> list[str]:
    found = []
    if first.config.total_tokens != facts.config.total_tokens:
        found.append(f"{facts.config.total_tokens:,} tokens in all, not {first.config.total_tokens:,}")
    common = sorted(first.steps.keys() & facts.steps.keys())
    if not common:
        found.append("no step after the same number of tokens was recorded")
    for tokens in common:
        ours, theirs = first.steps[tokens][0], facts.steps[tokens][0]
        if ours != theirs:
            found.append(f"after {tokens:,} tokens the learning rate is {theirs:.6g}, not {ours:.6g}")
            break
    return found


def _ledgers(first: RunFacts, facts: RunFacts) -> list[str]:
    def entries(one: RunFacts) -> list[tuple[int, int | None]]:
        return [(entry["batch"], entry["back_to"]) for entry in one.newest.history["ledger"]]

    a, b = entries(first), entries(facts)
    return [] if a == b else [f"skipped {_batches(b)}, not {_batches(a)}"]


def _batches(entries: list[tuple[int, int | None]]) -> str:
    shown = [f"{batch}" + ("" if back is None else f" (back to step {back})") for batch, back in entries[:5]]
    return f"{len(entries)} batches: {', '.join(shown)}" if entries else "none"


def _plans(first: RunFacts, facts: RunFacts) -> list[str]:
    a, b = first.plan_hash, facts.plan_hash
    return [] if a == b and a is not None else [f"plan {_short(b)}, not {_short(a)}"]


def _heldout(first: RunFacts, facts: RunFacts) -> list[str]:
    if facts.heldout is None:
        return ["was not evaluated; run `loopcoder evaluate` on it"]
    return [] if facts.heldout == first.heldout else [f"documents {_short(facts.heldout)}, not {_short(first.heldout)}"]


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return f"{text[:12]}..." if len(text) > 40 else text
