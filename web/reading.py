"""What a request brings: pictures as forms, as a bare body, or at an address."""

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import PurePosixPath, PureWindowsPath
from urllib.parse import parse_qs

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from ganscope.config import ServeSettings

Fetch = Callable[[str], Awaitable["Sent"]]


@dataclass(frozen=True)
class Sent:
    """A picture as it was sent; its name is told, never used."""

    name: str
    content: bytes


@dataclass
class Order:
    """A request's pictures, the other fields of its form, and whether it wants a list."""

    pictures: list[Sent]
    fields: dict[str, str] = field(default_factory=dict)
    several: bool = False


async def read_order(request: Request, settings: ServeSettings, fetch: Fetch) -> Order:
    """The pictures of a request: multipart files (`file`, or `files` for a list), `url`s of a form
    or of JSON, or a body that is a picture itself.

    Raises `HTTPException` for a request that brings none.
    """
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind == "application/x-www-form-urlencoded":
        order = await _from_form(await request.body(), request, fetch)
    elif kind == "multipart/form-data":
        form = await request.form(max_files=settings.queue, max_fields=100)
        sent, fields, several = [], {}, False
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                content = await value.read()
                if content or value.filename:
                    sent.append(Sent(clean_name(value.filename or ""), content))
                    several |= name == "files"
            elif name in ("url", "urls"):
                sent += [await fetch(line.strip()) for line in value.split("\n") if line.strip()]
                several |= name == "urls"
            else:
                fields[name] = value
        order = Order(sent, fields, several or len(sent) > 1)
    elif kind == "application/json":
        order = await _from_json(await request.body(), fetch)
    else:
        order = _bare(await request.body(), request)
    if not order.pictures:
        raise HTTPException(400, "no picture was sent: choose a file, or give an address")
    if len(order.pictures) > settings.queue:
        raise HTTPException(413, f"a request may bring {settings.queue} pictures; send several")
    return order


def _bare(body: bytes, request: Request) -> Order:
    name = clean_name(request.query_params.get("name", "picture"))
    return Order([Sent(name, body)] if body else [])


async def _from_form(body: bytes, request: Request, fetch: Fetch) -> Order:
    """A form without files; or a picture that curl's --data-binary calls one."""
    try:
        fields = parse_qs(body.decode("ascii"), max_num_fields=100)
    except ValueError:
        return _bare(body, request)
    urls = [
        line for name in ("url", "urls") for text in fields.get(name, []) for line in text.split()
    ]
    return Order([await fetch(url) for url in urls], several="urls" in fields or len(urls) > 1)


async def _from_json(body: bytes, fetch: Fetch) -> Order:
    try:
        asked = json.loads(body)
        one, many = asked.get("url"), asked.get("urls")
        urls = [one] if one is not None else many or []
        if not isinstance(urls, list) or not all(isinstance(url, str) for url in urls):
            raise TypeError
    except (ValueError, AttributeError, TypeError, RecursionError):
        raise HTTPException(400, 'JSON must look like {"url": "https://..."}') from None
    return Order([await fetch(url) for url in urls], several=one is None)


def clean_name(name: str) -> str:
    """A sender's name for a file, without folders and control characters."""
    last = PureWindowsPath(PurePosixPath(name).name).name
    shown = "".join(c for c in last if c.isprintable()).strip()
    return shown.encode("utf-8", "replace").decode()[:200] or "picture"
