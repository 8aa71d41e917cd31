"""Scanning many files: the rows are those of `check`, none is lost and none is there twice."""

import errno
import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections import Counter
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import spoiled_worker

from ganscope.config import CheckSettings, ExportSettings, ScanSettings
from ganscope.detector.judging.checking import FIELDS, check_images
from ganscope.detector.judging.exporting import export_detector
from ganscope.detector.model import Detector
from ganscope.detector.scanning import local, on_ray, results, worker
from ganscope.detector.scanning import scan as scanning
from ganscope.detector.scanning.listing import Item, find_items
from ganscope.detector.scanning.scan import Progress, scan_images
from ganscope.detector.scanning.worker import Work, Worker
from ganscope.errors import GanscopeError
from ganscope.inputs import Passed

pytest.importorskip("onnxruntime", reason="a graph starts quicker than torch")


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small one, as a graph: its workers are there within a second."""
    import torch

    folder = tmp_path_factory.mktemp("detector")
    torch.manual_seed(0)
    small = Detector.create("cnn", width=8, depth=3).eval()
    small.config["thresholds"] |= {"fake": 0.5, "real": 0.49}
    small.save(folder / "small")
    path = folder / "small.onnx"
    export_detector(ExportSettings(detector=str(folder / "small"), out=path, most=2))
    return str(path)


def picture(seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    pixels = cv2.resize(rng.integers(0, 255, (6, 6, 3), dtype=np.uint8), (48, 48))
    pixels = pixels // 2 + rng.integers(0, 127, pixels.shape, dtype=np.uint8)
    return cv2.imencode(".jpg", pixels)[1].tobytes()


def make(folder: Path, count: int, name: str = "", first: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        (folder / f"{name}{number:04}.jpg").write_bytes(picture(number))
    return folder


def scan(*paths: Any, out: Path, detector: str, **more: Any) -> Progress:
    more = {"engine": "local", "workers": 1} | more
    settings = ScanSettings(paths=tuple(map(str, paths)), out=out, detector=detector, **more)
    return [*scan_images(settings)][-1]


def table(out: Path) -> pd.DataFrame:
    return pd.read_parquet(out).sort_values("path", ignore_index=True)


def rows_of_check(*paths: Any, detector: str) -> pd.DataFrame:
    settings = CheckSettings(paths=tuple(map(str, paths)), detector=detector)
    rows = [check.as_dict() for check in check_images(settings)]
    for row in rows:
        row["thresholds"] = json.dumps(row["thresholds"])
        row["warnings"] = "; ".join(row["warnings"])
        row["faces"] = json.dumps(row["faces"]) if row["faces"] else None
    return pd.DataFrame(rows).sort_values("path", ignore_index=True)


def same(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(
        found[list(FIELDS)].astype(object).where(found[list(FIELDS)].notna(), None),
        expected[list(FIELDS)].astype(object).where(expected[list(FIELDS)].notna(), None),
        check_exact=False,
        rtol=1e-5,
    )


def test_rows_are_those_of_check_and_tell_of_the_file(tmp_path: Path, detector: str) -> None:
    inbox = make(tmp_path / "inbox", 70)
    (inbox / "empty.png").write_bytes(b"")
    (inbox / "no picture.png").write_bytes(b"text" * 100)
    (inbox / "half.jpg").write_bytes(picture(900)[:600])
    (inbox / "=1+1.jpg").write_bytes(picture(901))
    (inbox / "notes.csv").write_text("passed over")
    listing = tmp_path / "list.txt"
    listing.write_text(f"{inbox}/\n# remark\n\nnowhere.jpg\n")
    with pytest.warns(UserWarning, match=r"passed over: 1 .*notes.csv"):
        last = scan(listing, out=tmp_path / "r.parquet", detector=detector, workers=2)
    found = table(tmp_path / "r.parquet")
    same(found, rows_of_check(listing, detector=detector))
    assert last.done
    assert last.rows == len(found) == 75
    assert last.left == 0
    assert last.verdicts == Counter(found.verdict.fillna("error"))
    assert last.verdicts["error"] == 4
    row = found[found.path.str.endswith("0003.jpg")].iloc[0]
    content = (inbox / "0003.jpg").read_bytes()
    assert row.bytes == len(content)
    assert row.sha256 == hashlib.sha256(content).hexdigest()
    assert 0 < row.seconds < 60
    assert found.duplicate_of.isna().all()
    written = json.loads((tmp_path / "r.parquet" / "_metrics.json").read_text())
    assert written["done"]
    assert written["passed"] == {".csv": 1}
    assert list(written["runtimes"].values()) == [71]
    unread = found[found.verdict.isna()]
    assert unread[["width", "height", "declared", "declared_reason"]].isna().all(None)
    assert written["rows"] == 75
    assert sorted(p.name for p in (tmp_path / "r.parquet").iterdir()) == [
        "_metrics.json",
        "_scan.json",
        "part-00000001.parquet",
    ]


@pytest.mark.parametrize("alone", [False, True], ids=["beside", "alone"])
def test_faces_are_looked_at_as_in_check(
    tmp_path: Path, astronaut: np.ndarray, alone: bool
) -> None:
    small = Detector.create("cnn", width=8, depth=3).eval()
    if alone:
        small.config["input"] |= {"looks_at": "faces", "margin": 1.3}
    small.save(tmp_path / "small")
    inbox = make(tmp_path / "inbox", 2)
    for name in ("face.png", "again.png"):
        cv2.imwrite(str(inbox / name), astronaut[:, :, ::-1])
    detector = str(tmp_path / "small.onnx")
    wish = ExportSettings(detector=str(tmp_path / "small"), out=Path(detector))
    export_detector(replace(wish, sample=(str(inbox / "face.png"),)))
    scan(inbox, out=tmp_path / "r", detector=detector)
    found = table(tmp_path / "r")
    same(found, rows_of_check(inbox, detector=detector))
    faces = found.set_index("path").faces
    assert json.loads(faces[str(inbox / "face.png")])[0]["verdict"]
    assert faces[str(inbox / "again.png")] == faces[str(inbox / "face.png")]
    assert pd.isna(faces[str(inbox / "0000.jpg")])
    if not alone:
        scan(inbox, out=tmp_path / "whole", detector=detector, faces=False)
        assert table(tmp_path / "whole").faces.isna().all()
        with pytest.raises(GanscopeError, match=r"other --faces \(there: --faces\); name"):
            scan(inbox, out=tmp_path / "r", detector=detector, faces=False)


def test_a_content_is_judged_once(tmp_path: Path, detector: str) -> None:
    inbox = make(tmp_path / "inbox", 20)
    for number in range(60):
        (inbox / f"again-{number:02}.jpg").write_bytes(picture(number % 20))
    (inbox / "bad-1.jpg").write_bytes(b"bad")
    (inbox / "bad-2.jpg").write_bytes(b"bad")
    last = scan(inbox, out=tmp_path / "r", detector=detector, workers=2)
    found = table(tmp_path / "r")
    same(found, rows_of_check(inbox, detector=detector))
    assert last.duplicates == 61
    firsts = found[found.duplicate_of.isna()].set_index("path")
    others = found[found.duplicate_of.notna()]
    assert len(firsts) == 21
    assert firsts.sha256.is_unique
    for row in others.itertuples():
        assert firsts.sha256[row.duplicate_of] == row.sha256
        assert row.error or firsts.score[row.duplicate_of] == row.score
    assert (others.seconds == 0).all()
    # A later scan knows what an earlier one judged.
    (inbox / "late.jpg").write_bytes(picture(3))
    late = scan(inbox, out=tmp_path / "r", detector=detector)
    row = table(tmp_path / "r").set_index("path").loc[f"{inbox}/late.jpg"]
    assert (late.rows, late.earlier, late.duplicates) == (83, 82, 62)
    assert row.score == firsts.score[row.duplicate_of]
    every = scan(inbox, out=tmp_path / "all", detector=detector, dedup=False)
    assert (every.rows, every.duplicates) == (83, 0)
    same(table(tmp_path / "all"), table(tmp_path / "r"))


def test_lists_and_shards(tmp_path: Path, detector: str) -> None:
    inbox = make(tmp_path / "inbox", 6)
    names = sorted(str(p) for p in inbox.iterdir())
    pd.DataFrame({"path": names[:2], "x": 1}).to_parquet(tmp_path / "l.parquet")
    table_of = pd.DataFrame({"file_name": ["inbox/0002.jpg", ""], "x": 1})
    table_of.to_csv(tmp_path / "l.csv", index=False)
    with tarfile.open(tmp_path / "shard.tar", "w") as shard:
        shard.add(names[4], "a/0004.jpg")
        shard.addfile(tarfile.TarInfo("a/0004.json"), io.BytesIO())
        shard.add(names[5], "../0005.jpg")
    (tmp_path / "broken.tar").write_bytes(b"no tar file" * 100)
    passed = Passed()
    paths = [f"{tmp_path}/{name}" for name in ("l.parquet", "l.csv", "shard.tar", "broken.tar")]
    items = list(find_items([*paths, names[3]], passed))
    assert [item.path.removeprefix(f"{tmp_path}/") for item in items] == [
        "inbox/0000.jpg",
        "inbox/0001.jpg",
        "inbox/0002.jpg",
        "shard.tar/a/0004.jpg",
        "shard.tar/0005.jpg",
        "broken.tar",
        "inbox/0003.jpg",
    ]
    assert [item.number for item in items] == list(range(7))
    assert passed.counts == {".json": 1, "without a path": 1}
    assert f"row 2 of {tmp_path}/l.csv" in str(passed)
    scan(*paths, out=tmp_path / "r", detector=detector)
    found = table(tmp_path / "r").set_index("path")
    expected = rows_of_check(names[4], detector=detector)
    assert found.score[f"{tmp_path}/shard.tar/a/0004.jpg"] == pytest.approx(expected.score[0])
    assert "tar file" in found.error[f"{tmp_path}/broken.tar"]
    (tmp_path / "l.csv").write_text("name\nx.jpg\n")
    with pytest.raises(GanscopeError, match="no column called path"):
        list(find_items([str(tmp_path / "l.csv")]))


def rows_in_process(items: list[Item], detector: str, **more: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    Worker(Work(detector=detector, **more)).run(items, found.append)
    return found


def test_stores_are_read_through_fsspec(detector: str) -> None:
    import fsspec

    store = fsspec.filesystem("memory")
    for number in range(3):
        store.pipe(f"/photos/deep/{number}.jpg", picture(number))
    store.pipe("/photos/list.txt", b"deep/1.jpg\nmemory://photos/gone.jpg\n")
    items = list(find_items(["memory://photos"]))
    assert [item.path for item in items] == [f"memory:///photos/deep/{n}.jpg" for n in range(3)]
    found = rows_in_process(items, detector)
    assert [row["bytes"] for row in found] == [len(picture(n)) for n in range(3)]
    assert all(row["verdict"] for row in found)
    (gone, first) = rows_in_process(list(find_items(["memory://photos/list.txt"])), detector)
    assert gone["error"] == "no such file"
    assert first["score"] == found[1]["score"]
    with pytest.raises(GanscopeError, match="no such file or folder"):
        list(find_items(["memory://nowhere"]))
    with pytest.raises(GanscopeError, match="sftpx:// cannot be read"):
        list(find_items(["sftpx://host/x"]))


def test_what_a_list_names_never_ends_a_scan(tmp_path: Path) -> None:
    names = ("sftpx://host/a.tar", "sftpx://host/b/", "memory://none/", "memory://none.tar", "-")
    (tmp_path / "list.txt").write_text("\n".join([*names, str(tmp_path / "x.jpg")]))
    items = list(find_items([str(tmp_path / "list.txt")]))
    assert [item.path for item in items][:-1] == list(names)
    said = [item.error for item in items]
    assert said[0].startswith("sftpx:// cannot be read here")
    assert said[1].startswith("sftpx:// cannot be read here")
    assert said[2] == "no such file or folder"
    assert "cannot be read as a tar file" in said[3]
    assert said[4:] == ["no such file or folder"] * 2
    for name in names:
        with pytest.raises(GanscopeError, match=name.rstrip("/")):
            list(find_items([name]))


@pytest.mark.parametrize("pause", [0.0, 0.002], ids=["quick", "slow"])
def test_a_slow_disk_is_read_by_threads(
    tmp_path: Path, detector: str, monkeypatch: pytest.MonkeyPatch, pause: float
) -> None:
    by: Counter[int] = Counter()
    whole = Worker._bytes

    def counted(self: Worker, item: Item) -> tuple[bytes, bool]:
        by[threading.get_ident()] += 1
        time.sleep(pause)
        return whole(self, item)

    monkeypatch.setattr(Worker, "_bytes", counted)
    monkeypatch.setattr(worker, "QUICK", 0.002 if pause else 60.0)
    inbox = make(tmp_path / "inbox", 100)
    items = list(find_items([str(inbox)]))
    found = rows_in_process(items, detector, finder=None)
    assert [row["path"] for row in found] == [item.path for item in items]
    here = by[threading.get_ident()]
    assert by.total() == 100
    assert 0 < here < 50 if pause else here == 100


def test_what_is_far_is_read_by_threads_among_local_files(
    tmp_path: Path, detector: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a list that has both in turn the far ones were waited for one after the other."""
    import fsspec

    by: dict[str, int] = {}
    whole = Worker._bytes

    def noted(self: Worker, item: Item) -> tuple[bytes, bool]:
        by[item.path] = threading.get_ident()
        return whole(self, item)

    monkeypatch.setattr(Worker, "_bytes", noted)
    monkeypatch.setattr(worker, "QUICK", 60.0)
    inbox, store = make(tmp_path / "inbox", 17), fsspec.filesystem("memory")
    items = []
    for number, near in enumerate(find_items([str(inbox)])):
        store.pipe(f"/turns/{number}.jpg", picture(number))
        items += [near, Item(0, f"memory://turns/{number}.jpg")]
    items = [item._replace(number=number) for number, item in enumerate(items[:-1])]
    rows_in_process(items, detector, finder=None)
    here = {path for path, thread in by.items() if thread == threading.get_ident()}
    assert len(by) == 33
    assert items[0].path in here
    assert not [path for path in here if path.startswith("memory://")]


def test_another_finder_of_faces_finds_other_rows(
    tmp_path: Path, detector: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox = make(tmp_path / "inbox", 1)
    for name, taken in (("cascades", False), ("mesh", True)):
        monkeypatch.setattr(scanning, "best_finder", lambda name=name: name)
        settings = ScanSettings(
            paths=(str(inbox),), out=tmp_path / name, detector=detector, workers=1, engine="local"
        )
        if taken:
            with pytest.raises(GanscopeError, match="other finder of faces"):
                list(scan_images(replace(settings, out=tmp_path / "cascades")))
        else:
            assert [*scan_images(settings)][-1].faces_by == name
    assert scan(inbox, out=tmp_path / "r", detector=detector, faces=False).faces_by is None


def test_what_passes_is_tried_again(
    detector: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tries: Counter[str] = Counter()
    whole = Worker._bytes

    def flaky(self: Worker, item: Item) -> tuple[bytes, bool]:
        tries[item.path] += 1
        if tries[item.path] <= (2 if "0000" in item.path else 9):
            raise OSError(errno.EIO, "the cable is loose")
        return whole(self, item)

    monkeypatch.setattr(Worker, "_bytes", flaky)
    monkeypatch.setattr(worker, "BACKOFF", 0.001)
    inbox = make(tmp_path / "inbox", 2)
    items = list(find_items([str(inbox), str(inbox)]))[:2]
    bad, good = sorted(rows_in_process(items, detector), key=lambda row: row["error"] or "~")
    assert good["error"] is None
    assert good["verdict"]
    assert "the cable is loose), tried 4 times" in bad["error"]
    assert sorted(tries.values()) == [3, 4]


def test_a_bucket_is_scanned(
    tmp_path: Path, detector: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("s3fs", reason="pip install 'ganscope[scale]'")
    server = pytest.importorskip("moto.server", reason="moto stands for the store")
    import fsspec

    stand_in = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    stand_in.start()
    try:
        host, port = stand_in.get_host_and_port()
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "x",
            "AWS_SECRET_ACCESS_KEY": "x",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)
        store = fsspec.filesystem("s3", skip_instance_cache=True)
        store.mkdir("photos")
        for number in range(8):
            store.pipe(f"photos/{number % 2}/{number}.jpg", picture(number))
        store.pipe("photos/empty.jpg", b"")
        last = scan("s3://photos", out=tmp_path / "r", detector=detector)
        found = table(tmp_path / "r").set_index("path")
        assert last.rows == len(found) == 9
        assert found.error["s3://photos/empty.jpg"] == "the file is empty"
        assert found.bytes["s3://photos/1/3.jpg"] == len(picture(3))
        assert last.verdicts["error"] == 1
    finally:
        stand_in.stop()


def start(*arguments: Any, cwd: Path, **options: Any) -> subprocess.Popen:
    command = [sys.executable, "-m", "ganscope", "scan", *map(str, arguments)]
    return subprocess.Popen(
        command,
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background jobs begin with Ctrl-C ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **options,
    )


def kept(out: Path) -> list[str]:
    """Paths that have a row in a part, or in the journal."""
    found = [path for part in out.glob("part-*.parquet") for path in _paths(part)]
    if (out / results.JOURNAL).exists():
        whole = (out / results.JOURNAL).read_text()
        found += [json.loads(line)["path"] for line in whole[: whole.rfind("\n") + 1].splitlines()]
    return found


def _paths(part: Path) -> list[str]:
    return pq.read_table(part, columns=["path"])["path"].to_pylist()


def wait_for_rows(out: Path, count: int) -> None:
    begun = time.monotonic()
    while len(kept(out)) < count:
        assert time.monotonic() - begun < 60, kept(out)
        time.sleep(0.05)


def children(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True)
    return [int(word) for word in found.stdout.split()]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for_end(pids: list[int], since: float | None = None) -> None:
    """No orphan lives longer than five seconds."""
    since = time.monotonic() if since is None else since
    while any(map(is_alive, pids)):
        assert time.monotonic() < since + 5, "orphans"
        time.sleep(0.05)


pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals are those of POSIX")


def test_a_killed_scan_goes_on_and_judges_nothing_twice(tmp_path: Path, detector: str) -> None:
    inbox = make(tmp_path / "inbox", 600)
    out = tmp_path / "r.parquet"
    arguments = ("inbox", "--out", out, "--detector", detector, "--engine", "local")
    arguments = (*arguments, "--workers", "1", "--json")
    killed = start(*arguments, cwd=tmp_path)
    wait_for_rows(out, 64)
    workers = children(killed.pid)
    assert workers
    killed.kill()
    killed.wait()
    before = kept(out)
    assert 64 <= len(before) < 600
    wait_for_end(workers)
    (out / results.JOURNAL).open("a").write('{"path": "inbox/0599.jpg", "sco')  # a power cut's
    again = start(*arguments, cwd=tmp_path)
    said, complaints = again.communicate(timeout=120)
    assert again.returncode == 0, complaints
    last = json.loads(said.splitlines()[-1])
    assert (last["rows"], last["earlier"], last["left"]) == (600, len(before), 0)
    found = table(out)
    assert found.path.tolist() == [f"inbox/{n:04}.jpg" for n in range(600)]
    assert found.path.is_unique
    assert not list(out.glob(".*"))
    # Once more: nothing is left to do.
    settings = ScanSettings(paths=(str(inbox),), out=tmp_path / "whole", detector=detector)
    *_, whole = scan_images(settings)
    assert whole.rows == 600
    found.path = found.path.map(lambda path: f"{tmp_path}/{path}")
    same(found, table(tmp_path / "whole"))
    assert next(iter([*scan_images(settings)][-1:])).earlier == 600


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["int", "term"]
)
def test_a_stopped_scan_keeps_what_is_finished(
    tmp_path: Path, detector: str, number: int, status: int
) -> None:
    make(tmp_path / "inbox", 600)
    out = tmp_path / "r.parquet"
    stopped = start("inbox", "--out", out, "--detector", detector, cwd=tmp_path)
    wait_for_rows(out, 32)
    workers = children(stopped.pid)
    begun = time.monotonic()
    stopped.send_signal(number)
    _, said = stopped.communicate(timeout=30)
    assert time.monotonic() - begun < 5
    assert stopped.returncode == status
    assert "the same command given again goes on" in said
    assert "Traceback" not in said
    wait_for_end(workers, begun)
    rows = table(out)
    assert 32 <= len(rows) < 600
    assert not list(out.glob(".*"))
    assert json.loads((out / "_metrics.json").read_text())["rows"] == len(rows)


def test_ctrl_c_while_workers_start_is_told_in_one_line(tmp_path: Path, detector: str) -> None:
    make(tmp_path / "inbox", 20)
    out = tmp_path / "r.parquet"
    words = ("inbox", "--out", out, "--detector", detector, "--workers", 1)
    stopped = start(*words, cwd=tmp_path, start_new_session=True)
    while len(children(stopped.pid)) < 2:  # the other looks after what processes share
        assert stopped.poll() is None
        time.sleep(0.01)
    time.sleep(0.3)  # Python answers signals by then, and imports what a worker needs
    os.killpg(stopped.pid, signal.SIGINT)  # as a terminal does it: to all of them
    _, said = stopped.communicate(timeout=30)
    assert stopped.returncode == 130
    assert said.strip() == "ganscope: stopped; the same command given again goes on"


def test_a_file_that_ends_its_process_gets_a_row(
    tmp_path: Path, detector: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "_serve", spoiled_worker.spoiled)
    inbox = make(tmp_path / "inbox", 12)
    make(inbox, 1, "poison", 12)
    make(inbox, 3, "y", 13)
    last = scan(inbox, out=tmp_path / "r", detector=detector)
    found = table(tmp_path / "r")
    assert last.rows == len(found) == 16
    assert found.path.is_unique
    bad = found[found.error.notna()]
    assert [Path(path).name for path in bad.path] == ["poison0012.jpg"]
    assert "ends the process that opens it (signal SIGSEGV)" in bad.error.iloc[0]


def test_results_can_be_read_while_they_grow(
    tmp_path: Path, detector: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    duckdb = pytest.importorskip("duckdb")
    monkeypatch.setattr(results, "SECONDS", 0.0)
    inbox, out = make(tmp_path / "inbox", 300), tmp_path / "r.parquet"
    settings = ScanSettings(
        paths=(str(inbox),), out=out, detector=detector, engine="local", workers=1
    )
    read = []
    with closing(scan_images(settings)) as states:
        for state in states:
            if not state.rows:  # it has just begun
                continue
            frame = pd.read_parquet(out)
            ((count,),) = duckdb.sql(f"SELECT count(*) FROM '{out}/*.parquet'").fetchall()
            read.append((state.rows, len(frame), count))
    assert read[-1] == (300, 300, 300)
    assert len(read) > 3
    assert all(rows == pandas == duck for rows, pandas, duck in read)


def test_another_request_is_refused_in_a_line(tmp_path: Path, detector: str) -> None:
    inbox, out = make(tmp_path / "inbox", 2), tmp_path / "r"
    scan(inbox, out=out, detector=detector)
    for more, said in (
        ({"reencode": False}, "other --reencode (there: --reencode);"),
        ({"detector": "default"}, "other --detector (there: "),
    ):
        with pytest.raises(GanscopeError, match=re.escape(said)):
            scan(inbox, out=out, **({"detector": detector} | more))
    with pytest.raises(GanscopeError, match="must be a path on this machine"):
        scan(inbox, out="s3://bucket/r", detector=detector)  # type: ignore[arg-type]
    assert scan(f"{inbox}/", out=out, detector=detector).earlier == 2  # as a shell completes it
    with pytest.raises(GanscopeError, match=rf"other PATHS \(there: {inbox}\);"):
        scan(inbox / "0000.jpg", out=out, detector=detector)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(GanscopeError, match="no folder"):
        scan(inbox, out=tmp_path / "file", detector=detector)
    with pytest.raises(GanscopeError, match=r"holds 000\d.jpg and no results"):
        scan(inbox, out=inbox, detector=detector)
    assert (tmp_path / "file").read_text() == "mine"
    assert len(list(inbox.iterdir())) == 2
    with pytest.raises(GanscopeError, match="no such file or folder"):
        scan(tmp_path / "nowhere", out=tmp_path / "new", detector=detector)
    (tmp_path / "nothing.txt").write_text("# nothing\n")
    with pytest.raises(GanscopeError, match="no images found"):
        scan(tmp_path / "nothing.txt", out=tmp_path / "new", detector=detector)
    assert not (tmp_path / "new").exists()
    (out / "part-00000001.parquet").write_bytes(b"PAR1")
    with pytest.raises(GanscopeError, match=r"is damaged .* delete it"):
        scan(inbox, out=out, detector=detector)
    (out / "part-00000001.parquet").unlink()
    assert scan(inbox, out=out, detector=detector).rows == 2


def test_a_full_disk_costs_no_row(
    tmp_path: Path, detector: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox, out = make(tmp_path / "inbox", 40), tmp_path / "r"

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(results.pq, "write_table", fail)
        with pytest.raises(GanscopeError, match="free some space and run the same command again"):
            scan(inbox, out=out, detector=detector)
    assert len(kept(out)) == 40  # in the journal
    last = scan(inbox, out=out, detector=detector)
    assert (last.rows, last.earlier) == (40, 40)
    assert len(table(out)) == 40


def test_an_index_that_finds_no_room_is_a_line(tmp_path: Path, detector: str) -> None:
    index = results.Index(tmp_path / ".index.sqlite", new=True)
    index.enter(["a"])
    pages = index.base.execute("PRAGMA page_count").fetchone()[0]
    index.base.execute(f"PRAGMA max_page_count={pages}")
    many = [(f"{number:064x}", number) for number in range(1000)]
    with pytest.raises(GanscopeError, match=r"disk is full\); what is there is kept"):
        index.claim(many)
    index.close()


def test_without_ray_its_engine_names_the_extra(
    tmp_path: Path, detector: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox = make(tmp_path / "inbox", 1)
    monkeypatch.setattr(on_ray.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(GanscopeError, match=r"pip install 'ganscope\[scale\]'"):
        scan(inbox, out=tmp_path / "r", detector=detector, engine="ray")
    assert not (tmp_path / "r").exists()


@pytest.mark.timeout(900)
def test_a_cluster_that_loses_a_node_loses_no_file(
    tmp_path: Path, detector: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two raylets on loopback; the one without the scan is killed once it has judged something."""
    ray = pytest.importorskip("ray", reason="pip install 'ganscope[scale]'")
    for name, value in {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_BACKEND_LOG_LEVEL": "fatal",
        "RAY_health_check_period_ms": "1000",
        "RAY_health_check_failure_threshold": "2",
    }.items():
        monkeypatch.setenv(name, value)
    from ray._private import ray_constants
    from ray.cluster_utils import Cluster

    # As Ray itself does where it makes no clusters: everything is on loopback.
    monkeypatch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", False)
    inbox, out = make(tmp_path / "inbox", 400), tmp_path / "r"
    (inbox / "again.jpg").write_bytes(picture(7))
    (inbox / "bad.jpg").write_bytes(b"bad")
    node = {"num_cpus": 1, "object_store_memory": 10**8, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    try:
        other = cluster.add_node(**{k: v for k, v in node.items() if k != "include_dashboard"})
        ray.init(
            cluster.address,
            _node_ip_address="127.0.0.1",
            log_to_driver=False,
            logging_level="ERROR",
        )
        settings = ScanSettings(paths=(str(inbox),), out=out, detector=detector, engine="ray")
        killed = 0
        with closing(scan_images(settings)) as states:
            for last in states:
                if last.rows and not killed:
                    cluster.remove_node(other, allow_graceful=False)
                    killed = last.rows
        assert 0 < killed < 402
        assert last.workers == 2
        assert len([node for node in ray.nodes() if node["Alive"]]) == 1
    finally:
        ray.shutdown()
        cluster.shutdown()
    found = table(out)
    assert found.path.is_unique
    assert last.rows == len(found) == 402
    assert last.duplicates == 1
    scan(inbox, out=tmp_path / "local", detector=detector)
    same(found, table(tmp_path / "local"))


def test_what_an_earlier_scan_was_given_is_said_as_one_may_give_it() -> None:
    assert results._was("--faces", False) == "--faces (there: --no-faces)"
    assert results._was("--trust-anchors", None) == "--trust-anchors (there: none)"
    long = results._was("PATHS", ["/data/" + "a" * 200 + "/photos", "list.txt"])
    assert long.endswith("/photos, list.txt)")
    assert len(long) < 130


def test_a_folder_may_look_like_an_address(
    tmp_path: Path, detector: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox = make(tmp_path / "inbox", 2)
    monkeypatch.chdir(tmp_path)
    assert scan(inbox, out=Path("run:1"), detector=detector).rows == 2
    assert scan(inbox, out=Path("run:1"), detector=detector).earlier == 2
    assert len(table(tmp_path / "run:1")) == 2


def test_a_scan_begun_with_a_slash_goes_on(tmp_path: Path, detector: str) -> None:
    inbox, out = make(tmp_path / "inbox", 2), tmp_path / "r"
    scan(inbox, out=out, detector=detector)
    plan = json.loads((out / "_scan.json").read_text())
    plan["plan"]["PATHS"] = [f"{inbox}/"]  # as it was written before
    (out / "_scan.json").write_text(json.dumps(plan))
    assert scan(f"{inbox}/", out=out, detector=detector).earlier == 2
