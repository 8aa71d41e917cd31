"""Commands killed and stopped at random moments, and given again.

    python benchmarks/campaigns/kills.py                          # a few moments of each
    python benchmarks/campaigns/kills.py --times 50               # fifty
    python benchmarks/campaigns/kills.py --with SIGTERM --only check --only scan
    python benchmarks/campaigns/kills.py --times 50 --log kills.jsonl   # goes on where it stopped

After `kill -9` no file under a final name is half, and the same command again ends with the same
bytes (of tables in Parquet: the same rows) as an undisturbed run. After SIGINT (sent to all
processes, as by Ctrl-C) and SIGTERM (sent to the first), the command ends within `--patience`
seconds with status 130 or 143 and one line, leaves no process behind, and loses no finished file.
A table at the end tells of all, with --log of earlier runs, too. The exit status is 1 if there is a
fault.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

from commands import (
    CASES,
    Case,
    Tally,
    begin,
    chosen_cases,
    end_session,
    halves,
    last_line,
    prepare,
    result,
    run,
    session,
)

from ganscope.detector.benchmark.benchmark import UNFINISHED
from ganscope.folders import CHECKPOINT, CONFIG

STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}
ANEW = ("benchmark", "check", "generate", "train-detector", "train-generator")
"""Commands that, once done, draw anew under other names, or want another --out."""


@dataclass
class Turn:
    """What came of a command that was disturbed, and given again."""

    command: str
    signal: str
    number: int
    seed: int
    signals: int = 0
    """That it was sent; fewer than meant where it was done before."""
    same: bool = False
    """Whether it ended with the result of an undisturbed run."""
    slowest: float = 0.0
    """Seconds until it ended after a signal."""
    faults: list[str] = field(default_factory=list)

    @property
    def key(self) -> tuple[str, str, int, int]:
        return self.command, self.signal, self.number, self.seed


class Log:
    """The turns of this campaign, and of earlier ones that wrote into the same file."""

    def __init__(self, path: Path | None):
        self.path, self.turns = path, list[Turn]()
        if path and path.exists():
            lines = path.read_text().split("\n")[:-1]  # what a kill cut off is done again
            self.turns = [Turn(**json.loads(line)) for line in lines]
            path.write_text("".join(f"{line}\n" for line in lines))

    def add(self, turn: Turn) -> None:
        self.turns.append(turn)
        if self.path:
            with self.path.open("a") as file:
                file.write(json.dumps(asdict(turn)) + "\n")

    def table(self) -> str:
        lines = [
            "| command | signal | disturbed runs | signals | ended the same | faults "
            "| slowest end, s |",
            "|---|---|---|---|---|---|---|",
        ]
        for command, kind in dict.fromkeys((t.command, t.signal) for t in self.turns):
            those = [t for t in self.turns if (t.command, t.signal) == (command, kind)]
            end = "" if kind == "SIGKILL" else f"{max(t.slowest for t in those):.1f}"
            counts = (
                len(those),
                sum(t.signals for t in those),
                sum(t.same for t in those),
                sum(len(t.faults) for t in those),
            )
            lines.append(f"| {command} | {kind} | {' | '.join(map(str, counts))} | {end} |")
        return "\n".join(lines)


def undisturbed(one: Case, place: Path, tally: Tally) -> tuple[float, dict[str, str]]:
    """How many seconds a case takes, and what it makes: nothing if it fails."""
    fresh(place, place / one.out)
    started = time.monotonic()
    status, said = run(one.words, place, place / "log.txt")
    expected = result(one, place)
    if status or not expected:
        tally.fault(f"{one.name}: undisturbed, status {status}: {last_line(said)}")
        return 0.0, {}
    return time.monotonic() - started, expected


def disturb(
    one: Case,
    place: Path,
    turn: Turn,
    seconds: float,
    expected: dict[str, str],
    patience: float,
    tally: Tally,
) -> None:
    """Run a case with a signal at a random moment, or two, then to its end."""
    log, out, number = place / "log.txt", place / one.out, signal.Signals[turn.signal]
    rng = random.Random("-".join(map(str, turn.key)))
    what, done = f"{one.name}, {turn.signal} no. {turn.number}", False
    before = len(tally.faults)
    fresh(place, out)
    for _ in range(rng.choice((1, 1, 2))):  # some are disturbed once more
        tally.runs += 1
        process = begin(one.words, place, log)
        # Uniform over the time that an undisturbed run takes.
        process.join(rng.uniform(0.02, seconds))
        if process.exitcode is not None:
            if process.exitcode:
                said = log.read_text(errors="replace")
                tally.fault(f"{what}: given again, {process.exitcode}: {last_line(said)}")
            done = True
            break
        turn.signals += 1
        if number == signal.SIGKILL:
            end_session(process)
        else:
            finished = finals(out)
            took = stop(process, number, patience, what, log, tally)
            turn.slowest = max(turn.slowest, took)
            if lost := finished - finals(out):
                tally.fault(f"{what}: lost {sorted(lost)[:3]}")
        for half in halves(out):
            tally.fault(f"{what}: half a file: {half}")
        if one.name in ANEW and is_done(one, place) and result(one, place) == expected:
            done = True
            break
    status, said = (0, "") if done else run(one.words, place, log)
    made = result(one, place)
    turn.same = made == expected
    if status:
        tally.fault(f"{what}: the same command again, status {status}: {last_line(said)}")
    elif not turn.same:
        other = [k for k in made.keys() | expected if made.get(k) != expected.get(k)]
        tally.fault(f"{what}: another result: {sorted(other)[:3]}")
    turn.faults = tally.faults[before:]


def is_done(one: Case, place: Path) -> bool:
    """Whether what comes last is there."""
    out = place / one.out
    if one.name in ("check", "generate"):  # their results have it
        return True
    if one.name == "benchmark":
        return not (out / UNFINISHED).exists()
    return (out / CONFIG).exists() and not (out / CHECKPOINT).exists()


def stop(
    process: BaseProcess, number: int, patience: float, what: str, log: Path, tally: Tally
) -> float:
    """Send a signal as a terminal or a service manager does; how many seconds its end took."""
    begun = time.monotonic()
    leader = process.pid or 0
    if number == signal.SIGINT:
        os.killpg(leader, number)
    else:
        os.kill(leader, number)
    process.join(4 * patience)
    took = time.monotonic() - begun
    said = log.read_text(errors="replace")
    if process.exitcode is None or took > patience:
        tally.fault(f"{what}: {took:.1f} s until it ended")
    time.sleep(0.2)
    if orphans := session(leader):
        tally.fault(f"{what}: {len(orphans)} processes are left")
    if process.exitcode not in (STATUS[signal.Signals(number)], 0):
        tally.fault(f"{what}: status {process.exitcode}: {last_line(said)}")
    elif process.exitcode and "ganscope: stopped" not in said:
        tally.fault(f"{what}: does not say that it was stopped: {last_line(said)}")
    if "Traceback" in said:
        tally.fault(f"{what}: traceback: {last_line(said)}")
    end_session(process)
    return took


def finals(out: Path) -> set[str]:
    """Files under final names that no later step writes anew or puts away, as those are with which
    a scan keeps its books.
    """
    return {
        str(path)
        for path in (out.rglob("*") if out.is_dir() else ())
        if path.is_file() and not path.name.startswith((".", "_", "checkpoint", "speed"))
    }


def fresh(place: Path, out: Path) -> None:
    """Nothing is left of an earlier run, in the cache neither."""
    for path in (out, place / "kept"):
        shutil.rmtree(path, ignore_errors=True)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    options.add_argument("--times", type=int, default=1, help="moments of each command and signal")
    options.add_argument("--minutes", type=float, help="begin anew until so many have passed")
    options.add_argument(
        "--only", action="append", default=[], help=", ".join(c.name for c in CASES)
    )
    options.add_argument(
        "--with", dest="signals", action="append", choices=("SIGKILL", "SIGINT", "SIGTERM")
    )
    options.add_argument("--log", type=Path, help="file in which it is kept what was done")
    options.add_argument("--patience", type=float, default=5.0, help="seconds for an end")
    options.add_argument("--seed", type=int, default=0)
    chosen = options.parse_args()
    tally, log = Tally(), Log(chosen.log)
    kinds = chosen.signals or ["SIGKILL", "SIGINT", "SIGTERM"]
    done, first = {turn.key for turn in log.turns}, 0
    with tempfile.TemporaryDirectory() as name:
        place = prepare(Path(name).resolve())
        whole: dict[str, tuple[float, dict[str, str]]] = {}
        while True:
            for one in chosen_cases(chosen.only):
                turns = [
                    Turn(one.name, kind, number, chosen.seed)
                    for kind in kinds
                    for number in range(first, first + chosen.times)
                ]
                for turn in (turn for turn in turns if turn.key not in done):
                    if one.name not in whole:
                        whole[one.name] = undisturbed(one, place, tally)
                    if whole[one.name][1]:
                        disturb(one, place, turn, *whole[one.name], chosen.patience, tally)
                        log.add(turn)
            first += chosen.times
            if time.monotonic() - tally.started >= 60 * (chosen.minutes or 0):
                break
    print(log.table())
    earlier = [said for turn in log.turns if turn.key in done for said in turn.faults]
    tally.faults = [*earlier, *tally.faults]
    sys.exit(tally.close("kills"))


if __name__ == "__main__":
    main()
