"""The PLT in plain torch, written to be read: the definition that every engine, kernel and exporter is held against.

docs/plt.md maps every equation to its function and its test.
"""

from importlib import import_module

# Imported when asked for: counts and names need no torch, and `loopcoder plan` answers before torch is loaded.
_HOMES = {"IGNORE_INDEX": "loss", "PLT": "plt", "build_model": "plt"}

__all__ = ["IGNORE_INDEX", "PLT", "build_model"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
