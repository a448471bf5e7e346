"""One forward pass per row, read by every lens."""

from collections.abc import Iterable

import torch

from loopcoder_train.diagnostics.attention import AttentionReader
from loopcoder_train.diagnostics.dynamics import DynamicsReader
from loopcoder_train.diagnostics.fixed_points import FixedPointReader
from loopcoder_train.diagnostics.measurements import Measurements
from loopcoder_train.diagnostics.output import OutputReader
from loopcoder_train.diagnostics.pieces import PIECE_ELEMENTS
from loopcoder_train.diagnostics.samples import SampledRow
from loopcoder_train.engines.engine import MicroBatch
from loopcoder_train.model import PLT
from loopcoder_train.model.observer import Observers


@torch.no_grad()
def measure(
    model: PLT, rows: Iterable[SampledRow], *, most_queries: int | None, piece_elements: int = PIECE_ELEMENTS
) -> Measurements:
    """All lenses on all samples of `rows`, one row at a time.

    most_queries: queries of each document that attention lenses look at, None for all. piece_elements: numbers in the
    largest matrix that is held at a time (pieces.py); it changes memory, not results.
    """
    found = Measurements()
    for row in rows:
        _measure_row(
            model, _on_device(row, model.model.embed_tokens.weight.device), found, most_queries, piece_elements
        )
    return found


def _measure_row(
    model: PLT, row: SampledRow, found: Measurements, most_queries: int | None, piece_elements: int
) -> None:
    config, batch, samples = model.config, row.batch, row.samples
    dynamics = DynamicsReader(config, samples, model.model.norm, found)
    attention = AttentionReader(config, samples, found, most_queries=most_queries, piece_elements=piece_elements)
    output = OutputReader(
        samples, batch.labels[0], model.logits, found, vocab_size=config.vocab_size, piece_elements=piece_elements
    )
    fixed_points = FixedPointReader(model, row, found)
    observer = Observers([dynamics, attention, output])
    for hidden, own in model.loops(batch.input_ids, batch.document_ids, observer):
        fixed_points.loop_output(hidden, own)
    for reader in (attention, output, fixed_points):
        reader.finish()


def _on_device(row: SampledRow, device: torch.device) -> SampledRow:
    tensors = (getattr(row.batch, name).to(device) for name in MicroBatch.__slots__)
    return SampledRow(MicroBatch(*tensors), row.samples)
