"""The PLT in plain torch, written to be read: the definition that every engine, kernel and exporter is held against.

docs/plt.md maps every equation to its function and its test.
"""

from loopcoder_train.model.loss import IGNORE_INDEX
from loopcoder_train.model.plt import PLT, build_model

__all__ = ["IGNORE_INDEX", "PLT", "build_model"]
