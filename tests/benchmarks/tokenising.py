"""Tokenising side by side: `make bench-data` runs this and rewrites docs/benchmarks/tokenising.md.

One run, one core: every encoder is a process of its own, bound to the same core, and encodes the same documents of the
Python environment in the same order with the same tokenizer, trained here. tiktoken gets our merges as its ranks. An
encoder that is slow stops after a while; what it did is compared, id for id, with what the others made of it.

    python -m tests.benchmarks.tokenising [--samples FOLDER]

FOLDER holds files of many languages, one folder each (github-linguist's `samples`, for example): on these gigatoken is
compared with the reference once more.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[2]
TARGET = ROOT / "docs" / "benchmarks" / "tokenising.md"
BYTES_PER_SIDE = 16_000_000
VOCAB_SIZES = (4096, 76_800)
TRAINING_LIMIT_SECONDS, SMALLER_VOCAB = 90, 32_768
SECONDS_PER_ENCODER = 6
TOKENS_TO_TRAIN_ON = 18e12
ENCODERS = ("huggingface", "tiktoken", "gigatoken")
MAX_DOCUMENT_BYTES = 1_000_000


@dataclass(kw_only=True, slots=True)
class Measurement:
    """What one encoder did: documents encoded, their bytes, tokens, CPU seconds, memory; a hash of the ids of each."""

    num_bytes: int
    tokens: int
    seconds: float
    kept_bytes: int
    hashes: list[str]

    @property
    def tokens_per_second(self) -> float:
        """Of one core."""
        return self.tokens / self.seconds


def main() -> None:
    """Train, measure, compare, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=Path)
    samples = parser.parse_args().samples
    texts = environment_texts()
    lines = head(texts)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
        tokenizers, training = trained(texts, folder)
        lines += [training, "", *table(tokenizers, folder)]
        if samples is not None:
            lines += ["", *(parity(path, vocab_size, samples) for vocab_size, path in tokenizers.items())]
    print("\n".join(lines))
    TARGET.write_text("\n".join(lines) + "\n")
    print(f"written: {TARGET.relative_to(ROOT)}")


def environment_texts() -> list[str]:
    """Code and prose of the environment in turn, as the default corpus has them."""
    from data_pipeline.prepare import environment

    sides = []
    for read in (environment.code, environment.text):
        side, size = [], 0
        for raw in read(MAX_DOCUMENT_BYTES, lambda *_: None):
            side.append(raw.text)
            size += raw.num_bytes
            if size >= BYTES_PER_SIDE:
                break
        sides.append(side)
    code, prose = sides
    step = max(1, len(prose) // len(code))
    mixed = []
    for number, text in enumerate(code):
        mixed += [text, *prose[number * step : (number + 1) * step]]
    return mixed


def head(texts: list[str]) -> list[str]:
    size = sum(len(text.encode()) for text in texts)
    versions = ", ".join(f"{name} {version(name)}" for name in ("tokenizers", "tiktoken", "gigatoken"))
    return [
        "# Tokenising", "",
        f"`python -m tests.benchmarks.tokenising` (in `make bench-data`) on {datetime.now(UTC):%Y-%m-%d}: "
        f"{platform.machine()}, one core, CPU time, {versions}.",
        f"{len(texts):,} documents of the Python environment, {size / 1e6:.1f} MB of code and prose, one process each.",
    ]  # fmt: skip


def trained(texts: list[str], folder: Path) -> tuple[dict[int, Path], str]:
    """A tokenizer per size, the large one smaller if its training takes too long; and how long it took."""
    from data_pipeline.tokenizer import train_tokenizer

    paths, notes = {}, []
    for vocab_size in VOCAB_SIZES:
        began = time.monotonic()
        tokenizer = train_tokenizer(iter(texts), vocab_size)
        if time.monotonic() - began > TRAINING_LIMIT_SECONDS:
            tokenizer = train_tokenizer(iter(texts), SMALLER_VOCAB)
        notes.append(f"{tokenizer.vocab_size:,} tokens in {time.monotonic() - began:.0f} s")
        path = folder / f"{tokenizer.vocab_size}.json"
        path.write_text(tokenizer.to_json(), encoding="utf-8")
        paths[tokenizer.vocab_size] = path
    return paths, f"Trained on them, all cores: {', '.join(notes)}."


def table(tokenizers: dict[int, Path], folder: Path) -> list[str]:
    lines = [
        "| vocabulary | encoder | MB/s | Mtok/s | core-hours for 18T | memory it keeps | same ids as huggingface |",
        "|---|---|---|---|---|---|---|",
    ]
    for vocab_size, path in tokenizers.items():
        done = {encoder: measure(encoder, path, folder) for encoder in ENCODERS}
        reference = done["huggingface"].hashes
        for encoder, what in done.items():
            both = list(zip(what.hashes, reference, strict=False))
            hours = TOKENS_TO_TRAIN_ON / what.tokens_per_second / 3600
            lines.append(
                f"| {vocab_size:,} | {encoder} | {what.num_bytes / what.seconds / 1e6:.1f} "
                f"| {what.tokens_per_second / 1e6:.2f} | {hours:,.0f} | {what.kept_bytes / 1e6:.0f} MB "
                f"| {sum(a == b for a, b in both):,} of {len(both):,} documents |"
            )
        compared = list(zip(done["tiktoken"].hashes, done["gigatoken"].hashes, strict=False))
        lines.append(
            f"| {vocab_size:,} | gigatoken and tiktoken | | | | "
            f"| {sum(a == b for a, b in compared):,} of {len(compared):,} documents |"
        )
    return lines


def measure(encoder: str, tokenizer: Path, folder: Path) -> Measurement:
    """Run this module as a process that encodes and reports."""
    command = [sys.executable, "-m", "tests.benchmarks.tokenising"]
    environment = {**os.environ, VARIABLE: json.dumps([encoder, str(tokenizer), str(folder / "texts.json")])}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
    return Measurement(**json.loads(done.stdout))


VARIABLE = "BENCHMARK_TOKENISES"  # environment variable of the process that encodes


def encode() -> None:
    """The process: bound to one core before any library starts a thread. Prints a `Measurement` as JSON."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    os.environ["RAYON_NUM_THREADS"] = "1"
    import xxhash

    encoder, tokenizer, texts_path = json.loads(os.environ[VARIABLE])
    texts = json.loads(Path(texts_path).read_text(encoding="utf-8"))
    run = encode_function(encoder, Path(tokenizer))
    before = resident_bytes()
    results = []
    began = time.process_time()
    for text in texts:
        results.append(run(text))
        seconds = time.process_time() - began
        if seconds > SECONDS_PER_ENCODER:
            break
    kept = resident_bytes() - before - sum(ids.nbytes for ids in results)
    report = {
        "num_bytes": sum(len(text.encode()) for text in texts[: len(results)]),
        "tokens": sum(ids.size for ids in results),
        "seconds": seconds,
        "kept_bytes": kept,
        "hashes": [xxhash.xxh3_64_hexdigest(ids.astype("<u4").tobytes()) for ids in results],
    }
    print(json.dumps(report))


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def encode_function(encoder: str, path: Path):
    """Text -> ids as a numpy array: the pipeline's own two, and tiktoken."""
    import numpy as np

    from data_pipeline.encoders import Encoder
    from data_pipeline.tokenizer import Tokenizer

    if encoder != "tiktoken":
        tokenizer = Tokenizer.load(path, encoder=Encoder[encoder])
        return lambda text: tokenizer.encode_batch([text])[0]
    encoding = tiktoken_of(json.loads(path.read_text(encoding="utf-8")))
    return lambda text: np.array(encoding.encode_ordinary(text), dtype=np.uint32)


def tiktoken_of(content: dict):
    """tiktoken with the merges of a tokenizer.json: what is merged first has the lowest id, so ids serve as ranks."""
    import tiktoken

    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    byte_of = {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
    special = {token["content"] for token in content["added_tokens"]}
    ranks = {
        bytes(byte_of[character] for character in token): number
        for token, number in content["model"]["vocab"].items()
        if token not in special
    }
    (split, _) = content["pre_tokenizer"]["pretokenizers"]
    return tiktoken.Encoding("ours", pat_str=split["pattern"]["Regex"], mergeable_ranks=ranks, special_tokens={})


def parity(path: Path, vocab_size: int, samples: Path) -> str:
    """gigatoken against the reference on every text file below `samples`."""
    from data_pipeline.encoders import Encoder
    from data_pipeline.errors import DataError
    from data_pipeline.prepare.files import list_files, read_text
    from data_pipeline.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(path, encoder=Encoder.gigatoken)
    folders, compared, size, differing = set(), 0, 0, []
    for entry in list_files(samples, lambda *_: None):
        text = read_text(entry, MAX_DOCUMENT_BYTES, lambda *_: None)
        if text is None:
            continue
        folders.add(entry.name.split("/")[0])
        size += len(text.encode())
        try:
            compared += tokenizer.check_parity([(entry.name, text)])
        except DataError as error:
            differing.append(str(error))
    found = f"**{len(differing)} differ**" + (f": {differing[:3]}" if differing else "")
    return (
        f"Parity on samples of {len(folders)} languages, vocabulary {vocab_size:,}: {compared + len(differing):,} "
        f"documents, {size / 1e6:.1f} MB compared, {found}."
    )


if __name__ == "__main__":
    if VARIABLE in os.environ:
        encode()
    else:
        main()
