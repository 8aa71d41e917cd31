"""What the tests of the server share, beside their fixtures."""

from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the extra: pip install 'ganscope[web]'")
from fastapi.testclient import TestClient

from ganscope.config import ServeSettings
from ganscope.web.app import make_app

NAME = '"><img src=x onerror=alert(1)>.jpg'
"""A file's name that must never become a part of a page."""

BASE = "http://127.0.0.1"


def closed(**settings: Any) -> TestClient:
    """A server that has no worker, for what is refused before it comes to that."""
    return TestClient(make_app(ServeSettings(**settings)), base_url=BASE)
