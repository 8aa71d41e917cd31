"""The engine of one machine: processes that judge, each with a detector and one thread for it, fed
through pipes.

A process that ends (killed for its memory, or by a file that brings a decoder down) is replaced.
What it had in hand is given out again in smaller and smaller lots, until the file that ends a
process is alone, and gets a row that says so.
"""

import multiprocessing
import os
import queue
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from typing import Any

from ganscope.config import ScanSettings
from ganscope.detector.scanning.listing import Item
from ganscope.detector.scanning.results import Index
from ganscope.detector.scanning.worker import Claim, Row, Work, Worker
from ganscope.errors import GanscopeError, reason_of
from ganscope.launched import deaf_to_ctrl_c

SEND, SEND_SECONDS = 64, 0.5
"""Rows that a worker sends at a time, at most, and after how many seconds it sends fewer."""
IDLE = 2.0
"""Seconds without new files, after which workers are told to finish what they hold."""
SMALLER = 8
"""Into so many lots the files are divided that a process had that ended."""
BAD_STARTS = 3
"""Processes in a row that end before they judge anything; then the scan does."""

Lot = tuple[list[Item], int]
"""Items, and how many processes have ended with them."""


class _Process:
    """A worker's process, as the scan sees it."""

    def __init__(self, context: Any, work: Work, dedup: bool):
        self.work = work
        self.pipe, theirs = context.Pipe()
        self.questions, answers = context.Pipe()
        self.process = context.Process(
            target=_serve, args=(work, dedup, theirs, answers), daemon=True
        )
        with deaf_to_ctrl_c():
            self.process.start()
        theirs.close()
        answers.close()
        self.hand: dict[int, Item] = {}
        """By number: what it was given and has not answered."""
        self.ends = 0
        """Processes that ended with what it has in hand."""
        self.ready = self.flushed = False

    def give(self, items: list[Item], ends: int = 0) -> None:
        self.hand.update((item.number, item) for item in items)
        self.ends = max(self.ends, ends)
        self.flushed = False
        with suppress(OSError):  # it has ended, which is seen when it is listened to
            self.pipe.send(items)

    def finish(self) -> None:
        """Let it judge all it has, however small a batch."""
        if not self.flushed:
            with suppress(OSError):
                self.pipe.send(None)
            self.flushed = True

    def end(self) -> None:
        with suppress(OSError):
            self.process.kill()
        self.process.join(5)
        self.pipe.close()
        self.questions.close()


class Engine:
    """Processes of this machine. size: how many items a worker has in hand; claims: the index of
    contents, None to judge every file.
    """

    name = "local"

    def __init__(self, work: Work, settings: ScanSettings, size: int, claims: Index | None):
        self.work, self.size, self.claims = work, size, claims
        self.places = places_for(settings)
        self.workers = len(self.places)

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, lots: Iterator[list[Item]]) -> Iterator[list[Row]]:
        """Judge items as they come; a row for each, in no order. Raises `GanscopeError` if workers
        cannot begin.
        """
        claim = self.claims.claim if self.claims else None
        return _run(lots, self.work, claim, self.places, self.size)


def places_for(settings: ScanSettings) -> list[str]:
    """The device of each worker on this machine: every GPU one, or every core."""
    found = [settings.device]
    if settings.device in ("auto", "cuda") and os.path.exists("/dev/nvidiactl"):
        import torch

        found = [f"cuda:{n}" for n in range(torch.cuda.device_count())] or found
    if found == ["auto"] or found == ["cpu"]:
        found *= cores()
    many = settings.workers or len(found)
    return [found[n % len(found)] for n in range(many)]


def cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1


def _run(
    lots: Iterator[list[Item]],
    work: Work,
    claim: Claim | None,
    places: list[str],
    size: int,
) -> Iterator[list[Row]]:
    context = multiprocessing.get_context("spawn")
    again: deque[Lot] = deque()
    source = _ahead(lots)
    crew: list[_Process] = []
    bad = 0
    try:
        with _one_thread_each(work):
            dedup = claim is not None
            crew = [_Process(context, replace(work, device=p), dedup) for p in places]
        ended, since = False, time.monotonic()
        while True:
            hungry = crew
            while hungry:  # a lot each in turn, so that a few files are shared, too
                hungry = [one for one in hungry if len(one.hand) < size and not one.ends]
                for one in list(hungry):
                    lot = again.popleft() if again and not one.hand else None
                    if lot is None:
                        found = source.get()
                        if found is None:
                            hungry = []
                            break
                        lot = found, 0
                    since = time.monotonic()
                    one.give(*lot)
                    if one.ends:  # nothing more comes to it before this is settled
                        one.finish()
            ended = source.over
            if (ended or time.monotonic() - since > IDLE) and not again:
                for one in crew:
                    if one.hand:
                        one.finish()
            if ended and not again and not any(one.hand for one in crew):
                return
            watched: dict[Any, _Process] = {}
            for one in crew:
                watched |= {one.pipe: one, one.questions: one, one.process.sentinel: one}
            gone: list[_Process] = []
            changed: list[Any] = wait(list(watched), 0.2)
            for ready in changed:
                one = watched[ready]
                try:
                    if ready is one.questions:
                        assert claim is not None
                        one.questions.send(claim(one.questions.recv()))
                    elif ready is one.pipe:
                        rows = one.pipe.recv()
                        if isinstance(rows, GanscopeError):
                            raise rows
                        one.ready, bad = True, 0
                        for row in rows:
                            one.hand.pop(row["item"].number, None)
                        if not one.hand:
                            one.ends = 0
                        if rows:
                            yield rows
                    elif not one.pipe.poll():  # nothing more is to come
                        gone.append(one)
                except (EOFError, OSError):
                    gone.append(one)
            for one in dict.fromkeys(gone):
                one.end()
                crew.remove(one)
                bad += not one.ready
                if bad >= BAD_STARTS:
                    raise GanscopeError(
                        f"{bad} workers ended before they judged anything "
                        f"({_how(one.process.exitcode)}); name fewer --workers if memory is short"
                    )
                items, ends = list(one.hand.values()), one.ends + 1
                if len(items) == 1 and ends > 1:
                    how = _how(one.process.exitcode)
                    yield [{"item": items[0], "lost": f"ends the process that opens it ({how})"}]
                else:
                    part = max(len(items) // SMALLER, 1)
                    again.extend((items[i : i + part], ends) for i in range(0, len(items), part))
                with _one_thread_each(work):
                    crew.append(_Process(context, one.work, dedup))
    finally:
        source.close()
        for one in crew:
            one.process.terminate()
        for one in crew:
            one.process.join(0.5)
            one.end()


def _how(code: int | None) -> str:
    if code is not None and code < 0:
        with suppress(ValueError):
            return f"signal {signal.Signals(-code).name}"
    return f"status {code}"


class _ahead:
    """Lots, listed in a thread: a store that is slow to list keeps nobody waiting."""

    def __init__(self, lots: Iterator[list[Item]]):
        self.lots: queue.Queue[list[Item] | BaseException | None] = queue.Queue(8)
        self.over = self.closed = False

        def work() -> None:
            try:
                for lot in lots:
                    self._put(lot)
                    if self.closed:
                        return
                self._put(None)
            except BaseException as error:
                self._put(error)

        threading.Thread(target=work, daemon=True).start()

    def _put(self, what: Any) -> None:
        while not self.closed:
            with suppress(queue.Full):
                self.lots.put(what, timeout=0.5)
                return

    def get(self) -> list[Item] | None:
        """The next lot, if it is there already; after the last one `over` is set."""
        if self.over:
            return None
        try:
            found = self.lots.get_nowait()
        except queue.Empty:
            return None
        if isinstance(found, BaseException):
            raise found
        self.over = found is None
        return found

    def close(self) -> None:
        self.closed = True


@contextmanager
def _one_thread_each(work: Work) -> Iterator[None]:
    """Processes that begin in this block compute with a thread each; beside a GPU they need not."""
    if work.device not in ("auto", "cpu"):
        yield
        return
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _serve(work: Work, dedup: bool, pipe: Connection, questions: Connection) -> None:
    """What a worker's process does until its scan is over, or gone."""
    from ganscope.memory import keep_freed_memory

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the scan's to answer
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=lambda: (wait([parent.sentinel]), os._exit(1)), daemon=True).start()
    keep_freed_memory()
    asking = threading.Lock()

    def claim(pairs: list[tuple[str, int]]) -> list[bool]:
        with asking:
            questions.send(pairs)
            return questions.recv()

    rows: list[Row] = []
    sent = time.monotonic()

    def emit(row: Row) -> None:
        nonlocal sent
        rows.append(row)
        if len(rows) >= SEND or time.monotonic() - sent > SEND_SECONDS:
            pipe.send(rows)
            rows.clear()
            sent = time.monotonic()

    def items(first: list[Item]) -> Iterator[Item]:
        yield from first
        while (more := pipe.recv()) is not None:
            yield from more

    try:
        worker = Worker(work, claim if dedup else None)
        pipe.send([])
        while True:
            first = pipe.recv()
            if first is None:
                continue
            worker.run(items(first), emit)
            pipe.send(rows)
            rows.clear()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except GanscopeError as error:
        pipe.send(GanscopeError(str(error)))
    except Exception as error:
        pipe.send(GanscopeError(f"a worker failed: {reason_of(error)}"))
        raise
