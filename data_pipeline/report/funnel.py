"""The funnel: ledger and manifest of a corpus as one set of numbers that add up, for the tables and the page.

The journey: every row of the ledger is added to four flows (flows.py): everything, its side, its language, its source
of the build. Tokens of `train` and `heldout` are counted, nothing else was ever tokenised. What a stage took is
estimated from its bytes, by the tokens per byte of what was kept of that language (else of its side, else of
everything), so the tokens of `read` are an estimate too.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from data_pipeline import languages
from data_pipeline.errors import DataError
from data_pipeline.ledger import CHANGES, STAGES, Ledger, LedgerRow
from data_pipeline.manifest import LEDGER_FILE, Corpus, Manifest
from data_pipeline.mixture import KINDS
from data_pipeline.report.flows import DROPS, EVERYTHING, KEPT, LOSSES, Amount, Flow, in_order

_WITH_REASONS = (*DROPS, *CHANGES, "skipped")


@dataclass(kw_only=True, slots=True)
class Reason:
    """Why a stage dropped or changed documents. `sources`: of the build, that it happened to."""

    stage: str
    reason: str
    amount: Amount = field(default_factory=Amount)
    sources: list[str] = field(default_factory=list)


@dataclass(kw_only=True, slots=True)
class Share:
    """One source of the mixture. `share`: of its side's training tokens; `planned`: of its side, by a manifest."""

    name: str
    side: str
    language: str
    train: Amount
    heldout: Amount
    share: float
    planned: float | None


@dataclass(kw_only=True, slots=True)
class Report:
    """Everything that the tables and the page say. `off`: stages that this build did not have."""

    directory: str
    manifest_hash: str
    tokenizer_hash: str
    vocab_size: int
    language_manifest: str
    total: Flow
    sides: list[Flow]
    languages: list[Flow]
    sources: list[Flow]
    reasons: list[Reason]
    mixture: list[Share]
    off: list[str]
    notes: list[str]

    def side(self, name: str) -> Flow:
        """The flow of a side by name."""
        return next(flow for flow in self.sides if flow.name == name)


def make_report(corpus: Corpus) -> Report:
    """The numbers of a corpus.

    Raises DataError when the ledger is missing, damaged, does not add up, or is not that of the manifest.
    """
    manifest, ledger = corpus.manifest, Ledger.load(corpus.directory)
    where = str(corpus.directory / LEDGER_FILE)
    notes = list(ledger.notes)
    flows = _Flows(ledger, manifest, where)
    _check_manifest(ledger, manifest, where)
    return Report(
        directory=corpus.location,
        manifest_hash=manifest.manifest_hash,
        tokenizer_hash=manifest.tokenizer_hash,
        vocab_size=manifest.vocab_size,
        language_manifest=str(manifest.build_config.get("language_manifest") or ""),
        total=flows.total,
        sides=in_order(flows.sides.values()),
        languages=in_order(flows.languages.values()),
        sources=sorted(flows.sources.values(), key=lambda flow: flow.name),
        reasons=flows.reasons(),
        mixture=_mixture(manifest, _planned_shares(manifest, notes)),
        off=[stage for stage in stages_off(manifest.build_config) if not ledger.rows(stage)],
        notes=notes,
    )


def stages_off(build_config: dict[str, Any]) -> list[str]:
    """Stages that a build with these options does not have."""
    present = {
        "capped": build_config.get("max_bytes_per_side") is not None,
        "filtered": build_config.get("filters", "none") != "none" or bool(build_config.get("language_manifest")),
        "duplicate": True,
        "near_duplicate": bool(build_config.get("near_duplicates")),
        "contaminated": bool(build_config.get("evaluation_sets")),
        "redacted": bool(build_config.get("redact")),
    }
    return [stage for stage in LOSSES if not present[stage]]


class _Flows:
    """The ledger, added up four ways; each checked."""

    def __init__(self, ledger: Ledger, manifest: Manifest, where: str) -> None:
        self.where = where
        self.total = Flow(name=EVERYTHING, side="")
        self.sides: dict[str, Flow] = {}
        self.languages: dict[str, Flow] = {}
        self.sources: dict[str, Flow] = {}
        self._reasons: dict[tuple[str, str], Reason] = {}
        self._side_of = _sides(ledger, manifest, where)
        rates = _Rates(ledger, self._side_of, where)
        for row in ledger.rows():
            self._add(row, rates)
        self.total.side = " + ".join(kind for kind in KINDS if kind in self.sides)
        for flow in (self.total, *self.sides.values(), *self.languages.values(), *self.sources.values()):
            _check(flow, where)

    def _add(self, row: LedgerRow, rates: "_Rates") -> None:
        source = self.sources.setdefault(row.source, Flow(name=row.source, side=""))
        flows = [self.total, source]
        tokens = row.tokens
        if row.stage != "skipped":  # what was skipped has no language
            side = self._side_of[row.language]
            flows.append(self.sides.setdefault(side, Flow(name=side, side=side)))
            flows.append(self.languages.setdefault(row.language, Flow(name=row.language, side=side)))
            if side not in source.side:
                source.side = " + ".join(kind for kind in KINDS if kind == side or kind in source.side)
            tokens = row.tokens if row.stage in (*KEPT, "fim") else rates.tokens(row.language, row.bytes)
        amount = Amount(documents=row.documents, bytes=row.bytes, tokens=tokens)
        for flow in flows:
            flow.add(row.stage, amount)
        if row.stage in _WITH_REASONS:
            reason = self._reasons.setdefault((row.stage, row.reason), Reason(stage=row.stage, reason=row.reason))
            reason.amount += amount
            if row.source not in reason.sources:
                reason.sources.append(row.source)

    def reasons(self) -> list[Reason]:
        """In the order of _WITH_REASONS, most documents first."""
        order = _WITH_REASONS
        return sorted(
            self._reasons.values(), key=lambda item: (order.index(item.stage), -item.amount.documents, item.reason)
        )


class _Rates:
    """Tokens per byte of what was kept, by language, side and of everything."""

    def __init__(self, ledger: Ledger, side_of: dict[str, str], where: str) -> None:
        self._side_of = side_of
        self._kept: dict[str, Amount] = defaultdict(Amount)
        for stage in KEPT:
            for row in ledger.rows(stage):
                amount = Amount(documents=row.documents, bytes=row.bytes, tokens=row.tokens)
                for key in self._keys(row.language):
                    self._kept[key] += amount
        if not self._kept["all"].bytes:
            raise DataError(f"{where}: no document was kept, so this is no corpus; build it again")

    def _keys(self, language: str) -> tuple[str, str, str]:
        return f"language {language}", f"side {self._side_of[language]}", "all"

    def tokens(self, language: str, num_bytes: int) -> int:
        """About how many tokens so many bytes of a language are, rounded."""
        kept = next(self._kept[key] for key in self._keys(language) if self._kept[key].bytes)
        return (2 * num_bytes * kept.tokens + kept.bytes) // (2 * kept.bytes)


def _sides(ledger: Ledger, manifest: Manifest, where: str) -> dict[str, str]:
    """language -> side: by the source of the mixture that it went to; if nothing was kept, by the table."""
    kinds = dict(zip(manifest.names, manifest.kinds, strict=True))
    sides: dict[str, str] = {}
    for row in ledger.rows():
        if row.stage not in STAGES:
            raise DataError(f"{where}: stage {row.stage!r} is unknown to this program; build the corpus again")
        if row.stage in KEPT:
            if row.group not in kinds:
                raise DataError(f"{where}: group {row.group!r} is not in the manifest; restore the file")
            sides[row.language] = kinds[row.group]
    for row in ledger.rows():
        if row.stage != "skipped" and row.language not in sides:
            if row.language not in languages.table():
                raise DataError(
                    f"{where}: language {row.language!r} is unknown to this program; build the corpus again"
                )
            sides[row.language] = languages.side_of(row.language)
    return sides


def _check(flow: Flow, where: str) -> None:
    *_, last = flow.steps()
    rest = last.left - flow.kept
    if rest != Amount():
        raise DataError(
            f"{where}: {flow.name}: {rest.documents:,} documents ({rest.bytes:,} bytes) are unaccounted for; "
            "this is a defect of the build, please report it"
        )


def _check_manifest(ledger: Ledger, manifest: Manifest, where: str) -> None:
    """The ledger's tokens are those of the shards."""
    counted: dict[tuple[str, str], int] = defaultdict(int)
    for stage in KEPT:
        for row in ledger.rows(stage):
            counted[row.group, stage] += row.tokens
    for source in manifest.sources:
        for stage, split in (("train", source.train), ("heldout", source.heldout)):
            if counted[source.name, stage] != split.tokens:
                raise DataError(
                    f"{where}: {source.name} {stage} has {counted[source.name, stage]:,} tokens, its shards have "
                    f"{split.tokens:,}; restore the file or build the corpus again"
                )


def _planned_shares(manifest: Manifest, notes: list[str]) -> dict[str, float]:
    """source of the mixture -> share of the code side, if the build had a manifest of languages."""
    name = manifest.build_config.get("language_manifest")
    if not name:
        return {}
    from data_pipeline.language_manifest import load_manifest  # most corpora do not have one

    sizes = {source.name: source.train.tokens for source in manifest.sources if source.kind == "code"}
    try:
        planned = load_manifest(name).shares_of(sizes)
    except DataError as error:  # a file of the user that is gone; the numbers of the corpus do not need it
        notes.append(f"planned shares are not shown: {error}")
        return {}
    notes += [f"planned shares: {note}" for note in planned.notes]
    others = {source: size for source, size in sizes.items() if source not in planned.shares}
    rest = sum(others.values())
    by_size = {source: float(planned.others) * size / rest for source, size in others.items() if rest}
    return {source: float(share) for source, share in planned.shares.items()} | by_size


def _mixture(manifest: Manifest, planned: dict[str, float]) -> list[Share]:
    side_tokens: dict[str, int] = defaultdict(int)
    for source in manifest.sources:
        side_tokens[source.kind] += source.train.tokens
    shares = [
        Share(
            name=source.name, side=source.kind, language=source.language, planned=planned.get(source.name),
            train=Amount(documents=source.train.documents, bytes=source.train.bytes, tokens=source.train.tokens),
            heldout=Amount(
                documents=source.heldout.documents, bytes=source.heldout.bytes, tokens=source.heldout.tokens
            ),
            share=source.train.tokens / side_tokens[source.kind] if side_tokens[source.kind] else 0.0,
        )
        for source in manifest.sources
    ]  # fmt: skip
    return sorted(shares, key=lambda share: (KINDS.index(share.side), -share.train.tokens, share.name))
