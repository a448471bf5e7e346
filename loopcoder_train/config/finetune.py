"""What a tuning run learns from: conversations, how they are written as tokens, which of them are held out."""

import re
from dataclasses import dataclass, field
from enum import Enum

from loopcoder_train.config.data import DataConfig
from loopcoder_train.config.errors import require, require_positive
from loopcoder_train.config.model import ModelConfig

# Options of `data` that mix a corpus's token stream; conversations are not mixed.
_OF_THE_MIXTURE = ("text_share", "shares", "max_repeats", "shuffle_block_tokens", "planned_batches", "segments")
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


class ConversationKind(Enum):
    """Where conversations are read from."""

    environment = "environment"  # functions of the Python environment itself: signature and docstring -> implementation
    jsonl = "jsonl"  # a file, or a folder of .jsonl[.gz|.zst]
    parquet = "parquet"  # a file, or a folder of .parquet
    huggingface = "huggingface"  # owner/name, owner/name:subset, or the folder of save_to_disk


class OnTooLong(Enum):
    """What becomes of a conversation that has more tokens than data.sequence_length. It is never cut."""

    drop = "drop"  # counted
    error = "error"


@dataclass(kw_only=True, slots=True)
class ConversationSource:
    """One set of conversations; held-out losses are told by `name`."""

    name: str
    kind: ConversationKind
    path: str = ""
    split: str = "train"  # of a Hugging Face dataset

    def check(self, option: str) -> None:
        """Raise UserError, naming the option below `option`, for a value that no source can have."""
        rule = "must be lower-case letters and digits, joined by '-'"
        require(bool(_NAME.fullmatch(self.name)), f"{option}.name", repr(self.name), rule)
        needs_path = self.kind is not ConversationKind.environment
        has = "needs" if needs_path else "takes no"
        require(bool(self.path) is needs_path, f"{option}.path", repr(self.path), f"kind {self.kind.name} {has} path")


def _default_sources() -> list[ConversationSource]:
    return [ConversationSource(name="environment", kind=ConversationKind.environment)]


@dataclass(kw_only=True, slots=True)
class FinetuneConfig:
    """Supervised tuning: loss on the tokens that the assistant says, its end token included, and on no others."""

    sources: list[ConversationSource] = field(default_factory=_default_sources)
    chat_template: str | None = None  # a Jinja file; default: finetune/templates/chatml.jinja
    end_token: str = "<|im_end|>"  # the sentinel with which the assistant ends its turn
    thinking: bool = False  # train on reasoning_content too; false: it is left out, and counted
    too_long: OnTooLong = OnTooLong.drop
    max_dropped_share: float = 0.1  # more dropped conversations of a source are an error
    heldout_share: float = 0.05  # of the conversations of a source, by hash of what they say
    max_epochs: float = 4.0  # more passes over the training conversations are an error
    environment_conversations: int = 2000  # how many a source of kind environment gives, at most
    workers: int = 1  # processes that turn conversations into tokens, once, before the first step

    def __post_init__(self) -> None:
        require_positive(
            finetune__max_epochs=self.max_epochs,
            finetune__environment_conversations=self.environment_conversations,
            finetune__workers=self.workers,
        )
        require(bool(self.sources), "finetune.sources", "[]", "must have at least one source")
        names = [source.name for source in self.sources]
        for number, source in enumerate(self.sources):
            source.check(f"finetune.sources[{number}]")
            twice = names.count(source.name) > 1
            require(not twice, f"finetune.sources[{number}].name", source.name, "is there twice", "give each its own")
        require(0 < self.heldout_share <= 0.5, "finetune.heldout_share", self.heldout_share, "must lie in (0, 0.5]")
        share = self.max_dropped_share
        require(0 <= share < 1, "finetune.max_dropped_share", share, "must be 0 or more and less than 1")
        require(bool(self.end_token), "finetune.end_token", repr(self.end_token), "must name a sentinel")
        template = self.chat_template
        require(template != "", "finetune.chat_template", repr(template), "must name a file")


def check_finetune(data: DataConfig, model: ModelConfig) -> None:
    """The rules between `finetune` and the other groups. Raises UserError."""
    require(
        model.init_from is not None,
        "model.init_from",
        model.init_from,
        "must name the run that is tuned",
        "give model.init_from=RUN or RUN@STEP",
    )
    usual = DataConfig()
    for name in _OF_THE_MIXTURE:
        value = getattr(data, name)
        rule = "mixes the corpus's token stream, which a tuning run does not read"
        require(value == getattr(usual, name), f"data.{name}", value, rule, "leave it out")
