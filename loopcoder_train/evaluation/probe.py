"""The one batch that loop telemetry looks at again and again."""

from collections.abc import Sequence

import torch

from data_pipeline.manifest import Corpus
from data_pipeline.stream import Batch, heldout_batches
from loopcoder_train.config import UserError
from loopcoder_train.engines.engine import MicroBatch
from loopcoder_train.training.batch import to_micro_batch


def probe_batch(corpus: Corpus, sequence_length: int, num_sequences: int) -> MicroBatch:
    """`num_sequences` held-out rows spread over the sources in manifest order; always the same ones.

    Fewer when the corpus has fewer held-out rows. Raises UserError when it has none.
    """
    rows = list(heldout_batches(corpus, sequence_length, 1, max_sequences_per_source=num_sequences))
    if not rows:
        raise UserError(f"{corpus.directory}: no source has held-out documents; build the corpus with a held-out share")
    return spread_rows(rows, num_sequences)


def spread_rows(rows: Sequence[Batch], num_sequences: int) -> MicroBatch:
    """At most `num_sequences` of the rows (batches of one), spread evenly, as one batch."""
    count = min(num_sequences, len(rows))
    chosen = [to_micro_batch(rows[index * len(rows) // count]) for index in range(count)]
    return MicroBatch(*(torch.cat([getattr(row, name) for row in chosen]) for name in MicroBatch.__slots__))
