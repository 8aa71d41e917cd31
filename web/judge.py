"""The server's side of judging: a bounded queue, batches over requests, and a worker that is
replaced when it dies.
"""

import asyncio
import multiprocessing
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ganscope.config import ServeSettings
from ganscope.errors import GanscopeError
from ganscope.launched import deaf_to_ctrl_c
from ganscope.web.metrics import Metrics
from ganscope.web.worker import Job, Plan, work

LOADING = 300.0
"""Seconds that a worker may take to load its detector."""
BYTES = 128 * 2**20
"""A batch holds no more than about so many bytes of files."""
ENDING = 5.0
"""Seconds that the end of a worker may take."""


class Full(Exception):
    """As many pictures wait as may; `seconds`: when there is room again, about."""

    def __init__(self, seconds: int):
        super().__init__(f"as many pictures wait as may; come back in {seconds} s")
        self.seconds = seconds


class Lost(Exception):
    """The server is being stopped, and this picture has no answer."""


@dataclass
class Waiting:
    """A picture in the queue."""

    number: int
    name: str
    content: bytes
    wanted: dict[str, bool]
    answer: asyncio.Future = field(repr=False)
    suspect: bool = False
    """The worker died while it had this picture: it is tried once more, alone."""


class Judge:
    """Pictures in, answers out (see `worker.work`), for all requests of a server.

    Raises `GanscopeError` at the start if the detector cannot be had.
    """

    def __init__(self, settings: ServeSettings, metrics: Metrics):
        self._settings, self.metrics = settings, metrics
        self._plan = Plan(
            detector=settings.detector,
            device=settings.device,
            max_pixels=settings.max_pixels,
            reencode=settings.reencode,
            faces=settings.faces,
            pixels_only=settings.pixels_only,
            trust_anchors=settings.trust_anchors,
        )
        self._queue: deque[Waiting] = deque()
        self._busy: dict[int, Waiting] = {}
        self._pace = 1.0
        """Seconds a picture takes, lately."""
        self._number = 0
        self._thread = ThreadPoolExecutor(1, "judge")
        self._process: Any = None
        self._task: asyncio.Task | None = None
        self.about: dict[str, Any] = {"name": settings.detector, "card": "", "validation": None}
        """What people may know of the detector, see `worker.about`."""

    @property
    def ready(self) -> bool:
        """Whether a worker is there and its pictures are looked after."""
        alive = self._process is not None and self._process.is_alive()
        return bool(alive and self._task and not self._task.done())

    @property
    def waiting(self) -> int:
        """Pictures that wait or are judged."""
        return len(self._queue) + len(self._busy)

    @property
    def process(self) -> int | None:
        """The worker's process number."""
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        """Start a worker and wait until it has its detector."""
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        process = context.Process(
            target=work, args=(theirs, self._plan), name="ganscope judge", daemon=True
        )
        with deaf_to_ctrl_c():
            process.start()
        self._process = process
        theirs.close()
        try:
            told = self._connection.recv() if self._connection.poll(LOADING) else "took too long"
        except (EOFError, ConnectionResetError):
            told = "the process that judges pictures ended at its start"
        if isinstance(told, str):
            self._end()
            raise GanscopeError(told)
        self.about = told

    async def run(self) -> None:
        """Look after the queue from now on."""
        if self._process is None:
            await self._aside(self.start)
        self._wake = asyncio.Event()
        self._task = asyncio.create_task(self._serve())

    async def stop(self) -> None:
        """End the worker; what still waits is told so."""
        if self._task:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        for one in [*self._queue, *self._busy.values()]:
            if not one.answer.done():
                one.answer.set_exception(Lost("the server is being stopped"))
        self._end()
        self._thread.shutdown(wait=False)

    def submit(
        self, pictures: Sequence[tuple[str, bytes]], **wanted: bool
    ) -> list["asyncio.Future[dict[str, Any]]"]:
        """Enter pictures (name, content), all or none; a future for each. Raises `Full`."""
        waiting = self.waiting
        if waiting + len(pictures) > self._settings.queue:
            self.metrics.refused.inc()
            raise Full(max(1, min(300, round(self._pace * waiting))))
        found = []
        for name, content in pictures:
            self._number += 1
            answer = asyncio.get_running_loop().create_future()
            self._queue.append(Waiting(self._number, name, content, wanted, answer))
            found.append(answer)
        self._count()
        self._wake.set()
        return found

    def failure(self, name: str, reason: str) -> dict[str, Any]:
        """The record of a picture that got no score."""
        return {**self.about["unread"], "path": name, "error": reason}

    async def _serve(self) -> None:
        while True:
            while not self._queue:
                self._wake.clear()
                await self._wake.wait()
            batch = self._batch()
            if not batch:
                continue
            self._busy = {one.number: one for one in batch}
            self.metrics.batches.observe(len(batch))
            start, jobs = time.monotonic(), len(batch)
            try:
                await self._judge(batch)
            except (EOFError, OSError, TimeoutError) as error:
                await self._again(isinstance(error, TimeoutError))
            self._pace += 0.3 * ((time.monotonic() - start) / jobs - self._pace)
            self._busy = {}
            self._count()

    def _batch(self) -> list[Waiting]:
        """The next few pictures; one alone if it may be what a worker died of."""
        batch: list[Waiting] = []
        size = 0
        while self._queue and len(batch) < self._settings.together and size < BYTES:
            if batch and self._queue[0].suspect:
                break
            one = self._queue.popleft()
            if one.answer.done():  # nobody waits for it any more
                continue
            batch.append(one)
            size += len(one.content)
            if one.suspect:
                break
        return batch

    async def _judge(self, batch: list[Waiting]) -> None:
        jobs = [
            Job(number=one.number, name=one.name, content=one.content, **one.wanted)
            for one in batch
        ]
        await self._aside(partial(self._connection.send, jobs))
        del jobs  # files, which may be large
        while (found := await self._aside(self._receive)) is not None:
            number, answer = found
            one = self._busy.pop(number)
            if not one.answer.done():
                one.answer.set_result(answer)
            outcome = "error" if answer.get("error") else answer.get("verdict") or "none"
            self.metrics.pictures.labels(outcome).inc()
            self._count()

    def _receive(self) -> Any:
        """The worker's next word. Raises `EOFError` if it died, `TimeoutError` if it is stuck."""
        if not self._connection.poll(self._settings.timeout):
            raise TimeoutError
        return self._connection.recv()

    async def _again(self, stuck: bool) -> None:
        """Start another worker; its pictures are tried once more, one by one."""
        for one in reversed(self._busy.values()):
            if one.suspect or (stuck and len(self._busy) == 1):
                why = "took too long" if stuck else "ended the process that looked at it"
                if not one.answer.done():
                    one.answer.set_result(self.failure(one.name, f"this picture {why}"))
                continue
            one.suspect = True
            self._queue.appendleft(one)
        self._busy = {}
        self.metrics.restarts.inc()
        pause = 0.1
        while True:
            self._end()
            try:
                await self._aside(self.start)
                return
            except (GanscopeError, OSError):  # no memory just now, or no process, perhaps
                await asyncio.sleep(pause)
                pause = min(2 * pause, 30)

    def _end(self) -> None:
        if self._process is None:
            return
        self._process.kill()  # it has nothing to lose
        self._process.join(ENDING)
        self._connection.close()
        self._process = None

    def _count(self) -> None:
        self.metrics.waiting.set(self.waiting)

    async def _aside(self, what: Callable[[], Any]) -> Any:
        """Run something that waits, without letting the server wait."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, what)
