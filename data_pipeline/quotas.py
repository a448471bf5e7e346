"""How many sequences each source gives: shares, caps on repeats, exact totals.

The journey: the total is divided text | code by `text_share`; inside a side the shares are those that are given, and
the rest goes to the other sources by their tokens; a source whose quota would repeat its tokens more than
`max_repeats` times keeps the quota at that cap and its excess goes to the others of its side; largest remainders make
the integers add up. Every change of what was asked for is a line in `QuotaPlan.notes`.

A later segment of a run goes on where the former ones stopped: what they consumed counts against the caps.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from data_pipeline.epochs import DEFAULT_SHUFFLE_BLOCK_TOKENS, SourceEpochs
from data_pipeline.errors import DataError, nearest_hint
from data_pipeline.manifest import Manifest
from data_pipeline.mixture import KINDS, Mixture


@dataclass(kw_only=True, slots=True)
class QuotaPlan:
    """names, kinds, quotas [sequences], repeats [epochs, `consumed` included]: parallel to the manifest's sources."""

    names: list[str]
    kinds: list[str]
    quotas: list[int]
    repeats: list[float]
    notes: list[str]

    def mixture(self) -> Mixture:
        """The closed-form mixture of these quotas."""
        return Mixture(self.names, self.kinds, self.quotas)


def quotas_for(
    manifest: Manifest,
    total_sequences: int,
    *,
    sequence_length: int,
    text_share: float = 0.5,
    shares: Mapping[str, float] | None = None,
    max_repeats: float = 4.0,
    shuffle_block_tokens: int = DEFAULT_SHUFFLE_BLOCK_TOKENS,
    consumed: Mapping[str, int] | None = None,
) -> QuotaPlan:
    """Integer quotas of every source for a stream of `total_sequences` sequences of `sequence_length` tokens.

    text_share: fraction of the tokens that is text, 0..1 (0 or 1: one side only). shares: weight of a source within
    its side; when some sources of a side have none, the weights are fractions of the side and must leave something
    for the others; when all have one they are renormalised. max_repeats: epochs of any source, at most, with the
    tokens that were `consumed` of it (name -> tokens) before this stream.
    Raises DataError, with the numbers, when no quotas satisfy this.
    """
    _check_options(manifest, total_sequences, sequence_length, text_share, shares or {}, max_repeats)
    epochs = [SourceEpochs(source, shuffle_block_tokens) for source in manifest.sources]
    used = [(consumed or {}).get(source.name, 0) for source in manifest.sources]
    text_sequences = math.floor(total_sequences * _exact(text_share) + Fraction(1, 2))
    quotas, notes = [0] * len(epochs), []
    for kind, side_total in zip(KINDS, (text_sequences, total_sequences - text_sequences), strict=True):
        members = [i for i, source in enumerate(manifest.sources) if source.kind == kind]
        if side_total:
            side = _Side(kind, members, manifest, epochs, used, sequence_length, max_repeats, notes)
            weights = side.weights(shares or {})
            for index, quota in side.quotas(weights, side_total).items():
                quotas[index] = quota
    repeats = [e.epochs_of(u + q * sequence_length) for e, u, q in zip(epochs, used, quotas, strict=True)]
    return QuotaPlan(names=manifest.names, kinds=manifest.kinds, quotas=quotas, repeats=repeats, notes=notes)


def _exact(value: float) -> Fraction:
    # 0.1 means one tenth, not the nearest binary fraction.
    return Fraction(str(value))


def _check_options(
    manifest: Manifest,
    total: int,
    sequence_length: int,
    text_share: float,
    shares: Mapping[str, float],
    max_repeats: float,
) -> None:
    if total < 1:
        raise DataError(f"total_sequences={total}: must be >= 1")
    if sequence_length < 1:
        raise DataError(f"data.sequence_length={sequence_length}: must be >= 1")
    if not 0 <= text_share <= 1:
        raise DataError(f"data.text_share={text_share}: must be between 0 and 1")
    if not 0 < max_repeats < math.inf:
        raise DataError(f"data.max_repeats={max_repeats}: must be a finite number > 0")
    for name, share in shares.items():
        if name not in manifest.names:
            raise DataError(f"data.shares: source {name!r} is not in the corpus{nearest_hint(name, manifest.names)}")
        if not 0 <= share < math.inf:
            raise DataError(f"data.shares.{name}={share}: must be a finite number >= 0")


@dataclass(slots=True)
class _Side:
    """One side (text | code) while its quotas are worked out; appends to `notes`."""

    kind: str
    members: list[int]
    manifest: Manifest
    epochs: list[SourceEpochs]
    used: list[int]  # tokens consumed before
    sequence_length: int
    max_repeats: float
    notes: list[str]

    def weights(self, shares: Mapping[str, float]) -> dict[int, Fraction]:
        """Weight > 0 of each member that takes part; they sum to 1."""
        names = self.manifest.names
        live = [i for i in self.members if self.epochs[i].cycle_tokens]
        for i in self.members:
            if not self.epochs[i].cycle_tokens:
                self.notes.append(f"{names[i]}: smaller than one shuffle block, not used")
        if not live:
            other = 0 if self.kind == "text" else 1
            raise DataError(
                f"corpus: no {self.kind} source to read from; add one to the build, or set data.text_share={other}"
            )
        given = {i: _exact(shares[names[i]]) for i in live if names[i] in shares}
        rest = [i for i in live if i not in given]
        total_given = sum(given.values(), Fraction(0))
        if rest and total_given >= 1:
            raise DataError(
                f"data.shares: the {self.kind} shares add up to {float(total_given):g}, which leaves nothing for "
                f"{', '.join(names[i] for i in rest[:5])}; give fractions, or every source a share (0 allowed)"
            )
        if not rest and total_given <= 0:
            raise DataError(
                f"data.shares: every {self.kind} source has share 0; give one a share, or set data.text_share"
            )
        if not rest:
            if total_given != 1:
                self.notes.append(f"{self.kind}: shares add up to {float(total_given):g}, renormalised to 1")
            return {i: share / total_given for i, share in given.items() if share}
        rest_tokens = sum(self.epochs[i].epoch_tokens for i in rest)
        given.update({i: (1 - total_given) * self.epochs[i].epoch_tokens / rest_tokens for i in rest})
        return {i: share for i, share in given.items() if share}

    def quotas(self, weights: dict[int, Fraction], total: int) -> dict[int, int]:
        """Sequences per member: proportional to weights, at most the cap, summing to `total`."""
        caps = {i: self._cap(i) for i in weights}
        if sum(caps.values()) < total:
            raise self._too_few_tokens(weights, caps, total)
        names, fixed, free = self.manifest.names, {}, dict(weights)
        while True:
            left = total - sum(fixed.values())
            scale = sum(free.values(), Fraction(0))
            over = [i for i in free if left * free[i] / scale > caps[i]]
            if not over:
                break
            for i in over:
                excess = float(left * free[i] / scale) - caps[i]
                self.notes.append(
                    f"{names[i]}: capped at {self.max_repeats:g} repeats, {caps[i]} sequences; "
                    f"{excess:.0f} more go to the other {self.kind} sources"
                )
            for i in over:
                fixed[i] = caps[i]
                del free[i]
        rounded = _largest_remainders({i: left * weight / scale for i, weight in free.items()}, left) if free else {}
        for i, quota in rounded.items():
            if quota == 0:
                self.notes.append(f"{names[i]}: its share is less than one sequence, not used")
        return {**fixed, **rounded}

    def _cap(self, i: int) -> int:
        """Sequences that member i may still give."""
        left = self.epochs[i].tokens_of(_exact(self.max_repeats)) - self.used[i]
        return max(0, left) // self.sequence_length

    def _too_few_tokens(self, weights: dict[int, Fraction], caps: dict[int, int], total: int) -> DataError:
        tokens = sum(self.epochs[i].epoch_tokens for i in weights)
        before = sum(self.used[i] for i in weights)
        after, still = (f" after {before:,} consumed before", " still") if before else ("", "")
        return DataError(
            f"data.max_repeats={self.max_repeats:g}: the run needs {total * self.sequence_length:,} {self.kind} "
            f"tokens{after}; the corpus has {math.floor(tokens):,}, so "
            f"{sum(caps.values()) * self.sequence_length:,}{still} with repeats; "
            "raise data.max_repeats, train fewer tokens, or build a larger corpus"
        )


def _largest_remainders(exact: dict[int, Fraction], total: int) -> dict[int, int]:
    """Integers next to `exact` that sum to `total`; none passes a whole-numbered cap that its exact value keeps."""
    rounded = {i: math.floor(value) for i, value in exact.items()}
    by_remainder = sorted(exact, key=lambda i: (rounded[i] - exact[i], i))
    for i in by_remainder[: total - sum(rounded.values())]:
        rounded[i] += 1
    return rounded
