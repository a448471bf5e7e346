"""Where a run stands: the few numbers that are not tensors and not the engine's or the stream's."""

from dataclasses import asdict, dataclass


@dataclass(slots=True)
class TrainingState:
    """Counters of the whole run over all attempts. Saved with every checkpoint, equal on every rank but `attempt`."""

    step: int = 0  # optimizer steps done
    tokens: int = 0  # positions trained, padding and document ends included
    supervised_tokens: int = 0  # positions that had a label
    attempt: int = 0  # how often the run was started, this time included; known on rank 0
    best_held_out_loss: float | None = None  # nats per token, last loop, all sources
    best_step: int | None = None
    evaluation_owed: bool = False  # a stop cut the evaluation of `step` short: the next attempt begins with it

    def to_json(self) -> dict[str, int | float | bool | None]:
        """A flat JSON object that :meth:`from_json` reads back."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, int | float | bool | None]) -> "TrainingState":
        """The state saved by :meth:`to_json`; an unknown key is a TypeError, a missing one has its first value."""
        return cls(**values)
