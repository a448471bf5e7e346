"""The stream of one source: epoch after epoch over its shuffled blocks, in closed form.

The journey of an offset in that stream: offset // block is a slot; the slots of one epoch are the whole blocks of one
prepared variant of the source (the same documents with other fill-in-the-middle choices, hence another number of
tokens); epoch e reads variant e mod V, so V epochs make a cycle of as many slots as the variants have blocks together.
The keyed permutation of (seed, name, e) orders the blocks inside the epoch. Tokens after the last whole block of a
variant are its tail, which the stream never shows.
"""

import bisect
import itertools
import math
from fractions import Fraction
from typing import NamedTuple

from data_pipeline.manifest import SourceInfo
from data_pipeline.permutation import block_permutation

DEFAULT_SHUFFLE_BLOCK_TOKENS = 2048


class Place(NamedTuple):
    """Where a token of a source's stream lies: in which epoch and variant, at which token in file order there, and how
    many tokens of its block are left, itself included."""

    epoch: int
    variant: int
    token: int
    left: int


class SourceEpochs:
    """One source in blocks of `shuffle_block_tokens` tokens. `name` and `seed` choose the order; sizes are tokens."""

    def __init__(self, source: SourceInfo, shuffle_block_tokens: int, seed: int = 0) -> None:
        self.name, self.seed, self.block = source.name, seed, shuffle_block_tokens
        sizes = [split.tokens for split in source.training_variants]
        self.tail_tokens = sum(size % self.block for size in sizes)
        self._blocks = [size // self.block for size in sizes]
        # ends[v]: slots of the first v variants of a cycle; ends[V]: of the whole cycle.
        self._ends = list(itertools.accumulate(self._blocks, initial=0))

    @property
    def cycle_tokens(self) -> int:
        """Tokens of one epoch over each variant; 0 for a source without a whole block."""
        return self._ends[-1] * self.block

    @property
    def epoch_tokens(self) -> Fraction:
        """Tokens of an epoch, the mean over the variants."""
        return Fraction(self.cycle_tokens, len(self._blocks))

    def place(self, offset: int) -> Place:
        """The place of token `offset` >= 0 of the stream; the source must have a whole block."""
        slot, within = divmod(offset, self.block)
        cycle, slot = divmod(slot, self._ends[-1])
        variant = bisect.bisect_right(self._ends, slot) - 1
        epoch = cycle * len(self._blocks) + variant
        order = block_permutation(self._blocks[variant], self.seed, self.name, epoch)
        block = order(slot - self._ends[variant])
        return Place(epoch, variant, block * self.block + within, self.block - within)

    def tokens_of(self, epochs: Fraction) -> int:
        """Tokens that the first `epochs` >= 0 epochs hold, a begun one in proportion, rounded down."""
        whole = math.floor(epochs)
        cycles, variants = divmod(whole, len(self._blocks))
        blocks = cycles * self._ends[-1] + self._ends[variants] + (epochs - whole) * self._blocks[variants]
        return math.floor(blocks * self.block)

    def epochs_of(self, tokens: int) -> float:
        """Epochs that the first `tokens` tokens of the stream are; 0 for a source without a whole block."""
        if not self.cycle_tokens:
            return 0.0
        cycles, rest = divmod(tokens, self.cycle_tokens)
        variant = bisect.bisect_right(self._ends, rest // self.block) - 1
        begun = Fraction(rest - self._ends[variant] * self.block, self._blocks[variant] * self.block)
        return float(cycles * len(self._blocks) + variant + begun)
