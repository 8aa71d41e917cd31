"""The engine of many machines: Ray Data, on a cluster or on this machine.

Files go out in waves; in each, actors judge blocks of them as a stream. What does not come back
from a wave, for a file brought its process down again and again, goes out once more in smaller
blocks.
"""

import importlib.util
import json
import logging
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from typing import Any

from ganscope.config import ScanSettings
from ganscope.detector.scanning.listing import Item
from ganscope.detector.scanning.results import Index
from ganscope.detector.scanning.worker import Row, Work, Worker
from ganscope.errors import GanscopeError, reason_of

WAVE = 200_000
"""Files of a wave, at most: their names are in memory, nothing else of them is."""
GPU_BLOCK = 2000
"""Files of a block that goes to a GPU, which takes many at a time."""
SMALLER = 8
"""Into so many blocks is divided what did not come back."""
RETRIES = 2
"""How often a block is tried by a process that ended with it, within a wave."""


def is_named(settings: ScanSettings) -> bool:
    """Whether a cluster is named, by an option or as Ray's own commands are told."""
    return bool(settings.address or os.environ.get("RAY_ADDRESS"))


class Engine:
    """A cluster. size: how many files a block has, at most; claims: the index of contents."""

    name = "ray"

    def __init__(self, work: Work, settings: ScanSettings, size: int, claims: Index | None):
        self.work, self.settings, self.size, self.claims = work, settings, size, claims
        if importlib.util.find_spec("ray") is None:
            raise GanscopeError(
                "--engine ray needs Ray: pip install 'ganscope[scale]', or give --engine local"
            )

    def __enter__(self) -> "Engine":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        import ray
        import ray.data

        self.ray = ray
        for name in ("ray", "ray.data"):
            logging.getLogger(name).setLevel(logging.ERROR)
        self.ours = not ray.is_initialized()
        if self.ours:
            before = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}
            address = self.settings.address or os.environ.get("RAY_ADDRESS")
            try:
                options: dict[str, Any] = {} if address else {"include_dashboard": False}
                ray.init(
                    address=address or "local",
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    **options,
                )
            except Exception as error:  # of Ray, of its connections
                raise GanscopeError(
                    f"Ray cannot be reached at {address or 'this machine'} "
                    f"({reason_of(error)[:200]}); start it there, or give --engine local"
                ) from None
            with suppress(ValueError):  # not in the main thread
                for which, handler in before.items():
                    signal.signal(which, handler)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.max_errored_blocks = -1  # what is missing is seen, and done again
        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0)) if self.settings.device in ("auto", "cuda") else 0
        self.gpu = bool(gpus)
        self.size = max(self.size, GPU_BLOCK) if gpus else self.size
        self.workers = self.settings.workers or gpus or max(int(resources.get("CPU", 1)), 1)
        self.desk = None
        if self.claims is not None:
            here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
                ray.get_runtime_context().get_node_id(), soft=False
            )
            remote: Any = ray.remote  # whose types know of functions alone
            desk = remote(num_cpus=0, scheduling_strategy=here, max_concurrency=1)(Desk)
            self.desk = desk.remote(str(self.claims.path.resolve()))
        return self

    def __exit__(self, *_: object) -> None:
        if self.ours:
            self.ray.shutdown()
        elif self.desk is not None:
            self.ray.kill(self.desk)

    def run(self, lots: Iterator[list[Item]]) -> Iterator[list[Row]]:
        """Judge items; a row for each, in no order."""
        items = (item for lot in lots for item in lot)
        while wave := {item.number: item for item in islice(items, WAVE)}:
            block = min(self.size, max(len(wave) // (4 * self.workers), 1))
            while wave:
                before, self.trouble = len(wave), ""
                for rows in self._wave(list(wave.values()), block):
                    known = [row for row in rows if row["item"].number in wave]
                    for row in known:
                        del wave[row["item"].number]
                    yield known
                if self.trouble and len(wave) == before:
                    raise GanscopeError(f"Ray: {self.trouble[:300]}; the same command goes on")
                if wave and block == 1 and len(wave) == before:
                    said = "ends the process that opens it"
                    yield [{"item": item, "lost": said} for item in wave.values()]
                    break
                block = max(block // SMALLER, 1)

    def _wave(self, items: list[Item], block: int) -> Iterator[list[Row]]:
        import pyarrow as pa

        blocks = [
            pa.table({"item": [json.dumps(one) for one in items[i : i + block]]})
            for i in range(0, len(items), block)
        ]
        found = self.ray.data.from_arrow(blocks).map_batches(
            Judging,
            fn_constructor_args=(self.work, self.desk, os.getcwd(), self.gpu),
            batch_size=None,
            batch_format="pyarrow",
            compute=self.ray.data.ActorPoolStrategy(
                min_size=1, max_size=self.workers, initial_size=min(self.workers, len(blocks))
            ),
            num_cpus=1,
            num_gpus=1 if self.gpu else 0,
            ray_remote_args_fn=_restarted,
        )
        try:
            batches: Any = found.iter_batches(
                batch_size=None, batch_format="pyarrow", prefetch_batches=0
            )
            for batch in batches:
                rows = [json.loads(row) for row in batch.column("row").to_pylist()]
                yield [row | {"item": Item(*row["item"])} for row in rows]
        except Exception as error:  # Ray's share no base
            if "GanscopeError" in str(error):  # a worker's
                raise GanscopeError(_said(str(error))) from None
            self.trouble = reason_of(error)


def _restarted() -> dict[str, Any]:
    """What Ray is told of workers: as often as they end they begin again, but no file is tried by
    more than a few.
    """
    return {"max_restarts": -1, "max_task_retries": RETRIES}


class Desk:
    """An actor beside the results, whom workers ask whether a content is new."""

    def __init__(self, path: str):
        from pathlib import Path

        self.index = Index(Path(path))

    def claim(self, pairs: list[tuple[str, int]]) -> list[bool]:
        return self.index.claim(pairs)


class Judging:
    """An actor that judges blocks."""

    def __init__(self, work: Work, desk: Any, folder: str, gpu: bool):
        import ray

        from ganscope.memory import keep_freed_memory

        with suppress(OSError):  # another machine may not have it
            os.chdir(folder)
        keep_freed_memory()
        if not gpu:
            os.environ["OMP_NUM_THREADS"] = "1"
        claim = None if desk is None else lambda pairs: ray.get(desk.claim.remote(pairs))
        self.worker = Worker(work, claim)

    def __call__(self, batch: Any) -> Any:
        import pyarrow as pa

        rows: list[str] = []
        items = [Item(*json.loads(one)) for one in batch.column("item").to_pylist()]
        self.worker.run(items, lambda row: rows.append(json.dumps(row)))
        return pa.table({"row": rows})


def _said(text: str) -> str:
    """What a worker's own error says, out of Ray's account of it."""
    lines = [line for line in text.splitlines() if "GanscopeError:" in line]
    return lines[-1].partition("GanscopeError:")[2].strip() if lines else text[:200]
