"""A scan's worker, on whose machine some files are bad for it."""

import os
import signal
import time
from typing import Any

from ganscope.detector.scanning import local, worker

serve = local._serve
read = worker.Worker._bytes


def bytes_of(self: Any, item: Any) -> tuple[bytes, bool]:
    """As always, but what is called poison ends the process, and slow takes its time."""
    if "poison" in item.path:
        os.kill(os.getpid(), signal.SIGSEGV)
    if "slow" in item.path:
        time.sleep(0.05)
    return read(self, item)


def spoiled(*arguments: Any) -> None:
    worker.Worker._bytes = bytes_of  # type: ignore[method-assign]
    serve(*arguments)
