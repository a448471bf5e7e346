"""Which value won, by how much, how sure, and at what cost; or why nobody can say.

Arms count when they are matched and at least :data:`WELL_BELOW` nats below their bigram baseline, each seed by itself:
above that a model has learnt little that counts of token pairs do not know, and its rank says nothing about loops. All
must count, or there is no verdict.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from loopcoder_train.diagnostics.confidence import LEVEL, Estimate, estimate
from loopcoder_train.sweep.matching import Match
from loopcoder_train.sweep.results import ArmResult, by_value, paired_difference

WELL_BELOW = 0.1  # nats per token


class Spread(Enum):
    """What an interval is over."""

    documents = "documents"
    seeds = "seeds"


@dataclass(frozen=True, kw_only=True, slots=True)
class ValueResult:
    """All seeds of one value. `difference`: its loss minus that of the best value, paired, with an interval that holds
    together with those of the other values (:func:`joint_level`); None for the best itself."""

    label: str
    loss: Estimate
    difference: Estimate | None
    training_flops: float
    training_seconds: float
    weak: tuple[str, ...]  # the seeds that are not well below their bigram baseline, in words, with both

    @property
    def counts(self) -> bool:
        """Whether every seed is well below its baseline."""
        return not self.weak

    @property
    def tied(self) -> bool:
        """Whether the interval of the difference to the best reaches 0, or there is none to tell."""
        return self.difference is not None and (self.difference.half_width is None or self.difference.low <= 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """`sentence` says it all; `best` is None where there is no verdict."""

    sentence: str
    best: str | None
    spread: Spread
    num_spread: int  # seeds, or documents
    bigram_loss: float
    values: list[ValueResult]


def judge(results: Sequence[ArmResult], matches: Sequence[Match], failed: Sequence[str]) -> Verdict:
    """Of finished arms. `failed`: labels of matched arms that have no result. Needs at least one result."""
    groups = by_value(results)
    seeds = [{result.seed for result in group} for group in groups]
    common = sorted(set.intersection(*seeds)) if seeds else []
    spread = Spread.seeds if len(common) > 1 else Spread.documents
    groups = [[result for result in group if result.seed in common] for group in groups]
    bigram = float(np.mean([result.bigram_loss for result in results]))
    comparable = _same_documents(results)
    values = _values(groups, spread) if common and comparable else []
    number = len(common) if spread is Spread.seeds else (groups[0][0].loss.samples if common else 0)
    why_not = _why_not(values, matches, failed, len(common), comparable)
    best = None if why_not else next(value for value in values if value.difference is None)
    sentence = f"No verdict: {why_not}." if why_not else _sentence(best, values, spread, number)
    return Verdict(
        sentence=sentence,
        best=best.label if best else None,
        spread=spread,
        num_spread=number,
        bigram_loss=bigram,
        values=values,
    )


def _same_documents(results: Sequence[ArmResult]) -> bool:
    """Whether all losses are of the same documents: `data.sequence_length`, swept, cuts them at other places."""
    first = results[0].documents
    return all(result.documents[key] == first[key] for result in results for key in ("sources", "tokens"))


def _values(groups: list[list[ArmResult]], spread: Spread) -> list[ValueResult]:
    means = [float(np.mean([result.loss.mean for result in group])) for group in groups]
    best = groups[int(np.argmin(np.nan_to_num(means, nan=np.inf)))]  # a model that diverged is not the best
    level = joint_level(len(groups))
    return [
        ValueResult(
            label=group[0].label,
            loss=_over_seeds([result.loss.mean for result in group]) if spread is Spread.seeds else group[0].loss,
            difference=None if group is best else _difference(group, best, spread, level),
            training_flops=float(np.mean([result.training_flops for result in group])),
            training_seconds=float(np.mean([result.training_seconds for result in group])),
            weak=tuple(_weak(group)),
        )
        for group in groups
    ]


def _weak(group: list[ArmResult]) -> list[str]:
    """The seeds of a value that are not well below their baseline; a loss that is no number is not."""
    weak = []
    for result in group:
        if not result.loss.mean <= result.bigram_loss - WELL_BELOW:
            which = f"{result.label}, seed {result.seed}," if len(group) > 1 else result.label
            baseline = f"not at least {WELL_BELOW} below the bigram baseline of {result.bigram_loss:.4f}"
            weak.append(f"{which} at {result.loss.mean:.4f} nats per token, {baseline}")
    return weak


def joint_level(num_values: int) -> float:
    """Level of each interval such that all pairs of values are in theirs at once 95% of the time (Bonferroni).

    All pairs and not those with the best alone: the data themselves say which is the best.
    """
    return 1 - (1 - LEVEL) / max(1, num_values * (num_values - 1) // 2)


def _difference(group: list[ArmResult], best: list[ArmResult], spread: Spread, level: float) -> Estimate:
    """Paired: of the same documents, or of the same seeds."""
    if spread is Spread.documents:
        return paired_difference(group[0], best[0], level)
    by_seed = {result.seed: result.loss.mean for result in best}
    return _over_seeds([result.loss.mean - by_seed[result.seed] for result in group], level)


def _over_seeds(values: list[float], level: float = LEVEL) -> Estimate:
    found = estimate(values, [1.0] * len(values), level)
    assert found is not None
    return found


def _why_not(
    values: list[ValueResult],
    matches: Sequence[Match],
    failed: Sequence[str],
    num_seeds: int,
    comparable: bool,
) -> str | None:
    unmatched = next((match.first_difference for match in matches if not match.matched), None)
    if unmatched:
        return f"the runs are not matched ({unmatched})"
    if failed:
        return f"{', '.join(failed)} did not finish"
    if not comparable:
        return "the swept option changes the held-out documents, so that losses cannot be compared"
    if not num_seeds:
        return "no seed has a result for every value"
    if len(values) < 2:
        return "there is nothing to compare with"
    weak = [words for value in values for words in value.weak]
    if weak:
        return f"{'; '.join(weak)}; such models rank nothing"
    return None


def _sentence(best: ValueResult, values: list[ValueResult], spread: Spread, number: int) -> str:
    others = [value for value in values if value is not best]
    tied = [value for value in others if value.tied]
    over = f"{number} seeds" if spread is Spread.seeds else f"{number:,} held-out documents of one seed"
    lowest = f"{best.label} has the lowest held-out loss, {best.loss.mean:.4f} nats per token"
    margins = "; ".join(f"{_below(value)} below {value.label}" for value in others)
    jointly = "jointly " if len(others) > 1 else ""
    doubt = f" It cannot be told apart from {', '.join(value.label for value in tied)}." if tied else ""
    caution = " Another seed may rank them otherwise." if spread is Spread.documents else ""
    return f"{lowest}: {margins} (paired intervals, {jointly}95%, over {over}), {_cost(best, values)}.{doubt}{caution}"


def _cost(best: ValueResult, values: list[ValueResult]) -> str:
    cheapest = min(value.training_flops for value in values)
    dearest = max(value.training_flops for value in values)
    if cheapest == dearest:
        return "at the same training FLOPs"
    if best.training_flops == cheapest:
        return "at the lowest cost of all"
    name = next(value.label for value in values if value.training_flops == cheapest)
    return f"at {best.training_flops / cheapest:.2f} times the training FLOPs of {name}"


def _below(value: ValueResult) -> str:
    difference = value.difference
    interval = "" if difference.half_width is None else f" [{difference.low:.4f}, {difference.high:.4f}]"
    return f"{difference.mean:.4f}{interval}"
