"""What every task of every phase is given, and the meter that it turns."""

import time
from dataclasses import dataclass

from data_pipeline.manifest import TOKENIZER_FILE
from data_pipeline.prepare.build_config import BuildConfig
from data_pipeline.prepare.decontaminate import Contamination
from data_pipeline.prepare.numbering import Numbering
from data_pipeline.prepare.workspace import Workspace
from data_pipeline.tokenizer import Tokenizer

_REPORT_SECONDS = 1.0


@dataclass(slots=True)
class Job:
    """A build: its options and its folder."""

    config: BuildConfig
    workspace: Workspace

    def numbering(self) -> Numbering:
        """The numbers of the documents that `read` found."""
        parts = [self.workspace.load_json("documents", task) for task in range(self.config.tasks)]
        return Numbering([part["counts"] for part in parts])

    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the corpus; there from `vocabulary` on."""
        path = self.workspace.corpus / TOKENIZER_FILE
        return Tokenizer.load(path, self.config.end_of_document_token, encoder=self.config.encoder)

    def contamination(self) -> Contamination | None:
        """The index of the evaluation sets; None when there are none."""
        if not self.config.evaluation_sets:
            return None
        return Contamination.load(self.workspace.path("contamination", 0, "npz"))

    def meter(self, phase: str, task: int) -> "Meter":
        """Counts the bytes that a task has done."""
        return Meter(self.workspace, phase, task)


class Meter:
    """Reports a task's progress, at most once a second."""

    def __init__(self, workspace: Workspace, phase: str, task: int) -> None:
        self._report = lambda done: workspace.report_progress(phase, task, done)
        self._done, self._said = 0, 0.0

    def add(self, num_bytes: int) -> None:
        """Count bytes that are done."""
        self._done += num_bytes
        now = time.monotonic()
        if now - self._said >= _REPORT_SECONDS:
            self._said = now
            self._report(self._done)

    def finish(self) -> None:
        """Report the last bytes."""
        self._report(self._done)
