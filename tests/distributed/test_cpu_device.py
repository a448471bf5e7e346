"""The stand-in for torch.cuda is in place before Megatron, or the import fails loudly."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="the stand-in is a no-op where CUDA exists"),
    pytest.mark.distributed,
]


def run(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)


def test_any_module_of_the_engine_package_brings_the_stand_in():
    result = run(
        "import torch, warnings; warnings.simplefilter('error', UserWarning)\n"
        "import loopcoder_train.engines.megatron.shift\n"
        "from loopcoder_train.runtime import cpu_device\n"
        "assert cpu_device.install()\n"
        "assert torch.cuda.current_device() == torch.device('cpu')\n"
        "assert torch.zeros(1, device='cuda').device.type == 'cpu'\n"
        "with torch.device('meta'): assert torch.zeros(1).is_meta and torch.tensor(1).is_meta\n"
        "assert torch.ones(1).bfloat16().type() == 'torch.cuda.BFloat16Tensor'\n"
        "assert torch.ones(1).type(torch.float64).dtype == torch.float64\n"
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""


def test_coming_after_megatron_is_an_error():
    result = run("import megatron.core\nimport loopcoder_train.engines.megatron")
    assert result.returncode != 0
    assert "imported before the CPU stand-in" in result.stderr


def test_the_runtime_package_stays_light():
    result = run("import sys, loopcoder_train.runtime.cpu_device; assert 'megatron' not in sys.modules")
    assert result.returncode == 0, result.stderr
