"""The segments of a run with every value filled in: what each absent one takes from the segment before."""

from dataclasses import dataclass
from itertools import pairwise

from loopcoder_train.config.data import DataConfig
from loopcoder_train.config.errors import require
from loopcoder_train.config.training import TrainingConfig

_INHERITED = ("corpus_dir", "sequence_length", "global_batch_size", "text_share", "shares", "max_repeats")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSegment:
    """Batches `first_batch` up to the next segment's. `options`: field -> the option that set its value."""

    first_batch: int
    planned_batches: int
    corpus_dir: str
    sequence_length: int
    global_batch_size: int
    text_share: float
    shares: dict[str, float]
    max_repeats: float
    options: dict[str, str]

    @property
    def batch_tokens(self) -> int:
        """Tokens (positions) of one batch, hence of one optimizer step."""
        return self.global_batch_size * self.sequence_length


def run_segments(data: DataConfig, training: TrainingConfig) -> list[RunSegment]:
    """The first segment, which `data` and `training` describe, and those of `data.segments`.

    A segment is planned for as many batches as there are until the next, the last one until training.num_steps, unless
    its planned_batches says otherwise. Raises UserError when the segments do not follow one another.
    """
    begins = [0, *(segment.from_batch for segment in data.segments)]
    _check_order(begins, training.num_steps)
    values = {name: getattr(data, name) for name in _INHERITED if name != "global_batch_size"}
    values["global_batch_size"] = training.global_batch_size
    options = {name: f"data.{name}" for name in (*_INHERITED, "planned_batches")}
    options["global_batch_size"] = "training.global_batch_size"
    result = []
    for number, (begin, end) in enumerate(zip(begins, [*begins[1:], training.num_steps], strict=True)):
        given = data if number == 0 else data.segments[number - 1]
        where = f"data.segments[{number - 1}]" if number else "data"
        if number:
            changed = {name: getattr(given, name) for name in _INHERITED if getattr(given, name) is not None}
            values, options = values | changed, options | {name: f"{where}.{name}" for name in changed}
        planned = end - begin if given.planned_batches is None else given.planned_batches
        options = options | {"planned_batches": f"{where}.planned_batches"}
        result.append(RunSegment(first_batch=begin, planned_batches=planned, options=options, **values))
    last = result[-1]
    require(
        last.first_batch + last.planned_batches >= training.num_steps,
        last.options["planned_batches"],
        last.planned_batches,
        f"must reach training.num_steps={training.num_steps}, as nothing follows this segment",
        f"append {{from_batch: {last.first_batch + last.planned_batches}}} to data.segments",
    )
    return result


def _check_order(begins: list[int], num_steps: int) -> None:
    for number, (former, begin) in enumerate(pairwise(begins)):
        option = f"data.segments[{number}].from_batch"
        require(begin > former, option, begin, f"must be more than {former}, where the segment before begins")
        require(
            begin < num_steps, option, begin, f"must be less than training.num_steps={num_steps}, or it never comes"
        )
