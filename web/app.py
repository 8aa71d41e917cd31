"""The application: one place where settings become what answers requests."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, JSONResponse, Response

import ganscope
from ganscope.config import ServeSettings
from ganscope.detector.evidence.trust import find_anchors
from ganscope.errors import GanscopeError, ImageError
from ganscope.web import api, desk, pages, play
from ganscope.web.game import Game
from ganscope.web.guard import HEADERS, Guard, Tokens, TooLarge, TooSlow, too_large
from ganscope.web.judge import Full, Judge, Lost
from ganscope.web.keeping import Keeper
from ganscope.web.metrics import Metrics
from ganscope.web.project import Project
from ganscope.web.report import templates
from ganscope.web.site import Site


def make_app(settings: ServeSettings, judge: Judge | None = None) -> FastAPI:
    """The application; judge: one that is started already.

    Raises `GanscopeError` for a project, token file, or corpus that cannot be used, and an origin
    that is none, or trust anchors that are; the detector is loaded when the application starts.
    """
    for origin in settings.allow_origin:
        if not origin.startswith(("http://", "https://")) or origin.count("/") != 2:
            raise GanscopeError(
                f"--allow-origin must look like https://example.org, not {origin!r}"
            )
    find_anchors(settings.trust_anchors)
    metrics = Metrics() if judge is None else judge.metrics
    judge = judge or Judge(settings, metrics)
    project = Project(settings.project)
    site = Site(
        settings=settings,
        judge=judge,
        metrics=metrics,
        tokens=Tokens(settings.token_file),
        project=project,
        keeper=Keeper(settings.keep, project if settings.project else None),
        game=Game(settings.corpus, judge, project),
        pages=templates(),
    )

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        await judge.run()
        try:
            yield
        finally:
            await judge.stop()
            project.close()

    app = FastAPI(
        title="ganscope",
        version=ganscope.__version__,
        summary="Is this picture generated? A verdict with a calibrated probability.",
        description="A verdict is evidence, not proof. Nothing that is sent is kept, unless the "
        "server was started with `--keep`.",
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        docs_url=None,  # those load scripts from another host
        redoc_url=None,
        openapi_url="/api/v1/openapi.json",
        lifespan=life,
    )
    app.state.site = site
    for routes in (api, pages, desk, play):
        app.include_router(routes.router)
    api.complete(app.openapi())
    app.add_middleware(Guard, settings=settings, tokens=site.tokens, metrics=metrics)
    app.add_exception_handler(
        Exception,  # answered outside of `Guard`, which would add the headers
        _answering(lambda _: (500, "that is a defect of ours; the log says more", HEADERS)),
    )
    for kind, told in _errors(settings).items():
        app.add_exception_handler(kind, _answering(told))
    return app


Told = Callable[[Any], tuple[int, str, dict[str, str]]]


def _errors(settings: ServeSettings) -> dict[type[Exception], Told]:
    """What is answered for each kind of error: status, a line, headers."""
    return {
        ImageError: lambda error: (422, error.reason, {}),
        GanscopeError: lambda error: (400, str(error), {}),
        Full: lambda error: (429, str(error), {"retry-after": str(error.seconds)}),
        Lost: lambda error: (500, str(error), {}),
        TooLarge: lambda _: (413, too_large(settings), {"connection": "close"}),
        TooSlow: lambda error: (408, str(error), {"connection": "close"}),
        asyncio.TimeoutError: lambda _: (
            *(504, f"no answer in {settings.timeout:g} seconds; try again later"),
            {},
        ),
        RequestValidationError: lambda error: (422, _validation(error), {}),
        HTTPException: lambda error: (
            *(error.status_code, _http(error)),
            dict(error.headers or {}),
        ),
    }


def _answering(told: Told) -> Callable[[Request, Exception], Any]:
    async def answer(request: Request, error: Exception) -> Response:
        status, said, headers = told(error)
        if request.url.path.startswith("/api/"):
            return JSONResponse({"error": said}, status, headers)
        site: Site = request.app.state.site
        if request.headers.get("x-ganscope") == "card":
            page = site.render("problem.html.jinja", said=said, name="")
        else:
            page = site.render("error.html.jinja", request, status=status, said=said)
        return HTMLResponse(page, status, headers)

    return answer


def _validation(error: RequestValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'][1:]))}: {first['msg']}"


def _http(error: HTTPException) -> str:
    if error.status_code == 404 and error.detail == "Not Found":
        return "there is nothing here"
    return str(error.detail)
