"""Which token stream a run reads."""

from dataclasses import dataclass, field

from loopcoder_train.config.data_reading import DataReading
from loopcoder_train.config.errors import require, require_positive


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

    def __post_init__(self) -> None:
        self.check_reading(self.corpus_dir)
        require_positive(
            data__sequence_length=self.sequence_length,
            data__max_repeats=self.max_repeats,
            data__shuffle_block_tokens=self.shuffle_block_tokens,
            data__prefetch_steps=self.prefetch_steps,
        )
        require(0 <= self.text_share <= 1, "data.text_share", self.text_share, "must lie between 0 and 1")
        for name, share in self.shares.items():
            require(share >= 0, f"data.shares.{name}", share, "must be 0 or more")
