"""The same documents as Megatron's indexed datasets and as our corpus, and how each is opened."""

import hashlib
import logging
import tempfile
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from data_pipeline.manifest import TOKENIZER_FILE, Corpus, Manifest, SourceInfo, SplitInfo, canonical_json_hash
from data_pipeline.quotas import quotas_for
from data_pipeline.shards import ShardInfo, ShardWriter, token_dtype
from data_pipeline.stream import TokenStream

if TYPE_CHECKING:
    from megatron.core.datasets.blended_dataset import BlendedDataset

SEQUENCE_LENGTH = 4096
VOCAB_SIZE, END = 76_800, 0
SEED = 1234
TOTAL_TOKENS, SHARD_TOKENS, BLOCK_TOKENS = 48_000_000, 4_000_000, 4096
MEAN_TOKENS, SIGMA = 1_000, 1.3
SOURCES = {f"text-{i:02d}": "text" for i in range(10)} | {f"code-{i:02d}": "code" for i in range(40)}
_TOKENIZER = b'{"a tokenizer": "nobody encodes here"}'
# reset_position_ids, reset_attention_mask, eod_mask_loss, create_attention_mask
MEGATRON_SETTINGS = {
    "pretrain": (False, False, False, True),
    "documents": (True, False, True, False),
    "cheapest": (False, False, False, False),
}


def write_corpora(folder: Path) -> dict[str, Any]:
    """Write `folder/megatron/NAME.{bin,idx}` and `folder/ours`; returns the numbers of documents and tokens."""
    random = np.random.default_rng(0)
    sides = {kind: [name for name in SOURCES if SOURCES[name] == kind] for kind in ("text", "code")}
    (folder / "megatron").mkdir()
    infos, documents, tokens = [], 0, 0
    for name, kind in SOURCES.items():
        # Zipf: the k-th source of a side has 1/k of the first one's tokens.
        weights = 1 / np.arange(1, len(sides[kind]) + 1)
        size = int(TOTAL_TOKENS / 2 * (weights / weights.sum())[sides[kind].index(name)])
        lengths = _lengths(random, size)
        ids = random.integers(1, VOCAB_SIZE, size=int(lengths.sum()), dtype=np.int64)
        ids[np.cumsum(lengths) - 1] = END
        _write_megatron(folder / "megatron" / name, ids, lengths)
        infos.append(SourceInfo(name=name, kind=kind, language=name, train=_write_ours(folder / "ours", name, ids)))
        documents, tokens = documents + len(lengths), tokens + len(ids)
    (folder / "ours" / TOKENIZER_FILE).write_bytes(_TOKENIZER)
    Manifest(
        sources=infos,
        tokenizer_hash=canonical_json_hash(_TOKENIZER, Path("t")),
        tokenizer_file_sha256=hashlib.sha256(_TOKENIZER).hexdigest(),
        vocab_size=VOCAB_SIZE,
        end_of_document_id=END,
        dtype=token_dtype(VOCAB_SIZE).name,
        block_tokens=BLOCK_TOKENS,
    ).save(folder / "ours")
    return {"documents": documents, "tokens": tokens}


def _lengths(random: np.random.Generator, size: int) -> np.ndarray:
    """Lengths of documents, end token included, until `size` tokens are reached: log-normal with a long tail."""
    drawn = random.lognormal(np.log(MEAN_TOKENS) - SIGMA**2 / 2, SIGMA, size=2 * size // MEAN_TOKENS + 100)
    lengths = np.maximum(2, drawn.astype(np.int64))
    return lengths[: int(np.searchsorted(np.cumsum(lengths), size)) + 1]


def _write_megatron(prefix: Path, ids: np.ndarray, lengths: np.ndarray) -> None:
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.int32)
    for document in np.split(ids, np.cumsum(lengths)[:-1]):
        builder.add_document(torch.from_numpy(document), [len(document)])
    builder.finalize(f"{prefix}.idx")


def _write_ours(folder: Path, name: str, ids: np.ndarray) -> SplitInfo:
    info = SplitInfo(documents=int((ids == END).sum()), bytes=4 * len(ids), tokens=len(ids))
    for number, begin in enumerate(range(0, len(ids), SHARD_TOKENS)):
        file, part = f"shards/{name}/{number:05d}.tokens", ids[begin : begin + SHARD_TOKENS]
        dtype = token_dtype(VOCAB_SIZE)
        with ShardWriter(folder / file, dtype=dtype, block_tokens=BLOCK_TOKENS, tokenizer_hash="ab" * 32) as writer:
            writer.append(part)
            info.shards.append(ShardInfo(file=file, num_tokens=len(part), checksum=writer.close()))
    return info


def our_stream(folder: Path, samples: int) -> TokenStream:
    """Our stream of `samples` sequences; sources by their tokens, text and code 1:1."""
    corpus = Corpus.open(folder / "ours")
    plan = quotas_for(corpus.manifest, samples, sequence_length=SEQUENCE_LENGTH, max_repeats=1e9)
    return TokenStream(corpus, plan.mixture(), SEQUENCE_LENGTH, SEED)


def megatron_dataset(folder: Path, samples: int, setting: str) -> "BlendedDataset":
    """Megatron's training set of `samples` samples with the same weights, built as its pretrain does."""
    import torch
    from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    if not torch.distributed.is_initialized():  # its blend asks for the rank
        store = Path(tempfile.mkdtemp(dir=folder)) / "store"
        torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    quotas = quotas_for(
        Manifest.load(folder / "ours"), samples, sequence_length=SEQUENCE_LENGTH, max_repeats=1e9
    ).quotas
    prefixes = [str(folder / "megatron" / name) for name in SOURCES]
    positions, attention, loss, mask = MEGATRON_SETTINGS[setting]
    config = GPTDatasetConfig(
        random_seed=SEED,
        sequence_length=SEQUENCE_LENGTH,
        blend=(prefixes, [quota / samples for quota in quotas]),
        split="1,0,0",
        path_to_cache=str(folder / "cache"),
        tokenizer=SimpleNamespace(vocab_size=VOCAB_SIZE, eod=END, unique_identifiers={"class": "none"}),
        reset_position_ids=positions,
        reset_attention_mask=attention,
        eod_mask_loss=loss,
        create_attention_mask=mask,
    )
    return BlendedMegatronDatasetBuilder(GPTDataset, [samples, 0, 0], lambda: True, config).build()[0]
