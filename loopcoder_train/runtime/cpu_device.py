"""The CPU stand-in for `torch.cuda`: lets Megatron-core train on a machine without a GPU (gloo).

`install()` does nothing where CUDA exists. It must run before Megatron is imported; the engine package's `__init__`
calls it first, and it refuses to come late, so the order cannot go wrong silently.

| replaced                      | by                    | because Megatron-core 0.16                                   |
|-------------------------------|-----------------------|--------------------------------------------------------------|
| torch.cuda.current_device     | the CPU device        | makes buffers, weights and collectives' outputs there        |
| torch.zeros, torch.tensor     | `device="cuda"` = CPU | keeps token counts and norms in tensors named "cuda"         |
| Tensor.type() (without dtype) | 'torch.cuda.…Tensor'  | compares these strings to tell bf16 from fp32 weights        |

Not here, because this project does not use it: streams and events, Megatron's random number tracker (the model draws
no random numbers), pinned memory, and the optimizer's own checkpoint format (state is saved under layout-free names).
"""

import functools
import sys
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._device import _device_constructors

_CPU = torch.device("cpu")
_installed = False


def install() -> bool:
    """Install the stand-in unless CUDA exists or it is there already. Returns whether it is in place.

    Raises:
        RuntimeError: Megatron was imported first and has bound the functions that would be replaced.
    """
    global _installed
    if _installed or torch.cuda.is_available():
        return _installed
    if "megatron.core" in sys.modules:
        raise RuntimeError(
            "megatron.core was imported before the CPU stand-in for torch.cuda; import it through "
            "loopcoder_train.engines.megatron only"
        )
    _device_constructors()  # torch remembers what it returns: `with torch.device(...)` must know the originals
    torch.cuda.current_device = lambda: _CPU
    torch.zeros, torch.tensor = _without_cuda(torch.zeros), _without_cuda(torch.tensor)
    torch.Tensor.type = _type_as_on_cuda(torch.Tensor.type)
    _installed = True
    return True


def _without_cuda(factory: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`factory` that takes `device="cuda"` for the CPU."""

    @functools.wraps(factory)
    def on_cpu(*args, **options):
        device = options.get("device")
        if device is not None and torch.device(device).type == "cuda":
            options["device"] = _CPU
        return factory(*args, **options)

    return on_cpu


def _type_as_on_cuda(original: Callable[..., Tensor | str]) -> Callable[..., Tensor | str]:
    """`Tensor.type` whose answer, when asked without a dtype, is the CUDA tensor type's name."""

    @functools.wraps(original)
    def type_of(self, dtype=None, *args, **options):
        if dtype is not None:
            return original(self, dtype, *args, **options)
        return original(self).replace("torch.", "torch.cuda.", 1)

    return type_of
