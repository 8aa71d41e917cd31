"""The errors a user can mend.

Everything a person can put right by typing something else, freeing space or naming another file is
a `GanscopeError`; the command line prints it as one line and exits with status 2. Anything else is
a defect of ours and keeps its traceback.
"""

import re
from pathlib import Path
from typing import Any


def in_a_line(text: str) -> str:
    """A name or a cell as it can stand in a message: quoted where it would break the line."""
    return text if text.isprintable() else repr(text)


class GanscopeError(Exception):
    """A mistake or a circumstance that the user can mend; the message says how."""


class ToldElsewhere(GanscopeError):
    """Another of several processes has failed and says why; this one ends without a word."""


class GanscopeWarning(UserWarning):
    """Something that a user should know and that stops nothing; the command line prints a line."""


class ImageError(GanscopeError):
    """A file that cannot be read as an image.

    `path` is the file, `reason` says in a few words what is wrong with it.
    """

    def __init__(self, path: str | Path, reason: str):
        super().__init__(f"{path}: {reason}")
        self.path = str(path)
        self.reason = reason

    def __reduce__(self) -> tuple:
        return type(self), (self.path, self.reason)


_CONTROL = re.compile(
    r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def escaped(text: str) -> str:
    """Text for a terminal: characters that steer it, or turn the direction of writing, as \\x1b."""
    return _CONTROL.sub(lambda c: c[0].encode("unicode_escape", "surrogatepass").decode(), text)


def escaped_in_page(value: Any) -> Any:
    """What a page puts in: text as `escaped`, but for tabs and line ends; all else as it is."""
    if not isinstance(value, str):
        return value
    shown = "\t".join(map(escaped, str(value).replace("\r\n", "\n").split("\t")))
    return type(value)(shown) if hasattr(value, "__html__") else shown  # markup: a join's result


def refuse_bytes(name: str) -> None:
    """Raise `GanscopeError` for a file name that is no UTF-8, which no table can hold."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise GanscopeError(f"{name!a}: this name is no UTF-8; rename the file") from None


def counted(number: int, one: str, many: str = "") -> str:
    """A number with its word, "1 file", "2,000 files"; many: where that is not `one` and an s."""
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


def reason_of(error: BaseException) -> str:
    """An error's kind and the first line of what it says."""
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0][:300]}" if said else type(error).__name__
