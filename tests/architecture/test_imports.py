"""The arrows of docs/architecture.md, checked by import-linter; and the light modules stay light."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_import_contracts_hold():
    command = [str(Path(sys.executable).parent / "lint-imports"), "--config", "pyproject.toml", "--no-cache"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("loopcoder_train.config", ["torch", "hydra", "omegaconf"]),
        ("data_pipeline.stream", ["torch", "datasets", "pyarrow"]),
        ("loopcoder_train.cli.main", ["torch", "hydra", "megatron"]),
        ("loopcoder_train.model", ["megatron", "deepspeed", "transformers"]),
    ],
)
def test_light_modules_stay_light(module, heavy):
    """What a command pays before it can say that an option is misspelt."""
    program = f"import sys, {module}; print([name for name in {heavy!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_every_package_has_a_docstring():
    """A newcomer finds out from the first line of each file what it is for."""
    silent = []
    for folder in ("loopcoder_train", "data_pipeline", "launch"):
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text().lstrip()
            if text and not text.startswith('"""'):
                silent.append(str(path.relative_to(ROOT)))
    assert silent == []
