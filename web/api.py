"""The HTTP API, /api/v1: the records of `ganscope check --json` and what runs the server."""

import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import JSONResponse, Response, StreamingResponse

import ganscope
from ganscope.web.asking import ask, read
from ganscope.web.site import Site

router = APIRouter(prefix="/api/v1", tags=["API"])

RECORD = {
    "path": "photo.jpg",
    "score": 0.0113,
    "verdict": "real",
    "probability": 0.0223,
    "meaning": "of 100 images with this score about 2 are generated, if fakes are as common as "
    "photos",
    "thresholds": {"fake": 0.8945, "real": 0.2213},
    "detector": "default",
    "width": 640,
    "height": 427,
    "pixels_verdict": "real",
    "decided_by": "picture",
    "faces": [
        {
            "box": [212, 80, 318, 221],
            "confidence": 0.94,
            "score": 0.0481,
            "verdict": "real",
            "swap_score": 0.0127,
            "swap_threshold": 0.7,
            "swapped": False,
            "warnings": [],
        }
    ],
    "declared": "captured by a camera",
    "declared_by": "Example Camera 1",
    "declared_model": None,
    "declared_seed": None,
    "declared_prompt": None,
    "declared_trust": "plain text that anybody can write",
    "declared_reason": "EXIF: names a camera (plain text that anybody can write)",
    "heatmap": None,
    "warnings": [],
    "error": None,
}
BINARY = {"type": "string", "format": "binary"}
BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "file": BINARY | {"description": "A picture: the answer is one record."},
                        "files": {
                            "type": "array",
                            "items": BINARY,
                            "description": "Pictures: the answer is a list of records.",
                        },
                        "url": {"type": "string", "description": "A picture's public address."},
                    },
                }
            },
            "image/*": {"schema": BINARY},
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "url": {"type": "string"},
                        "urls": {"type": "array", "items": {"type": "string"}},
                    },
                },
                "examples": {
                    "one": {"value": {"url": "https://example.org/photo.jpg"}},
                    "several": {"value": {"urls": ["https://example.org/photo.jpg"]}},
                },
            },
        },
    }
}


def said(status: int, what: str, example: dict[str, Any] | str) -> dict[int | str, dict[str, Any]]:
    """A response for the OpenAPI document; a text is an `error`."""
    example = {"error": example} if isinstance(example, str) else example
    return {status: {"description": what, "content": {"application/json": {"example": example}}}}


def complete(document: dict[str, Any]) -> None:
    """Give the examples of an OpenAPI document their nulls back, which FastAPI leaves out."""
    check = document["paths"][f"{router.prefix}/check"]["post"]["responses"]
    for status in ("200", "422"):
        example = check[status]["content"]["application/json"]["example"]
        whole = {name: example.get(name) for name in RECORD}
        check[status]["content"]["application/json"]["example"] = whole


ANSWERS = {
    **said(400, "No picture in the request.", "no picture was sent: choose a file, or ..."),
    **said(401, "A token is wanted.", "a token is wanted: Authorization: Bearer TOKEN"),
    **said(413, "Too many bytes or pictures.", "a request may have 32 MB; send fewer or ..."),
    **said(
        422,
        "The picture cannot be read: its record, with the reason.",
        RECORD
        | dict.fromkeys(name for name in RECORD if name not in ("thresholds", "detector"))
        | {
            "warnings": [],
            "path": "letter.jpg",
            "error": "not an image, or of a kind that Pillow cannot read",
        },
    ),
    **said(
        429, "Full: come back after `Retry-After` seconds.", "as many pictures wait as may; ..."
    ),
    **said(504, "No answer in time.", "no answer in 120 seconds; try again later"),
}


@router.post(
    "/check",
    summary="Judge pictures",
    openapi_extra=BODY,
    responses={**said(200, "The record of `ganscope check --json`.", RECORD), **ANSWERS},
)
async def check(
    request: Request,
    heatmap: Annotated[
        bool, Query(description="`heatmap` is a JPEG as data URI, null where nothing can be said.")
    ] = False,
    tiles: Annotated[
        bool,
        Query(
            description="Add `tiles`: the places looked at as they are, with scores; none where "
            "the whole alone settled it."
        ),
    ] = False,
    name: Annotated[
        str, Query(description="What to call a picture sent as bare body.")
    ] = "picture",
) -> Response:
    """Judge one picture (multipart `file`, bare body, or `url`) or several (`files`, `urls`).

    One is answered by a record, several by a list; with `Accept: application/x-ndjson` by a line
    each.
    """
    order = await read(request)
    site: Site = request.app.state.site
    records = await ask(site, order.pictures, heatmap=heatmap, tiles=tiles)
    if "application/x-ndjson" in request.headers.get("accept", ""):
        return StreamingResponse(_lines(records), media_type="application/x-ndjson")
    return _answer(records, order.several)


@router.post(
    "/inspect",
    summary="Read what files say of themselves",
    openapi_extra=BODY,
    responses=ANSWERS,
)
async def inspect(request: Request) -> Response:
    """What a file tells about its making, without any judgement of its pixels."""
    order = await read(request)
    records = await ask(request.app.state.site, order.pictures, judge=False)
    return _answer(records, order.several)


@router.get("/detectors", summary="Which detector judges here, and which others ship")
async def detectors(request: Request) -> dict[str, Any]:
    about = request.app.state.site.judge.about
    hidden = ("card", "unread", "shipped")
    return {
        "detector": {name: value for name, value in about.items() if name not in hidden},
        "shipped": about.get("shipped", []),
    }


@router.get(
    "/health",
    summary="Whether pictures are judged",
    responses=said(503, "The judging process is being started anew.", {"status": "starting"}),
)
async def health(request: Request) -> Response:
    site: Site = request.app.state.site
    ready = site.judge.ready
    told = {
        "status": "ok" if ready else "starting",
        "version": ganscope.__version__,
        "detector": site.judge.about.get("name"),
        "waiting": site.judge.waiting,
        "queue": site.settings.queue,
    }
    return JSONResponse(told, 200 if ready else 503)


@router.get("/metrics", summary="Counters for Prometheus")
async def metrics(request: Request) -> Response:
    return Response(
        generate_latest(request.app.state.site.metrics.registry), media_type=CONTENT_TYPE_LATEST
    )


def _answer(records: list[dict[str, Any]], several: bool) -> Response:
    if several:
        return JSONResponse(records)
    return JSONResponse(records[0], 422 if records[0].get("error") else 200)


async def _lines(records: list[dict[str, Any]]) -> AsyncIterator[str]:
    for record in records:
        yield json.dumps(record) + "\n"
