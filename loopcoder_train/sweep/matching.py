"""Do runs differ in the swept option and in nothing else? Proof, check by check, or the difference.

Runs are compared with the first of them. What the swept option changes by its nature (a sweep over `optimizer.peak_lr`
has other learning rates) is called swept, not the same; everything else must be the same, or the runs are not matched.
Each difference says by itself which options explain it: most are explained by none.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from loopcoder_train.config.compare import changes_result, differences, result_options
from loopcoder_train.config.errors import UserError
from loopcoder_train.config.io import to_dict
from loopcoder_train.config.keys import flatten
from loopcoder_train.model.names import is_gate
from loopcoder_train.sweep.arms import with_changes
from loopcoder_train.sweep.facts import RunFacts
from loopcoder_train.training.schedule import learning_rate

# Options or groups that make a difference by their nature.
_SHAPES = ("hidden_size", "intermediate_size", "num_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
           "vocab_size", "init_std", "tie_embeddings", "gate_input")  # fmt: skip
_INITIAL = tuple(f"model.{name}" for name in _SHAPES)
_LENGTH = ("training.num_steps", "training.global_batch_size", "data.sequence_length", "data.segments")
_STREAM = ("data", "training.num_steps", "training.global_batch_size")
_SCHEDULE = ("optimizer.peak_lr", "schedule", *_LENGTH)
_SEGMENTS = ("data.segments",)  # a later one may bring a corpus of its own
OWN_WEIGHTS = "model.init_from"  # a tuned run starts from its own pretraining

# Options that a tuning run takes over from its pretraining; whatever else is swept must be the same in all tunings.
_INHERITED = ("model", "data.sequence_length", "training.precision", "guards")


class Status(Enum):
    """The outcome of a check."""

    same = "same"
    swept = "swept"  # differs, as the swept option makes it
    different = "different"


@dataclass(frozen=True, slots=True)
class Difference:
    """One line. `explained`: options or groups of which a swept one makes this difference; none: it is a fault."""

    text: str
    explained: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the proof. `evidence`: what was compared, of the first run; `found`: every difference, in a line,
    those that nothing explains first."""

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
Compare = Callable[[RunFacts, RunFacts], list[Difference]]


def match_runs(
    runs: Runs, axis: str | None, *, other_seeds: bool = False, meant: Sequence[dict[str, Any]] | None = None
) -> Match:
    """Compare all of one stage, pretrained or tuned, at least one. `axis`: the swept option; None: none may differ.

    other_seeds: the runs have a seed each, and are matched only in what no seed changes. meant: of each run of a sweep,
    the options that make it the arm that it is called.
    """
    tuned = runs[0][1].config.finetune is not None
    allowed = [name for name in (axis, "seed" if other_seeds else None, OWN_WEIGHTS if tuned else None) if name]
    checks: dict[str, Compare | None] = {
        "finished": _finished,
        "options": lambda first, other: _options(first, other, allowed),
        "initial values": None if tuned or other_seeds else _initial,
        "pretrained weights": _pretrained if tuned else None,
        "corpus": None if tuned else lambda a, b: _stream_key(a, b, "manifest_hash"),
        "conversations": _plans if tuned else None,
        "tokenizer": lambda a, b: _stream_key(a, b, "tokenizer_hash"),
        "skipped batches": None if other_seeds else _ledgers,  # first: it is why the stream differs
        "token stream": None if other_seeds else _stream,
        "schedule": _schedule,
        "held-out documents": _heldout,
    }
    made = [_check(name, runs, compare, axis) for name, compare in checks.items() if compare is not None]
    if meant is not None:
        made.insert(1, _swept(runs, meant, "seed" if other_seeds else axis))
    return Match(axis, tuple(made), tuple(_free(runs, allowed)))


_EVIDENCE: dict[str, Callable[[RunFacts], str]] = {
    "finished": lambda facts: f"step {facts.step:,}, {facts.newest.training.tokens:,} tokens",
    "options": lambda facts: f"{sum(map(changes_result, facts.options))} that change the result, compared one by one",
    "initial values": lambda facts: (
        f"{len(facts.initial)} tensors, {_digest(sorted(facts.initial.items()))}"
        if facts.initial
        else str(facts.first_weights)
    ),
    # not the hash itself: a checkpoint knows its times too, and numbers of a report do not depend on clocks
    "pretrained weights": lambda facts: (
        "each from the last checkpoint of its own pretraining, by its hash" if facts.pretraining_commit else "not told"
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


def _check(name: str, runs: Runs, compare: Compare, axis: str | None) -> Check:
    """Every run beside the first, and the first beside itself: a rule for one run holds for it, too."""
    first_label, first = runs[0]
    faults, swept = [], []
    for label, facts in runs:
        for difference in compare(first, facts):
            beside = label if label == first_label else f"{label} against {first_label}"
            explained = axis is not None and lies_in(axis, difference.explained)
            (swept if explained else faults).append(f"{beside}: {difference.text}")
    status = Status.different if faults else Status.swept if swept else Status.same
    return Check(name, status, _EVIDENCE[name](first), (*faults, *swept))


def _swept(runs: Runs, meant: Sequence[dict[str, Any]], option: str | None) -> Check:
    """Is every run the arm that its folder says? The evidence is all that differs by intent."""
    faults = [
        f"{label}: {fault}"
        for (label, facts), options in zip(runs, meant, strict=True)
        for fault in _strangers(facts, options)
    ]
    values = [options[option] for options in meant] if option else []
    evidence = f"{option} is {', '.join(map(str, values))}" if option else "no option"
    status = Status.different if faults else Status.swept if len(set(map(str, values))) > 1 else Status.same
    return Check("swept option", status, evidence, tuple(faults))


def _strangers(facts: RunFacts, options: dict[str, Any]) -> list[str]:
    """Where a run is not the one with these options, both read by the rules of a configuration: 1e-3 may be a word."""
    try:
        made = with_changes(facts.config, options)
    except UserError as error:
        return [str(error)]
    own, expected = flatten(to_dict(facts.config)), flatten(to_dict(made))
    return [f"{key} is {before}, not {after}" for key, before, after in differences(own, expected)]


def inherited(option: str) -> bool:
    """Whether a tuning run has this option from its pretraining, so that a sweep over it changes both."""
    return lies_in(option, _INHERITED)


def lies_in(option: str, names: Sequence[str]) -> bool:
    """Whether an option is one of `names` or lies below one."""
    return any(option == name or option.startswith(name + ".") for name in names)


def _finished(_: RunFacts, facts: RunFacts) -> list[Difference]:
    done, steps = facts.step, facts.config.training.num_steps
    return [] if facts.finished else [Difference(f"stands at step {done} of {steps}")]


def _options(first: RunFacts, facts: RunFacts, allowed: Sequence[str]) -> list[Difference]:
    """Of both runs as they are, as their checkpoints were made, and as they were changed on the way."""
    found = [
        Difference(f"{key} is {after}, not {before}")
        for key, before, after in differences(first.options, facts.options)
        if changes_result(key) and not lies_in(key, allowed)
    ]
    saved = differences(facts.newest.options, result_options(facts.config))
    found += [
        Difference(f"its last checkpoint was made with {key}={before}, not {after}") for key, before, after in saved
    ]
    ours, theirs = first.newest.training.option_changes, facts.newest.training.option_changes
    if ours != theirs:
        found.append(Difference(f"changed on the way {_changes(theirs)}, not {_changes(ours)}"))
    return found


def _changes(changes: list[dict[str, Any]]) -> str:
    return ", ".join(f"{one['option']} to {one['after']} after step {one['step']}" for one in changes) or "nothing"


def _free(runs: Runs, allowed: Sequence[str]) -> list[str]:
    (_, first), found = runs[0], {}
    for _, facts in runs[1:]:
        for key, _, _ in differences(first.options, facts.options):
            if not lies_in(key, allowed) and key != "run_dir" and not changes_result(key):
                found[key] = None
    return list(found)


def _initial(first: RunFacts, facts: RunFacts) -> list[Difference]:
    if facts.first_weights is None:
        return [Difference("has no record of the weights that it began with")]
    if first.first_weights != facts.first_weights:
        return [Difference(f"first weights {facts.first_weights}, not {first.first_weights}")]
    names = list(dict.fromkeys([*first.initial, *facts.initial]))
    differing = [
        name
        for name in names
        if first.initial.get(name) != facts.initial.get(name)
        and not (is_gate(name) and (name not in first.initial or name not in facts.initial))
    ]
    if not differing:
        return []
    return [Difference(f"{len(differing)} tensors begin with other values, such as {differing[0]}", _INITIAL)]


def _pretrained(_: RunFacts, facts: RunFacts) -> list[Difference]:
    """Of each run by itself: its first weights are the newest of its own pretraining, bit for bit."""
    if facts.pretraining_commit in (None, facts.origin_commit):
        return []
    began, ended = _short(facts.origin_commit or "no record"), _short(facts.pretraining_commit)
    return [Difference(f"starts from {facts.first_weights} as of {began}; its pretraining ended with {ended}")]


def _stream_key(first: RunFacts, facts: RunFacts, key: str) -> list[Difference]:
    a, b = first.newest.stream.get(key), facts.newest.stream.get(key)
    return [] if a == b else [Difference(f"{key} is {_short(b)}, not {_short(a)}", _SEGMENTS)]


def _stream_of(facts: RunFacts, step: int) -> dict[str, Any]:
    """All that decides which tokens were read up to a checkpoint, and count and hash of those that were."""
    saved = facts.snapshots[step]
    read = {"source_tokens": saved.training.source_tokens, "data_digest": saved.training.data_digest}
    return {**saved.stream, **read}


def _stream(first: RunFacts, facts: RunFacts) -> list[Difference]:
    found = [Difference(f"the audit says: {line}") for line in facts.audit]
    if not facts.newest.training.data_digest:
        found.append(Difference("has no record of the tokens that it read"))
    common = sorted(first.snapshots.keys() & facts.snapshots.keys())
    if not common:
        found.append(Difference("no checkpoints of the same step are left to compare", _STREAM))
    for step in common:
        a, b = _stream_of(first, step), _stream_of(facts, step)
        keys = [key for key in dict.fromkeys([*a, *b]) if a.get(key) != b.get(key)]
        found += [
            Difference(f"step {step}: {key} is {_short(b.get(key))}, not {_short(a.get(key))}", _STREAM) for key in keys
        ]
    for tokens in sorted(first.steps.keys() & facts.steps.keys()):
        ours, theirs = first.steps[tokens][1], facts.steps[tokens][1]
        if ours != theirs:
            found.append(Difference(f"after {tokens:,} tokens {theirs:,} had a label, not {ours:,}", _STREAM))
            break
    return found


def _schedule(first: RunFacts, facts: RunFacts) -> list[Difference]:
    found = _strays(facts)
    if first.config.total_tokens != facts.config.total_tokens:
        text = f"{facts.config.total_tokens:,} tokens in all, not {first.config.total_tokens:,}"
        found.append(Difference(text, _LENGTH))
    common = sorted(first.steps.keys() & facts.steps.keys())
    if not common:
        found.append(Difference("no step after the same number of tokens was recorded", _LENGTH))
    for tokens in common:
        ours, theirs = first.steps[tokens][0], facts.steps[tokens][0]
        if ours != theirs:
            text = f"after {tokens:,} tokens the learning rate is {theirs:.6g}, not {ours:.6g}"
            found.append(Difference(text, _SCHEDULE))
            break
    return found


def _strays(facts: RunFacts) -> list[Difference]:
    """Recorded rates that are not those of the run's own options; one whose options were changed had others before."""
    if facts.newest.training.option_changes:
        return []
    config = facts.config
    for tokens, (recorded, _) in sorted(facts.steps.items()):
        own = learning_rate(
            tokens, total_tokens=config.total_tokens, optimizer=config.optimizer, schedule=config.schedule
        )
        if recorded != own:
            return [
                Difference(f"after {tokens:,} tokens it recorded the rate {recorded:.6g}, its options give {own:.6g}")
            ]
    return []


def _ledgers(first: RunFacts, facts: RunFacts) -> list[Difference]:
    def entries(one: RunFacts) -> list[tuple[int, int | None]]:
        return [(entry["batch"], entry["back_to"]) for entry in one.newest.history["ledger"]]

    a, b = entries(first), entries(facts)
    return [] if a == b else [Difference(f"skipped {_batches(b)}, not {_batches(a)}", ("guards",))]


def _batches(entries: list[tuple[int, int | None]]) -> str:
    shown = [f"{batch}" + ("" if back is None else f" (back to step {back})") for batch, back in entries[:5]]
    return f"{len(entries)} batches: {', '.join(shown)}" if entries else "none"


def _plans(first: RunFacts, facts: RunFacts) -> list[Difference]:
    a, b = first.plan_hash, facts.plan_hash
    if b is None:
        return [Difference("has no plan")]
    return [] if a == b else [Difference(f"plan {_short(b)}, not {_short(a)}", ("data.sequence_length", "finetune"))]


def _heldout(first: RunFacts, facts: RunFacts) -> list[Difference]:
    if facts.heldout is None:
        return [Difference("was not evaluated; run `loopcoder evaluate` on it")]
    if facts.heldout == first.heldout:
        return []
    return [Difference(f"documents {_short(facts.heldout)}, not {_short(first.heldout)}", ("data.sequence_length",))]


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return f"{text[:12]}..." if len(text) > 40 else text
