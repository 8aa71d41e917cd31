"""The batch desk: a project's pictures, reviewed by a person."""

import base64
import io
from typing import Annotated, Any, Literal, get_args

from fastapi import APIRouter, Form, Request
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, RedirectResponse, Response

from ganscope.errors import GanscopeError
from ganscope.images import open_image
from ganscope.web.project import ORDERS, SHOWN
from ganscope.web.report import told_by_file
from ganscope.web.site import Site
from ganscope.web.thumbnails import SHOWN_SIDE, as_jpeg, shrunk

router = APIRouter(include_in_schema=False)
PAGE = 60
"""Pictures a page."""
Shown = Literal["all", "open", "done", "wrong", "fake", "real", "unsure", "error"]
Order = Literal["suspect", "trusted", "unsure", "name", "added"]
assert set(get_args(Shown)) == set(SHOWN)
assert set(get_args(Order)) == set(ORDERS)


def _site(request: Request) -> Site:
    site: Site = request.app.state.site
    if site.settings.project is None:
        raise HTTPException(
            404, "there is no project here: ganscope check FOLDER --project FILE.db makes one"
        )
    return site


def _picture(site: Site, number: int) -> dict[str, Any]:
    found = site.project.picture(number) if number < 2**63 else None  # SQLite counts no further
    if found is None:
        raise HTTPException(404, f"there is no picture {number} in this project")
    return found


@router.get("/desk")
def desk(
    request: Request, show: Shown = "all", order: Order = "suspect", page: int = 1
) -> Response:
    site = _site(request)
    counts = site.project.counts()
    pages = max(1, -(-counts[show] // PAGE))
    page = min(max(page, 1), pages)
    return HTMLResponse(
        site.render(
            "desk.html.jinja",
            request,
            counts=counts,
            show=show,
            order=order,
            orders=list(ORDERS),
            page=page,
            pages=pages,
            pictures=site.project.pictures(show, order, (page - 1) * PAGE, PAGE),
        )
    )


@router.get("/desk/export.csv")
async def export(request: Request, wrong: bool = False) -> Response:
    site, text = _site(request), io.StringIO()
    await run_in_threadpool(site.project.write_csv, text, wrong)
    return Response(
        text.getvalue(),
        media_type="text/csv; charset=utf-8",
        headers={"content-disposition": 'attachment; filename="review.csv"'},
    )


@router.get("/desk/{number}")
def review(
    request: Request, number: int, show: Shown = "all", order: Order = "suspect"
) -> Response:
    site = _site(request)
    found = _picture(site, number)
    before, after = site.project.beside(number, show, order)
    return HTMLResponse(
        site.render(
            "review.html.jinja",
            request,
            one=found,
            c=found["record"],
            told=told_by_file(found["record"]),
            before=before,
            after=after,
            show=show,
            order=order,
        )
    )


@router.post("/desk/{number}")
def reviewed(
    request: Request,
    number: int,
    truth: Annotated[str, Form(max_length=10)] = "",
    note: Annotated[str, Form(max_length=10_000)] = "",
    show: Annotated[Shown, Form()] = "all",
    order: Annotated[Order, Form()] = "suspect",
) -> Response:
    """Keep a review; the answer is sent when it is on the disk."""
    site = _site(request)
    _picture(site, number)
    _, after = site.project.beside(number, show, order)
    site.project.review(number, truth, note)
    where = f"/desk/{after or number}?show={show}&order={order}"
    return RedirectResponse(where, 303)


@router.get("/desk/{number}/picture")
def picture(request: Request, number: int) -> Response:
    """A picture of the project, made anew from its pixels: never the file, never by name."""
    site = _site(request)
    found = _picture(site, number)
    try:
        pixels = open_image(found["path"], site.settings.max_pixels).pixels
        shown = as_jpeg(shrunk(pixels, SHOWN_SIDE))
    except GanscopeError:
        shown = base64.b64decode(found["thumbnail"].partition(",")[2])  # its file is gone
    if not shown:
        raise HTTPException(404, "this picture cannot be shown")
    return Response(shown, media_type="image/jpeg")
