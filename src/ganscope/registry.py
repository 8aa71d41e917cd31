"""Names to things: one small dictionary serves detectors, generators, layouts and degradations."""

import difflib
from collections.abc import Callable
from typing import TypeVar

from ganscope.errors import GanscopeError

T = TypeVar("T")


class Registry(dict[str, T]):
    """A dictionary of one `kind` of thing that refuses doubles and suggests the nearest known
    name.
    """

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator: file the decorated object under `name`."""

        def add(thing: T) -> T:
            if name in self:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self[name] = thing
            return thing

        return add

    def __missing__(self, name: str) -> T:
        raise GanscopeError(unknown(self.kind, name, sorted(self)))


def unknown(kind: str, name: str, known: list[str]) -> str:
    """The line that tells a user that `name` is no known `kind`, and what was probably meant."""
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return f"unknown {kind} {name!r}{hint} Known: {', '.join(known)}"
