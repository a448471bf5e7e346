"""What a finished corpus is made of. `manifest.json` is written last: a folder without it is not a corpus.

The journey: build.py fills a `Manifest` and saves it; `Corpus.open` reads it back, checks that it is whole (its hash),
that every path stays inside the folder and that the tokenizer is the one of the shards. No shard is opened before a
token of it is wanted, so opening does not depend on the number of tokens or documents.
"""

import dataclasses
import functools
import hashlib
import json
import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from data_pipeline.errors import DataError, nearest_hint
from data_pipeline.reading import Reading, is_remote, local_path
from data_pipeline.shards import BadBlockError, ShardCache, ShardedTokens, ShardInfo

if TYPE_CHECKING:
    from data_pipeline.remote_shards import RemoteShards

FORMAT = "loopcoder-corpus"
# A manifest says the lowest version that can read it: 2 knows prepared variants, and one without them is still a 1.
VERSION, VERSION_WITH_VARIANTS = 1, 2
MANIFEST_FILE, TOKENIZER_FILE, LEDGER_FILE = "manifest.json", "tokenizer.json", "ledger.json"
SPLITS = ("train", "heldout")
MAX_JSON_BYTES = 256 * 2**20  # the manifest of 18T tokens has about 10 MB, a large tokenizer 20
BUILD_REMEDY = "run `loopcoder data build`"
_NAME = re.compile(r"[a-z0-9][a-z0-9._+-]*")
_DTYPES = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}


@dataclass(kw_only=True, slots=True)
class SplitInfo:
    """One split of one source. `tokens` counts the end-of-document tokens too, one per document."""

    documents: int = 0
    bytes: int = 0
    tokens: int = 0
    shards: list[ShardInfo] = field(default_factory=list)


@dataclass(kw_only=True, slots=True)
class SourceInfo:
    """One source of the stream: one language (or a group of small ones), on one side (text | code).

    variants: further prepared variants of `train`, the same documents with other fill-in-the-middle choices; epoch e
    of the stream reads variant e mod (1 + len(variants)), `train` being variant 0.
    """

    name: str
    kind: str
    language: str
    train: SplitInfo = field(default_factory=SplitInfo)
    heldout: SplitInfo = field(default_factory=SplitInfo)
    variants: list[SplitInfo] = field(default_factory=list)

    @property
    def training_variants(self) -> list[SplitInfo]:
        """`train` and the further variants, in the order of the epochs."""
        return [self.train, *self.variants]

    def split(self, name: str) -> SplitInfo:
        """`train`, its first variant, or `heldout`."""
        return {"train": self.train, "heldout": self.heldout}[name]


@dataclass(kw_only=True)
class Manifest:
    """Everything that identifies a corpus. `heldout` says how the split was made; `build_config` from what."""

    sources: list[SourceInfo]
    tokenizer_hash: str
    tokenizer_file_sha256: str
    vocab_size: int
    end_of_document_id: int
    dtype: str
    block_tokens: int
    heldout: dict[str, Any] = field(default_factory=dict)
    build_config: dict[str, Any] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        return [source.name for source in self.sources]

    @property
    def kinds(self) -> list[str]:
        return [source.kind for source in self.sources]

    @functools.cached_property
    def manifest_hash(self) -> str:
        """sha256 of the content; the same for two builds of the same data, wherever they lie."""
        return _content_hash(self._content())

    def _content(self) -> dict[str, Any]:
        # Without variants the key is left out: hash and file are those that version 1 gave the same corpus.
        content = dataclasses.asdict(self)
        for source in content["sources"]:
            if not source["variants"]:
                del source["variants"]
        return content

    def source_index(self, name: str) -> int:
        """The index of a source by name; DataError names the nearest one."""
        if name not in self.names:
            raise DataError(f"source {name!r} is not in the corpus{nearest_hint(name, self.names)}")
        return self.names.index(name)

    def save(self, directory: Path) -> None:
        """Write manifest.json durably: temporary name, fsync, rename."""
        version = VERSION_WITH_VARIANTS if any(source.variants for source in self.sources) else VERSION
        content = {"format": FORMAT, "version": version, "manifest_hash": self.manifest_hash}
        write_durably(directory / MANIFEST_FILE, _dump({**content, **self._content()}))

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read and check manifest.json. Raises DataError when it is missing, damaged, or from another version."""
        path = directory / MANIFEST_FILE
        content = _read_json(path)
        if content.get("format") != FORMAT or content.get("version") not in (VERSION, VERSION_WITH_VARIANTS):
            raise DataError(
                f"{path}: format {content.get('format')!r} version {content.get('version')!r}; this program reads "
                f"{FORMAT!r} versions {VERSION} and {VERSION_WITH_VARIANTS}; build the corpus again"
            )
        body = {key: value for key, value in content.items() if key not in ("format", "version", "manifest_hash")}
        if _content_hash(body) != content.get("manifest_hash"):
            raise DataError(f"{path}: content does not match its hash; restore the file or build the corpus again")
        try:
            manifest = cls(**{**body, "sources": [_source(entry) for entry in body["sources"]]})
            manifest.check(path)
        except (KeyError, TypeError, AttributeError) as error:  # the hash fits, but somebody else wrote it
            raise DataError(
                f"{path}: an entry lacks a field or has one of another type ({type(error).__name__}: {error}); restore "
                "the file or build the corpus again"
            ) from error
        return manifest

    def check(self, path: Path) -> None:
        """Rules that hold for every manifest; `path` is only for the messages."""
        if not self.sources:
            raise DataError(f"{path}: no sources; {BUILD_REMEDY}")
        if len(set(self.names)) != len(self.names):
            raise DataError(f"{path}: two sources have the same name; build the corpus again")
        if self.dtype not in _DTYPES:
            raise DataError(f"{path}: dtype {self.dtype!r}; must be one of {', '.join(_DTYPES)}")
        if not 0 <= self.end_of_document_id < self.vocab_size:
            raise DataError(
                f"{path}: end_of_document_id {self.end_of_document_id} is outside vocabulary {self.vocab_size}"
            )
        for source in self.sources:
            _check_source(source, path)


class Corpus:
    """A corpus, opened lazily: a folder of this machine, or one behind a URL. Threads may share it.

    manifest: the `Manifest`; location: its folder or URL, for messages; directory: where manifest, tokenizer and
    ledger lie (of a remote corpus: copies below data.cache_dir). on_bad_block: what is told of damaged training tokens
    (source index, variant, error) when they shall be replaced (stream.py); None: they are an error.
    """

    def __init__(
        self, directory: Path, manifest: Manifest, *, location: str = "", shards: "RemoteShards | None" = None
    ) -> None:
        self.directory, self.manifest, self.location = directory, manifest, location or str(directory)
        self.on_bad_block: Callable[[int, int, BadBlockError], None] | None = None
        self._remote = shards
        self._cache = ShardCache(open_source=None if shards is None else shards.open)
        self._tokens: dict[tuple[int, str, int], ShardedTokens] = {}

    @classmethod
    def open(cls, location: str | Path, reading: Reading | None = None) -> Self:
        """Open the corpus at a path or URL (`s3://`, `https://`, `gs://`, `memory://` ...).

        reading: how a remote one is read. Raises DataError when the corpus is missing, damaged or has another
        tokenizer, and when a remote one is not to be had.
        """
        if is_remote(location):
            from data_pipeline.remote_corpus import open_remote  # fsspec and aiohttp: not for a local corpus

            directory, manifest, shards = open_remote(str(location), reading or Reading())
            corpus = cls(directory, manifest, location=str(location), shards=shards)
        else:
            directory = local_path(location)
            if not (directory / MANIFEST_FILE).is_file():
                raise DataError(f"{directory}: no corpus there ({MANIFEST_FILE} is missing); {BUILD_REMEDY}")
            corpus = cls(directory, Manifest.load(directory))
        corpus._check_tokenizer()
        return corpus

    def _check_tokenizer(self) -> None:
        path = self.directory / TOKENIZER_FILE
        try:
            content = _read_limited(path)
        except OSError as error:
            raise DataError(f"{path}: tokenizer cannot be read ({error.strerror}); {BUILD_REMEDY}") from error
        if hashlib.sha256(content).hexdigest() == self.manifest.tokenizer_file_sha256:
            return
        # Not the same bytes: perhaps only the white space differs. Parsing is slow for a large vocabulary, so second.
        if canonical_json_hash(content, path) != self.manifest.tokenizer_hash:
            raise DataError(
                f"{path}: not the tokenizer that made the shards (manifest says "
                f"{self.manifest.tokenizer_hash[:16]}); restore it or build the corpus again"
            )

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The `Tokenizer` of this corpus."""
        from data_pipeline.tokenizer import Tokenizer  # the stream must not pay for this import

        return Tokenizer.load(self.directory / TOKENIZER_FILE, end_of_document_id=self.manifest.end_of_document_id)

    def tokens(self, source_index: int, split: str = "train", variant: int = 0) -> ShardedTokens:
        """The tokens of one source as one array-like; no file is opened yet.

        split: "train", of which `variant` chooses the prepared variant, or "heldout", which has one.
        """
        key = (source_index, split, variant)
        if key not in self._tokens:
            source = self.manifest.sources[source_index]
            splits = {"train": source.training_variants, "heldout": [source.heldout]}[split]
            self._tokens[key] = ShardedTokens(self.directory, splits[variant].shards, self._cache)
        return self._tokens[key]

    def prefetch(self, source_index: int, start: int, stop: int, variant: int = 0) -> None:
        """Begin to fetch training tokens start..stop-1 of a source of a remote corpus; nothing for a local one."""
        if self._remote is not None:
            for info, begin, end in self.tokens(source_index, "train", variant).parts(start, stop):
                self._remote.prefetch(info.file, info, begin, end)

    @property
    def is_remote(self) -> bool:
        """Whether tokens come from a remote, so that `prefetch` does something."""
        return self._remote is not None

    def interrupt(self) -> None:
        """End the reads of a remote that are in progress in other threads; they raise DataError."""
        if self._remote is not None:
            self._remote.interrupt()

    def close(self) -> None:
        """Close all shard files and end the threads that fetch; reading opens them again."""
        self._cache.close()
        if self._remote is not None:
            self._remote.close()


def canonical_json_hash(content: bytes, path: Path) -> str:
    """sha256 of a JSON document with sorted keys and no spaces."""
    try:
        parsed = json.loads(content)
    except RecursionError as error:
        raise DataError(f"{path}: is nested too deep; restore the file") from error
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}); restore the file") from error
    return _content_hash(parsed)


def check_relative(file: str, path: Path) -> None:
    """DataError unless `file` stays inside the folder of the manifest at `path`."""
    parts = PurePosixPath(file).parts
    if not parts or PurePosixPath(file).is_absolute() or ".." in parts or "\\" in file or "\0" in file:
        raise DataError(f"{path}: shard path {file!r}; must be relative and stay inside the corpus")


def write_durably(path: Path, content: str) -> None:
    """Write a text file so that after a crash it is whole or absent."""
    temporary = path.with_name(path.name + ".partial")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _dump(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _content_hash(content: Any) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(_read_limited(path))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); {BUILD_REMEDY}") from error
    except RecursionError as error:
        raise DataError(f"{path}: is nested too deep; restore the file or build the corpus again") from error
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: not JSON ({error}); restore the file or build the corpus again") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: not a JSON object; restore the file or build the corpus again")
    return content


def _read_limited(path: Path) -> bytes:
    """The whole file, at most MAX_JSON_BYTES. Raises OSError, and DataError for a larger one or a pipe."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_JSON_BYTES:
            raise DataError(f"{path}: must be a regular file of at most {MAX_JSON_BYTES} bytes; restore the file")
        return file.read(status.st_size)


def _check_source(source: SourceInfo, path: Path) -> None:
    if not _NAME.fullmatch(source.name):
        raise DataError(f"{path}: source name {source.name!r}; only a-z 0-9 . _ + - are allowed")
    if source.kind not in ("text", "code"):
        raise DataError(f"{path}: source {source.name!r} has kind {source.kind!r}; must be text or code")
    for split in (*source.training_variants, source.heldout):
        for shard in split.shards:
            check_relative(shard.file, path)
            if type(shard.num_tokens) is not int or shard.num_tokens < 0:
                raise DataError(f"{path}: shard {shard.file!r} has {shard.num_tokens!r} tokens; must be a count")
        if split.tokens != sum(shard.num_tokens for shard in split.shards):
            raise DataError(f"{path}: source {source.name!r}: shards do not add up to {split.tokens} tokens")


def _source(entry: dict[str, Any]) -> SourceInfo:
    return SourceInfo(
        name=entry["name"],
        kind=entry["kind"],
        language=entry["language"],
        variants=[_split(variant) for variant in entry.get("variants", ())],
        **{name: _split(entry[name]) for name in SPLITS},
    )


def _split(entry: dict[str, Any]) -> SplitInfo:
    return SplitInfo(**{**entry, "shards": [ShardInfo(**shard) for shard in entry["shards"]]})
