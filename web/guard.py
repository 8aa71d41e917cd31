"""What stands before every request: host, origin, token, size, patience; and what is said with
every answer.

Another site's page can neither make a browser send something here (no form or script of another
origin is answered) nor read an answer (no CORS), nor pretend to be this host (DNS rebinding),
unless `--allow-origin` and `--allow-host` say so.
"""

import asyncio
import hashlib
import hmac
import secrets
import time
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from urllib.parse import urlsplit

from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ganscope.config import ServeSettings
from ganscope.errors import GanscopeError
from ganscope.web.judge import Full
from ganscope.web.metrics import Metrics

OPEN = ("/api/v1/health", "/login", "/style.css", "/page.js")
"""What is answered without a token."""
SAFE = ("GET", "HEAD", "OPTIONS")
LOCAL = ("127.0.0.1", "localhost", "::1")
SESSION, DAYS = "ganscope", 7
"""The cookie of somebody who has given a token on the page, and how long it holds."""
HELD, BUSY = 16, 5
"""The largest requests whose bytes are held at a time, by all, and seconds after which to come back
where there are more."""
SHORTEST = 16
"""Characters of a token, at least."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' blob: "
    "data:; connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}


class TooLarge(Exception):
    """A request has more bytes than the limit."""


class TooSlow(Exception):
    """A request was not sent in time, or its sender went away."""


class Tokens:
    """Who may ask: bearers of a token of the file, and browsers that gave one on the page.

    Raises `GanscopeError` if the file cannot be read or holds no token, or one that can be guessed.
    """

    def __init__(self, path: Path | None):
        self._known: list[bytes] | None = None
        self._sessions: dict[str, float] = {}
        if path is None:
            return
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "no text"
            raise GanscopeError(f"--token-file {path}: cannot be read ({reason})") from None
        words = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not words:
            raise GanscopeError(f"--token-file {path}: holds no token; write one a line")
        if any(len(word) < SHORTEST for word in words):
            raise GanscopeError(
                f"--token-file {path}: a token has less than {SHORTEST} characters; make one by "
                'python -c "import secrets; print(secrets.token_urlsafe())"'
            )
        self._known = [_digest(word) for word in words]

    @property
    def wanted(self) -> bool:
        return self._known is not None

    def holds(self, word: str) -> bool:
        """Whether a word is one of the tokens; each is compared, in constant time."""
        found = [hmac.compare_digest(_digest(word), known) for known in self._known or ()]
        return any(found)

    def enter(self) -> str:
        """A new session's name."""
        now = time.time()
        self._sessions = {name: end for name, end in self._sessions.items() if end > now}
        name = secrets.token_urlsafe()
        self._sessions[name] = now + DAYS * 86400
        return name

    def allows(self, headers: dict[bytes, bytes]) -> bool:
        if not self.wanted:
            return True
        scheme, _, word = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        if scheme.lower() == "bearer" and self.holds(word.strip()):
            return True
        return self._sessions.get(cookie(headers, SESSION), 0) > time.time()


def _digest(word: str) -> bytes:
    return hashlib.sha256(word.encode("utf-8", "replace")).digest()


def cookie(headers: dict[bytes, bytes], name: str) -> str:
    try:
        found = SimpleCookie(headers.get(b"cookie", b"").decode("latin-1")).get(name)
    except CookieError:
        return ""
    return found.value if found else ""


class Guard:
    """ASGI middleware; see the module."""

    def __init__(self, app: ASGIApp, settings: ServeSettings, tokens: Tokens, metrics: Metrics):
        self.app, self.settings, self.tokens, self.metrics = app, settings, tokens, metrics
        self.most = int(settings.max_mb * 1e6)
        self.held = 0
        """Bytes of all requests that are read or answered just now."""
        everywhere = settings.host not in LOCAL and not settings.allow_host
        self.hosts = None if everywhere else {*LOCAL, settings.host, *settings.allow_host}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.monotonic(), 500
        headers = dict(scope["headers"])
        origin = headers.get(b"origin", b"").decode("latin-1")
        allowed = origin if origin in self.settings.allow_origin else ""

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = {name for name, _ in message["headers"]}
                extra: dict[str, str] = dict(HEADERS)
                if allowed and scope["path"].startswith("/api/"):
                    extra |= {"access-control-allow-origin": allowed, "vary": "Origin"}
                    extra["cross-origin-resource-policy"] = "cross-origin"
                message["headers"] = [
                    *message["headers"],
                    *((k.encode(), v.encode()) for k, v in extra.items() if k.encode() not in own),
                ]
            await send(message)

        refused = self._refusal(scope, headers, origin, allowed)
        taken: list[int] = []
        try:
            if refused is not None:
                await refused(scope, receive, answer)
            else:
                await self.app(scope, self._patient(receive, taken), answer)
        finally:
            self.held -= sum(taken)
            route = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(route, str(status)).inc()
            self.metrics.seconds.labels(route).observe(time.monotonic() - start)

    def _refusal(
        self, scope: Scope, headers: dict[bytes, bytes], origin: str, allowed: str
    ) -> Response | None:
        host = headers.get(b"host", b"").decode("latin-1")
        if self.hosts is not None and _name(host) not in self.hosts:
            return _plain(
                421, f"this server is not called {_name(host)!r}; start it with --allow-host NAME"
            )
        method, path = scope["method"], scope["path"]
        if method == "OPTIONS" and allowed and path.startswith("/api/"):
            return Response(
                status_code=204,
                headers={
                    "access-control-allow-methods": "GET, POST",
                    "access-control-allow-headers": "authorization, content-type",
                    "access-control-max-age": "600",
                },
            )
        if not (allowed and path.startswith("/api/")):
            site = headers.get(b"sec-fetch-site", b"").decode("latin-1")
            foreign = site not in ("", "same-origin", "none")
            if method in SAFE:  # elsewhere may be a link to here, but no picture of ours
                foreign = foreign and headers.get(b"sec-fetch-dest", b"") not in (b"", b"document")
            else:
                foreign = foreign or bool(origin and urlsplit(origin).netloc != host)
            if foreign:
                return _plain(403, "pages of other sites may not send anything here")
        if path not in OPEN and not self.tokens.allows(headers):
            if path.startswith("/api/") or method not in SAFE:
                return _plain(
                    401,
                    "a token is wanted: Authorization: Bearer TOKEN",
                    {"www-authenticate": "Bearer"},
                )
            return RedirectResponse("/login", 303)
        length = headers.get(b"content-length", b"0").decode("latin-1")
        if length.isdigit() and int(length) > self.most:
            return _plain(413, too_large(self.settings), {"connection": "close"})
        return None

    def _patient(self, receive: Receive, taken: list[int]) -> Receive:
        """Receive a request's body, but not more of it than the limit, nor for longer, nor with all
        others more than is held at a time; taken: gets the sizes of its parts.
        """
        end = time.monotonic() + self.settings.timeout
        total, whole = 0, False

        async def bounded() -> Message:
            nonlocal total, whole
            if whole:  # what comes now is only whether the sender has gone
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), max(0.01, end - time.monotonic()))
            except TimeoutError:
                raise TooSlow("the request was not sent in time") from None
            if message["type"] == "http.disconnect":
                raise TooSlow("the sender went away")
            taken.append(len(message.get("body", b"")))
            self.held += taken[-1]
            total += taken[-1]
            whole = not message.get("more_body", False)
            if total > self.most:
                raise TooLarge
            if self.held > HELD * self.most:
                self.metrics.refused.inc()
                raise Full(BUSY)
            return message

        return bounded


def too_large(settings: ServeSettings) -> str:
    return f"a request may have {settings.max_mb:g} MB; send fewer or smaller pictures"


def _plain(status: int, said: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": said}, status, headers)


def _name(host: str) -> str:
    """A host without its port: example.org:80, [::1]:80."""
    name = host.rsplit("]", 1)[0].lstrip("[") if host.startswith("[") else host.split(":")[0]
    return name.lower()
