"""From a request's pictures to their records: judged, kept where that is wanted, in order."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import unquote, urlsplit

from fastapi import Request
from starlette.exceptions import HTTPException

from ganscope.errors import ImageError
from ganscope.fetching import fetch as fetch_bytes
from ganscope.limits import Limits
from ganscope.web.reading import Order, Sent, clean_name, read_order
from ganscope.web.site import Site

DRAWN = ("thumbnail", "picture", "heatmap", "tiles", "evidence")
"""What is drawn on demand, beside a record's own fields."""


FETCHING, FETCHERS = 30.0, ThreadPoolExecutor(8, "fetch")
"""Seconds that an address may take, and threads that wait for answers."""


async def read(request: Request) -> Order:
    """The pictures that a request brings; see `read_order`."""
    site: Site = request.app.state.site

    async def fetch(url: str) -> Sent:
        if not site.settings.fetch:
            raise HTTPException(403, "this server fetches no addresses; send the picture itself")
        limits = Limits(
            max_bytes=int(site.settings.max_mb * 1e6),
            seconds=min(FETCHING, site.settings.timeout),
            allow_private=site.settings.allow_private,
        )
        waiting = asyncio.get_running_loop().run_in_executor(FETCHERS, fetch_bytes, url, limits)
        try:
            content = await waiting
        except ImageError as error:  # what can be done about it on the command line is no use here
            raise ImageError(url, error.reason.partition("; ")[0]) from None
        return Sent(clean_name(unquote(urlsplit(url).path)), content)

    return await read_order(request, site.settings, fetch)


async def ask(site: Site, pictures: Sequence[Sent], **wanted: bool) -> list[dict[str, Any]]:
    """The records of pictures, with what is wanted (see `worker.Job`).

    Raises `Full` if they do not fit into the queue, `TimeoutError` if they take too long.
    """
    keeps = site.settings.keep is not None and wanted.get("judge", True)
    drawn = wanted | {"thumbnail": True} if keeps else wanted
    answers = site.judge.submit([(one.name, one.content) for one in pictures], **drawn)
    found = await asyncio.wait_for(asyncio.gather(*answers), site.settings.timeout)
    if not keeps:
        return list(found)
    records = []
    for one, record in zip(pictures, found, strict=True):
        thumbnail = record.get("thumbnail", "")
        plain = {name: value for name, value in record.items() if name not in DRAWN}
        await asyncio.to_thread(site.keeper.keep, one, plain | {"heatmap": None}, thumbnail)
        if not wanted.get("thumbnail"):
            record = {name: value for name, value in record.items() if name != "thumbnail"}
        records.append(record)
    return records
