"""What the model would answer after every loop: loss, entropy, rank of the true token, output shift and its shares."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from loopcoder_train.diagnostics.measurements import Key, Measurements
from loopcoder_train.diagnostics.pieces import PIECE_ELEMENTS, piece_bounds
from loopcoder_train.diagnostics.samples import Sample
from loopcoder_train.lenses.loop_loss import loop_loss
from loopcoder_train.lenses.output_entropy import output_entropy
from loopcoder_train.lenses.output_kl import output_kl
from loopcoder_train.lenses.precision import wide
from loopcoder_train.lenses.shares import change_shares, peak_shares
from loopcoder_train.lenses.true_token_rank import true_token_rank
from loopcoder_train.model.observer import Observer


class OutputReader(Observer):
    """Observer of one row [1, S] with `labels` [S]; after the pass, :meth:`finish`.

    logits_of: h [n, d] -> logits [n, V] through the final norm and the head. Between loops nothing of size V is kept;
    the logits of h(r-1) are made twice.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        labels: Tensor,
        logits_of: Callable[[Tensor], Tensor],
        found: Measurements,
        *,
        vocab_size: int,
        piece_elements: int = PIECE_ELEMENTS,
    ):
        self._samples, self._labels, self._logits_of, self._found = samples, labels, logits_of, found
        self._vocab_size, self._piece_elements = vocab_size, piece_elements
        self._before: Tensor | None = None  # h(r-1) of a loop r >= 2
        self._changes: dict[Sample, list[Tensor]] = {sample: [] for sample in samples}  # output KL [n] of loops 2..R

    def loop_output(self, loop_number: int, hidden: Tensor) -> None:
        """Read h(r), and h(r-1) once more."""
        for sample in self._samples:
            shifts = []
            for first, stop in piece_bounds(len(sample), self._vocab_size, self._piece_elements):
                shifts += self._read(loop_number, sample, slice(sample.first + first, sample.first + stop), hidden)
            if shifts:
                self._changes[sample].append(torch.cat(shifts))
        self._before = hidden

    def finish(self) -> None:
        """Shares of the loops in the output shift, and where tokens have the largest one."""
        for sample, changes in self._changes.items():
            if not changes:
                continue
            changes = torch.stack(changes)
            numerators, denominator = change_shares(changes)
            for loop_number, peaks in enumerate(peak_shares(changes), start=2):
                self._found.add(Key(loop_number, "peak_loop_share"), sample, peaks)
                key = Key(loop_number, "output_kl_share")
                self._found.add_ratio(key, sample, float(numerators[loop_number - 2]), float(denominator))

    def _read(self, loop_number: int, sample: Sample, tokens: slice, hidden: Tensor) -> list[Tensor]:
        """All lenses on one piece; its output shifts, [] in loop 1."""
        labels = self._labels[tokens]
        log_p = self._log_probabilities(hidden, tokens)
        values = {
            "loss": loop_loss(log_p, labels),
            "output_entropy": output_entropy(log_p),
            "true_token_rank": true_token_rank(log_p, labels),
        }
        if self._before is not None:
            values["output_kl"] = output_kl(log_p, self._log_probabilities(self._before, tokens))
        for lens, per_token in values.items():
            self._found.add(Key(loop_number, lens), sample, per_token)
        return [values["output_kl"]] if "output_kl" in values else []

    def _log_probabilities(self, hidden: Tensor, tokens: slice) -> Tensor:
        return F.log_softmax(wide(self._logits_of(hidden[0, tokens])), dim=-1)
