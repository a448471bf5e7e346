"""Flows: what was read of a language, source or side, what each stage took of it, and what was kept.

In each of them, for documents, bytes and tokens,

    read = capped + filtered + duplicate + near_duplicate + contaminated + redacted + train + heldout

where `redacted` has no documents, only the bytes that redaction took (negative where what it put in is longer).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from data_pipeline.ledger import CHANGES, STAGES
from data_pipeline.mixture import KINDS

KEPT = ("train", "heldout")
LOSSES = tuple(stage for stage in STAGES if stage not in ("skipped", "read", "fim", *KEPT))
"""Stages that take something away, in the order of the graph."""
DROPS = tuple(stage for stage in LOSSES if stage not in CHANGES)
"""Stages that take whole documents away."""
TOP = 10
EVERYTHING = "everything"


@dataclass(frozen=True, kw_only=True, slots=True)
class Amount:
    """Documents, bytes and tokens of the same thing."""

    documents: int = 0
    bytes: int = 0
    tokens: int = 0

    def __add__(self, other: "Amount") -> "Amount":
        return Amount(
            documents=self.documents + other.documents,
            bytes=self.bytes + other.bytes,
            tokens=self.tokens + other.tokens,
        )

    def __sub__(self, other: "Amount") -> "Amount":
        return Amount(
            documents=self.documents - other.documents,
            bytes=self.bytes - other.bytes,
            tokens=self.tokens - other.tokens,
        )


@dataclass(kw_only=True, slots=True)
class Step:
    """What a stage took, and what was left after it. `about`: the tokens that were left are an estimate."""

    stage: str
    left: Amount
    lost: Amount
    about: bool


@dataclass(kw_only=True, slots=True)
class Flow:
    """Where the documents of one language, source or side went. `side` is text, code, or `text + code`.

    changed: documents that redaction changed; fim: training documents with fill-in-the-middle, and the sentinels that
    it has put into them (tokens of `train`, of the first prepared variant); skipped: what never became a document (its
    tokens are unknown, 0).
    """

    name: str
    side: str
    read: Amount = Amount()
    lost: dict[str, Amount] = field(default_factory=lambda: dict.fromkeys(LOSSES, Amount()))
    train: Amount = Amount()
    heldout: Amount = Amount()
    skipped: Amount = Amount()
    changed: int = 0
    fim: Amount = Amount()

    @property
    def kept(self) -> Amount:
        """What is in the corpus."""
        return self.train + self.heldout

    @property
    def bytes_per_token(self) -> float | None:
        """Fertility of what was kept; the end-of-document tokens count. None when nothing was."""
        return self.kept.bytes / self.kept.tokens if self.kept.tokens else None

    def steps(self) -> Iterator[Step]:
        """`read`, then one step for each of LOSSES; after the last one exactly `kept` is left."""
        left = self.read
        yield Step(stage="read", left=left, lost=Amount(), about=left.bytes != self.kept.bytes)
        for stage in LOSSES:
            left -= self.lost[stage]
            yield Step(stage=stage, left=left, lost=self.lost[stage], about=left.bytes != self.kept.bytes)

    def add(self, stage: str, amount: Amount) -> None:
        """One row of the ledger, its tokens counted or estimated. Tokens of `read` come from all other rows."""
        match stage:
            case "fim":  # `train` has these documents and tokens
                self.fim += amount
                return
            case "skipped":
                self.skipped += amount
                return
            case "read":
                self.read += Amount(documents=amount.documents, bytes=amount.bytes)
                return
            case "train":
                self.train += amount
            case "heldout":
                self.heldout += amount
            case "redacted":
                self.changed += amount.documents
                self.lost[stage] += Amount(bytes=amount.bytes, tokens=amount.tokens)
            case _:
                self.lost[stage] += amount
        self.read += Amount(tokens=amount.tokens)

    def include(self, other: "Flow") -> None:
        """Add another flow to this one."""
        self.read += other.read
        self.train += other.train
        self.heldout += other.heldout
        self.skipped += other.skipped
        self.changed += other.changed
        self.fim += other.fim
        for stage in LOSSES:
            self.lost[stage] += other.lost[stage]


def in_order(flows: Iterable[Flow]) -> list[Flow]:
    """Text before code, then most training tokens first."""
    return sorted(flows, key=lambda flow: (KINDS.index(flow.side), -flow.train.tokens, -flow.read.bytes, flow.name))


def top_and_others(flows: list[Flow], count: int = TOP) -> list[Flow]:
    """The first `count` of the languages of one side, and the sum of all after them as `N others`."""
    if len(flows) <= count:
        return list(flows)
    others = Flow(name=f"{len(flows) - count} others", side=flows[0].side)
    for flow in flows[count:]:
        others.include(flow)
    return [*flows[:count], others]
