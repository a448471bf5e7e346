"""Options of the commands that look at what is there: a corpus, a finished or running run."""

from dataclasses import dataclass

from loopcoder_train.config.errors import UserError, require, require_positive
from loopcoder_train.config.training import Device


@dataclass(kw_only=True, slots=True)
class EvaluateOptions:
    """`loopcoder evaluate`: held-out losses of one checkpoint, per source, language and loop."""

    run_dir: str
    step: int | None = None  # which checkpoint; default: the newest good one
    num_loops: int | None = None  # loops at inference; default: as trained
    max_sequences_per_source: int | None = None  # default: the run's evaluation.max_sequences_per_source
    batch_size: int | None = None  # sequences per forward pass; default: the run's evaluation.batch_size
    device: Device = Device.auto
    num_threads: int | None = None  # CPU threads; null: OMP_NUM_THREADS, or every core
    json: bool = False  # print one JSON object instead of tables

    def __post_init__(self) -> None:
        _check_run(self.run_dir, self.step)
        for name in ("num_loops", "max_sequences_per_source", "batch_size", "num_threads"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, value, "must be at least 1")


@dataclass(kw_only=True, slots=True)
class DiagnoseOptions:
    """`loopcoder diagnose`: what each loop does, on held-out documents of one checkpoint."""

    run_dir: str
    step: int | None = None  # which checkpoint; default: the newest good one
    num_loops: int | None = None  # loops at inference; default: as trained
    num_samples: int = 500  # held-out documents, each cut where a row ends: a long one is several samples
    min_sample_tokens: int = 16  # shorter ones are passed over
    attention_queries: int | None = 64  # queries of each document that attention lenses look at; null: all
    device: Device = Device.auto
    # CPU threads; null: OMP_NUM_THREADS, or every core. One, as a small model's operators are shorter than the wait
    # for a thread whose core somebody else uses.
    num_threads: int | None = 1
    json: bool = False  # print one JSON object instead of the table

    def __post_init__(self) -> None:
        _check_run(self.run_dir, self.step)
        for name in ("num_loops", "attention_queries", "num_threads"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, value, "must be at least 1")
        require_positive(num_samples=self.num_samples)
        least = self.min_sample_tokens
        require(least >= 2, "min_sample_tokens", least, "must be at least 2: the offset cost needs a left neighbour")


@dataclass(kw_only=True, slots=True)
class GenerateOptions:
    """`loopcoder generate`: continue a prompt with one checkpoint."""

    run_dir: str
    step: int | None = None  # which checkpoint; default: the newest good one
    prompt: str | None = None
    prompt_file: str | None = None  # UTF-8 text; instead of `prompt`
    message: str | None = None  # to the assistant of a tuned run; instead of both
    max_new_tokens: int = 64
    temperature: float = 0.8  # 0: always the most probable token
    top_k: int | None = None  # draw among the k most probable tokens only
    top_p: float | None = None  # draw among the fewest tokens whose probabilities reach p
    seed: int = 0
    device: Device = Device.auto
    num_threads: int | None = None  # CPU threads; null: OMP_NUM_THREADS, or every core

    def __post_init__(self) -> None:
        _check_run(self.run_dir, self.step)
        given = [name for name in ("prompt", "prompt_file", "message") if getattr(self, name) is not None]
        if not given:
            raise UserError('prompt: is not set; give prompt="def main", prompt_file=FILE or message="TEXT"')
        if len(given) > 1:
            raise UserError(f"{given[1]}: cannot be combined with {given[0]}; give one of them")
        require(self.message != "", "message", repr(self.message), "must not be empty")
        require(self.prompt != "", "prompt", repr(self.prompt), "must not be empty")
        require(self.prompt_file != "", "prompt_file", repr(self.prompt_file), "must name a file")
        require_positive(max_new_tokens=self.max_new_tokens)
        require(0 <= self.temperature < float("inf"), "temperature", self.temperature, "must be 0 (greedy) or more")
        require(self.top_k is None or self.top_k >= 1, "top_k", self.top_k, "must be at least 1")
        require(self.top_p is None or 0 < self.top_p <= 1, "top_p", self.top_p, "must lie in (0, 1]")
        require(
            self.num_threads is None or self.num_threads >= 1, "num_threads", self.num_threads, "must be at least 1"
        )
        require(self.seed >= 0, "seed", self.seed, "must be 0 or more")


@dataclass(kw_only=True, slots=True)
class ShowOptions:
    """`loopcoder data show`: what a corpus is made of."""

    corpus_dir: str = "corpora/default"
    cache_dir: str | None = None  # for a corpus behind a URL: where its manifest is copied to

    def __post_init__(self) -> None:
        require(bool(self.corpus_dir), "corpus_dir", repr(self.corpus_dir), "must name a folder")


@dataclass(kw_only=True, slots=True)
class AuditOptions:
    """`loopcoder data audit`: what a run consumed, from positions alone, against what it recorded."""

    run_dir: str

    def __post_init__(self) -> None:
        _check_run(self.run_dir, None)


@dataclass(kw_only=True, slots=True)
class ReportOptions:
    """`loopcoder data report`: where every document of a corpus went."""

    corpus_dir: str = "corpora/default"
    html: str = ""  # where the page goes; default: report.html in the corpus, if that is on this machine
    json: str = ""  # where the numbers go; default: nowhere
    cache_dir: str | None = None  # for a corpus behind a URL: where its manifest is copied to

    def __post_init__(self) -> None:
        require(bool(self.corpus_dir), "corpus_dir", repr(self.corpus_dir), "must name a folder")
        # `--json` is `json=true` everywhere else.
        require(
            self.json.lower() not in ("true", "false"), "json", self.json, "must name a file, as in json=report.json"
        )


@dataclass(kw_only=True, slots=True)
class RunsOptions:
    """`loopcoder runs`: every run below a folder."""

    folder: str = "runs"
    json: bool = False  # print one JSON object per run instead of a table

    def __post_init__(self) -> None:
        require(bool(self.folder), "folder", repr(self.folder), "must name a folder")


@dataclass(kw_only=True, slots=True)
class StopOptions:
    """`loopcoder stop`: ask a run to save and stop, and wait for it."""

    run_dir: str
    wait_seconds: float = 1800.0  # how long to wait for the save
    json: bool = False  # print what became of the run as one JSON object

    def __post_init__(self) -> None:
        _check_run(self.run_dir, None)
        require(self.wait_seconds >= 0, "wait_seconds", self.wait_seconds, "must be 0 or more")


@dataclass(kw_only=True, slots=True)
class CheckpointListOptions:
    """`loopcoder checkpoint list`: every checkpoint of a run, by sizes and small files."""

    run_dir: str
    json: bool = False  # print one JSON object per checkpoint instead of a table

    def __post_init__(self) -> None:
        _check_run(self.run_dir, None)


@dataclass(kw_only=True, slots=True)
class CheckpointVerifyOptions:
    """`loopcoder checkpoint verify`: read every byte of a run's checkpoints."""

    run_dir: str
    step: int | None = None  # that one only; default: all

    def __post_init__(self) -> None:
        _check_run(self.run_dir, self.step)


@dataclass(kw_only=True, slots=True)
class CheckpointPruneOptions:
    """`loopcoder checkpoint prune`: delete old checkpoints of a run that nobody is writing to."""

    run_dir: str
    keep_last: int
    keep_every_steps: int | None = None  # default: the run's checkpoint.keep_every_steps; 0: none are kept for that
    dry_run: bool = False  # say what would be deleted, delete nothing

    def __post_init__(self) -> None:
        _check_run(self.run_dir, None)
        require_positive(keep_last=self.keep_last)
        every = self.keep_every_steps
        require(every is None or every >= 0, "keep_every_steps", every, "must be 0 (none) or more")


def _check_run(run_dir: str, step: int | None) -> None:
    require(bool(run_dir), "run_dir", repr(run_dir), "must name the folder of a run")
    require(step is None or step >= 1, "step", step, "must be at least 1")
