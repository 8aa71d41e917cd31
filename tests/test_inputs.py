"""What a user names becomes images: folders with links, lists, archives, PDFs, standard input, and
web addresses with their limits.
"""

import http.server
import io
import os
import socket
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ganscope import fetching
from ganscope.errors import GanscopeError, ImageError
from ganscope.fetching import fetch, is_public
from ganscope.images import NamedImage
from ganscope.inputs import (
    Passed,
    Video,
    count_inputs,
    find_images,
    find_inputs,
    kind_of,
    name_of,
    refuse_missing,
)
from ganscope.limits import Limits

LOCAL = Limits(allow_private=True, seconds=5)


def picture(kind: str = "PNG", colour: int = 90) -> bytes:
    held = io.BytesIO()
    Image.new("RGB", (40, 30), (colour, 10, 200)).save(held, kind)
    return held.getvalue()


def names(*paths: str | Path, **options: Any) -> list[str]:
    return [name_of(one) for one in find_inputs(paths, **options)]


def below(root: Path, passed: Passed | None = None) -> list[str]:
    return [Path(p).relative_to(root).as_posix() for p in find_images(root, passed)]


def test_links_are_followed_once_and_circles_end(tmp_path: Path) -> None:
    """Pictures below linked folders were silently passed over."""
    root = tmp_path / "root"
    (root / "z").mkdir(parents=True)
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    for path in (root / "z/1.png", tmp_path / "elsewhere/2.png", tmp_path / "elsewhere/deep/3.png"):
        path.write_bytes(picture())
    (root / "a").symlink_to(tmp_path / "elsewhere")
    (root / "b").symlink_to(tmp_path / "elsewhere" / "deep")  # in a's already
    (root / "c").symlink_to("z")  # beside it
    (root / "z" / "up").symlink_to("..")  # a circle
    (tmp_path / "elsewhere" / "back").symlink_to(root)  # a wider one
    (root / "dead").symlink_to("nowhere")
    passed = Passed()
    assert sorted(below(root, passed)) == ["a/2.png", "a/deep/3.png", "z/1.png"]
    assert list(passed.counts.elements()) == ["without an ending"]
    assert below(root / "a") == ["2.png", "deep/3.png", "back/z/1.png"]


def test_a_folder_that_a_link_leads_above_of_gives_the_rest(tmp_path: Path) -> None:
    for name in ("root/x/1.png", "out/in/2.png", "out/3.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(picture())
    (tmp_path / "root/a").symlink_to(tmp_path / "out/in")
    (tmp_path / "root/b").symlink_to(tmp_path / "out")
    assert sorted(below(tmp_path / "root")) == ["a/2.png", "b/3.png", "x/1.png"]


def test_files_without_an_ending_are_known_by_their_content(tmp_path: Path) -> None:
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"):
        (tmp_path / f"from-{kind}").write_bytes(picture(kind))
    (tmp_path / "photo.jpg_large").write_bytes(picture("JPEG"))
    (tmp_path / "README").write_text("P is a letter. II is no number.")
    (tmp_path / "notes.txt").write_bytes(picture())
    (tmp_path / "clip.mp4").write_bytes(b"")
    passed = Passed()
    found = below(tmp_path, passed)
    assert found == [
        *sorted(f"from-{k}" for k in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP")),
        "photo.jpg_large",
    ]
    assert passed.counts == {".txt": 1, ".mp4": 1, "without an ending": 1}
    assert "3 that are no pictures" in str(passed)
    assert "clip.mp4" in str(passed)


def test_a_folder_without_images_says_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"")
    with pytest.raises(GanscopeError, match=r"no images in this folder; .*1 \.mp4.*clip\.mp4"):
        count_inputs([tmp_path])


def test_a_list_names_paths_beside_it_or_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lists").mkdir()
    (tmp_path / "folder").mkdir()
    for name in ("lists/a.png", "b.png", "folder/c.png"):
        (tmp_path / name).write_bytes(picture())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lists/all.txt").write_bytes(
        b"\xef\xbb\xbfa.png\r\n# a remark\r\n\r\nb.png\r\nfolder\r\ngone.png\r\n"
    )
    found = list(find_inputs(["lists/all.txt"]))
    assert [name_of(one) for one in found] == ["lists/a.png", "b.png", "folder/c.png", "gone.png"]
    assert isinstance(found[3], ImageError)
    (tmp_path / "empty.txt").write_text("# nothing\n")
    nothing, after = find_inputs(["empty.txt", "b.png"])  # and what comes after is not lost
    assert isinstance(nothing, ImageError)
    assert nothing.reason == "this list names nothing"
    assert after == "b.png"
    with pytest.raises(GanscopeError, match="can be named once only"):
        refuse_missing(["-", "b.png", "-"])
    (tmp_path / "self.txt").write_text("self.txt\n")
    (one,) = find_inputs(["self.txt"])
    assert isinstance(one, ImageError)
    assert "list within a list" in one.reason


class Stdin:
    def __init__(self, content: bytes):
        self.buffer = io.BytesIO(content)


@pytest.mark.parametrize("separator", [b"\n", b"\r\n", b"\0"])
def test_standard_input_is_a_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, separator: bytes
) -> None:
    paths = [tmp_path / "a b.png", tmp_path / "ü.png"]
    for path in paths:
        path.write_bytes(picture())
    monkeypatch.setattr(sys, "stdin", Stdin(separator.join(os.fsencode(p) for p in paths)))
    assert names("-") == [str(p) for p in paths]


def test_standard_input_is_a_picture_an_archive_or_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stdin", Stdin(picture()))
    (one,) = find_inputs(["-"])
    assert one == NamedImage("-", picture())
    monkeypatch.setattr(sys, "stdin", Stdin(packed({"in/a.png": picture()})))
    assert names("-") == ["-/in/a.png"]
    for content, said in ((b"", "nothing comes"), (picture(), "once only")):
        monkeypatch.setattr(sys, "stdin", Stdin(content))
        with pytest.raises(GanscopeError, match=said):
            names("-", "-")
    monkeypatch.setattr(sys, "stdin", Stdin(b"<svg>\n</svg>\n"))
    (one,) = find_inputs(["-"])
    assert isinstance(one, ImageError)


def packed(members: dict[str, bytes], kind: str = "zip") -> bytes:
    held = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members.items():
                archive.writestr(name, content)
    else:
        with tarfile.open(fileobj=held, mode=f"w:{kind}") as tar:
            for name, content in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return held.getvalue()


@pytest.mark.parametrize("kind", ["zip", "", "gz", "bz2", "xz"])
def test_archives_give_their_pictures(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("photos.zip" if kind == "zip" else f"photos.tar.{kind}".rstrip("."))
    members = {
        "inner/a.jpg": picture("JPEG"),
        "without-ending": picture(),
        "notes.txt": b"words",
        "__MACOSX/._a.jpg": b"x",
        "../../out.png": picture(colour=1),
        "/root.png": picture(colour=2),
    }
    path.write_bytes(packed(members, kind))
    passed = Passed()
    found = [one for one in find_inputs([path], None, passed) if isinstance(one, NamedImage)]
    inside = [one.name.removeprefix(f"{path}/") for one in found]
    assert inside == ["inner/a.jpg", "without-ending", "out.png", "root.png"]
    assert found[0].content == members["inner/a.jpg"]
    assert passed.counts == {".txt": 1}
    assert {p.name for p in tmp_path.iterdir()} == {path.name}


@pytest.mark.parametrize("kind", ["zip", "gz"])
def test_bombs_are_refused(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ganscope.inputs.LARGE", 2**16)
    swollen, sound = bytes(3 * 2**20), picture()
    path = tmp_path / "bomb"
    path.write_bytes(packed({"big.png": swollen, "a.png": sound}, kind))
    assert path.stat().st_size < 10_000
    found = list(find_inputs([path]))
    assert isinstance(found[0], ImageError)
    assert "far more than it weighs" in found[0].reason
    path.write_bytes(packed({f"{i}.png": bytes(60_000) for i in range(90)}, kind))
    found = list(find_inputs([path]))
    assert isinstance(found[-1], ImageError)
    assert len(found) < 80
    small = Limits(max_bytes=1000)
    path.write_bytes(packed({"big.png": os.urandom(2000), "a.png": sound}, kind))
    large, good = find_inputs([path], small)
    assert isinstance(large, ImageError)
    assert isinstance(good, NamedImage)


def test_a_tar_header_of_senseless_size_costs_nothing(tmp_path: Path) -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 2**40
    path = tmp_path / "evil.tar"
    path.write_bytes(info.tobuf() + bytes(1024))
    (one,) = find_inputs([path])
    assert isinstance(one, ImageError)


@pytest.mark.parametrize("kind", ["zip", "gz", ""])
def test_damaged_archives_are_one_line_each(tmp_path: Path, kind: str) -> None:
    whole = packed({f"{i}.png": picture(colour=i) for i in range(20)}, kind)
    path = tmp_path / "half.zip"
    for cut in (10, 300, len(whole) // 2, len(whole) - 30):
        path.write_bytes(whole[:cut])
        found = list(find_inputs([path]))
        assert found
        assert all(isinstance(one, ImageError | NamedImage | str) for one in found)
    path.write_bytes(whole)
    assert len(names(path)) == 20


def test_a_locked_archive_says_so(tmp_path: Path) -> None:
    whole = bytearray(packed({"a.png": picture()}))
    for place in (whole.index(b"PK\x03\x04") + 6, whole.index(b"PK\x01\x02") + 8):
        whole[place] |= 1
    (tmp_path / "a.zip").write_bytes(whole)
    (one,) = find_inputs([tmp_path / "a.zip"])
    assert isinstance(one, ImageError)
    assert "password" in one.reason


def test_the_pictures_of_a_pdf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pypdf")
    pages = [Image.new("RGB", (60, 40), (i * 50, 90, 20)) for i in range(3)]
    path = tmp_path / "doc.pdf"
    pages[0].save(path, save_all=True, append_images=pages[1:])
    found = list(find_inputs([path]))
    assert [name_of(one).removeprefix(f"{path}/")[:7] for one in found] == [
        "page-1/",
        "page-2/",
        "page-3/",
    ]
    for one in found:
        assert isinstance(one, NamedImage)
        assert isinstance(one.content, bytes)
        assert Image.open(io.BytesIO(one.content)).size == (60, 40)
    path.write_bytes(path.read_bytes()[:400])
    assert all(isinstance(one, ImageError) for one in find_inputs([path]))
    monkeypatch.setitem(sys.modules, "pypdf", None)
    (one,) = find_inputs([path])
    assert isinstance(one, ImageError)
    assert 'pip install "ganscope[pdf]"' in one.reason


def test_a_file_address_is_a_path(tmp_path: Path) -> None:
    path = tmp_path / "a b.png"
    path.write_bytes(picture())
    assert names(path.as_uri()) == [str(path)]
    (one,) = find_inputs(["file://elsewhere/a.png"])
    assert isinstance(one, ImageError)


def test_a_file_address_that_leads_nowhere_is_told_before_anything_is_judged(
    tmp_path: Path,
) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a b.png")
    there, gone = (tmp_path / "a b.png").as_uri(), (tmp_path / "gone.png").as_uri()
    assert count_inputs([tmp_path, there]) == 2
    refuse_missing([tmp_path, there, "file://elsewhere/a.png"])
    for look in (count_inputs, refuse_missing):
        with pytest.raises(GanscopeError, match=r"gone\.png: no such file"):
            look([tmp_path, gone])


def test_kinds_are_told_by_the_first_bytes() -> None:
    assert kind_of(picture()) == "picture"
    assert kind_of(packed({"a": b""})) == "zip"
    assert kind_of(packed({"a": b""}, "gz")) == "tar"
    assert kind_of(b"%PDF-1.7") == "pdf"
    assert kind_of(b"\0\0\0\x20ftypisom") == "video"
    assert kind_of(b"\0\0\0\x20ftypheic") == "picture"
    assert kind_of(b"\x1aE\xdf\xa3\x01") == "video"
    assert kind_of(b"words") == ""


def test_a_named_video_is_one(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"")
    assert list(find_inputs([tmp_path / "clip.mp4"])) == [Video(str(tmp_path / "clip.mp4"))]


class Site(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.asked.append(self.headers["Host"])  # type: ignore[attr-defined]
        answer = getattr(self, self.path.strip("/").split("/")[0].split("?")[0])
        answer()

    def send(self, content: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def picture(self) -> None:
        self.send(picture("JPEG"))

    def archive(self) -> None:
        self.send(packed({"in/a.png": picture()}))

    def page(self) -> None:
        self.send(b"<!DOCTYPE html><html></html>")

    def hop(self) -> None:
        self.send(b"", 302, Location="/picture")

    def round(self) -> None:
        self.send(b"", 302, Location="/round")

    def away(self) -> None:
        self.send(b"", 302, Location=self.path.split("?to=")[1])

    def endless(self) -> None:
        self.send_response(200)
        self.end_headers()
        try:
            while True:
                self.wfile.write(bytes(1 << 16))
        except OSError:
            pass

    def slow(self) -> None:
        self.send_response(200)
        self.end_headers()
        try:
            for _ in range(100):
                self.wfile.write(b"x")
                time.sleep(0.1)
        except OSError:
            pass

    def boast(self) -> None:
        self.send(b"x", Content_Length=str(2**40))

    def gone(self) -> None:
        self.send(b"", 404)

    def gzip(self) -> None:
        self.send(b"x", Content_Encoding="gzip")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def site() -> Iterator[Any]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site)
    server.asked = []  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def address(site: Any, path: str, host: str = "127.0.0.1") -> str:
    return f"http://{host}:{site.server_port}/{path}"


def test_an_address_gives_its_picture(site: Any) -> None:
    assert fetch(address(site, "picture"), LOCAL) == picture("JPEG")
    assert fetch(address(site, "hop"), LOCAL) == picture("JPEG")
    found = list(find_inputs([address(site, p) for p in ("archive", "gone", "picture")], LOCAL))
    assert name_of(found[0]) == address(site, "archive/in/a.png")
    assert isinstance(found[1], ImageError)
    assert "404" in found[1].reason
    assert found[2] == NamedImage(address(site, "picture"), picture("JPEG"))


def test_many_addresses_keep_their_order(site: Any, tmp_path: Path) -> None:
    wanted = [address(site, f"picture?{i}") for i in range(30)]
    (tmp_path / "all.txt").write_text("\n".join(wanted))
    assert names(tmp_path / "all.txt", limits=LOCAL) == wanted


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("page", "web page"),
        ("round", "more than 5 redirects"),
        ("gone", "404"),
        ("gzip", "packed"),
        ("boast", "larger than 1 MB"),
        ("endless", "larger than 1 MB"),
        ("away?to=file:///etc/passwd", "leads to file://"),
        ("away?to=ftp://localhost/x", "leads to ftp://"),
        ("away?to=http://user:word@localhost/", "password"),
    ],
)
def test_what_an_address_may_not_cost(site: Any, path: str, said: str) -> None:
    limits = Limits(allow_private=True, max_bytes=2**20, seconds=20)
    with pytest.raises(ImageError, match=said) as raised:
        fetch(address(site, path), limits)
    assert raised.value.path == address(site, path)


def test_a_server_that_sends_a_byte_now_and_then_is_late(site: Any) -> None:
    started = time.monotonic()
    with pytest.raises(ImageError, match=r"longer than 0\.5 seconds"):
        fetch(address(site, "slow"), Limits(allow_private=True, seconds=0.5))
    assert time.monotonic() - started < 5  # of ten


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1", "2130706433", "0x7f000001"])
def test_private_machines_are_not_asked(site: Any, host: str) -> None:
    with pytest.raises(ImageError, match="not on the public internet; --allow-private"):
        fetch(address(site, "picture", host))
    assert not site.asked


def answers(monkeypatch: pytest.MonkeyPatch, *found: str) -> list[str]:
    """Let names resolve to these, one after the other; returns the names that were asked for."""
    asked: list[str] = []
    queue = list(found)

    def resolve(host: str, port: int, *_: object, **__: object) -> list[Any]:
        if host[0].isdigit():  # not a name
            number = host
        else:
            asked.append(host)
            number = queue.pop(0)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (number, port))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return asked


def test_a_redirect_to_a_private_machine_is_not_followed(
    site: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "is_public", lambda a: a == "127.0.0.1")  # as if it were
    asked = answers(monkeypatch, "127.0.0.1", "127.0.0.2")
    with pytest.raises(ImageError, match=r"inner\.test \(127\.0\.0\.2\) is not"):
        fetch(address(site, f"away?to=http://inner.test:{site.server_port}/picture", "outer.test"))
    assert asked == ["outer.test", "inner.test"]
    assert site.asked == [f"outer.test:{site.server_port}"]


def test_a_name_is_resolved_once(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that is public when it is looked at and private when it is connected to."""
    monkeypatch.setattr(fetching, "is_public", lambda a: a == "127.0.0.1")
    asked = answers(monkeypatch, "127.0.0.1", "169.254.169.254")
    assert fetch(address(site, "picture", "swaps.test")) == picture("JPEG")
    assert asked == ["swaps.test"]


@pytest.mark.parametrize(
    ("number", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("::ffff:8.8.8.8", True),
        ("64:ff9b::808:808", True),
        ("10.0.0.1", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("::ffff:127.0.0.1", False),
        ("2002:7f00:1::", False),
        ("64:ff9b::7f00:1", False),
    ],
)
def test_which_addresses_are_public(number: str, public: bool) -> None:
    assert is_public(number) is public
