"""The server under load, and killed while it writes.

    python benchmarks/campaigns/server.py                    # 50 clients for 60 seconds, 10 kills
    python benchmarks/campaigns/server.py --seconds 10 --kills 3

Clients send pictures of their own and look whether the answer is theirs. Then the judging process
and the server are killed while pictures are kept and reviews are written: what was answered has to
be in the project file. The exit status is 1 if anything is lost.
"""

import argparse
import http.client
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import cv2
import numpy as np
import skimage.data
import torch

from ganscope.detector.model import Detector
from ganscope.web.project import Project

BOUNDARY = "----ganscope"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        small_detector(place / "tiny")
        lost = load(place, given.clients, given.seconds)
        lost += kills(place, given.kills, random.Random(given.seed))
    print(f"lost: {lost}")
    sys.exit(bool(lost))


def small_detector(folder: Path) -> None:
    torch.manual_seed(0)
    detector = Detector.create("cnn", width=8, depth=3).eval()
    detector.config["thresholds"] = {"fake": 0.0, "real": 0.0, "fpr_1": 0.0, "fpr_5": 0.0}
    detector.save(folder)


def pictures() -> list[tuple[bytes, int, int]]:
    """JPEG files of photographs, each of another size, with width and height."""
    found = []
    for name in ("astronaut", "chelsea", "coffee", "rocket"):
        whole = getattr(skimage.data, name)()[..., ::-1]
        for cut in range(0, 60, 6):
            pixels = np.ascontiguousarray(whole[cut:, cut:])
            content = cv2.imencode(".jpg", pixels)[1].tobytes()
            found.append((content, pixels.shape[1], pixels.shape[0]))
    return found


class Server:
    """`ganscope serve` as a process, and who judges for it."""

    def __init__(self, place: Path, *options: str):
        command = [sys.executable, "-m", "ganscope", "serve", "--detector", "tiny", "--port", "0"]
        self.process = subprocess.Popen(
            [*command, "--no-browser", *options], cwd=place, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stderr
        line = self.process.stderr.readline()
        self.host = urlsplit(line.split()[0]).netloc
        threading.Thread(target=self.process.stderr.read, daemon=True).start()

    def workers(self) -> list[int]:
        """Processes that judge, the first of which is the one at work."""
        children = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        found = {int(word) for path in children for word in path.read_text().split()}
        return [pid for pid in sorted(found) if "spawn_main" in command_of(pid)]

    def memory(self) -> tuple[int, int]:
        """MB of the server and of its worker."""
        workers = [resident(pid) for pid in self.workers()]
        return resident(self.process.pid), max(workers, default=0)

    def end(self) -> float:
        """Seconds until it ended by itself."""
        start = time.monotonic()
        self.process.terminate()
        self.process.wait(60)
        return time.monotonic() - start


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def resident(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = [line.split()[1] for line in text.splitlines() if line.startswith("VmRSS")]
    return int(found[0]) // 1024 if found else 0


def send(line: http.client.HTTPConnection, name: str, content: bytes) -> tuple[int, Any]:
    """Ask the API about a picture; its status and answer."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
    body = head.encode() + content + f"\r\n--{BOUNDARY}--\r\n".encode()
    kind = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    line.request("POST", "/api/v1/check", body, kind)
    answer = line.getresponse()
    return answer.status, json.loads(answer.read())


def load(place: Path, clients: int, seconds: float) -> int:
    """Many clients at once; how many answers were lost or another's."""
    server, known = Server(place), pictures()
    times: list[float] = []
    outcomes: Counter[str] = Counter()
    memory: list[tuple[int, int]] = []
    end = time.monotonic() + seconds

    def client(number: int) -> None:
        line = http.client.HTTPConnection(server.host, timeout=120)
        count = 0
        while time.monotonic() < end:
            content, width, height = known[(number + count) % len(known)]
            name, count = f"{number}-{count}.jpg", count + 1
            start = time.monotonic()
            try:
                status, answer = send(line, name, content)
            except (OSError, http.client.HTTPException, ValueError) as error:
                outcomes[f"lost ({type(error).__name__})"] += 1
                line = http.client.HTTPConnection(server.host, timeout=120)
                continue
            if status == 429:
                outcomes["told to come back"] += 1
                time.sleep(0.5)
            elif status == 200 and (answer["path"], answer["width"], answer["height"]) == (
                *(name, width, height),
            ):
                outcomes["answered"] += 1
                times.append(time.monotonic() - start)
            else:
                outcomes[f"lost (status {status})"] += 1

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        memory.append(server.memory())
        time.sleep(1)
    ended = server.end()
    lost = sum(count for what, count in outcomes.items() if what.startswith("lost"))
    if not times:
        print(f"no answers: {dict(outcomes)}")
        return lost + 1
    half, last = memory[len(memory) // 2], memory[-2] if len(memory) > 1 else memory[-1]
    p50, p95 = np.percentile(times, (50, 95))
    print(
        f"{clients} clients, {seconds:g} s: {len(times):,} answered, {len(times) / seconds:.0f} a "
        f"second, p50 {p50:.2f} s, p95 {p95:.2f} s; {dict(outcomes)}"
    )
    print(
        f"memory at half time and at the end: server {half[0]} and {last[0]} MB, "
        f"worker {half[1]} and {last[1]} MB; it ended in {ended:.1f} s"
    )
    return lost


def kills(place: Path, times: int, chance: random.Random) -> int:
    """Kill the worker, then the server, while they write; how much of what was answered is gone."""
    known, lost, answered = pictures(), 0, Counter[str]()
    for turn in range(times):
        base, keep = place / f"{turn}.db", place / f"kept-{turn}"
        server = Server(place, "--project", base.name, "--keep", keep.name)
        told: list[str] = []
        reviews: dict[int, str] = {}
        stop = threading.Event()

        def client(
            number: int, host: str = server.host, told: list[str] = told, stop: Any = stop
        ) -> None:
            line = http.client.HTTPConnection(host, timeout=30)
            count = 0
            while not stop.is_set():
                name, count = f"c{number}x{count}.jpg", count + 1
                try:
                    status, _ = send(line, name, known[count % len(known)][0])
                    if status == 200:
                        told.append(name)
                except (OSError, http.client.HTTPException, ValueError):
                    if stop.wait(0.05):
                        return
                    line = http.client.HTTPConnection(host, timeout=30)

        def reviewer(
            host: str = server.host, reviews: dict[int, str] = reviews, stop: Any = stop
        ) -> None:
            line, count = http.client.HTTPConnection(host, timeout=30), 0
            while not stop.is_set():
                count += 1
                picture, note = 1 + count % 3, f"note {count}"
                body = urlencode({"truth": "real", "note": note})
                kind = {"Content-Type": "application/x-www-form-urlencoded"}
                try:
                    line.request("POST", f"/desk/{picture}", body, kind)
                    answer = line.getresponse()
                    answer.read()
                    if answer.status == 303:
                        reviews[picture] = note
                    else:
                        time.sleep(0.05)
                except (OSError, http.client.HTTPException):
                    if stop.wait(0.05):
                        return
                    line = http.client.HTTPConnection(host, timeout=30)

        threads = [threading.Thread(target=client, args=(number,)) for number in range(6)]
        threads.append(threading.Thread(target=reviewer))
        for thread in threads:
            thread.start()
        time.sleep(chance.uniform(0.5, 2))
        for pid in server.workers():
            os.kill(pid, signal.SIGKILL)
        before = len(told)
        patience = time.monotonic() + 90  # another worker has to be there first
        while len(told) < before + 8 and time.monotonic() < patience:
            time.sleep(0.1)
        if len(told) < before + 8:
            lost += 1
            print(f"kill {turn + 1}: no more answers after the worker was killed")
        time.sleep(chance.uniform(0, 0.5))
        server.process.kill()
        server.process.wait()
        stop.set()
        for thread in threads:
            thread.join()
        (whole,) = sqlite3.connect(base).execute("PRAGMA integrity_check").fetchone()
        with Project(base) as project:
            rows = project.pictures(order="added", many=1_000_000)
        kept = {Path(row["path"]).name.rsplit("-", 1)[0] for row in rows}
        missing = [name for name in told if Path(name).stem not in kept]
        missing += [row["path"] for row in rows if not Path(row["path"]).is_file()]
        # A review may have been written and not answered, so a later one may stand there.
        older = [
            note
            for row in rows
            if (note := reviews.get(row["id"]))
            and int((row["note"] or "note 0").split()[1]) < int(note.split()[1])
        ]
        lost += len(missing) + len(older) + (whole != "ok")
        answered.update(pictures=len(told), reviews=len(reviews))
        if missing or older or whole != "ok":
            print(f"kill {turn + 1}: {whole}, missing {missing[:3]}, older {older[:3]}")
    print(f"{times} kills of worker and server: {answered['pictures']:,} pictures were answered")
    return lost


if __name__ == "__main__":
    main()
