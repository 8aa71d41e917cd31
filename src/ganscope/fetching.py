"""Fetching what stands at a web address, with limits: of bytes, seconds, redirects, and of the
machines that may be asked.

A name is resolved once, and the connection is made to the address that was looked at, at every
redirect anew: an answer that changes between looking and connecting (DNS rebinding) leads nowhere.
Proxies are not used, since what they resolve cannot be looked at.
"""

import contextlib
import functools
import io
import ipaddress
import os
import queue
import socket
import ssl
import threading
import time
from collections.abc import Iterable
from typing import IO, Any

import httpcore
import httpx

from ganscope.errors import ImageError, reason_of
from ganscope.limits import Limits

REDIRECTS = (301, 302, 303, 307, 308)
WEB_PAGE = (b"<!doctype html", b"<html")
"""How a page begins, in lower case, that somebody took for a picture."""
NAT64 = ipaddress.ip_network("64:ff9b::/96")
"""IPv6 addresses that stand for the IPv4 address in their last 32 bits."""


def fetch(url: str, limits: Limits | None = None) -> bytes:
    """The bytes at an http(s) address.

    Raises `ImageError`, whose path is `url`, for anything that keeps them from being had: the
    limits, an address that is not public, a status that is no success, a network that fails.
    """
    content = io.BytesIO()
    fetch_into(url, content, limits)
    return content.getvalue()


def fetch_into(url: str, file: IO[bytes], limits: Limits | None = None) -> None:
    """`fetch`, into a file: what is large need not fit into memory."""
    limits = limits or Limits()
    deadline = time.monotonic() + limits.seconds
    try:
        where = httpx.URL(url)
        for _ in range(limits.redirects + 1):
            answer = _ask(where, url, limits, deadline, file)
            if answer is None:
                return
            where = where.join(answer)
    except httpx.InvalidURL as error:
        raise ImageError(url, f"no valid address ({error})") from None
    except (httpcore.TimeoutException, TimeoutError):
        raise ImageError(
            url, f"took longer than {limits.seconds:g} seconds; download it and name the file"
        ) from None
    except (httpcore.NetworkError, httpcore.ProtocolError, OSError, UnicodeError) as error:
        said = f"cannot be fetched ({reason_of(error)})"
        if any(os.environ.get(name) for name in ("https_proxy", "HTTPS_PROXY", "http_proxy")):
            said += "; proxies are not used: download it and name the file"
        raise ImageError(url, said) from None
    raise ImageError(url, f"leads on and on (more than {limits.redirects} redirects)")


def _ask(
    where: httpx.URL, url: str, limits: Limits, deadline: float, file: IO[bytes]
) -> str | None:
    """Where a server sends us; None: its answer is in the file. url: for messages."""
    if where.scheme not in ("http", "https") or not where.host:
        raise ImageError(url, f"leads to {where.scheme or 'no'}://, which is not fetched")
    if where.userinfo:
        raise ImageError(url, "has a password in it; download it and name the file")
    left = deadline - time.monotonic()
    headers: dict[bytes | str, bytes | str] = {
        "Host": where.netloc.decode("ascii"),
        "User-Agent": "ganscope (detector of generated images)",
        "Accept": "image/*, */*;q=0.5",
        "Accept-Encoding": "identity",
    }
    with (
        httpcore.ConnectionPool(
            ssl_context=_certificates() if where.scheme == "https" else None,
            network_backend=_Watched(url, limits, deadline),
            max_keepalive_connections=0,
        ) as pool,
        pool.stream(
            "GET",
            httpcore.URL(
                scheme=where.raw_scheme, host=where.raw_host, port=where.port, target=where.raw_path
            ),
            headers=headers,
            extensions={"timeout": dict.fromkeys(("connect", "read", "write", "pool"), left)},
        ) as response,
    ):
        told = {name.lower(): value for name, value in response.headers}
        if response.status in REDIRECTS and b"location" in told:
            return told[b"location"].decode("latin-1")
        if response.status != 200:
            reason = response.extensions.get("reason_phrase", b"").decode("latin-1")
            raise ImageError(url, f"the server answers {response.status} {reason}".rstrip())
        if told.get(b"content-encoding", b"identity").lower() != b"identity":
            raise ImageError(url, "the server sends it packed, which was not asked for")
        too_large = f"larger than {limits.max_bytes / 2**20:.3g} MB; download it and name the file"
        if int(told.get(b"content-length") or 0) > limits.max_bytes:
            raise ImageError(url, too_large)
        count, head = 0, b""
        for chunk in response.iter_stream():
            head += chunk[: 256 - len(head)]
            count += len(chunk)
            if count > limits.max_bytes:
                raise ImageError(url, too_large)
            file.write(chunk)
    if not count:
        raise ImageError(url, "the server sends nothing")
    if head.lstrip().lower().startswith(WEB_PAGE):
        raise ImageError(url, "is a web page, no picture; name the picture's own address")
    return None


@functools.cache
def _certificates() -> ssl.SSLContext:
    """The system's, and those that come with Python where a system has none."""
    import certifi

    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    return context


class _Watched(httpcore.SyncBackend):
    """Connects to addresses that may be asked, by numbers, and no later than a deadline."""

    def __init__(self, url: str, limits: Limits, deadline: float):
        self.url, self.limits, self.deadline = url, limits, deadline

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        found = _resolve(host, port, self.deadline)
        allowed = [a for a in found if self.limits.allow_private or is_public(a)]
        if not allowed:
            raise ImageError(
                self.url,
                f"{host}{'' if host == str(found[0]) else f' ({found[0]})'} is not on the public "
                "internet; --allow-private asks it all the same",
            )
        last: Exception = httpcore.ConnectError("no address")
        for address in allowed:
            with contextlib.suppress(ValueError):
                try:
                    stream = super().connect_tcp(
                        address, port, _left(self.deadline), local_address, socket_options
                    )
                    return _Stream(stream, self.deadline)
                except httpcore.ConnectError as error:
                    last = error
        raise last


class _Stream(httpcore.NetworkStream):
    """A connection whose every step ends at the deadline: a server that sends a byte now and then
    would otherwise never be late.
    """

    def __init__(self, stream: httpcore.NetworkStream, deadline: float):
        self.stream, self.deadline = stream, deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self.stream.read(max_bytes, _left(self.deadline))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self.stream.write(buffer, _left(self.deadline))

    def close(self) -> None:
        self.stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        stream = self.stream.start_tls(ssl_context, server_hostname, _left(self.deadline))
        return _Stream(stream, self.deadline)

    def get_extra_info(self, info: str) -> Any:
        return self.stream.get_extra_info(info)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise httpcore.ReadTimeout
    return left


def _resolve(host: str, port: int, deadline: float) -> list[str]:
    """The numbers behind a name. In a thread: a resolver can be slower than any deadline."""
    answers: queue.SimpleQueue[list[str] | Exception] = queue.SimpleQueue()

    def ask() -> None:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            answers.put(list(dict.fromkeys(str(one[4][0]) for one in found)))
        except Exception as error:
            answers.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=_left(deadline))
    except queue.Empty:
        raise httpcore.ConnectTimeout from None
    if isinstance(answer, socket.gaierror):
        raise OSError(f"no such host as {host}")
    if isinstance(answer, Exception):
        raise answer
    return answer


def is_public(address: str) -> bool:
    """Whether an address in numbers belongs to the public internet, also one that is wrapped in
    another (IPv4 in IPv6, 6to4, Teredo, NAT64).
    """
    one = ipaddress.ip_address(address.partition("%")[0])
    inner: list[Any] = []
    if isinstance(one, ipaddress.IPv6Address):
        inner = [one.ipv4_mapped, one.sixtofour, *(one.teredo or ())]
        if one in NAT64 or one.packed[:12] == bytes(12):
            inner.append(ipaddress.IPv4Address(one.packed[-4:]))
        if one.is_site_local:
            return False
    if one.is_multicast or (one.is_reserved and not inner):
        return False
    wrapped = [str(a) for a in inner if a is not None]
    if wrapped:
        return all(is_public(a) for a in wrapped)
    return one.is_global
