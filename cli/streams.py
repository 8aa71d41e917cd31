"""Standard output and error as commands need them: any character can be written, and a write that
fails is an error of its own.

Status 1 means that a check failed; Python's own answer to a full disk is 1, too.
"""

import errno
import io
import os
import sys
from contextlib import suppress

from ganscope.errors import GanscopeError


class OutputError(GanscopeError):
    """Standard output cannot be written."""


class ReaderGone(Exception):
    """The reader of standard output, `head` for one, has had enough. No `BrokenPipeError`: after
    that typer and rich end with status 1.
    """


class _Stream(io.TextIOWrapper):
    """A stream that escapes what its encoding lacks."""

    loses = False
    """Whether what cannot be written is let go: there is no other place to complain."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            self._fail(error)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        # What is still in memory would fail once more when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
        if self.loses:
            return
        # Windows says EINVAL of a pipe that nobody reads any more.
        if isinstance(error, BrokenPipeError) or (os.name == "nt" and error.errno == errno.EINVAL):
            raise ReaderGone from None
        raise OutputError(
            f"standard output cannot be written ({error.strerror or error})"
        ) from None


def prepare_streams() -> None:
    """Put such streams in the place of standard output and error."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever started this
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif type(stream) is io.TextIOWrapper:  # no stand-in of whoever calls this
            encoding, lines = stream.encoding, stream.line_buffering
            through = stream.write_through
            with suppress(OSError, ValueError):
                ours = _Stream(
                    stream.detach(),
                    encoding,
                    "backslashreplace",
                    line_buffering=lines,
                    write_through=through,
                )
                ours.loses = name == "stderr"
                setattr(sys, name, ours)
