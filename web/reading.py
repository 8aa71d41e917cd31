"""What a request brings: pictures as forms, as a bare body, or at an address."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath, PureWindowsPath
from urllib.parse import parse_qs

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from ganscope.config import ServeSettings
from ganscope.web.guard import TooLarge

Fetch = Callable[[str], Awaitable["Sent"]]


@dataclass(frozen=True)
class Sent:
    """A picture as it was sent; its name is told, never used."""

    name: str
    content: bytes


@dataclass
class Order:
    """A request's pictures, and whether it wants a list."""

    pictures: list[Sent]
    several: bool = False


@dataclass
class _Asked:
    """The same before anything is fetched: an address is a text."""

    pictures: Sequence[Sent | str] = ()
    several: bool = False


async def read_order(request: Request, settings: ServeSettings, fetch: Fetch) -> Order:
    """The pictures of a request: multipart files (`file`, or `files` for a list), `url`s of a form
    or of JSON, or a body that is a picture itself.

    Raises `HTTPException` for a request that brings none, or more than may wait, before any address
    is asked; `TooLarge` if all together have more bytes than a request may, and `TimeoutError` if
    the addresses take too long.
    """
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind == "application/x-www-form-urlencoded":
        asked = _from_form(await request.body(), request)
    elif kind == "multipart/form-data":
        asked = await _from_parts(request, settings)
    elif kind == "application/json":
        asked = _from_json(await request.body())
    else:
        asked = _bare(await request.body(), request)
    if not asked.pictures:
        raise HTTPException(400, "no picture was sent: choose a file, or give an address")
    if len(asked.pictures) > settings.queue:
        raise _too_many(settings)
    fetched = _fetched(asked.pictures, fetch, int(settings.max_mb * 1e6))
    return Order(await asyncio.wait_for(fetched, settings.timeout), asked.several)


async def _fetched(asked: Sequence[Sent | str], fetch: Fetch, most: int) -> list[Sent]:
    """The pictures, those at addresses one by one: one request must not send us to hundreds at
    once, nor make us hold more than it could have sent itself.
    """
    found: list[Sent] = []
    for one in asked:
        found.append(await fetch(one) if isinstance(one, str) else one)
        if sum(len(sent.content) for sent in found) > most:
            raise TooLarge
    return found


def _too_many(settings: ServeSettings) -> HTTPException:
    return HTTPException(413, f"a request may bring {settings.queue} pictures; send several")


async def _from_parts(request: Request, settings: ServeSettings) -> _Asked:
    try:
        form = await request.form(max_files=settings.queue, max_fields=100)
    except HTTPException as error:
        raise _too_many(settings) if "Too many files" in error.detail else error from None
    asked: list[Sent | str] = []
    several = False
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            content = await value.read()
            if content or value.filename:
                asked.append(Sent(clean_name(value.filename or ""), content))
                several |= name == "files"
        elif name in ("url", "urls"):
            asked += [line.strip() for line in value.split("\n") if line.strip()]
            several |= name == "urls"
    return _Asked(asked, several or len(asked) > 1)


def _bare(body: bytes, request: Request) -> _Asked:
    name = clean_name(request.query_params.get("name", "picture"))
    return _Asked([Sent(name, body)] if body else [])


def _from_form(body: bytes, request: Request) -> _Asked:
    """A form without files; or a picture that curl's --data-binary calls one."""
    try:
        fields = parse_qs(body.decode("ascii"), max_num_fields=100)
    except ValueError:
        return _bare(body, request)
    urls = [
        line for name in ("url", "urls") for text in fields.get(name, []) for line in text.split()
    ]
    return _Asked(urls, several="urls" in fields or len(urls) > 1)


def _from_json(body: bytes) -> _Asked:
    try:
        asked = json.loads(body)
        one, many = asked.get("url"), asked.get("urls")
        urls = [one] if one is not None else many or []
        if not isinstance(urls, list) or not all(isinstance(url, str) for url in urls):
            raise TypeError
    except (ValueError, AttributeError, TypeError, RecursionError):
        raise HTTPException(400, 'JSON must look like {"url": "https://..."}') from None
    return _Asked(urls, several=one is None)


def clean_name(name: str) -> str:
    """A sender's name for a file, without folders and control characters."""
    last = PureWindowsPath(PurePosixPath(name).name).name
    shown = "".join(c for c in last if c.isprintable()).strip()
    return shown.encode("utf-8", "replace").decode()[:200] or "picture"
