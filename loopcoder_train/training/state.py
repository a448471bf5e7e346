"""Where a run stands: the few numbers that are not tensors and not the engine's or the stream's."""

from dataclasses import asdict, dataclass, field, replace
from typing import Any


@dataclass(slots=True)
class TrainingState:
    """Counters of the whole run over all attempts. Saved with every checkpoint, equal on every rank but `attempt`.

    The three times (training/accounts.py) are each rank's own, and rank 0's are saved. They are no part of equality:
    runs that are equal bit for bit take different times.
    """

    step: int = 0  # optimizer steps done that these weights are made of
    tokens: int = 0  # positions trained, padding and document ends included
    supervised_tokens: int = 0  # positions that had a label
    source_tokens: dict[str, int] = field(default_factory=dict)  # `tokens` by source, as read (training/consumption.py)
    causal_pairs: int = 0  # (query, key) pairs of causal attention in `tokens`, of one head and visit (model/counts.py)
    window_pairs: int = 0  # of sliding-window attention; with `tokens` they give the model FLOPs so far
    data_digest: str = ""  # hexadecimal, of every row in `tokens`, in order of batches (training/consumption.py)
    option_changes: list[dict[str, Any]] = field(
        default_factory=list
    )  # accepted on the way: step, option, before, after
    discarded_batches: int = 0  # read, and no part of these weights: bad steps, and steps that were undone
    attempt: int = 0  # how often the run was started, this time included; known on rank 0
    best_held_out_loss: float | None = None  # nats per token, last loop, all sources
    best_step: int | None = None
    evaluation_owed: bool = False  # a stop cut the evaluation of `step` short: the next attempt begins with it
    kept_seconds: float = field(default=0.0, compare=False)  # of the steps that these weights are made of
    running_seconds: float = field(default=0.0, compare=False)  # in which an attempt was running, whatever came of it
    first_began: float | None = field(default=None, compare=False)  # when the first attempt began, Unix seconds

    @property
    def batches(self) -> int:
        """Batches read from the stream: where the data goes on. Never less than before, whatever is undone."""
        return self.step + self.discarded_batches

    def gone_back_to(self, saved: "TrainingState") -> "TrainingState":
        """The state after `saved`, an earlier one of this run, was loaded: the data goes on where it stands."""
        discarded = self.batches - saved.step
        return replace(
            saved,
            attempt=self.attempt,
            source_tokens=dict(saved.source_tokens),
            option_changes=list(saved.option_changes),
            discarded_batches=discarded,
            evaluation_owed=False,
            running_seconds=self.running_seconds,
            first_began=self.first_began,
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON object that :meth:`from_json` reads back."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "TrainingState":
        """The state saved by :meth:`to_json`; an unknown key is a TypeError, a missing one has its first value."""
        return cls(**values)
