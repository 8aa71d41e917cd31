"""What a user names becomes images: files, folders, lists of paths, archives, documents, web
addresses, standard input. Videos are passed on as such.

Nothing is unpacked onto the disk. What a folder or an archive holds and is not looked at is counted
and named (`Passed`), and what cannot be had among much takes its place in the stream as an
`ImageError`, so that nothing named is lost silently.
"""

import bz2
import gzip
import hashlib
import io
import lzma
import os
import re
import sys
import tarfile
import zipfile
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

from ganscope.errors import GanscopeError, ImageError, reason_of
from ganscope.images import IMAGE_SUFFIXES, NamedImage, looks_like_image
from ganscope.limits import Limits

STANDARD_INPUT = "-"
LISTS = (".txt", ".list", ".lst")
"""Endings of files that hold a path or an address a line."""
VIDEO_SUFFIXES = frozenset(
    [
        ".mp4",
        ".m4v",
        ".mov",
        ".qt",
        ".mkv",
        ".webm",
        ".avi",
        ".mpg",
        ".mpeg",
        ".ts",
        ".mts",
        ".m2ts",
        ".wmv",
        ".flv",
        ".3gp",
        ".3g2",
        ".ogv",
    ]
)
HEAD = 1024
"""Bytes at a file's beginning by which its kind is told."""
FETCHERS, AHEAD = 4, 8
"""Addresses that are asked at a time, and that may be fetched and waiting."""
SWOLLEN, LARGE = 100, 2**26
"""A file in an archive that is larger than this many bytes, and so many times what it weighs
there, is taken for a bomb. The whole may be so much more than the archive from 16 times that on."""
MOST_MEMBERS = 1_000_000
NAMED = 3
"""Examples that are named of what is passed over."""


@dataclass(frozen=True)
class Video:
    """A video: a file's path, or its content with a name for it."""

    name: str
    content: bytes | None = None


Input = str | NamedImage | Video | ImageError
"""A picture's path, one in memory, a video, or why something named is none of these."""


@dataclass
class Passed:
    """What was found and not looked at."""

    counts: Counter[str] = field(default_factory=Counter)
    """What it is (".csv", "broken link") -> how many."""
    examples: list[str] = field(default_factory=list)

    def add(self, what: str, name: str) -> None:
        self.counts[what] += 1
        if len(self.examples) < NAMED:
            self.examples.append(name)

    def __str__(self) -> str:
        """A line about it; "" if there was nothing."""
        total = self.counts.total()
        if not total:
            return ""
        kinds = ", ".join(f"{n:,} {what}" for what, n in self.counts.most_common(6))
        more = ", ..." if len(self.counts) > 6 else ""
        examples = ", ".join(self.examples) + (", ..." if total > len(self.examples) else "")
        return f"passed over: {total:,} that are no pictures ({kinds}{more}): {examples}"


def find_inputs(
    paths: Sequence[str | Path], limits: Limits | None = None, passed: Passed | None = None
) -> Iterator[Input]:
    """Yield what `paths` name, in order; within `limits`.

    A path is a file, a folder, `-` (standard input: a picture, a video, an archive, a PDF, or a
    list), an address with http(s):// or file://, a list of those in a .txt file, an archive (.zip,
    .tar, packed with gzip, bzip2 or xz) or a PDF. Kinds are told by content. Pictures in an archive
    are called ARCHIVE/MEMBER. Raises `GanscopeError` for a path in `paths` itself that does not
    exist.
    """
    reader = _Reader(limits or Limits(), Passed() if passed is None else passed)
    return reader.ahead(one for path in paths for one in reader.named(os.fspath(path)))


def name_of(one: Input) -> str:
    """What an input is called."""
    if isinstance(one, str):
        return one
    return one.path if isinstance(one, ImageError) else one.name


def stamp_of(one: Input) -> str:
    """Tells whether an input is the same as one of that name at another time: a file by its size
    and time, what is in memory by its content.
    """
    if isinstance(one, ImageError):
        return "error"
    content = getattr(one, "content", None)
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()[:16]
    try:
        found = os.stat(name_of(one))
    except OSError:
        return "gone"
    return f"{found.st_size}-{found.st_mtime_ns}"


def count_inputs(paths: Sequence[str | Path]) -> int | None:
    """How many inputs `find_inputs` finds, or None where only looking into them would tell.

    Raises `GanscopeError` for a path that does not exist and for a folder without images.
    """
    total: int | None = 0
    for path in map(_by_path, paths):
        found: int | None = 1
        if path == STANDARD_INPUT or is_address(path):
            found = None
        elif os.path.isdir(path):
            found = sum(1 for _ in find_images(path))
        elif not os.path.exists(path):
            raise _missing(path)
        elif Path(path).suffix.lower() not in IMAGE_SUFFIXES:
            known = os.path.isfile(path) and kind_of(_head(path), path) in ("picture", "video", "")
            found = 1 if known else None
        if found == 0:
            raise empty_folder(path)
        total = None if found is None or total is None else total + found
    return total


def refuse_missing(paths: Sequence[str | Path]) -> None:
    """Raise `GanscopeError` for a path that does not exist and for a folder without images."""
    if [os.fspath(path) for path in paths].count(STANDARD_INPUT) > 1:
        raise GanscopeError("-: standard input can be named once only")
    for path in map(_by_path, paths):
        if path == STANDARD_INPUT or is_address(path):
            continue
        if next(find_images(path), None) is None:
            raise empty_folder(path)


def find_images(path: str | Path, passed: Passed | None = None) -> Iterator[str]:
    """Yield an image's own path, or the images below a folder in sorted order.

    A folder's files are named by the folder's path as given, then the path below it. They are known
    by their ending; those that have none, or one that is none (`photo.jpg_large`), by what they
    begin with. Hidden ones are passed over. Links to folders are followed, but no folder is entered
    twice. `passed` gets what is not looked at. Raises `GanscopeError` if `path` does not exist.
    """
    name = os.fspath(path)
    if not os.path.isdir(name):
        if not os.path.exists(name):
            raise _missing(name)
        yield name
        return
    yield from _walk(name, Passed() if passed is None else passed)


def _walk(root: str, passed: Passed) -> Iterator[str]:
    seen: set[tuple[int, int]] = set()  # of the folders that links may not lead to any more

    def fail(error: OSError) -> None:
        passed.add("folder that cannot be read", str(error.filename))

    def below(top: str) -> Iterator[str]:
        for folder, folders, files in os.walk(top, onerror=fail):
            # Beside a corpus' fakes lie their masks, which are no pictures.
            hidden = {"masks"} if "1_fake" in folders else set()
            folders[:] = sorted(f for f in folders if not f.startswith(".") and f not in hidden)
            for file in sorted(files):
                if file.startswith("."):
                    continue
                whole = os.path.join(folder, file)
                if _is_picture(file, partial(_head, whole)):
                    yield whole
                else:
                    passed.add(_what_it_is(file), whole)
            for link in [f for f in folders if os.path.islink(os.path.join(folder, f))]:
                links.append(os.path.join(folder, link))

    links: deque[str] = deque()
    yield from below(root)
    if links:  # what lies below the folder itself goes by its own name, not by a link's
        seen |= {i for folder, *_ in os.walk(root) if (i := _identity(folder))}
    while links:
        link = links.popleft()
        identity = _identity(link)
        if identity is None or identity in seen:
            continue
        inner = {i for folder, *_ in os.walk(link) if (i := _identity(folder))}
        if not inner & seen:
            seen |= inner
            yield from below(link)
            continue
        for folder, folders, _ in os.walk(link):  # partly known: what is new of it
            folders[:] = sorted(f for f in folders if not f.startswith("."))
            place = _identity(folder)
            if place is None or place in seen:
                folders.clear()
                continue
            seen.add(place)
            yield from _here(folder, passed)
            links.extend(p for f in folders if os.path.islink(p := os.path.join(folder, f)))


def _here(folder: str, passed: Passed) -> Iterator[str]:
    """The images of one folder, without those below."""
    for file in sorted(os.listdir(folder)):
        whole = os.path.join(folder, file)
        if file.startswith(".") or os.path.isdir(whole):
            continue
        if _is_picture(file, partial(_head, whole)):
            yield whole
        else:
            passed.add(_what_it_is(file), whole)


def _identity(folder: str) -> tuple[int, int] | None:
    try:
        found = os.stat(folder)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _is_picture(file: str, head: Callable[[], bytes]) -> bool:
    """Whether a file is to be opened as a picture; head: its first bytes, if they are needed."""
    suffix = os.path.splitext(file)[1].lower()
    if suffix in IMAGE_SUFFIXES:
        return True
    odd = not re.fullmatch(r"\.[a-z][a-z0-9]{0,4}", suffix)
    return odd and looks_like_image(head())


def _what_it_is(file: str) -> str:
    return os.path.splitext(file)[1].lower()[:12] or "without an ending"


def kind_of(head: bytes, name: str = "") -> str:
    """picture, video, zip, tar, pdf, list, or "" for anything else, by the first bytes; name: a
    list and a video are told by their ending, too.
    """
    suffix = Path(name).suffix.lower()
    if suffix in LISTS:
        return "list"
    if looks_like_image(head):
        return "picture"
    if head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return "zip"
    packed = head[:2] == b"\x1f\x8b" or head[:3] == b"BZh" or head[:6] == b"\xfd7zXZ\x00"
    if head[257:262] == b"ustar" or packed:
        return "tar"
    if b"%PDF-" in head:
        return "pdf"
    if suffix in VIDEO_SUFFIXES or _is_video(head):
        return "video"
    return ""


def _is_video(head: bytes) -> bool:
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide"):
        return True
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return True
    starts = (b"\x1aE\xdf\xa3", b"FLV\x01", b"0&\xb2u\x8ef\xcf\x11", b"OggS", b"\0\0\1\xba")
    return head.startswith((*starts, b"\0\0\1\xb3")) or (head[:1] + head[188:189] == b"GG")


def _head(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(HEAD)
    except OSError:
        return b""


def is_address(name: str) -> bool:
    """Whether a name is an address: http(s):// or file://."""
    return name.lower().startswith(("http://", "https://", "file://"))


def _missing(path: str) -> GanscopeError:
    return GanscopeError(f"{path}: no such file or folder")


def empty_folder(path: str) -> GanscopeError:
    """The line about a folder without images, with what it holds instead."""
    passed = Passed()
    next(find_images(path, passed), None)
    return GanscopeError(
        f"{path}: no images in this folder" + (f"; {passed}" if str(passed) else "")
    )


@dataclass(frozen=True)
class _Address:
    """What is yet to be fetched."""

    url: str


class _Reader:
    """Turns names into inputs; remembers whether standard input was read."""

    def __init__(self, limits: Any, passed: Passed):
        self.limits, self.passed = limits, passed
        self.drained = False

    def ahead(self, entries: Iterator[Input | _Address]) -> Iterator[Input]:
        """Fetch addresses side by side, a bounded number ahead, and keep the order."""
        pool: ThreadPoolExecutor | None = None
        waiting: deque[Any] = deque()
        try:
            for entry in entries:
                if isinstance(entry, _Address):
                    from ganscope.fetching import fetch  # slow to import, and seldom wanted

                    pool = pool or ThreadPoolExecutor(FETCHERS)
                    waiting.append((entry.url, pool.submit(fetch, entry.url, self.limits)))
                elif not waiting:
                    yield entry
                    continue
                else:
                    waiting.append(entry)
                while waiting and (len(waiting) > AHEAD or not isinstance(waiting[0], tuple)):
                    yield from self._arrived(waiting.popleft())
            while waiting:
                yield from self._arrived(waiting.popleft())
        finally:
            if pool:
                pool.shutdown(wait=False, cancel_futures=True)

    def _arrived(self, entry: Input | tuple[str, Future[bytes]]) -> Iterator[Input]:
        if not isinstance(entry, tuple):
            yield entry
            return
        url, answer = entry
        try:
            content = answer.result()
        except ImageError as error:
            yield error
            return
        yield from self._content(url, content)

    def named(self, name: str, listed: str | None = None) -> Iterator[Input | _Address]:
        """What one name stands for; listed: the list that it stands in, "" for standard input."""
        if name == STANDARD_INPUT and listed is None:
            yield from self._standard_input()
            return
        if name.lower().startswith("file://"):
            try:
                name = _local(name)
            except ImageError as error:
                yield error
                return
        elif is_address(name):
            yield _Address(name)
            return
        suffix = os.path.splitext(name)[1].lower()
        if os.path.isdir(name):
            before = self.passed.counts.total()
            found = False
            for image in find_images(name, self.passed):
                found = True
                yield image
            if not found and listed is not None:
                what = "; it has other files" if self.passed.counts.total() > before else ""
                yield ImageError(name, f"no images in this folder{what}")
        elif not os.path.exists(name):
            if listed is None:
                raise _missing(name)
            yield ImageError(name, "no such file or folder")
        elif suffix in IMAGE_SUFFIXES and os.path.isfile(name):
            yield name
        elif os.path.isfile(name):
            yield from self._file(name, listed)
        else:  # a pipe, such as a shell makes of <(command)
            with open(name, "rb") as pipe:
                yield from self._content(name, pipe.read(self.limits.max_bytes + 1))

    def _file(self, name: str, listed: str | None) -> Iterator[Input | _Address]:
        kind = kind_of(_head(name), name)
        if kind == "list":
            if listed is not None:
                yield ImageError(name, "a list within a list is not followed; name it itself")
                return
            with open(name, "rb") as file:
                yield from self._listed(file.read(), name)
        elif kind in ("zip", "tar", "pdf"):
            with open(name, "rb") as file:
                yield from self._members(kind, name, file, os.path.getsize(name))
        else:
            yield Video(name) if kind == "video" else name

    def _content(self, name: str, content: bytes) -> Iterator[Input]:
        """What bytes without a file hold."""
        if len(content) > self.limits.max_bytes:
            said = f"larger than {self.limits.max_bytes / 2**20:.3g} MB; name a file in its place"
            yield ImageError(name, said)
            return
        kind = kind_of(content[:HEAD], "")
        if kind in ("zip", "tar", "pdf"):
            yield from self._members(kind, name, io.BytesIO(content), len(content))
        elif kind == "video":
            yield Video(name, content)
        else:
            yield NamedImage(name, content)

    def _standard_input(self) -> Iterator[Input | _Address]:
        if self.drained:
            raise GanscopeError("-: standard input can be named once only")
        self.drained = True
        stream = getattr(sys.stdin, "buffer", None)
        content = stream.read(self.limits.max_bytes + 1) if stream else b""
        if not content:
            raise GanscopeError(
                "-: nothing comes from standard input; pipe a picture or a list of paths into it"
            )
        if kind_of(content[:HEAD]) or not _is_text(content[: 4 * HEAD]):
            yield from self._content(STANDARD_INPUT, content)
        elif content.lstrip()[:1] in (b"<", b"{"):
            yield ImageError(STANDARD_INPUT, "is a page or data, no picture and no list of paths")
        else:
            yield from self._listed(content, "")

    def _listed(self, content: bytes, name: str) -> Iterator[Input | _Address]:
        """What a list names; name: the list's own, beside which its paths may lie."""
        if content.startswith((b"\xff\xfe", b"\xfe\xff")):
            text = content.decode("utf-16", "replace")
        else:
            text = content.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
        entries = text.split("\0") if "\0" in text else re.split(r"[\r\n]+", text)
        found = False
        for entry in map(str.strip, entries):
            if not entry or entry.startswith("#"):
                continue
            found = True
            beside = os.path.join(os.path.dirname(name), entry)
            if not is_address(entry) and (name and os.path.exists(beside)):
                entry = beside
            yield from self.named(entry, listed=name)
        if not found:
            yield ImageError(name or STANDARD_INPUT, "this list names nothing")

    def _members(self, kind: str, name: str, file: BinaryIO, weight: int) -> Iterator[Input]:
        """The pictures in an archive or a PDF."""
        read = {"zip": self._zip, "tar": self._tar, "pdf": self._pdf}[kind]
        count = 0
        try:
            with _damage(name, "cannot be read"):
                for one in read(name, file, weight):
                    count += 1
                    yield one
        except ImageError as error:
            yield error
        else:
            if not count:
                yield ImageError(name, "holds no pictures")

    def _zip(self, name: str, file: BinaryIO, weight: int) -> Iterator[Input]:
        budget = _Budget(name, weight, self.limits.max_bytes)
        with zipfile.ZipFile(file) as archive:
            for info in archive.infolist():
                whole = _inside(name, info.filename)
                if info.is_dir() or whole is None:
                    continue
                try:
                    with _damage(whole, "cannot be unpacked"):
                        if not self._wanted(whole, partial(_first, archive, info)):
                            continue
                        budget.spend(whole, info.file_size, info.compress_size)
                        with archive.open(info) as member:
                            content = member.read(info.file_size)
                except ImageError as error:
                    yield error
                    if budget.spent:
                        return
                    continue
                yield NamedImage(whole, content)

    def _tar(self, name: str, file: BinaryIO, weight: int) -> Iterator[Input]:
        budget = _Budget(name, weight, self.limits.max_bytes)
        with _unpacked(file) as stream:
            bounded = _Bounded(stream, name, self.limits.max_bytes)
            with tarfile.open(fileobj=bounded, mode="r:") as archive:
                for info in archive:
                    archive.members = []  # type: ignore[attr-defined]  # it would keep them all
                    whole = _inside(name, info.name)
                    if info.isdir() or whole is None:
                        continue
                    if not info.isreg() or info.issparse():
                        self.passed.add("link or device", whole)
                        continue
                    try:
                        budget.spend(whole, info.size)
                    except ImageError as error:
                        yield error
                        if budget.spent:
                            return
                        continue
                    member = archive.extractfile(info)
                    head = member.read(HEAD) if member else b""
                    if member and self._wanted(whole, lambda head=head: head):  # type: ignore[misc]
                        yield NamedImage(whole, head + member.read())

    def _pdf(self, name: str, file: BinaryIO, weight: int) -> Iterator[Input]:
        try:
            import pypdf
        except ImportError:
            raise ImageError(
                name, 'reading the pictures of PDFs takes pypdf: pip install "ganscope[pdf]"'
            ) from None
        reader = pypdf.PdfReader(file)
        if reader.is_encrypted and not reader.decrypt(""):
            raise ImageError(name, "is locked with a password")
        budget = _Budget(name, weight, self.limits.max_bytes)
        seen = set()
        for number, page in enumerate(reader.pages, start=1):
            for key in page.images.keys():  # noqa: SIM118
                label = "-".join(key) if isinstance(key, (list, tuple)) else str(key)
                whole = _inside(name, f"page-{number}/{label.strip('/~')}") or name
                try:
                    with _damage(whole, "cannot be unpacked"):
                        found = page.images[key]
                        place = found.indirect_reference
                        same = (place.idnum, place.generation) if place else None
                        if same in seen:  # a letterhead is on every page
                            continue
                        seen |= {same} - {None}
                        budget.spend(whole, len(found.data))
                except ImageError as error:
                    yield error
                    if budget.spent:
                        return
                    continue
                yield NamedImage(whole + Path(found.name).suffix, found.data)

    def _wanted(self, whole: str, head: Callable[[], bytes]) -> bool:
        if _is_picture(whole, head):
            return True
        self.passed.add(_what_it_is(whole), whole)
        return False


class _Budget:
    """What an archive may still unpack."""

    def __init__(self, name: str, weight: int, most: int):
        self.name, self.most = name, most
        self.left = max(SWOLLEN * weight, 16 * LARGE)
        self.members = MOST_MEMBERS
        self.spent = False
        """Whether nothing more is unpacked."""

    def spend(self, whole: str, size: int, packed: int | None = None) -> None:
        """Raises `ImageError` for what is too much."""
        self.left -= min(size, self.most)
        self.members -= 1
        if self.left < 0 or self.members < 0:
            self.spent = True
            raise ImageError(
                self.name, "refused from here on: it unpacks to far more than it weighs"
            )
        if size > self.most:
            raise ImageError(whole, f"larger than {self.most / 2**20:.3g} MB; unpack it first")
        if packed is not None and size > LARGE and size > SWOLLEN * packed:
            raise ImageError(whole, "refused: it unpacks to far more than it weighs")


class _Bounded(io.RawIOBase):
    """A stream of which nobody reads more at once than `most`: a tar file's own headers could ask
    for any amount.
    """

    def __init__(self, stream: BinaryIO | io.BufferedIOBase, name: str, most: int):
        self.stream, self.name, self.most = stream, name, most

    def read(self, size: int = -1) -> bytes:
        if size is None or size < 0 or size > self.most + HEAD:
            raise ImageError(self.name, "damaged archive (a header of senseless size)")
        return self.stream.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.stream.seek(offset, whence)

    def tell(self) -> int:
        return self.stream.tell()

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True


@contextmanager
def _unpacked(file: BinaryIO) -> Iterator[BinaryIO | io.BufferedIOBase]:
    """A tar file's stream, through gzip, bzip2 or xz if it is packed so."""
    head = file.read(6)
    file.seek(0)
    if head[:2] == b"\x1f\x8b":
        with gzip.GzipFile(fileobj=file) as stream:
            yield stream
    elif head[:3] == b"BZh":
        with bz2.BZ2File(file) as stream:
            yield stream
    elif head == b"\xfd7zXZ\x00":
        with lzma.LZMAFile(file) as stream:
            yield stream
    else:
        yield file


@contextmanager
def _damage(name: str, what: str) -> Iterator[None]:
    """Turn whatever a damaged or hostile archive raises into an `ImageError`."""
    try:
        yield
    except (ImageError, GeneratorExit):
        raise
    except MemoryError:
        raise ImageError(name, "too large for the memory of this machine") from None
    except RuntimeError as error:
        locked = "password" in str(error) or "encrypted" in str(error)
        said = "is locked with a password; unpack it first" if locked else reason_of(error)
        raise ImageError(name, said) from None
    except Exception as error:  # zipfile, tarfile, zlib, lzma, pypdf: nearly anything
        raise ImageError(name, f"{what} ({reason_of(error)})") from None


def _first(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    with archive.open(info) as member:
        return member.read(HEAD)


def _inside(archive: str, member: str) -> str | None:
    """What a file in an archive is called; None if it is hidden. It never leads out of it."""
    parts = [p for p in re.split(r"[/\\]", member) if p not in ("", ".", "..")]
    if not parts or any(p.startswith(".") or p == "__MACOSX" for p in parts):
        return None
    return "/".join([archive, *parts])


def _is_text(content: bytes) -> bool:
    return not re.search(rb"[\x01-\x08\x0b\x0c\x0e-\x1f]", content)


def _by_path(name: str | Path) -> str:
    """A name, as a path where it is a file:// address of this machine."""
    name = os.fspath(name)
    if name.lower().startswith("file://"):
        with suppress(ImageError):  # which takes its place in the stream
            return _local(name)
    return name


def _local(url: str) -> str:
    """The path that a file:// address means."""
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost"):
        raise ImageError(url, f"names the machine {parts.netloc}; only files of this one are read")
    path = unquote(parts.path, errors="surrogateescape")
    return path[1:] if os.name == "nt" and re.match(r"/[A-Za-z]:", path) else path
