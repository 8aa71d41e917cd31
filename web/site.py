"""What all routes of a server work with."""

from dataclasses import dataclass
from typing import Any

import jinja2
from starlette.requests import Request

import ganscope
from ganscope.config import ServeSettings
from ganscope.web.game import Game
from ganscope.web.guard import Tokens
from ganscope.web.judge import Judge
from ganscope.web.keeping import Keeper
from ganscope.web.metrics import Metrics
from ganscope.web.project import Project


@dataclass
class Site:
    """What the routes work with; `request.app.state.site`."""

    settings: ServeSettings
    judge: Judge
    metrics: Metrics
    tokens: Tokens
    project: Project
    keeper: Keeper
    game: Game
    pages: jinja2.Environment

    def render(self, template: str, request: Request | None = None, **values: Any) -> str:
        """A page of `templates/`."""
        known = {
            "here": request.url.path if request else "",
            "has_project": self.settings.project is not None,
            "guarded": self.tokens.wanted,
            "version": ganscope.__version__,
            "settings": self.settings,
            "detector": self.judge.about,
        }
        return self.pages.get_template(template).render(**known | values)
