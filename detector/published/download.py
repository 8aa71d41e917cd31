"""Weights of published detectors, downloaded when they are first asked for, and checked each time.

Files of the hub lie in the hub's own cache, all others in the folder that ganscope keeps things in,
`published/`.
"""

import hashlib
import shutil
import sys
import tempfile
import warnings
import zipfile
from http.client import HTTPException
from pathlib import Path

from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from torch.hub import download_url_to_file

from ganscope.detector.published.sources import SOURCES, Source
from ganscope.errors import GanscopeError, GanscopeWarning, reason_of
from ganscope.files import cache_folder, take_place, write_text


def fetch(name: str) -> str:
    """Path of the weights of the published detector `name`: kept from before, or downloaded now.

    Tells what is downloaded, and its licence, by a `GanscopeWarning`. Raises `GanscopeError` where
    the file is not to be had, or is another than the pinned one; that one is removed.
    """
    source = SOURCES[name]
    if not source.url:
        raise GanscopeError(
            f"{name}: its weights cannot be downloaded from here; take {source.file} from "
            f"{source.page} and name it, {name}:FILE"
        )
    path = _from_hub(name, source) if source.hub else _from_web(name, source)
    _check(name, source, path)
    return str(path)


def _from_hub(name: str, source: Source) -> Path:
    kept = try_to_load_from_cache(source.hub, source.file, revision=source.revision)
    if isinstance(kept, str):
        return Path(kept)
    _tell(name, source)
    try:
        return Path(hf_hub_download(source.hub, source.file, revision=source.revision))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise _not_to_be_had(name, source, error) from None


def _from_web(name: str, source: Source) -> Path:
    version = f"-{source.sha256[:12]}" if source.sha256 else ""
    path = cache_folder() / "published" / f"{name}{version}" / source.file
    if path.is_file():
        return path
    _tell(name, source)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            part = Path(folder) / "download"
            download_url_to_file(source.url, str(part), progress=sys.stderr.isatty())
            if source.member:
                whole = part.rename(part.with_name("archive"))
                with zipfile.ZipFile(whole).open(source.member) as inside, open(part, "wb") as out:
                    shutil.copyfileobj(inside, out)
            with open(part, "rb") as file:
                if file.read(1) == b"<":  # no format of weights begins so
                    raise OSError("the answer is a web page, not the file")
            take_place(part, path)
    # KeyError: the archive holds no such member.
    except (OSError, HTTPException, zipfile.BadZipFile, KeyError) as error:
        raise _not_to_be_had(name, source, error) from None
    return path


def _tell(name: str, source: Source) -> None:
    size = f"{source.size}; " if source.size else ""
    warnings.warn(
        f"{name}: downloading {source.file} ({size}licence: {source.licence}) from {source.url}",
        GanscopeWarning,
        stacklevel=4,
    )


def _not_to_be_had(name: str, source: Source, error: Exception) -> GanscopeError:
    unzip = f", unzip {source.member}" if source.member else ""
    return GanscopeError(
        f"{name}: {source.file} is not to be had ({reason_of(error)}); offline, download "
        f"{source.url} elsewhere{unzip} and name it, {name}:FILE"
    )


def _check(name: str, source: Source, path: Path) -> None:
    """Compare a file with its pinned checksum, or with that of the first download.

    The latter lies beside it, in FILE.sha256. A file that is another is removed.
    """
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    first = path.with_name(f"{path.name}.sha256")
    expected = source.sha256
    if not expected and not first.exists():
        write_text(first, f"{found}\n")
    if found != (expected or first.read_text(encoding="utf-8").strip()):
        path.resolve().unlink()  # the hub's cache keeps files behind links
        path.unlink(missing_ok=True)
        what = "the pinned one" if expected else f"that of the first download, {first}"
        raise GanscopeError(
            f"{name}: {source.file} is damaged or was changed: its SHA-256, {found}, is not "
            f"{what}; it is removed, so run the command again, or name a file that you trust, "
            f"{name}:FILE"
        )
