"""Commands killed and stopped at random moments, and given again.

    python benchmarks/campaigns/kills.py                          # a few moments of each
    python benchmarks/campaigns/kills.py --times 50               # fifty
    python benchmarks/campaigns/kills.py --with SIGTERM --only check --only scan

After `kill -9` no file under a final name is half, and the same command again ends with the same
bytes (of tables in Parquet: the same rows) as an undisturbed run. After SIGINT (sent to all
processes, as by Ctrl-C) and SIGTERM (sent to the first), the command ends within `--patience`
seconds with status 130 or 143 and one line, leaves no process behind, and loses no finished file.
The exit status is 1 if there is a fault.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
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

from ganscope.folders import CHECKPOINT, CONFIG

STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}
ANEW = ("check", "train-detector", "train-generator")
"""Commands that, once done, draw anew under other names, or want another --out."""


def disturb(
    one: Case,
    place: Path,
    number: int,
    times: int,
    patience: float,
    rng: random.Random,
    tally: Tally,
) -> None:
    """Run a case undisturbed, then so many times with a signal at a random moment, then to its
    end.
    """
    log, out, kind = place / "log.txt", place / one.out, signal.Signals(number).name
    fresh(place, out)
    started = time.monotonic()
    status, said = run(one.words, place, log)
    seconds, expected = time.monotonic() - started, result(one, place)
    if status or not expected:
        tally.fault(f"{one.name}: undisturbed, status {status}: {last_line(said)}")
        return
    ends: Counter[str] = Counter()
    slowest = 0.0
    for turn in range(times):
        fresh(place, out)
        what, done = f"{one.name}, {kind} no. {turn}", False
        for _ in range(rng.choice((1, 1, 2))):  # some are disturbed once more
            tally.runs += 1
            process = begin(one.words, place, log)
            # Uniform over the time that an undisturbed run takes.
            process.join(rng.uniform(0.02, seconds))
            if process.exitcode is not None:
                ends["was done before"] += 1
                if process.exitcode:
                    said = log.read_text(errors="replace")
                    tally.fault(f"{what}: given again, {process.exitcode}: {last_line(said)}")
                done = True
                break
            if number == signal.SIGKILL:
                end_session(process)
                ends["killed"] += 1
            else:
                finished = finals(out)
                took = stop(process, number, patience, what, log, tally)
                slowest = max(slowest, took)
                ends[f"status {process.exitcode}"] += 1
                if lost := finished - finals(out):
                    tally.fault(f"{what}: lost {sorted(lost)[:3]}")
            for half in halves(out):
                tally.fault(f"{what}: half a file: {half}")
            if one.name in ANEW and is_done(one, place) and result(one, place) == expected:
                ends["was done before"] += 1
                done = True
                break
        status, said = (0, "") if done else run(one.words, place, log)
        if status:
            tally.fault(f"{what}: the same command again, status {status}: {last_line(said)}")
        elif result(one, place) != expected:
            made = result(one, place)
            other = [k for k in made.keys() | expected if made.get(k) != expected.get(k)]
            tally.fault(f"{what}: another result: {sorted(other)[:3]}")
        else:
            ends["ended the same"] += 1
    told = ", ".join(f"{count} {end}" for end, count in sorted(ends.items()))
    end = "" if number == signal.SIGKILL else f"; the slowest end took {slowest:.1f} s"
    print(f"  {one.name} ({seconds:.1f} s undisturbed), {kind}: {told}{end}", flush=True)


def is_done(one: Case, place: Path) -> bool:
    """Whether what comes last is there."""
    out = place / one.out
    return one.name == "check" or ((out / CONFIG).exists() and not (out / CHECKPOINT).exists())


def stop(process, number: int, patience: float, what: str, log: Path, tally: Tally) -> float:  # type: ignore[no-untyped-def]
    """Send a signal as a terminal or a service manager does; how many seconds its end took."""
    begun = time.monotonic()
    leader = process.pid
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
    options.add_argument("--patience", type=float, default=5.0, help="seconds for an end")
    options.add_argument("--seed", type=int, default=0)
    chosen = options.parse_args()
    rng, tally = random.Random(chosen.seed), Tally()
    numbers = [signal.Signals[name] for name in chosen.signals or ("SIGKILL", "SIGINT", "SIGTERM")]
    with tempfile.TemporaryDirectory() as name:
        place = prepare(Path(name).resolve())
        while True:
            for one in chosen_cases(chosen.only):
                for number in numbers:
                    disturb(one, place, number, chosen.times, chosen.patience, rng, tally)
            if time.monotonic() - tally.started >= 60 * (chosen.minutes or 0):
                break
    sys.exit(tally.close("kills"))


if __name__ == "__main__":
    main()
