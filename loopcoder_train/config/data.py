"""Which token stream a run reads."""

from dataclasses import dataclass, field

from loopcoder_train.config.data_reading import DataReading
from loopcoder_train.config.errors import require, require_positive


@dataclass(kw_only=True, slots=True)
class SegmentConfig:
    """What changes from a batch on, while what was read before stays as it was. What is not set: as before that."""

    from_batch: int  # the first batch of the segment; without discarded batches as many steps were made before it
    planned_batches: int | None = None  # that its mixture is made for; default: up to the next segment or the end
    corpus_dir: str | None = None  # a corpus that has the same sources as the former one, or others, or more
    sequence_length: int | None = None
    global_batch_size: int | None = None
    text_share: float | None = None
    shares: dict[str, float] | None = None
    max_repeats: float | None = None  # counted over all segments

    def check(self, option: str) -> None:
        """Raise UserError, naming the option below `option`, for a value that no segment can have."""
        for name in ("from_batch", "planned_batches", "sequence_length", "global_batch_size", "max_repeats"):
            value = getattr(self, name)
            require(value is None or value > 0, f"{option}.{name}", value, "must be greater than 0")
        require(self.corpus_dir != "", f"{option}.corpus_dir", repr(self.corpus_dir), "must name a folder")
        _check_shares(option, 0.0 if self.text_share is None else self.text_share, self.shares or {})


@dataclass(kw_only=True, slots=True)
class DataConfig(DataReading):
    """The corpus (built by ``loopcoder data build``) and how its sources are mixed, by tokens."""

    corpus_dir: str = "corpora/default"
    sequence_length: int = 4096  # tokens per sequence, documents packed
    text_share: float = 0.5  # text's share of all tokens; code gets the rest (the paper: 1:1)
    shares: dict[str, float] = field(
        default_factory=dict
    )  # source -> weight inside its side; empty: by available tokens
    max_repeats: float = 4.0  # epochs over one source before its excess is given to the others of its side
    shuffle_block_tokens: int = 2048  # unit of shuffling, independent of the sequence length
    prefetch_steps: int = 2  # steps read ahead by the loader's thread
    planned_batches: int | None = None  # that the mixture is made for; default: training.num_steps or the first segment
    segments: list[SegmentConfig] = field(default_factory=list)  # what changes later in the run

    def __post_init__(self) -> None:
        self.check_reading(self.corpus_dir)
        require_positive(
            data__sequence_length=self.sequence_length,
            data__max_repeats=self.max_repeats,
            data__shuffle_block_tokens=self.shuffle_block_tokens,
            data__prefetch_steps=self.prefetch_steps,
        )
        if self.planned_batches is not None:
            require_positive(data__planned_batches=self.planned_batches)
        _check_shares("data", self.text_share, self.shares)
        for number, segment in enumerate(self.segments):
            segment.check(f"data.segments[{number}]")
            if segment.corpus_dir is not None:
                self.check_reading(segment.corpus_dir)


def _check_shares(option: str, text_share: float, shares: dict[str, float]) -> None:
    require(0 <= text_share <= 1, f"{option}.text_share", text_share, "must lie between 0 and 1")
    for name, share in shares.items():
        require(share >= 0, f"{option}.shares.{name}", share, "must be 0 or more")
