"""One command at a time in a folder, so that none writes over what another one is at.

The lock is the operating system's and ends with the process that holds it, however that ends. Where
a file system has none, a file stands for it, and what a kill leaves behind on another machine has
to be deleted by hand; that is said.
"""

import errno
import json
import os
import shlex
import socket
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from ganscope.errors import GanscopeError, GanscopeWarning
from ganscope.files import is_part

LOCK = ".ganscope.lock"
"""How the names of a folder's lock files begin."""
NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}
"""What file systems without locks answer."""
PATIENCE = 60.0
"""Seconds that those wait who need a lock for a moment only."""
TRIES = 20
"""A folder may be removed by one command while another one enters it; after so many it is told."""

_held: ContextVar[frozenset[str]] = ContextVar("held", default=frozenset())
"""Lock files that this line of work holds: what it calls may enter again, other threads may not."""


@contextmanager
def holding(folder: str | Path, part: str = "", wait: float = 0.0) -> Iterator[None]:
    """Make a folder and let no other command write into it while the block runs.

    part: of the folder, where several may write side by side, each its own. wait: seconds to wait
    for another one. What was made is removed if it is still empty at the end.

    Raises `GanscopeError`, which says who is at work there, or why nothing can be written.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        yield  # whoever wants to write there will say so
        return
    with _hold(folder / f"{LOCK}{part}", folder, wait):
        yield


@contextmanager
def holding_file(path: str | Path, wait: float = 0.0) -> Iterator[None]:
    """The same for a single file, which need not be there."""
    path = Path(path)
    if path.exists() and not path.is_file():
        yield  # a folder, or a device
        return
    with _hold(path.with_name(f"{LOCK}-{path.name}"), path, wait):
        yield


def is_empty(folder: Path) -> bool:
    """Whether a folder holds nothing but what a command leaves that ended before it had written
    anything: locks, files that are half written, and folders that hold no more than that.
    """
    try:
        inside = list(folder.iterdir())
    except PermissionError:
        return False  # who knows
    for path in inside:
        if path.is_symlink():
            return False
        if path.is_dir():
            if not is_empty(path):
                return False
        elif not path.name.startswith(LOCK) and not is_part(path.name):
            return False
    return True


@contextmanager
def _hold(file: Path, what: Path, wait: float) -> Iterator[None]:
    name = os.path.abspath(file)
    if name in _held.get():
        yield
        return
    lock, made = _enter(Path(name), what, wait)
    holder = _holder(Path(name))
    _held.set(_held.get() | {name})
    try:
        with suppress(OSError):  # it is for others to read, no more
            holder.write_text(json.dumps(_about()), encoding="utf-8")
        yield
    finally:
        _held.set(_held.get() - {name})
        with suppress(OSError):
            holder.unlink()
        # While it is held: later it could be another one's. Windows removes no open file.
        with suppress(OSError):
            if isinstance(lock, FileLock) and os.name != "nt":
                Path(name).unlink()
        lock.release()
        if os.name == "nt":
            with suppress(OSError):
                Path(name).unlink()
        for folder in made:
            with suppress(OSError):  # there is something in it
                folder.rmdir()


def _enter(file: Path, what: Path, wait: float) -> tuple[BaseFileLock, list[Path]]:
    """The lock, taken, and the folders that were made for it, innermost first."""
    made: list[Path] = []
    for attempt in range(TRIES):
        try:
            missing = [p for p in (file.parent, *file.parent.parents) if not p.exists()]
            file.parent.mkdir(parents=True, exist_ok=True)
            made += [p for p in missing if p not in made]
            return _take(file, what, wait), made
        except Timeout:
            said = _who(file, what)
            break
        except FileNotFoundError as error:  # removed just now by another command, at its end
            said = f"{what}: cannot be written ({error.strerror})"
            time.sleep(0.01 * attempt)
        except OSError as error:
            said = f"{what}: cannot be written ({error.strerror or error})"
            break
    for folder in made:
        with suppress(OSError):
            folder.rmdir()
    raise GanscopeError(said)


def _take(file: Path, what: Path, wait: float) -> BaseFileLock:
    lock: BaseFileLock = FileLock(file, thread_local=False)
    try:
        with warnings.catch_warnings():  # newer versions go over to a file by themselves
            warnings.filterwarnings("error", message=".*SoftFileLock")
            lock.acquire(timeout=wait)
    except (NotImplementedError, UserWarning):
        pass
    except OSError as error:
        if isinstance(error, Timeout) or error.errno not in NO_LOCKS:
            raise
    else:
        return lock
    lock = SoftFileLock(file.with_name(f"{file.name}.soft"), thread_local=False)
    lock.acquire(timeout=wait)
    warnings.warn(
        f"{what}: its file system has no locks; {lock.lock_file} stands for one. If a kill leaves "
        "it behind, delete it",
        GanscopeWarning,
        stacklevel=5,
    )
    return lock


def _holder(file: Path) -> Path:
    return file.with_name(f"{file.name}.json")


def _about() -> dict[str, str | int]:
    """Who this is, for others to read."""
    program = Path(sys.argv[0] or "python")
    ours = program.stem == "ganscope" or program.parts[-2:] == ("ganscope", "__main__.py")
    name = "ganscope" if ours else program.name
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "command": " ".join(shlex.join([name, *sys.argv[1:]]).split())[:200],
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def _who(file: Path, what: Path) -> str:
    """The line for those who come second."""
    try:
        about = json.loads(_holder(file).read_text(encoding="utf-8"))
        told = [str(about[name]) for name in ("command", "pid", "host", "since")]
    except (OSError, ValueError, KeyError, TypeError):
        at_work = "another command"
    else:
        at_work = f"{told[0]} (process {told[1]} on {told[2]}, since {told[3]})"
    soft = file.with_name(f"{file.name}.soft")
    stale = f"; if it runs no more, delete {soft}" if soft.exists() else ""
    return f"{what}: {at_work} is writing there; wait for its end, or name another --out{stale}"
