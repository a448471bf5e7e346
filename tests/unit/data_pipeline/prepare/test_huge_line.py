"""A 2 GB file that is one line: skipped and counted, in memory that does not grow with it."""

import subprocess
import sys
from pathlib import Path

from data_pipeline.prepare.files import TOO_LARGE

READ = """
import sys
from data_pipeline.prepare.documents import WHOLE, SourceConfig, SourceKind
from data_pipeline.prepare.rows import read
def peak():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
before, skipped = peak(), []
config = SourceConfig(name="s", kind=SourceKind.jsonl, path=sys.argv[1], text_field="text")
rows = list(read(config, 1_000_000, lambda reason, size: skipped.append((reason, size)), WHOLE))
print(rows, skipped, peak() - before, sep="|")
"""


def test_a_2_gb_line_is_skipped_in_bounded_memory(tmp_path):
    path, size, before = tmp_path / "huge.jsonl", 2 * 2**30, b'{"text": "before"}\n'
    with path.open("wb") as file:
        file.write(before + b'{"text": "')
        file.seek(size)  # a hole: the disk holds none of it
        file.write(b'"}\n{"text": "after"}\n')
    environment = {"PYTHONPATH": str(Path(__file__).parents[4]), "PATH": ""}
    line = [sys.executable, "-c", READ, str(path)]
    result = subprocess.run(line, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    rows, skipped, grown = result.stdout.strip().split("|")
    assert rows == "[('huge.jsonl:1', {'text': 'before'}), ('huge.jsonl:3', {'text': 'after'})]"
    assert skipped == f"[('{TOO_LARGE}', {size - len(before) + 3})]"
    assert int(grown) < 64_000, f"{grown} KB"
