"""Detectors from anywhere, as the benchmark asks them: ours, published ones, files of scores,
functions of a user's own, ONNX files.

A name tells them apart: `python:FILE.py:FUNCTION`, `scores:FILE`, `onnx:FILE`, `NAME` or
`NAME:WEIGHTS` for a published one; anything else, and a folder of such a name, is a detector of
ours.
"""

import hashlib
import inspect
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from ganscope.config import read_json
from ganscope.datasets.writing import encode_image
from ganscope.detector.judge import check_config
from ganscope.detector.judging.scoring import score_images
from ganscope.detector.model import RULE, Detector, load_detector
from ganscope.detector.networks.onnx import OnnxNet
from ganscope.detector.published import PublishedDetector, load_published, published
from ganscope.devices import pick_device
from ganscope.errors import GanscopeError, in_a_line, reason_of, refuse_bytes
from ganscope.faces import open_finder
from ganscope.folders import hash_files
from ganscope.functions import line_of, load_function
from ganscope.registry import unknown

FACELESS = "no face was found that is large enough"
"""Why a detector of faces alone has no number for an image."""


@dataclass
class View:
    """An image as a scorer gets it."""

    path: str
    """The file it is from."""
    pixels: np.ndarray
    """(H, W, 3) uint8 RGB."""
    changed: bool
    """Whether the pixels are other than the file's."""
    name: str = ""
    """Its file name in the corpus."""


class Scorer:
    """What gives images a value: a logit, or a score. Base of every kind of detector here."""

    name: str
    """As the user typed it."""
    key: str
    """Stands for all that its values depend on; "": they are not kept."""
    weights: str
    """Hash of its weights, for the report."""
    threshold: float = 0.5
    """On the score: fake from here on."""
    untouched_only = False
    """Whether it knows files as they are only."""
    network: Detector | None = None
    """The network, where it is one of ours: it can make heatmaps."""
    device = "auto"

    def values(self, views: Sequence[View]) -> list[float | str]:
        """A value for each image, or the reason why there is none.

        Raises `GanscopeError` if it cannot go on at all.
        """
        raise NotImplementedError

    def score(self, value: np.ndarray) -> np.ndarray:
        """values -> scores in [0, 1], higher = more likely fake."""
        return np.asarray(value, float)

    def probability(self, value: np.ndarray) -> np.ndarray:
        """values -> probabilities of being fake, as far as the detector is calibrated."""
        return self.score(value)


class NetworkScorer(Scorer):
    """A `Detector`, ours or an ONNX file: its values are logits."""

    def __init__(
        self, name: str, network: Detector, batch_size: int | None = None, device: str = "auto"
    ):
        self.name, self.network = name, network
        self.batch_size, self.device = batch_size, device
        self.weights, self.threshold = network.weights, network.thresholds["fake"]
        about = {part: network.config[part] for part in ("architecture", "arguments", "input")}
        self.key = f"{self.weights} {_hash(json.dumps(about, sort_keys=True))}"
        if network.faces_alone:
            self.key += f" faces by {open_finder().name}"

    def values(self, views: Sequence[View]) -> list[float | str]:
        assert self.network
        found = score_images(self.network, [v.pixels for v in views], self.batch_size, self.device)
        nothing = FACELESS if self.network.faces_alone else "it gave no number"
        return [
            scored.error or nothing if scored.logit is None else scored.logit for scored in found
        ]

    def score(self, value: np.ndarray) -> np.ndarray:
        assert self.network
        return self.network.score(value)

    def probability(self, value: np.ndarray) -> np.ndarray:
        assert self.network
        return self.network.probability(value)


class PublishedScorer(Scorer):
    """A detector as its authors published it: its values are logits."""

    def __init__(self, name: str, detector: PublishedDetector, batch_size: int, device: str):
        self.name, self.detector = name, detector
        self.batch_size, self.device = batch_size, device
        self.weights, self.threshold = detector.weights, detector.threshold
        self.key = f"{detector.weights} {detector.name}"
        if detector.finder:
            self.key += f" faces by {detector.finder}"

    def values(self, views: Sequence[View]) -> list[float | str]:
        found = self.detector.score_pixels(
            [view.pixels for view in views], self.batch_size, pick_device(self.device)
        )
        return [
            float(logit) if np.isfinite(logit) else "it gave no finite number for this image"
            for logit in found
        ]

    def score(self, value: np.ndarray) -> np.ndarray:
        return self.detector.score(value)


class FunctionScorer(Scorer):
    """A user's function `list[path] -> scores`, or `path -> score`, higher = more likely fake.

    Which of the two it is, the first parameter's annotation says, else a trial with one path. It
    gets the files themselves where nothing is changed, else PNG files of the changed pixels.
    """

    def __init__(self, spec: str):
        self.name = f"python:{spec}"
        function, path = load_function(spec, f"--detector {self.name}")
        self.function: Callable[..., Any] = function
        self.file = str(path.resolve())
        self.weights = hash_files(path)
        self.key = f"{self.weights} {spec.rpartition(':')[2]}"
        self.takes_list = _takes_list(function)

    def values(self, views: Sequence[View]) -> list[float | str]:
        with tempfile.TemporaryDirectory(prefix="ganscope-") as folder:
            paths = []
            for number, view in enumerate(views):
                path = Path(view.path)
                if view.changed:
                    path = Path(folder) / f"{number:06}.png"
                    path.write_bytes(encode_image(view.pixels, "png", 0))
                paths.append(str(path))
            return [self._number(value) for value in self._call(paths)]

    def _call(self, paths: list[str]) -> list[Any]:
        if self.takes_list is None:
            try:
                self.takes_list = len(self.function(paths[:1])) == 1
            except (Exception, SystemExit):
                self.takes_list = False
        try:
            if not self.takes_list:
                return [self.function(path) for path in paths]
            found = self.function(paths)
            found = list(found) if isinstance(found, Iterator) else found
        except (Exception, SystemExit) as error:
            raise GanscopeError(
                f"it raised {reason_of(error)}{line_of(error, self.file)}"
            ) from error
        found = found.detach().cpu() if isinstance(found, Tensor) else found
        try:
            values = list(np.asarray(found).reshape(-1))
        except (TypeError, ValueError):
            values = []
        if len(values) != len(paths):
            raise GanscopeError(
                f"for {len(paths)} paths it returned {len(values)} scores; return one for each path"
            )
        return values

    def _number(self, value: Any) -> float | str:
        try:
            if isinstance(value, str):
                raise TypeError
            number = float(value)
        except (TypeError, ValueError):
            raise GanscopeError(
                f"it returned a {type(value).__name__}, not a number; return a score"
            ) from None
        if not np.isfinite(number):
            return "it gave no finite number for this image"
        if not 0 <= number <= 1:
            raise GanscopeError(
                f"it returned {number:g}; return scores from 0 (real) to 1 (fake), for logits "
                "their sigmoid"
            )
        return number


def _takes_list(function: Callable[..., Any]) -> bool | None:
    """Whether a function asks for many paths at once, by its annotation; None: it does not say."""
    try:
        first = next(iter(inspect.signature(function, eval_str=True).parameters.values()))
    except (StopIteration, TypeError, ValueError, NameError):
        return None
    if first.annotation is inspect.Parameter.empty:
        return None
    return any(word in str(first.annotation) for word in ("list", "List", "Sequence", "Iterable"))


MOST_LOGIT = 30.0
"""Of a file of scores: the sigmoid of more is 1."""


class TableScorer(Scorer):
    """Scores that an outside program wrote: a CSV or Parquet file with `path` and `score`.

    A path is one that can be opened, from here or from the file's folder, or an image's file name
    in its corpus. Where some scores are below 0 and some above 1, all are taken for logits.
    """

    key = ""
    untouched_only = True

    def __init__(self, file: str):
        self.name = f"scores:{file}"
        path = Path(file)
        option = f"--detector {self.name}"
        if not path.is_file():
            raise GanscopeError(f"{option}: no such file")
        try:
            read = pd.read_parquet if path.suffix == ".parquet" else pd.read_csv
            table = read(path)
        except Exception as error:
            raise GanscopeError(f"{option}: cannot be read ({reason_of(error)})") from None
        for column in ("path", "score"):
            if column not in table:
                raise GanscopeError(
                    f"{option}: has no column {column!r}; write a row an image: path,score"
                )
        if table["path"].isna().any():
            raise GanscopeError(
                f"{option}: row {int(table['path'].isna().argmax()) + 1} has no path"
            )
        table["path"] = table["path"].astype(str)
        doubles = table["path"][table["path"].duplicated()]
        if len(doubles):
            raise GanscopeError(f"{option}: {_told(doubles.iloc[0])} is listed twice")
        numbers = pd.to_numeric(table["score"], errors="coerce").astype(float)
        wrong = table[~np.isfinite(numbers)]
        if len(wrong):
            row = wrong.iloc[0]
            raise GanscopeError(
                f"{option}: the score of {_told(row['path'])} is {_told(row['score'])}, no number"
            )
        self.logits = bool((numbers < 0).any() and (numbers > 1).any())
        low, high = float(numbers.min()), float(numbers.max())
        if not self.logits and (low < 0 or high > 1):
            raise GanscopeError(
                f"{option}: scores go from {low:g} to {high:g}; write scores from 0 (real) to 1 "
                "(fake), percentages divided by 100, or logits, which are below 0 and above 1"
            )
        if max(-low, high) > MOST_LOGIT:
            raise GanscopeError(
                f"{option}: logits go from {low:g} to {high:g}; beyond {MOST_LOGIT:g} their scores "
                "cannot be told apart; divide all by one number"
            )
        self.weights = hash_files(path)
        self.named = dict(zip(table["path"], numbers, strict=True))
        self.owners: dict[str, str] = {}
        here = (_resolved(name, path.parent) for name in table["path"])
        self.whole = {name: value for name, value in zip(here, numbers, strict=True) if name}

    def values(self, views: Sequence[View]) -> list[float | str]:
        return [self._value(view) for view in views]

    def _value(self, view: View) -> float | str:
        value = self.whole.get(str(Path(view.path).resolve()))
        # With several corpora, each one's folder stands before its names.
        ends = (view.name.split("/", n)[-1] for n in range(view.name.count("/") + 1))
        name = next((end for end in ends if end in self.named), None)
        if value is None and name is not None:
            if self.owners.setdefault(name, view.path) != view.path:
                raise GanscopeError(
                    f"{name} is the name of two images; write paths that can be opened"
                )
            value = self.named[name]
        elif value is not None and name is not None and value != self.named[name]:
            raise GanscopeError(f"{name} is listed twice, under two paths")
        return "has no score in this file" if value is None else float(value)

    def score(self, value: np.ndarray) -> np.ndarray:
        value = np.asarray(value, float)
        return np.exp(-np.logaddexp(0.0, -value)) if self.logits else value


def _told(value: Any) -> str:
    """A cell, for a line about it."""
    return in_a_line(str(value)[:80])


def _resolved(name: str, folder: Path) -> str | None:
    """The whole path of a file, from here or from a folder; None for what no path can be."""
    try:
        return str((Path(name) if Path(name).exists() else folder / name).resolve())
    except (OSError, ValueError):  # too long, or with a null byte
        return None


def open_onnx(file: str, device: str = "auto") -> Detector:
    """An ONNX file as a detector.

    FILE.json beside it may say what the graph does not: `input` (size, mean, std), `thresholds`,
    `calibration`, as in our own `config.json`, and `"output": "probability"`. Without, images are
    in [0, 1] and the output is a logit. Raises `GanscopeError` if it is no such graph.
    """
    option = f"--detector onnx:{file}"
    if not Path(file).is_file():
        raise GanscopeError(f"{option}: no such file")
    beside = Path(file).with_suffix(".json")
    said = read_json(beside) if beside.is_file() else {}
    output = said.get("output", "logit")
    if output not in ("logit", "probability"):
        raise GanscopeError(f'{beside}: output is {output!r}; write "logit" or "probability"')
    net = OnnxNet(file, output == "probability", device)
    for part in ("input", "calibration", "thresholds"):
        if not isinstance(said.get(part, {}), dict):
            raise GanscopeError(f"{beside}: {part} is {said[part]!r}, no object")
    about = {"mean": [0.0] * 3, "std": [1.0] * 3, "rule": RULE} | said.get("input", {})
    size = net.side or about.get("size")
    if not size:
        raise GanscopeError(
            f"{option}: takes images of any size; write the side of the tiles that it should see "
            f'into {beside}: {{"input": {{"size": 224}}}}'
        )
    config = {
        "architecture": "onnx",
        "arguments": {"output": output},
        "input": about | {"size": size},
        "calibration": {"scale": 1.0, "shift": 0.0} | said.get("calibration", {}),
        "thresholds": {"fake": 0.5, "real": 0.5} | said.get("thresholds", {}),
        "training": {},
    }
    try:
        check_config(config)
        detector = Detector(config, net).eval()
    except (ValueError, TypeError, RuntimeError) as error:
        raise GanscopeError(f"{beside}: {error}") from None
    detector.name, detector.weights = f"onnx:{file}", hash_files(*_onnx_files(Path(file)))
    return detector


def _onnx_files(file: Path) -> list[Path]:
    """An ONNX file and those beside it that exporters put large weights into."""
    begins = (f"{file.name}.", f"{file.name}_", f"{file.stem}.data", f"{file.stem}.bin")
    others = (p for p in file.parent.iterdir() if p.name.startswith(begins) and p.is_file())
    return [file, *sorted(others)]


def open_scorer(name: str, batch_size: int | None = None, device: str = "auto") -> Scorer:
    """What a user's --detector means; see this module's docstring.

    Raises `GanscopeError` for whatever is missing or does not fit.
    """
    refuse_bytes(name)
    kind, _, rest = name.partition(":")
    if kind == "python" and rest:
        return FunctionScorer(rest)
    if kind == "scores" and rest:
        return TableScorer(rest)
    if kind == "onnx" and rest:
        return NetworkScorer(name, open_onnx(rest, device), batch_size, device)
    if kind in published and (rest or not (":" in name or Path(name).exists())):
        return PublishedScorer(name, load_published(kind, rest), batch_size or 32, device)
    if ":" in name and not Path(name).exists():
        kinds = ["python", "scores", "onnx", *published]
        if kind in kinds:
            raise GanscopeError(f"--detector {name}: name a file behind {kind}:")
        raise GanscopeError(f"--detector {name}: {unknown('kind of detector', kind, kinds)}")
    return NetworkScorer(name, load_detector(name), batch_size, device)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
