"""The page: pictures in, verdicts out; also without JavaScript."""

from typing import Annotated, Any

from fastapi import APIRouter, Form, Query, Request
from markdown_it import MarkdownIt
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from ganscope.web.asking import ask, read
from ganscope.web.guard import DAYS, SESSION
from ganscope.web.report import HERE, Report, told_by_file
from ganscope.web.site import Site

router = APIRouter(include_in_schema=False)
CACHE = {"cache-control": "no-cache"}


@router.get("/")
async def page(request: Request) -> Response:
    return HTMLResponse(_site(request).render("page.html.jinja", request, cards=None))


@router.post("/check")
async def check(request: Request) -> Response:
    """A whole page with results, or to our script a card for each picture, whose heatmap it asks
    for later.
    """
    site, script = _site(request), request.headers.get("x-ganscope") == "card"
    order = await read(request)
    wanted = dict.fromkeys(("tiles", "picture", "thumbnail", "evidence"), True)
    records = await ask(site, order.pictures, heatmap=not script, **wanted)
    cards = [_card(site, record, slides=script) for record in records]
    if script:
        return HTMLResponse("\n".join(cards))
    return HTMLResponse(site.render("page.html.jinja", request, cards=cards))


@router.post("/heatmap")
async def heatmap(request: Request) -> Response:
    """The heatmap of one picture, for our script."""
    order = await read(request)
    site = _site(request)
    (record, *_) = await ask(site, order.pictures[:1], judge=False, heatmap=True)
    return JSONResponse({"heatmap": record.get("heatmap"), "error": record.get("error")})


@router.post("/report")
async def report(request: Request) -> Response:
    """The report of pictures, as a file."""
    site = _site(request)
    order = await read(request)
    records = await ask(site, order.pictures, thumbnail=True, evidence=True)
    with Report(None) as page:
        for record in records:
            page.add(record, record.get("thumbnail", ""))
        return _download(page.text())


@router.get("/report")
async def frame(
    request: Request,
    fake: Annotated[int, Query(ge=0)] = 0,
    unsure: Annotated[int, Query(ge=0)] = 0,
    real: Annotated[int, Query(ge=0)] = 0,
    error: Annotated[int, Query(ge=0)] = 0,
) -> Response:
    """A report of so many pictures without its rows, which the page has already."""
    with Report(None) as empty:
        empty.counts.update(fake=fake, unsure=unsure, real=real, error=error)
        empty.told(_site(request).judge.about["name"])
        return _download(empty.text())


@router.get("/model-card")
async def model_card(request: Request) -> Response:
    site = _site(request)
    text = site.judge.about["card"]
    if text.startswith("---\n"):
        text = text.partition("\n---\n")[2]
    # No HTML of the card's own, whoever wrote it.
    card = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image").render(text)
    return HTMLResponse(site.render("card.html.jinja", request, card=card))


@router.get("/api")
async def api_page(request: Request) -> Response:
    document = request.app.openapi()
    return HTMLResponse(_site(request).render("api.html.jinja", request, document=document))


@router.get("/login")
async def login(request: Request) -> Response:
    site = _site(request)
    if not site.tokens.wanted:
        return RedirectResponse("/", 303)
    return HTMLResponse(site.render("login.html.jinja", request, wrong=False))


@router.post("/login")
async def enter(request: Request, token: Annotated[str, Form(max_length=500)] = "") -> Response:
    site = _site(request)
    if not site.tokens.holds(token.strip()):
        return HTMLResponse(site.render("login.html.jinja", request, wrong=True), 401)
    answer = RedirectResponse("/", 303)
    answer.set_cookie(
        SESSION,
        site.tokens.enter(),
        max_age=DAYS * 86400,
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )
    return answer


@router.get("/style.css")
async def style() -> Response:
    return _static("style.css", "text/css")


@router.get("/page.js")
async def script() -> Response:
    return _static("page.js", "text/javascript")


def _site(request: Request) -> Site:
    return request.app.state.site


def _card(site: Site, record: dict[str, Any], slides: bool) -> str:
    rows = Report(None)
    row = rows.row(record, record.get("thumbnail", ""))
    return site.render(
        "result.html.jinja", c=record, told=told_by_file(record), slides=slides, row=row
    )


def _static(name: str, kind: str) -> Response:
    return Response((HERE / "static" / name).read_bytes(), media_type=kind, headers=CACHE)


def _download(text: str) -> Response:
    return HTMLResponse(
        text, headers={"content-disposition": 'attachment; filename="ganscope-report.html"'}
    )
