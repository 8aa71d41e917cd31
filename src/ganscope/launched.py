"""Processes that belong together: whether `torchrun` or its like started this one as one of
several, and how those that this one starts are kept from a terminal's Ctrl-C.
"""

import os
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker

from ganscope.errors import GanscopeWarning

PLACES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
"""What says which of the processes this is, and how many there are."""


def place() -> tuple[int, int]:
    """(i, n): this is process i of n, from 0 on; (0, 1) where that is not said, or only in part, as
    by variables that an earlier command left behind.
    """
    rank, size = (_number(name) for name in PLACES[:2])
    if rank is None or size is None or not 0 <= rank < size:
        return 0, 1
    return rank, size


def forget_stale(meet: bool = False) -> None:
    """Take variables that do not fit together out of the environment, with a warning; meet: where
    processes have to meet each other, so that an address is needed, too.
    """
    said = {name: os.environ[name] for name in PLACES if name in os.environ}
    if not said:
        return
    whole = _number("RANK") is not None and place()[1] == _number("WORLD_SIZE")
    whole = whole and ("LOCAL_RANK" not in said or _number("LOCAL_RANK") is not None)
    if meet:
        whole = whole and len(said) == 3 and {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()
    if whole:
        return
    for name in said:
        del os.environ[name]
    words = " ".join(f"{name}={value}" for name, value in said.items())
    warnings.warn(
        f"{words} in the environment: nothing started several processes, so this runs as one; "
        "unset what an earlier command left behind",
        GanscopeWarning,
        stacklevel=3,
    )


def _number(name: str) -> int | None:
    value = os.environ.get(name, "")
    return int(value) if value.isascii() and value.isdigit() and len(value) < 10 else None


@contextmanager
def deaf_to_ctrl_c() -> Iterator[None]:
    """Processes that begin in this block never hear a terminal's Ctrl-C, not even while Python
    starts: it is for their parent to answer, which hears it after the block.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # which unblocks signals, and is needed by processes
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
