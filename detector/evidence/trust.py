"""The list of issuers whose C2PA signatures are trusted: fetched on a user's machine when asked,
kept beside other things that are kept between commands.
"""

import functools
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from ganscope.config import TrustUpdateSettings
from ganscope.errors import GanscopeError, reason_of
from ganscope.files import cache_folder, write_text

_OFFICIAL = "https://raw.githubusercontent.com/c2pa-org/conformance-public/main/trust-list/"
SIGNERS = _OFFICIAL + "C2PA-TRUST-LIST.pem"
"""The C2PA's own list, of its conformance programme: who may issue signers' certificates."""
STAMPS = _OFFICIAL + "C2PA-TSA-TRUST-LIST.pem"
"""Its list of those who stamp the time of a signature."""
MOST = 16 << 20
"""Bytes that a list may have; the official one has some hundred thousand."""
_CERTIFICATE = re.compile(
    r"-----BEGIN CERTIFICATE-----\s[A-Za-z0-9+/=\s]{100,}?-----END CERTIFICATE-----"
)


@dataclass(frozen=True)
class Anchors:
    """Certificates (PEM) of the issuers that are trusted."""

    signers: str
    stamps: str
    """Of those who stamp the time; without them an old signature cannot be told from one that was
    made after its certificate had ended.
    """


def trust_list() -> Path:
    """Where `ganscope trust update` puts the list of issuers; that of time stamps lies beside."""
    return cache_folder() / "trust" / "c2pa.pem"


def _stamps(path: Path) -> Path:
    return path.with_name("c2pa-time.pem")


def find_anchors(path: Path | None) -> Anchors | None:
    """The certificates in a file of the user's, which are trusted for time stamps, too; for None
    those that `ganscope trust update` fetched, None if there are none.

    Raises `GanscopeError` if the file is missing or holds no certificates.
    """
    chosen = path or trust_list()
    if not path and not chosen.is_file():
        return None
    stamps = chosen if path or not _stamps(chosen).is_file() else _stamps(chosen)
    return _anchors(chosen, chosen.stat().st_mtime_ns if chosen.is_file() else 0, stamps)


@functools.lru_cache(maxsize=4)
def _anchors(path: Path, changed: int, stamps: Path) -> Anchors:
    return Anchors("\n".join(_certificates_of(path)), "\n".join(_certificates_of(stamps)))


def _certificates_of(path: Path) -> list[str]:
    try:
        if path.stat().st_size > MOST:
            raise GanscopeError(f"{path}: more than {MOST:,} bytes, no list of certificates")
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise GanscopeError(f"{path}: cannot be read ({error.strerror})") from None
    found = _CERTIFICATE.findall(text)
    if not found:
        raise GanscopeError(f"{path}: holds no certificates in PEM (-----BEGIN CERTIFICATE-----)")
    return found


def update_trust(settings: TrustUpdateSettings, timeout: float = 30.0) -> tuple[Path, int]:
    """Fetch the lists of trusted issuers and put them in the old ones' place, whole or not at all:
    where the list lies now, and how many certificates it holds.

    timeout: seconds. Raises `GanscopeError` if one cannot be fetched, or holds no certificates; the
    lists that were there stay.
    """
    url = settings.url or SIGNERS
    stamps_url = settings.stamps_url or (STAMPS if url == SIGNERS else url)
    signers, stamps = _fetch(url, timeout), _fetch(stamps_url, timeout)
    path = trust_list()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(_stamps(path), f"# {stamps_url}\n" + "\n".join(stamps) + "\n")
        write_text(path, f"# {url}\n" + "\n".join(signers) + "\n")
    except OSError as error:
        raise GanscopeError(f"{path}: cannot be written ({error.strerror})") from None
    return path, len(signers)


def _fetch(url: str, timeout: float) -> list[str]:
    """The certificates at an address."""
    if urlsplit(url).scheme not in ("http", "https", "file"):
        if not Path(url).is_file():
            raise GanscopeError(f"{url}: no such file, and no http:// or https:// address")
        url = Path(url).resolve().as_uri()
    # Not `fetching`, which refuses private machines and proxies: here the user names the address.
    from urllib.request import Request, urlopen  # `inspect` does without it

    try:
        with urlopen(Request(url, headers={"User-Agent": "ganscope"}), timeout=timeout) as answer:
            content = answer.read(MOST + 1)
    except Exception as error:  # urllib's, http.client's, ssl's
        reason = getattr(error, "reason", None) or reason_of(error)
        raise GanscopeError(
            f"{url}: cannot be fetched ({reason}), so nothing was changed; without a network, "
            "fetch the list elsewhere and name the file with --url"
        ) from None
    found = _CERTIFICATE.findall(content.decode("utf-8", "replace"))
    if len(content) > MOST or not found:
        raise GanscopeError(f"{url}: is no list of certificates in PEM, so nothing was changed")
    return found
