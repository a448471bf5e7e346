"""Leave a record of the error that ends this process, where the launcher looks for it.

When one rank fails, the others lose their connection to it and fail too. Which was first can only be told when each
records its error at once: before it leaves the process group, which is what the others notice.
"""

import json
import os
import sys
import time
import traceback
from pathlib import Path
from types import TracebackType
from typing import Self

from data_pipeline.errors import DataError
from loopcoder_train.config.errors import UserError
from loopcoder_train.config.process import FAILURE_RECORD

USER_ERRORS = (UserError, DataError)


class HangError(RuntimeError):
    """No progress for longer than `guards.hang_timeout_seconds`."""


def record_failure(error: BaseException) -> None:
    """Write `error` to the file that torchrun names, in torchrun's format, or to stderr; nowhere without torchrun.

    The first record stays: what is raised later, while things are closed, is a consequence.
    """
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not path or Path(path).exists():
        return
    is_user_error = isinstance(error, USER_ERRORS)
    text = " ".join(str(error).split())
    kind = type(error).__name__
    now = time.time()
    details = {
        "py_callstack": "".join(traceback.format_exception(error)),
        "timestamp": str(int(now)),  # all that torchrun reads
        "time": now,
        "user_error": is_user_error,
        "hang": isinstance(error, HangError),
    }
    message = text if is_user_error else f"{kind}: {text}" if text else kind
    content = json.dumps({"message": {"message": message, "extraInfo": details}})
    temporary = Path(f"{path}.partial")
    try:
        temporary.write_text(content, encoding="utf-8")
        temporary.replace(path)
    except OSError:  # the disk is full or read-only, which is perhaps the error; stderr is open since before that
        print(f"{FAILURE_RECORD}{content}", file=sys.stderr, flush=True)


class FailureRecorded:
    """`with FailureRecorded(): ...` records whatever ends the block in an error, and lets it pass.

    Enter it after the process group was joined, so that it is left before the process group is.
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and not isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
            record_failure(error)
