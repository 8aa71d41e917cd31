"""What a user names becomes a stream of files: local ones, those of any store that fsspec reads,
lists of them, and the members of tar files (WebDataset's shards).

Nothing is opened but lists and the headers of tar files, and no list is held in memory.
"""

import csv
import io
import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any, BinaryIO, NamedTuple

from ganscope.errors import GanscopeError, reason_of
from ganscope.images import IMAGE_SUFFIXES
from ganscope.inputs import LISTS, STANDARD_INPUT, Passed, find_images

COLUMNS = ("path", "file_name", "url")
"""Columns of a table that may hold the paths; the first that is there does."""
TABLES = (".csv", ".parquet")
PACKED = (".zip", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".pdf")
"""What no byte range can be read from; `ganscope check` looks into them."""
BATCH = 10_000
"""Rows of a Parquet list read at a time."""


class Item(NamedTuple):
    """A file to be judged."""

    number: int
    """In the order of this scan's listing; made up anew by every scan."""
    path: str
    """What it is called in the results."""
    place: str = ""
    """The file in which its bytes lie; "" for itself."""
    start: int = 0
    size: int = -1
    """Bytes from `start` on; -1 for all."""
    error: str = ""
    """Why nothing can be read, if the listing knows."""


def find_items(paths: Sequence[str], passed: Passed | None = None) -> Iterator[Item]:
    """Yield the files that `paths` name, in order; `passed` gets what is not looked at.

    Raises `GanscopeError` for what does not exist, cannot be listed, or is no list of paths.
    """
    passed = Passed() if passed is None else passed
    number = 0
    for path in paths:
        for item in _named(address_of(path), passed):
            yield item._replace(number=number)
            number += 1


def count_items(paths: Sequence[str]) -> int | None:
    """How many files there are, or None where only a network, or tar files, would tell."""
    if any(is_remote(address_of(p)) or p.lower().endswith(".tar") for p in paths):
        return None
    return sum(1 for _ in find_items(paths))


def is_remote(path: str) -> bool:
    """Whether a path is read through fsspec, or fetched, and not by the operating system."""
    return bool(re.match(r"[a-z][a-z0-9+.-]*(::|://)", path)) and not path.startswith("file://")


def is_web(path: str) -> bool:
    return path.lower().startswith(("http://", "https://"))


def store_of(path: str) -> tuple[Any, str]:
    """The fsspec file system that a path is in, and what the file is called there.

    Raises `GanscopeError` where a package for it is missing.
    """
    import fsspec

    try:
        return fsspec.core.url_to_fs(path)
    except (ImportError, ValueError) as error:
        scheme = path.partition(":")[0]
        raise GanscopeError(
            f"{path}: {scheme}:// cannot be read here ({reason_of(error)[:120]}); for s3:// there "
            "is pip install 'ganscope[scale]', for others the package that fsspec names"
        ) from None


def address_of(path: str) -> str:
    """hf:OWNER/NAME is a data set of the Hugging Face hub; ~ is home."""
    found = re.match(r"hf:(?!//)(.+)", path)
    if found:
        return f"hf://datasets/{found[1]}"
    return path.removeprefix("file://") if path.startswith("file://") else path


def _named(path: str, passed: Passed, listed: bool = False) -> Iterator[Item]:
    """What one name stands for. listed: by a list, which is no reason to end a scan."""
    if path == STANDARD_INPUT and not listed:
        raise GanscopeError("-: a scan reads no standard input; name a list of paths, or use check")
    if is_web(path):
        yield Item(0, path)
        return
    if is_remote(path):
        yield from _remote(path, passed, listed)
        return
    if os.path.isdir(path):
        yield from (Item(0, image) for image in find_images(path, passed))
    elif not os.path.exists(path):
        if not listed:
            raise GanscopeError(f"{path}: no such file or folder")
        yield Item(0, path, error="no such file or folder")
    else:
        yield from _file(path, passed, listed)


def _file(path: str, passed: Passed, listed: bool) -> Iterator[Item]:
    """One file: a list, a tar file, or one to be judged."""
    name = path.lower()
    if not listed and name.endswith((*LISTS, *TABLES)):
        for entry in _entries(path, passed):
            yield from _named(_beside(entry, path), passed, listed=True)
    elif name.endswith(".tar"):
        yield from _members(path, passed)
    elif not listed and name.endswith(PACKED):
        raise GanscopeError(f"{path}: a scan does not look into it; unpack it, or use check")
    else:
        yield Item(0, path)


def _remote(path: str, passed: Passed, listed: bool) -> Iterator[Item]:
    if listed and not path.endswith("/"):
        yield from _file(path, passed, listed)
        return
    try:
        yield from _walked(path, passed, listed)
    except Exception as error:  # those of stores share no base
        said = f"cannot be listed ({reason_of(error)[:200]})"
        if isinstance(error, GanscopeError):
            said = str(error).removeprefix(f"{path}: ")
        if not listed:
            raise GanscopeError(f"{path}: {said}") from None
        yield Item(0, path, error=said)


def _walked(path: str, passed: Passed, listed: bool) -> Iterator[Item]:
    """A file of a store, or all below a folder of it."""
    store, inner = store_of(path)
    if store.isfile(inner):
        yield from _file(path, passed, listed)
        return
    if not store.exists(inner):
        raise GanscopeError(f"{path}: no such file or folder")
    for folder, folders, files in store.walk(inner, on_error="raise"):
        if isinstance(folders, list):
            folders.sort()
        for file in sorted(files):
            ending = PurePosixPath(file).suffix.lower()
            whole = store.unstrip_protocol(f"{folder.rstrip('/')}/{file}")
            if file.startswith(".") or not file:
                continue
            if ending in IMAGE_SUFFIXES or not ending:
                yield Item(0, whole)
            elif ending == ".tar":
                yield from _members(whole, passed)
            else:
                passed.add(ending[:12], whole)


def open_stream(path: str) -> BinaryIO:
    """A file, open for reading bytes, wherever it lies."""
    if not is_remote(path):
        return open(path, "rb")
    store, inner = store_of(path)
    return store.open(inner, "rb")


def _entries(path: str, passed: Passed) -> Iterator[str]:
    """The paths that a list holds; `passed` gets rows without one."""

    def named(rows: Iterable[Any]) -> Iterator[str]:
        for number, row in enumerate(rows, 1):
            if row:
                yield str(row)
            else:
                passed.add("without a path", f"row {number} of {path}")

    try:
        with open_stream(path) as file:
            if path.lower().endswith(".parquet"):
                yield from named(_parquet(file, path))
                return
            text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape")
            if path.lower().endswith(".csv"):
                rows = csv.DictReader(text)
                column = _column(rows.fieldnames or (), path)
                yield from named(row[column] for row in rows)
            else:
                lines = (line.strip() for line in text)
                yield from (line for line in lines if line and not line.startswith("#"))
    except GanscopeError:
        raise
    except Exception as error:  # of stores, of pyarrow, of csv
        raise GanscopeError(
            f"{path}: cannot be read as a list ({reason_of(error)[:200]})"
        ) from None


def _parquet(file: BinaryIO, path: str) -> Iterator[Any]:
    from pyarrow.parquet import ParquetFile

    table = ParquetFile(file)
    column = _column(table.schema_arrow.names, path)
    for batch in table.iter_batches(BATCH, columns=[column]):
        yield from batch.column(0).to_pylist()


def _column(names: Sequence[str], path: str) -> str:
    found = next((name for name in COLUMNS if name in names), None)
    if found is None:
        raise GanscopeError(
            f"{path}: has no column called {' or '.join(COLUMNS)}; it has "
            f"{', '.join(names)[:200] or 'none'}"
        )
    return found


def _beside(entry: str, listing: str) -> str:
    """A list's entry: where it stands beside the list, there."""
    entry = address_of(entry)
    if is_remote(entry) or os.path.isabs(entry):
        return entry
    if is_remote(listing):
        return f"{listing.rpartition('/')[0]}/{entry}"
    beside = os.path.join(os.path.dirname(listing), entry)
    return beside if os.path.exists(beside) else entry


def _members(path: str, passed: Passed) -> Iterator[Item]:
    """The pictures in a tar file that is not compressed, as ranges of its bytes."""
    try:
        with open_stream(path) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for info in archive:
                archive.members = []  # type: ignore[attr-defined]  # it would keep them all
                parts = [p for p in info.name.split("/") if p not in ("", ".", "..")]
                if info.isdir() or not parts or parts[-1].startswith("."):
                    continue
                whole = "/".join([path, *parts])
                ending = PurePosixPath(whole).suffix.lower()
                if not info.isreg() or info.issparse() or ending not in IMAGE_SUFFIXES:
                    passed.add(ending[:12] or "without an ending", whole)
                    continue
                yield Item(0, whole, path, info.offset_data, info.size)
    except GanscopeError as error:  # no package for that kind of address
        yield Item(0, path, error=str(error).removeprefix(f"{path}: "))
    except Exception as error:  # those of stores share no base
        yield Item(0, path, error=f"cannot be read as a tar file ({reason_of(error)[:120]})")
