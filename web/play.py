"""The pages of the game."""

import secrets
from typing import Annotated

from fastapi import APIRouter, Cookie, Form, Request
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, RedirectResponse, Response

from ganscope.web.game import KINDS, tally
from ganscope.web.report import told_by_file
from ganscope.web.site import Site

router = APIRouter(include_in_schema=False)
PLAYER = "ganscope_player"
Player = Annotated[str, Cookie(alias=PLAYER, max_length=64)]


@router.get("/play")
async def play(request: Request, kind: str = "pair", player: Player = "") -> Response:
    site: Site = request.app.state.site
    if kind not in KINDS:
        raise HTTPException(404)
    new = player or secrets.token_urlsafe(16)
    open_ = await site.game.deal(kind, new)
    page = site.render(
        "play.html.jinja",
        request,
        kind=kind,
        round=open_,
        outcome=None,
        tally=tally(site.project.answers(new)),
        told=None,
    )
    answer = HTMLResponse(page)
    if not player:
        answer.set_cookie(PLAYER, new, max_age=365 * 86400, httponly=True, samesite="strict")
    return answer


@router.post("/play")
async def answered(
    request: Request,
    round_: Annotated[str, Form(alias="round", max_length=64)],
    choice: Annotated[int, Form(ge=0, le=1)],
    player: Player = "",
) -> Response:
    site: Site = request.app.state.site
    open_ = site.game.round(round_, player)
    if open_ is None:  # answered already, or forgotten
        return RedirectResponse("/play", 303)
    outcome = await site.game.answer(open_, choice)
    page = site.render(
        "play.html.jinja",
        request,
        kind=open_.kind,
        round=open_,
        outcome=outcome,
        tally=tally(site.project.answers(player)),
        told=[told_by_file(record) for record in outcome.records],
        shown=[site.game.as_uri(one) for one in open_.pictures],
    )
    return HTMLResponse(page)


@router.get("/play/{name}/{number}")
async def picture(request: Request, name: str, number: int, player: Player = "") -> Response:
    site: Site = request.app.state.site
    open_ = site.game.round(name, player)
    if open_ is None or not 0 <= number < len(open_.pictures):
        raise HTTPException(404)
    return Response(open_.pictures[number].shown, media_type="image/jpeg")
