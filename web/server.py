"""Running the server: its port, its patience with slow clients, its end."""

import asyncio
import socket
import sys
import webbrowser
from collections.abc import Callable
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ganscope.config import ServeSettings
from ganscope.errors import GanscopeError
from ganscope.web.app import make_app
from ganscope.web.judge import Judge
from ganscope.web.metrics import Metrics

HEADERS = 15.0
"""Seconds that a client may take to send a request's headers."""
ENDING = 20
"""Seconds that requests have to be answered after the server is told to stop."""
CONNECTIONS = 8
"""Connections at a time for each picture that may wait; further ones are answered by 503."""


class Patient(H11Protocol):
    """HTTP whose headers have to come in time, each time."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:  # headers have begun, or a request is over
            self._wait()
        else:
            self._stop()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def _wait(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(HEADERS, self._give_up)

    def _stop(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        self._deadline = None
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self.transport.close()


def serve(settings: ServeSettings, said: Callable[[str], None], path: str = "/") -> None:
    """Serve until the process is told to stop; then answer what was asked before.

    said: is told the address once there is somebody to answer. path: the page to open. Raises
    `GanscopeError` if the port is taken, the detector cannot be had, or a file cannot be used.
    """
    listening = _listen(settings)
    try:
        judge = Judge(settings, Metrics())
        app = make_app(settings, judge)  # what is wrong with it is told before the detector loads
        judge.start()
        config = uvicorn.Config(
            app,
            http=Patient,
            ws="none",
            lifespan="on",
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=settings.queue * CONNECTIONS,
            h11_max_incomplete_event_size=32 * 1024,
            timeout_graceful_shutdown=ENDING,
        )
        where = f"http://{_shown(settings.host)}:{listening.getsockname()[1]}{path}"
        said(where)
        if settings.browser and sys.stdout.isatty():
            webbrowser.open(where)
        uvicorn.Server(config).run(sockets=[listening])
    finally:
        listening.close()


def _listen(settings: ServeSettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((settings.host, settings.port))
        listening.listen(1024)
    except (OSError, UnicodeError) as error:
        listening.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise GanscopeError(
            f"{settings.host} port {settings.port} cannot be had ({reason}); name another with "
            "--port, or 0 for a free one"
        ) from None
    return listening


def _shown(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
