"""Where and how fast a network runs: device, precision and memory layout.

bf16 autocast and the channels-last layout make some networks several times faster on some
processors and slower on others, so the choice is measured once at the start instead of guessed.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import cv2
import torch
import torch.distributed
from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list
from torch.distributed import distributed_c10d

from ganscope.errors import GanscopeError, ToldElsewhere, reason_of
from ganscope.files import damaged, read_json, write_json
from ganscope.launched import forget_stale
from ganscope.locks import holding

Answer = TypeVar("Answer")
FAILED = "ganscope/failed"
"""What a process that fails writes into the store that all of them share."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: str = "auto") -> torch.device:
    """The torch device for a `--device` value; "auto" takes CUDA, else Apple's MPS, else the CPU.

    Raises `GanscopeError` if the named device is not there.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise GanscopeError("--device cuda: torch finds no CUDA device here; use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise GanscopeError(
            f"--device {name}: there are only {torch.cuda.device_count()} CUDA devices"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise GanscopeError("--device mps: torch finds no MPS device here; use --device cpu")
    return device


def multiplies_bf16(device: torch.device) -> bool:
    """Whether a CPU has instructions for matrices of bf16 (AMX). Transformers, which mostly
    multiply matrices, are some three times as quick with them.
    """
    # Older torch does not tell what the processor can do.
    tell: Callable[[], dict[str, Any]] = getattr(torch.cpu, "get_capabilities", dict)
    return device.type == "cpu" and bool(tell().get("amx_bf16"))


def processes(device: torch.device) -> PartialState:
    """This process' place among those that `accelerate launch` or `torchrun` started, if any."""
    # Accelerate keeps the first precision and device it was given for as long as the process lives;
    # an earlier training in this process may have wanted others.
    forget_stale(meet=True)
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    return PartialState(cpu=device.type == "cpu")


def is_main_process() -> bool:
    """Whether this is the one process of several that writes, reads back and prints, or alone."""
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


def by_main_process(work: Callable[[], object]) -> None:
    """Let the main process alone do something; the others wait for its end, however long it takes,
    and raise `GanscopeError` if it fails.
    """

    def silently() -> None:
        work()

    asked_of_main(silently)


def asked_of_main(work: Callable[[], Answer]) -> Answer:
    """What the main process alone finds, told to all; as `by_main_process`. What lies on a disk may
    look different to each of them, and they must not part.
    """
    distributed = torch.distributed
    if not distributed.is_initialized():
        return work()
    # A group of its own: the usual one gives up after minutes, and an evaluation may take hours.
    group = _patient_group()
    said: list[Any] = [None, None]
    failure: BaseException | None = None
    if distributed.get_rank() == 0:
        try:
            said[1] = work()
        except BaseException as error:
            failure, said = error, [str(error) or reason_of(error), None]
    try:
        distributed.broadcast_object_list(said, group=group)
        distributed.destroy_process_group(group)
    except RuntimeError:
        if distributed.get_rank() == 0 and failure is None:
            return said[1]  # its work is done, whatever has become of the others
        if failure is None:
            raise GanscopeError(
                "the main process has ended before its time; the same command given again goes on"
            ) from None
    if failure is not None:
        raise failure
    if said[0] is not None:
        raise GanscopeError(said[0])
    return said[1]


@contextmanager
def gathering() -> Iterator[Callable[[Answer], list[Answer]]]:
    """A function that gives the main process what each process hands over, in their order, and the
    others nothing; each may come hours later than another.
    """
    if not torch.distributed.is_initialized():
        yield lambda value: [value]
        return
    group = _patient_group()

    def gather(value: Answer) -> list[Answer]:
        found: list[Any] | None = None
        if is_main_process():
            found = [None] * torch.distributed.get_world_size()
        torch.distributed.gather_object(value, found, group=group)
        return found or []

    yield gather
    torch.distributed.destroy_process_group(group)


def _patient_group() -> Any:
    return torch.distributed.new_group(backend="gloo", timeout=timedelta(days=365))


@contextmanager
def ending_together() -> Iterator[None]:
    """Where one of several processes fails, the others end, too, and one alone says why.

    What waits for a process that is gone raises `ToldElsewhere` if that one could say what was
    wrong, and `GanscopeError` if it could not, as when it was killed.
    """
    distributed = torch.distributed
    try:
        yield
    except BaseException as error:
        if not distributed.is_initialized() or distributed.get_world_size() == 1:
            raise
        if not _is_lost(error):
            with suppress(Exception):
                _store().set(FAILED, str(distributed.get_rank()))
            raise
        told = False
        with suppress(Exception):  # the store may have gone with the process that kept it
            told = _store().check([FAILED])
        if told:
            raise ToldElsewhere("another process has failed, and says why") from None
        raise GanscopeError(
            "another of the processes has ended before its time; the same command given again "
            "goes on"
        ) from None


def _store() -> Any:
    return distributed_c10d._get_default_store()


def _is_lost(error: BaseException) -> bool:
    """Whether an error says that another process cannot be reached."""
    if isinstance(error, GanscopeError) or not isinstance(error, RuntimeError):
        return False
    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error)


@contextmanager
def held_by_main(folder: Path) -> Iterator[None]:
    """`holding` of a folder that several processes work at together: the main one holds it."""
    with ExitStack() as stack:
        by_main_process(lambda: stack.enter_context(holding(folder)))
        yield


def mean_of_all(value: torch.Tensor) -> torch.Tensor:
    """The mean of a number () over all processes: they must not drift apart by what each sees."""
    if not torch.distributed.is_initialized():
        return value
    whole = value.detach().clone()
    torch.distributed.all_reduce(whole)
    return whole / torch.distributed.get_world_size()


def to_device(pixels: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor on a device; to a GPU it travels while the processor goes on."""
    if device.type != "cuda":
        return pixels.to(device)
    return pixels.contiguous().pin_memory().to(device, non_blocking=True)


MOST_AT_ONCE, SHARE_OF_FREE = 1024, 0.4
"""Pictures at a time on a GPU, at most, and the share of its free memory that they may take."""


def batch_for(free: float, each: float, least: int = 32) -> int:
    """Pictures at a time, a power of two, for so many bytes that are free and that each takes."""
    fits = SHARE_OF_FREE * free / max(each, 1.0)
    batch = least
    while batch * 2 <= min(fits, MOST_AT_ONCE):
        batch *= 2
    return batch


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch, in this thread and those started inside, and opencv compute with a single thread."""
    before = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])


@contextmanager
def repeatable() -> Iterator[None]:
    """cuDNN chooses among its algorithms only those that give the same bits every time."""
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before


@dataclass(frozen=True)
class Speed:
    """How to run a network: precision name ("fp32", "bf16", "fp16") and memory layout."""

    precision: str = "fp32"
    channels_last: bool = False

    @property
    def layout(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def autocast(self, device: torch.device) -> AbstractContextManager:
        """The autocast context for this precision, or one that does nothing for fp32."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(device.type, dtype=DTYPES[self.precision])


def remembered(path: Path, choose: Callable[[], Speed]) -> Speed:
    """The speed that an unfinished run was begun with, kept in `path`; else the one chosen now.

    A run that is killed before its first checkpoint must go on in the same precision, too.
    """
    if path.exists():
        remedy = "delete it and run the same command again"
        with damaged(path, remedy):
            kept = Speed(**read_json(path, remedy))
            if kept.precision not in DTYPES or not isinstance(kept.channels_last, bool):
                raise ValueError(f"{kept} is no speed")
            return kept
    speed = choose()
    state = PartialState()
    state.wait_for_everyone()  # all have looked before one writes
    if state.is_main_process:
        write_json(path, asdict(speed))
    return speed


def fastest(
    run: Callable[[Speed], object],
    device: torch.device,
    precision: str = "auto",
    repeats: int = 3,
) -> Speed:
    """Measure which `Speed` makes `run(speed)` quickest.

    `run` does one representative piece of work (a training step, a forward pass) in the way it is
    told. precision: "auto" tries fp32 and bf16, each in both layouts. A way that fails here is left
    out; one must be 5 % faster than plain fp32 to be chosen. A name is taken as it is, with
    channels last: nothing is measured, so runs can be compared bit by bit.
    """
    if precision != "auto":
        return Speed(precision, channels_last=device.type != "mps")
    names = ("fp32",) if device.type == "mps" else ("fp32", "bf16")
    best, best_time = Speed(), float("inf")
    for speed in (Speed(name, last) for name in names for last in (False, True)):
        try:
            if _timed(run, speed, device) > max(4 * best_time, 1.0):
                continue  # hopeless, and slow enough not to ask again
            seconds = min(_timed(run, speed, device) for _ in range(repeats))
        except (RuntimeError, NotImplementedError):
            continue
        if seconds < best_time * 0.95:
            best, best_time = speed, seconds
    return broadcast_object_list([best])[0]  # all processes take the first one's


def _timed(run: Callable[[Speed], object], speed: Speed, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run(speed)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
