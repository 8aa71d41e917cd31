"""Where weights come from: downloaded once, checked, and told of when they are not to be had."""

import dataclasses
import hashlib
import io
import re
import threading
import warnings
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError
from PIL import Image
from safetensors.torch import save_file

from ganscope.config import BenchmarkSettings
from ganscope.detector.benchmark.benchmark import benchmark_detectors
from ganscope.detector.benchmark.contestants import open_scorer
from ganscope.detector.published import download, load_published
from ganscope.detector.published.sources import SOURCES
from ganscope.errors import GanscopeError, GanscopeWarning

from .made_weights import KEYS, WRAPPED, Saved, weights_of


class Host:
    """A web server of this machine: path -> bytes, and the paths that were asked for."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        host = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                host.asked.append(self.path)
                body = host.files.get(self.path)
                self.send_response(404 if body is None else 200)
                self.send_header("Content-Length", str(len(body or b"")))
                self.end_headers()
                self.wfile.write(body or b"")

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def host() -> Iterator[Host]:
    host = Host()
    yield host
    host.server.shutdown()
    host.server.server_close()


Published = Callable[..., bytes]


@pytest.fixture
def offered(host: Host, monkeypatch: pytest.MonkeyPatch) -> Published:
    """Put weights of a detector on that server, and its checksum and address among the sources."""

    def offer(name: str, body: bytes = b"", **changes: Any) -> bytes:
        if not body:
            kept = io.BytesIO()
            torch.save(WRAPPED.get(name, dict)(weights_of(KEYS[name]())), kept)
            body = kept.getvalue()
        host.files[f"/{name}"] = body
        said = {"web": f"{host.url}/{name}", "hub": "", "sha256": hashlib.sha256(body).hexdigest()}
        monkeypatch.setitem(SOURCES, name, dataclasses.replace(SOURCES[name], **(said | changes)))
        return body

    return offer


def kept_files(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()}


def test_weights_are_downloaded_once_and_with_a_word_about_them(
    offered: Published, host: Host, tmp_path: Path, photos: list[np.ndarray]
) -> None:
    body = offered("tiny-ladeda")
    said = rf"tiny-ladeda: downloading WildRF.*\(12 kB; licence: research only\) from {host.url}"
    with pytest.warns(GanscopeWarning, match=said):
        detector = load_published("tiny-ladeda")
    assert detector.weights == hashlib.sha256(body).hexdigest()[:12]
    assert kept_files(tmp_path) == {"WildRF_Tiny_LaDeDa.pth"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = load_published("tiny-ladeda")
    assert host.asked == ["/tiny-ladeda"]
    np.testing.assert_array_equal(again.score_pixels(photos), detector.score_pixels(photos))


def test_weights_in_an_archive_are_taken_out_of_it(
    offered: Published, host: Host, tmp_path: Path
) -> None:
    body = offered("bfree")
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr(SOURCES["bfree"].member, body)
        file.writestr("BFREE_dino2reg4/config.yaml", "arch: some")
    host.files["/bfree"] = archive.getvalue()
    with pytest.warns(GanscopeWarning, match="322 MB; licence: nonprofit use only"):
        detector = load_published("bfree")
    assert detector.weights == hashlib.sha256(body).hexdigest()[:12]
    assert kept_files(tmp_path) == {"model_epoch_best.pth"}


@pytest.mark.filterwarnings("ignore:.*downloading")
def test_another_file_than_the_pinned_one_is_refused_and_removed(
    offered: Published, host: Host, tmp_path: Path
) -> None:
    body = offered("tiny-ladeda")
    host.files["/tiny-ladeda"] = body + b"0"
    said = (
        r"tiny-ladeda: WildRF.* is damaged or was changed: its SHA-256, \w{64}, is not the pinned"
    )
    with pytest.raises(GanscopeError, match=said) as told:
        load_published("tiny-ladeda")
    assert "\n" not in str(told.value)
    assert kept_files(tmp_path) == set()
    host.files["/tiny-ladeda"] = body
    load_published("tiny-ladeda")
    kept = next((tmp_path / "cache").rglob("*.pth"))
    kept.write_bytes(b"spoilt on the disk")
    with pytest.raises(GanscopeError, match=said):
        load_published("tiny-ladeda")
    load_published("tiny-ladeda")
    assert kept.read_bytes() == body


@pytest.mark.filterwarnings("ignore:.*downloading")
def test_where_no_checksum_is_known_the_first_download_is_trusted(
    offered: Published, host: Host, tmp_path: Path
) -> None:
    body = offered("tiny-ladeda", sha256="")
    load_published("tiny-ladeda")
    recorded = next((tmp_path / "cache").rglob("WildRF_Tiny_LaDeDa.pth.sha256"))
    assert recorded.read_text().strip() == hashlib.sha256(body).hexdigest()
    recorded.with_suffix("").unlink()
    host.files["/tiny-ladeda"] = body + b"0"
    with pytest.raises(GanscopeError, match=f"not that of the first download, {recorded}"):
        load_published("tiny-ladeda")
    assert kept_files(tmp_path) == {recorded.name}
    host.files["/tiny-ladeda"] = body
    load_published("tiny-ladeda")


@pytest.mark.filterwarnings("ignore:.*downloading")
def test_offline_a_line_says_what_to_download_and_how_to_name_it(
    offered: Published, host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offered("npr", b"<!DOCTYPE html>")
    offered("bfree", b"no archive")
    offered("tiny-ladeda")
    host.files.pop("/tiny-ladeda")
    for name, reason, how in [
        ("npr", "a web page", "and"),
        ("bfree", "BadZipFile", "unzip BFREE_dino2reg4/model_epoch_best.pth and"),
        ("tiny-ladeda", "404", "and"),
    ]:
        said = rf"{name}: {SOURCES[name].file} is not to be had \(.*{reason}.*offline, download "
        said += rf"{host.url}/{name} elsewhere,? {how} name it, {name}:FILE$"
        with pytest.raises(GanscopeError, match=said) as told:
            load_published(name)
        assert "\n" not in str(told.value)
    host.server.shutdown()
    host.server.server_close()
    with pytest.raises(GanscopeError, match=r"URLError.*offline, download http.*tiny-ladeda:FILE"):
        load_published("tiny-ladeda")
    assert kept_files(tmp_path) == set()

    def offline(*_: Any, **__: Any) -> None:
        raise LocalEntryNotFoundError("cannot find the file, and outgoing traffic is disabled")

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(download, "hf_hub_download", offline)
    url = "https://huggingface.co/OwensLab/commfor-model-384/resolve/6076002bf0d9"
    with pytest.raises(GanscopeError, match=rf"offline, download {url}.*name it, commfor:FILE"):
        load_published("commfor")


def test_files_of_the_hub_lie_in_its_cache_and_are_checked_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photos: list[np.ndarray]
) -> None:
    source = SOURCES["commfor"]
    root = tmp_path / "hub" / "models--OwensLab--commfor-model-384"
    blob = root / "blobs" / "b"
    link = root / "snapshots" / source.revision / source.file
    for folder in (blob.parent, link.parent):
        folder.mkdir(parents=True)

    def from_hub(repository: str, file: str, revision: str) -> str:
        assert (repository, file, revision) == (source.hub, source.file, source.revision)
        save_file(weights_of(KEYS["commfor"]()), blob)
        link.symlink_to(blob)
        return str(link)

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(download, "hf_hub_download", from_hub)
    said = r"downloading model\.safetensors \(87 MB; licence: MIT\) from https://huggingface"
    with (
        pytest.warns(GanscopeWarning, match=said),
        pytest.raises(GanscopeError, match=r"commfor: model\.safetensors .*is not the pinned one"),
    ):
        load_published("commfor")
    assert not blob.exists()
    assert not link.is_symlink()
    from_hub(source.hub, source.file, source.revision)
    digest = hashlib.sha256(blob.read_bytes()).hexdigest()
    monkeypatch.setitem(SOURCES, "commfor", dataclasses.replace(source, sha256=digest))
    monkeypatch.delattr(download, "hf_hub_download")
    detector = load_published("commfor")
    assert detector.weights == digest[:12]
    assert np.isfinite(detector.score_pixels(photos)).all()


def test_univfd_alone_downloads_its_head(
    offered: Published, saved: Saved, photos: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    by_hand = load_published("univfd", saved("univfd"))
    offered("univfd")
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: by_hand.net.tower)
    with pytest.warns(GanscopeWarning, match="fc_weights"):
        detector = load_published("univfd")
    np.testing.assert_array_equal(detector.score_pixels(photos), by_hand.score_pixels(photos))


def test_addresses_name_a_revision_and_files_a_checksum() -> None:
    for name, source in SOURCES.items():
        assert source.licence
        assert source.page.startswith("https://")
        if not source.url:
            continue
        assert source.url.startswith("https://")
        trusted = ("cnndetect", "xception-faces", "f3net")  # on their first download
        assert bool(source.sha256) == (name not in trusted)
        assert re.fullmatch("([0-9a-f]{64})?", source.sha256)
        if name not in (*trusted, "bfree", "sieve"):
            assert re.search("/[0-9a-f]{40}/", source.url)


def test_a_name_alone_is_the_pinned_detector_unless_a_folder_is_called_so(
    offered: Published, tmp_path: Path, astronaut: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    offered("tiny-ladeda")
    corpus = tmp_path / "corpus"
    for label, flip in (("0_real", 1), ("1_fake", -1)):
        (corpus / label).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(astronaut[64 * i :][:64, : 64 * flip : flip]).save(
                corpus / label / f"{i}.png"
            )
    settings = BenchmarkSettings(
        corpora=(corpus,),
        detector=("tiny-ladeda",),
        out=tmp_path / "out",
        bootstrap=0,
        protocol="raw",
        device="cpu",
    )
    with pytest.warns(GanscopeWarning, match="downloading"):
        results = benchmark_detectors(settings)
    assert set(results["detector"]) == {"tiny-ladeda"}
    (tmp_path / "tiny-ladeda").mkdir()
    with pytest.raises(GanscopeError, match=r"tiny-ladeda: this folder holds no config\.json"):
        open_scorer("tiny-ladeda")
    with pytest.raises(GanscopeError, match="name a file behind tiny-ladeda:"):
        open_scorer("tiny-ladeda:")
