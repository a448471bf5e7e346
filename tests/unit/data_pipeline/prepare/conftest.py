"""Raw documents that builds start from."""

import json
import random
import shutil

import pytest

from tests.unit.data_pipeline.prepare.building import sentence


@pytest.fixture(scope="session")
def raw(tmp_path_factory):
    """120 Python files, 40 of C, 3 of Rust, a jsonl of prose; two exact copies, one that differs in a number."""
    folder, generator = tmp_path_factory.mktemp("raw"), random.Random(0)
    code = folder / "code"
    code.mkdir()
    for number in range(120):
        (code / f"{number}.py").write_text(f"# version 1.{number}\n{sentence(generator)}\n")
    for number in range(40):
        (code / f"{number}.c").write_text(f"/* <|endoftext|> */ {sentence(generator)}\n")
    for number in range(3):
        (code / f"{number}.rs").write_text(sentence(generator, 10))
    (code / "go.go").write_text(sentence(generator, 10))
    shutil.copy(code / "7.py", code / "copy of 7.py")
    shutil.copy(code / "8.py", code / "copy of 8.py")
    (code / "new 9.py").write_text((code / "9.py").read_text().replace("1.9", "2.10").replace(" ", "   ").upper())
    (code / "bad.py").write_bytes(b"\xff\xfe")
    with (folder / "prose.jsonl").open("w") as file:
        for _ in range(150):
            file.write(json.dumps({"text": sentence(generator)}) + "\n")
    return folder
