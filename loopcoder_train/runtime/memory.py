"""How this process's allocator treats the memory of CPU tensors."""

import ctypes

# Parameter numbers of glibc's mallopt (malloc.h).
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_LARGEST = 2**31 - 1
_TOP_PAD_BYTES = 64 * 2**20


def keep_freed_memory() -> bool:
    """Let glibc keep memory that tensors free, instead of giving it back to the kernel after every large tensor.

    Otherwise each activation of more than 32 MiB is mapped and its pages are faulted in anew in every step: a quarter
    of the step on CPUs (docs/benchmarks/step_time.md). The price is that a process's memory does not shrink. Returns
    whether the C library has these settings; on another one nothing changes.
    """
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):
        return False
    settings = ((_M_MMAP_THRESHOLD, _LARGEST), (_M_TRIM_THRESHOLD, _LARGEST), (_M_TOP_PAD, _TOP_PAD_BYTES))
    return all(library.mallopt(parameter, value) == 1 for parameter, value in settings)
