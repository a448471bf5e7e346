"""`loopcoder data build`: sources -> a corpus folder that `Corpus.open` accepts.

The journey: a folder `<corpus_dir>.building` beside the corpus -> collect (stage 1) -> tokenizer -> shards -> ledger,
manifest last -> one rename to `corpus_dir`. A build that is killed leaves nothing under `corpus_dir`; the next one with
the same configuration continues after the stages that were finished. A corpus that is there already is used again if
its configuration is the same, and never replaced unless `overwrite` says so.
"""

import fcntl
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from data_pipeline.errors import DataError
from data_pipeline.ledger import Ledger
from data_pipeline.manifest import (
    LEDGER_FILE,
    MANIFEST_FILE,
    TOKENIZER_FILE,
    Corpus,
    Manifest,
    SourceInfo,
    write_durably,
)
from data_pipeline.prepare.build_config import BuildConfig, content_config
from data_pipeline.prepare.collect import StagedGroup, collect, load_staged, save_staged
from data_pipeline.prepare.overlap import return_overlapping
from data_pipeline.prepare.tokenise import Meter, plan_sources, tokenizer_sample, write_source
from data_pipeline.shards import token_dtype
from data_pipeline.tokenizer import Tokenizer, train_tokenizer

Progress = Callable[[str], None]
_LOCK_FILE = "lock"


def build_corpus(config: BuildConfig, progress: Progress = print) -> Manifest:
    """Build the corpus, or find it built. `progress` gets one line at a time.

    Raises DataError when a source is bad or empty, another corpus is in the way, or another build is running.
    """
    if not config.sources:
        raise DataError("sources: none given; add one, for example configs/data_build/default.yaml")
    final = Path(config.corpus_dir)
    existing = _existing(config, final)
    if existing is not None:
        progress(f"{final}: already built from the same configuration, used as it is (overwrite=true builds it again)")
        return existing
    began = time.monotonic()
    with _building_folder(final) as folder:
        manifest = _build(config, folder, progress)
        _move_in_place(folder, final)
    tokens = sum(source.train.tokens for source in manifest.sources)
    progress(
        f"{final}: {tokens:,} training tokens in {len(manifest.sources)} sources, {time.monotonic() - began:.0f} s"
    )
    return manifest


def _existing(config: BuildConfig, final: Path) -> Manifest | None:
    if config.overwrite or not final.exists():
        return None
    if not (final / MANIFEST_FILE).is_file():
        if final.is_dir() and not any(final.iterdir()):
            return None
        raise DataError(f"corpus_dir={final}: exists and is no corpus; name another folder, or overwrite=true")
    manifest = Corpus.open(final).manifest
    wanted = content_config(config)
    differing = sorted(key for key in wanted if manifest.build_config.get(key) != wanted[key])
    if differing:
        raise DataError(
            f"corpus_dir={final}: holds a corpus with other {', '.join(differing)}; "
            "name another folder, or overwrite=true"
        )
    return manifest


@contextmanager
def _building_folder(final: Path) -> Iterator[Path]:
    """The folder beside `final`, locked. It stays when the build fails, for the next one to continue."""
    folder = final.with_name(final.name + ".building")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / _LOCK_FILE).open("w")
    except OSError as error:
        raise DataError(f"corpus_dir={final}: cannot be written ({error.strerror}); name another folder") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DataError(f"{folder}: another build is running there; wait for it, or name another folder") from error
        yield folder


def _build(config: BuildConfig, folder: Path, progress: Progress) -> Manifest:
    groups, ledger = _collected(config, folder, progress)
    tokenizer = _tokenizer(config, groups, folder, progress)
    shutil.rmtree(folder / "shards", ignore_errors=True)  # of a build that was stopped; always written from the start
    planned = plan_sources(groups, folder, tokenizer, config.min_source_tokens, ledger)
    meter = Meter(sum(group.num_bytes for group in groups), progress)
    sources = [write_source(source, folder, tokenizer, config, ledger, meter) for source in planned]
    return _finish(config, folder, tokenizer, sources, ledger)


def _collected(config: BuildConfig, folder: Path, progress: Progress) -> tuple[list[StagedGroup], Ledger]:
    content = json.dumps(content_config(config), sort_keys=True)
    config_hash = hashlib.sha256(content.encode()).hexdigest()
    staged = load_staged(folder, config_hash)
    if staged is not None:
        progress("read: the documents of the interrupted build are used")
        return staged
    for entry in folder.iterdir():
        if entry.name != _LOCK_FILE:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    ledger = Ledger()
    groups = collect(config, folder, ledger, progress)
    return_overlapping(groups, folder, config.max_heldout_overlap, ledger, progress)
    save_staged(folder, groups, ledger, config_hash)
    return groups, ledger


def _tokenizer(config: BuildConfig, groups: list[StagedGroup], folder: Path, progress: Progress) -> Tokenizer:
    path = folder / TOKENIZER_FILE
    if config.tokenizer_path:
        tokenizer = Tokenizer.load(config.tokenizer_path, config.end_of_document_token)
    elif path.is_file():
        return Tokenizer.load(path)
    else:
        began = time.monotonic()
        sample = tokenizer_sample(groups, folder, config.tokenizer_sample_bytes)
        tokenizer = train_tokenizer(sample, config.vocab_size)
        progress(f"tokenizer: {tokenizer.vocab_size} tokens, trained in {time.monotonic() - began:.0f} s")
    write_durably(path, tokenizer.to_json())
    return tokenizer


def _finish(
    config: BuildConfig, folder: Path, tokenizer: Tokenizer, sources: list[SourceInfo], ledger: Ledger
) -> Manifest:
    """Ledger, then the manifest, then nothing but the corpus is left in the folder."""
    if tokenizer.vocab_size < config.vocab_size and not config.tokenizer_path:
        ledger.note(
            f"tokenizer: {tokenizer.vocab_size} tokens, the sample gave no more (asked for {config.vocab_size})"
        )
    ledger.balance()
    ledger.save(folder)
    manifest = Manifest(
        sources=sources,
        tokenizer_hash=tokenizer.content_hash,
        tokenizer_file_sha256=hashlib.sha256((folder / TOKENIZER_FILE).read_bytes()).hexdigest(),
        vocab_size=tokenizer.vocab_size,
        end_of_document_id=tokenizer.end_of_document_id,
        dtype=token_dtype(tokenizer.vocab_size).name,
        block_tokens=config.block_tokens,
        heldout={
            "by": "lowest hashes of (seed, content with case, numbers and white space normalised)",
            "fraction": config.heldout_fraction,
            "min_documents": config.min_heldout_documents,
            "max_overlap": config.max_heldout_overlap,
            "documents": sum(source.heldout.documents for source in sources),
        },
        build_config=content_config(config),
    )
    manifest.check(folder / MANIFEST_FILE)
    manifest.save(folder)
    return manifest


def _move_in_place(folder: Path, final: Path) -> None:
    keep = {MANIFEST_FILE, TOKENIZER_FILE, LEDGER_FILE, "shards"}
    for entry in folder.iterdir():
        if entry.name not in keep:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    replaced = final.with_name(final.name + ".replaced")
    if final.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        final.rename(replaced)
    folder.rename(final)
    shutil.rmtree(replaced, ignore_errors=True)
