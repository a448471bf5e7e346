"""The ledger of damaged blocks that a run replaced: one line of JSON each, in a file that all its processes share.

A line says which tokens are missing and why; who found them, and when, it does not say. So the set of lines depends on
the positions that were read alone, not on ranks or workers: whoever finds a block first writes its line, the others
find it there.
"""

import fcntl
import json
from pathlib import Path

from data_pipeline.errors import DataError
from data_pipeline.manifest import Corpus
from data_pipeline.shards import BadBlockError

SUBSTITUTES_FILE = "data_substitutes.jsonl"


class SubstituteLedger:
    """Appends to `path`; the callback for `Corpus.on_bad_block`. Raises DataError when the file cannot be written."""

    def __init__(self, path: Path, corpus: Corpus) -> None:
        self._path, self._corpus = path, corpus
        self._known: set[tuple[int, int, int]] = set()

    def __call__(self, source_index: int, variant: int, block: BadBlockError) -> None:
        """Write the block's line unless it stands there already."""
        if (source_index, variant, block.start) in self._known:
            return
        line = json.dumps(
            {
                "source": self._corpus.manifest.names[source_index],
                "variant": variant,
                "first_token": block.start,
                "num_tokens": block.stop - block.start,
                "place": self._corpus.tokens(source_index, "train", variant)
                .locate(block.start)
                .removeprefix(self._corpus.location),
                "reason": "checksum",
            }
        )
        try:
            with self._path.open("a+", encoding="utf-8") as file:
                fcntl.flock(file, fcntl.LOCK_EX)  # ends with the file
                file.seek(0)
                if line not in file.read().splitlines():
                    file.write(line + "\n")
        except OSError as error:
            raise DataError(f"{self._path}: cannot be written ({error.strerror}); free space") from error
        self._known.add((source_index, variant, block.start))


def read_substitutes(path: Path) -> list[dict[str, object]]:
    """The lines of a ledger; none when there is no file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
