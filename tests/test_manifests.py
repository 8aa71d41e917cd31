"""Manifests (C2PA), signed here by authorities of our own, and whose signatures are trusted."""

import http.server
import io
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from declaring_files import (
    CREATED,
    action,
    another_root,
    authority,
    jpeg,
    picture,
    sign,
    xmp,
)

from ganscope.config import TrustUpdateSettings
from ganscope.detector.evidence import manifests
from ganscope.detector.evidence.evidence import read_evidence
from ganscope.detector.evidence.record import (
    CAPTURED,
    EDITED,
    GENERATED,
    INVALID,
    KNOWN_ISSUER,
    NOTHING,
    UNCHECKED,
    UNKNOWN_ISSUER,
)
from ganscope.detector.evidence.trust import trust_list, update_trust
from ganscope.errors import GanscopeError

# --- manifests ---


def test_a_signed_declaration_and_how_far_it_is_trusted(tmp_path: Path) -> None:
    content = sign(CREATED)
    found = read_evidence(content)
    assert (found.declared, found.trust) == (GENERATED, UNCHECKED)
    assert (found.by, found.model) == ("Test Maker Ltd", "Painter 3")
    mine, other = tmp_path / "mine.pem", tmp_path / "other.pem"
    mine.write_text(authority()[0])
    other.write_text(another_root())
    assert read_evidence(content, trust_anchors=mine).trust == KNOWN_ISSUER
    assert read_evidence(content, trust_anchors=other).trust == UNKNOWN_ISSUER
    changed = bytearray(content)
    changed[-40] ^= 1  # a pixel
    found = read_evidence(bytes(changed), trust_anchors=mine)
    assert (found.declared, found.trust) == (GENERATED, INVALID)
    assert "Hash.mismatch" in found.findings[0].details["faults"]


def test_what_was_done_later_does_not_hide_what_a_picture_was() -> None:
    born = sign(CREATED)
    later = sign(action("opened"), action("transcoded", "algorithmicallyEnhanced"), parent=born)
    assert read_evidence(later).declared == GENERATED
    assert "made by a trained model" in read_evidence(later).findings[0].details["history"]


def test_a_captured_picture_stays_so_until_a_model_works_on_it() -> None:
    photo = sign(action("created", "digitalCapture"))
    assert read_evidence(photo).declared == CAPTURED
    assert read_evidence(sign(action("cropped"), parent=photo)).declared == CAPTURED
    filled = sign(action("opened"), action("edited", "trainedAlgorithmicMedia"), parent=photo)
    assert read_evidence(filled).declared == EDITED


def test_a_generated_part_makes_a_picture_edited_and_one_that_was_shown_nothing() -> None:
    born, photo = sign(CREATED), sign(action("created", "digitalCapture"))
    assert read_evidence(sign(action("placed"), part=born)).declared == EDITED
    assert read_evidence(sign(action("placed"), part=photo)).declared == NOTHING
    assert read_evidence(sign(action("edited"), shown=born)).declared == NOTHING
    assert read_evidence(sign(CREATED, shown=photo)).declared == GENERATED


def test_letters_by_chance_declare_nothing() -> None:
    content = jpeg(comment=b"c2pa jumb jumd c2pa trainedAlgorithmicMedia")
    found = read_evidence(content + b"jumbc2pa")
    assert found.declared == NOTHING


def test_without_the_library_a_manifest_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    content = sign(CREATED)
    monkeypatch.setitem(sys.modules, "c2pa", None)
    found = read_evidence(content)
    assert found.declared == NOTHING
    assert any("pip install c2pa-python" in f.says for f in found.findings)


def test_a_library_that_fails_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(anchors: object) -> None:
        raise OSError("wrong ELF class")

    monkeypatch.setattr(manifests, "_context", broken)
    found = read_evidence(jpeg(comment=b"jumb"))
    assert any("cannot be read" in f.says and "ELF" in f.says for f in found.findings)


def test_nothing_is_fetched_for_a_manifest_that_lies_elsewhere() -> None:
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/x.c2pa"
        file = io.BytesIO()
        picture().save(
            file, "JPEG", xmp=xmp("", f'dcterms:provenance="{address}"').encode(), comment=b"jumb"
        )
        found = read_evidence(file.getvalue())
        server.shutdown()
    assert not asked
    assert any("nothing was fetched" in f.says for f in found.findings)


# --- trust ---


def test_trust_update_fetches_whole_or_not_at_all(tmp_path: Path) -> None:
    content = sign(CREATED)
    (tmp_path / "anchors.pem").write_text(f"# roots\n{authority()[0]}")
    (tmp_path / "page.html").write_text("<html>moved</html>")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(tmp_path))

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        path, count = update_trust(TrustUpdateSettings(url=f"{address}/anchors.pem"))
        assert (path, count) == (trust_list(), 1)
        kept = path.read_bytes()
        assert read_evidence(content).trust == KNOWN_ISSUER
        for wrong in ("page.html", "nowhere.pem"):
            with pytest.raises(GanscopeError, match="nothing was changed"):
                update_trust(TrustUpdateSettings(url=f"{address}/{wrong}"))
        server.shutdown()
    assert path.read_bytes() == kept
    update_trust(TrustUpdateSettings(url=str(tmp_path / "anchors.pem")))
    assert read_evidence(content).trust == KNOWN_ISSUER
    with pytest.raises(GanscopeError, match="no such file"):
        update_trust(TrustUpdateSettings(url="nowhere.pem"))


def test_trust_anchors_that_hold_none_are_a_clear_line(tmp_path: Path) -> None:
    (tmp_path / "empty.pem").write_text("nothing")
    with pytest.raises(GanscopeError, match="holds no certificates"):
        read_evidence(jpeg(), trust_anchors=tmp_path / "empty.pem")
    with pytest.raises(GanscopeError, match="cannot be read"):
        read_evidence(jpeg(), trust_anchors=tmp_path / "none.pem")
