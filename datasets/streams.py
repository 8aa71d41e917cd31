"""Labelled pictures that are read as they come: webdataset shards and Hugging Face streams.

Nothing is unpacked and no list of all pictures is made: a stream may be larger than any disk. Which
pictures are held out is said by a hash of their names (or groups), so that it stays the same
whatever is added, and however many processes read.
"""

import itertools
import json
import os
import re
import tarfile
import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from hashlib import blake2b
from importlib import import_module
from pathlib import Path
from typing import IO, Any

import numpy as np

from ganscope.datasets.corpus import LABEL_WORDS
from ganscope.errors import GanscopeError, ImageError, reason_of
from ganscope.images import IMAGE_SUFFIXES
from ganscope.limits import Limits

SHARE = 0.1
"""Share of the groups that are held out."""
AT_ONCE = 4
"""Shards that are read in turn, a picture from each: one may hold a single class."""
SHARDS_EACH = 4
"""With fewer shards for each process, every process reads all of them and takes its pictures."""
MOST_TEXT = 2**20
"""Bytes of a label or of JSON."""
FOLDER = "__key__"
"""The column that is a picture's folder."""
USUAL = ("label", "cls", "class")
"""Columns in which labels are looked for where none is named."""
SHARD_LIMITS = Limits(max_bytes=64 * 2**30, seconds=6 * 3600.0)
"""Of a shard that is fetched; it lies on the disk while it is read."""


@dataclass(frozen=True)
class Record:
    """A picture of a stream, not read yet where that can wait."""

    key: str
    """Its name in the stream."""
    label: int
    group: str
    """By which it is held out or not: the group's column, else its name."""
    suffix: str
    """".jpg"."""
    read: Callable[[], bytes]
    weight: int
    """Bytes that it keeps in memory."""


def label_of(value: Any) -> int | None:
    """0 or 1 for what a label is called: a number, real or fake, true (that it is fake) or false,
    or a class whose name has one of these words; None for anything else.
    """
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    text = str(value).strip().strip('"').lower()
    if text in LABEL_WORDS:
        return LABEL_WORDS[text]
    found = {LABEL_WORDS.get(word.removesuffix("s")) for word in re.findall("[a-z]+", text)}
    found -= {None}
    return found.pop() if len(found) == 1 else None


def is_held_out(group: str, salt: int = 0) -> bool:
    """Whether a group is kept from learning; the same for ever."""
    said = f"{salt}/{group}".encode("utf-8", "surrogateescape")
    return int.from_bytes(blake2b(said, digest_size=8).digest(), "big") < SHARE * 2**64


def expand(name: str) -> list[str]:
    """The shards that a name stands for: {000..010} and {a,b} are written out, a folder has its
    .tar files.
    """
    found = re.search(r"\{([^{}]*)\}", name)
    if found:
        span = re.fullmatch(r"(\d+)\.\.(\d+)", found[1])
        parts = found[1].split(",")
        if span:
            low, high = int(span[1]), int(span[2])
            if high < low or high - low >= 10**6:
                raise GanscopeError(f"--data {name}: {found[0]} is no range of at most a million")
            parts = [str(i).zfill(len(span[1])) for i in range(low, high + 1)]
        before, after = name[: found.start()], name[found.end() :]
        return [one for part in parts for one in expand(before + part + after)]
    if name.startswith("hf:") or "://" in name:
        return [name]
    path = Path(name)
    if path.is_dir():
        shards = sorted(str(p) for p in path.glob("*.tar"))
        if not shards:
            raise GanscopeError(f"--data {name}: holds no .tar files; name a corpus without --data")
        return shards
    if not path.is_file():
        raise GanscopeError(f"--data {name}: there is no {path}")
    return [name]


class Stream:
    """What `--data` names, as records; see `records`."""

    def __init__(
        self,
        names: Sequence[str],
        label_column: str | None = None,
        group_column: str | None = None,
        allow_private: bool = False,
    ):
        """Raises `GanscopeError` for shards that are not there."""
        self.parts = [one for name in names for one in expand(name)]
        self.label_column, self.group_column = label_column, group_column
        self.limits = replace(SHARD_LIMITS, allow_private=allow_private)

    def records(
        self, rng: np.random.Generator, place: tuple[int, int] = (0, 1)
    ) -> Iterator[Record]:
        """All pictures once, shards in random order. place: (i, n): only those of process i of n,
        which must all draw alike; no picture is in two parts.
        """
        rank, several = place
        order = [self.parts[i] for i in rng.permutation(len(self.parts))]
        by_shard = len(order) >= SHARDS_EACH * several and not self._any_hub
        own = order[rank::several] if by_shard else order
        rest = (0, 1) if by_shard else place
        with ExitStack() as stack:
            turn: list[Generator[Record]] = []
            for part in own:
                turn.append(self.part(part, rest))
                stack.callback(turn[-1].close)
                while len(turn) == AT_ONCE:
                    yield from _a_round(turn)
            while turn:
                yield from _a_round(turn)

    @property
    def _any_hub(self) -> bool:
        return any(part.startswith("hf:") for part in self.parts)

    def part(self, name: str, place: tuple[int, int] = (0, 1)) -> Generator[Record]:
        """The pictures of one shard or one Hugging Face stream, in their order."""
        if name.startswith("hf:"):
            yield from self._of_hub(name, place)
        else:
            yield from itertools.islice(self._of_shard(name), place[0], None, place[1])

    def _label(self, name: str, fields: dict[str, Any]) -> int:
        columns = [self.label_column] if self.label_column else [c for c in USUAL if c in fields]
        if not columns or columns[0] not in fields:
            raise GanscopeError(
                f"--data {name}: {columns[0] if columns else 'label'!r} is no column of it; "
                f"name one with --label-column: {', '.join(sorted(fields))}"
            )
        value = fields[columns[0]]
        label = label_of(value)
        if label is None:
            said = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
            raise GanscopeError(
                f"--data {name}: the label {said[:60]!r} (column {columns[0]}) is neither real nor "
                "fake; use 0 and 1, real and fake, true and false, or class names with these words"
            )
        return label

    def _group(self, name: str, fields: dict[str, Any], key: str) -> str:
        if not self.group_column:
            return key
        if self.group_column not in fields:
            raise GanscopeError(
                f"--data {name}: {key} has no column {self.group_column!r}; there are "
                f"{', '.join(sorted(fields))}"
            )
        value = fields[self.group_column]
        return value.decode("utf-8", "replace").strip() if isinstance(value, bytes) else str(value)

    def _of_shard(self, name: str) -> Iterator[Record]:
        try:
            with ExitStack() as stack:
                for key, members in _samples(stack, name, self.limits):
                    pictures = [k for k in members if Path("x." + k).suffix in IMAGE_SUFFIXES]
                    if not pictures:
                        continue
                    fields: dict[str, Any] = {FOLDER: os.path.dirname(key)}
                    for extension, (_, text) in members.items():
                        if text is None:
                            continue
                        fields[extension] = text
                        if extension == "json" or extension.endswith(".json"):
                            with suppress(ValueError, RecursionError):
                                said = json.loads(text)
                                fields |= said if isinstance(said, dict) else {}
                    read, _ = members[pictures[0]]
                    yield Record(
                        key=f"{key}.{pictures[0]}",
                        label=self._label(name, fields),
                        group=self._group(name, fields, key),
                        suffix=Path("x." + pictures[0]).suffix,
                        read=read,
                        weight=getattr(read, "weight", 0),
                    )
        except (tarfile.TarError, EOFError, OSError) as error:
            raise GanscopeError(
                f"--data {name}: cannot be read ({reason_of(error)}); fetch or write it again"
            ) from None

    def _of_hub(self, name: str, place: tuple[int, int]) -> Iterator[Record]:
        rows, image, names = _open_hub(name, self.label_column, place)
        for row in rows:
            held = row[image]
            if held is None:
                continue
            path = held.get("path") or ""
            content: bytes | None = held.get("bytes")
            fields = {k: v for k, v in row.items() if k != image}
            for column, values in names.items():
                if isinstance(fields.get(column), int) and 0 <= fields[column] < len(values):
                    fields[column] = values[fields[column]]
            key = path or blake2b(content or b"", digest_size=8).hexdigest()
            fields[FOLDER] = os.path.dirname(path)
            yield Record(
                key=key,
                label=self._label(name, fields),
                group=self._group(name, fields, key),
                suffix=Path(path).suffix.lower() or ".img",
                read=_Kept(content) if content is not None else _Named(path),
                weight=len(content or b""),
            )


def _a_round(turn: list[Generator[Record]]) -> Iterator[Record]:
    """The next record of each, and those that are through are taken out."""
    for records in list(turn):
        record = next(records, None)
        if record is None:
            turn.remove(records)
        else:
            yield record


@dataclass(frozen=True)
class _Kept:
    """Bytes that are in memory."""

    content: bytes

    @property
    def weight(self) -> int:
        return len(self.content)

    def __call__(self) -> bytes:
        return self.content


@dataclass(frozen=True)
class _Named:
    """A file by its name."""

    path: str

    def __call__(self) -> bytes:
        try:
            if Path(self.path).is_file():
                return Path(self.path).read_bytes()
            with import_module("fsspec").open(self.path, "rb") as file:
                return file.read()
        except Exception as error:  # file systems of other libraries raise what they like
            raise ImageError(self.path, reason_of(error)) from None


@dataclass(frozen=True)
class _Part:
    """Bytes of a shard on a disk, read when they are asked for."""

    path: str
    offset: int
    size: int
    weight: int = 0

    def __call__(self) -> bytes:
        try:
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                return file.read(self.size)
        except OSError as error:
            raise ImageError(self.path, error.strerror or "cannot be read") from None


Members = dict[str, tuple[Callable[[], bytes], bytes | None]]
"""What follows the first dot of a name -> what reads it; and its text, if it is no picture."""


def _samples(stack: ExitStack, name: str, limits: Limits) -> Iterator[tuple[str, Members]]:
    """Files of a shard that have one name up to the first dot, together."""
    file, lasting = _open_shard(stack, name, limits)
    plain = tarfile.open(fileobj=file, mode="r:" if lasting else "r|*")  # noqa: SIM115
    archive = stack.enter_context(plain)
    now, members = "", Members()
    for member in archive:
        archive.members = []  # type: ignore[attr-defined]  # else it keeps them all
        folder, base = os.path.split(member.name)
        if not member.isreg() or base.startswith(".") or "__MACOSX" in folder:
            continue
        if member.size > limits.max_bytes:
            continue
        stem, _, extension = base.partition(".")
        key = f"{folder}/{stem}" if folder else stem
        if key != now and members:
            yield now, members
            members = {}
        now, extension = key, extension.lower()
        picture = Path("x." + extension).suffix in IMAGE_SUFFIXES
        if not picture and member.size > MOST_TEXT:
            continue
        if picture and lasting:
            members[extension] = (_Part(lasting, member.offset_data, member.size), None)
            continue
        content = archive.extractfile(member)
        data = content.read() if content else b""
        members[extension] = (_Kept(data), None if picture else data)
    if members:
        yield now, members


def _open_shard(stack: ExitStack, name: str, limits: Limits) -> tuple[IO[bytes], str]:
    """A shard's file, and its path if it lies uncompressed on a lasting disk, else ""."""
    if "://" not in name:
        file: Any = stack.enter_context(Path(name).open("rb"))  # noqa: SIM115
        try:
            tarfile.open(fileobj=file, mode="r:").close()
            lasting = name
        except tarfile.ReadError:  # compressed, perhaps
            lasting = ""
        file.seek(0)
        return file, lasting
    if name.startswith(("http://", "https://")):
        from ganscope.fetching import fetch_into

        file = stack.enter_context(tempfile.TemporaryFile(prefix="ganscope-"))  # noqa: SIM115
        fetch_into(name, file, limits)
        file.seek(0)
        return file, ""
    try:
        file = stack.enter_context(import_module("fsspec").open(name, "rb"))
    except Exception as error:  # file systems of other libraries raise what they like
        raise GanscopeError(f"--data {name}: cannot be opened ({reason_of(error)})") from None
    return file, ""


def _open_hub(
    name: str, label_column: str | None, place: tuple[int, int]
) -> tuple[Any, str, dict[str, list[str]]]:
    """Rows of `hf:owner/name[:split]` that are of this process, the column of their pictures, and
    what the classes of each column are called. A folder may stand in for owner/name.
    """
    try:
        library: Any = import_module("datasets")  # the library of that name, not the folder here
        split_by_node = import_module("datasets.distributed").split_dataset_by_node
    except ImportError:
        raise GanscopeError(
            f"--data {name}: needs Hugging Face datasets; pip install 'ganscope[hf]'"
        ) from None
    identity, _, split = name.removeprefix("hf:").partition(":")
    try:
        if (Path(identity) / "state.json").is_file():
            rows = library.load_from_disk(identity).to_iterable_dataset()
        else:
            rows = library.load_dataset(identity, split=split or "train", streaming=True)
        features: dict[str, Any] = rows.features or next(iter(rows.take(1)), {})
    except Exception as error:  # the library raises a dozen kinds
        raise GanscopeError(f"--data {name}: could not be loaded ({reason_of(error)})") from None
    images = [k for k, v in features.items() if isinstance(v, library.Image)]
    if not images:
        raise GanscopeError(f"--data {name}: has no column of images (only {', '.join(features)})")
    if label_column and label_column not in features and label_column != FOLDER:
        raise GanscopeError(
            f"--data {name}: has no column {label_column!r}; name one with --label-column: "
            f"{', '.join(features)}"
        )
    names = {k: v.names for k, v in features.items() if isinstance(v, library.ClassLabel)}
    rows = rows.cast_column(images[0], library.Image(decode=False))
    return split_by_node(rows, *place) if place[1] > 1 else rows, images[0], names
