"""Commands and processes without the seconds that starting Python and torch takes, where that start
is not the point.
"""

import io
import multiprocessing
import os
import socket
import sys
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from huggingface_hub import constants

from ganscope import cli
from ganscope.cli import console


def run(*words: str, cwd: Path) -> CompletedProcess[str]:
    """What `python -m ganscope WORDS` would say in that folder, offline and 200 columns wide.

    A defect is raised, where a process would end with a traceback and status 1.
    """
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        warnings.catch_warnings(),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        patch.chdir(cwd)
        patch.setattr(sys, "argv", ["ganscope", *words])
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("COLUMNS", str(console.WIDEST))
        for screen in (console.out, console.err):
            patch.setattr(screen, "_width", console.WIDEST)
        try:
            cli.main()
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
    return CompletedProcess(words, status, out.getvalue(), err.getvalue())


def side_by_side(work: Callable[[], object], processes: int = 2) -> list[int | None]:
    """Exit codes of processes that `torchrun` would start, but quicker: they are forked."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def one(rank: int) -> None:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        work()

    context = multiprocessing.get_context("fork")
    started = [context.Process(target=one, args=(rank,)) for rank in range(processes)]
    for process in started:
        process.start()
    for process in started:
        process.join(200)
        if process.is_alive():  # else the whole run of tests would wait for it at its end
            process.kill()
            process.join()
    return [process.exitcode for process in started]
