"""Log lines of the workers: rank 0 to stdout (the terminal), warnings of the others to stderr (their log file)."""

import logging
import sys
import warnings

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
OTHER_RANK_FORMAT = "%(asctime)s rank{rank} %(levelname)s %(name)s: %(message)s"

# Start of a warning -> why it is of no use to the reader. Only these are left out; every other warning is logged.
KNOWN_WARNINGS = {
    r"Transformer Engine and Apex are not installed": "optional fused kernels; torch's own are used on purpose",
    r".*Redirects are currently not supported": "torchrun on other systems than Linux",
    r"The pynvml package is deprecated": "concerns a dependency of torch",
}


def setup_logging(rank: int, *, level: int = logging.INFO) -> None:
    """Replace the root logger's handlers by the one of this rank, and send Python warnings through it."""
    if rank == 0:
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logging.Formatter(FORMAT, datefmt="%H:%M:%S"))
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter(OTHER_RANK_FORMAT.format(rank=rank), datefmt="%H:%M:%S"))
    handler.setLevel(level if rank == 0 else logging.WARNING)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # Libraries speak when something is wrong, this project also when something happens.
    root.setLevel(logging.WARNING)
    for package in ("loopcoder_train", "data_pipeline"):
        logging.getLogger(package).setLevel(level)
    logging.captureWarnings(True)
    for start in KNOWN_WARNINGS:
        warnings.filterwarnings("ignore", message=start)
