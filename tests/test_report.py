"""The report of a benchmark: the page holds the tables' numbers, alone, and trusts no name.

To look at one: `pytest -n 0 tests/test_report.py --basetemp=look`, then look/report0/report.html.
"""

import base64
import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from ganscope.detector.benchmark.report import summary, tables
from ganscope.detector.benchmark.report.page import Mistake, write_report
from ganscope.detector.judging import plots
from ganscope.detector.judging.metrics import NAMES, evaluate_scores, reliability

STRANGE = "<script>alert(1)</script> & 50_%$x$"
"""A folder's name may be anything."""
VOID = {"meta", "img", "br", "wbr", "line", "link", "input", "hr"}


@dataclass
class Benchmark:
    """What `write_report` takes."""

    results: pd.DataFrame
    scores: pd.DataFrame
    about: dict[str, Any]
    rest: dict[str, Any] = field(default_factory=dict)

    def write(self, out: Path, **changes: Any) -> str:
        write_report(out, self.results, self.scores, self.about, **(self.rest | changes))
        return (out / "report.html").read_text()


def measured(labels: pd.Series, scores: pd.Series) -> dict[str, float]:
    """A row's numbers; only the AUROC is a true one, the others are merely different."""
    auroc = roc_auc_score(labels, scores)
    row = {"n_real": int((labels == 0).sum()), "n_fake": int(labels.sum())}
    for i, name in enumerate(NAMES):
        value = auroc if name == "auroc" else auroc * (1 - i / 20)
        row |= {name: value, f"{name}_low": value - 0.03, f"{name}_high": min(value + 0.02, 1)}
    return row


def simulate(
    detectors: dict[str, float],
    generators: tuple[str, ...],
    degradations: tuple[str, ...] = ("clean",),
    images: int = 60,
    seed: int = 0,
) -> Benchmark:
    """Detectors (name -> skill) that know the first generators best; the file format helps all."""
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({"label": np.repeat([0, *[1] * len(generators)], images)})
    table["generator"] = np.repeat(["real", *generators], images)
    table["source"] = np.where(table["label"] == 0, np.arange(len(table)) % 3, 9).astype(str)
    table["source"] = "camera-" + table["source"]
    table["group"] = [f"g{i}" for i in range(len(table))]
    table["path"] = [f"corpus/{g}/{i}.png" for i, g in enumerate(table["generator"])]
    content = rng.normal(size=len(table))
    easy = {name: 1 - 0.8 * i / len(generators) for i, name in enumerate(generators)}
    ease = table["generator"].map(easy).fillna(0).to_numpy(float)
    parts, cells, alarms = [], [], []
    for (name, skill), protocol in ((d, p) for d in detectors.items() for p in ("raw", "aligned")):
        for step, degradation in enumerate(degradations):
            shift = skill * ease + (protocol == "raw") * table["label"] - 0.2 * step * ease
            logit = 0.4 * content + rng.normal(size=len(table)) + shift - 1.2
            score = 1 / (1 + np.exp(-logit))
            part = table.assign(
                image=np.arange(len(table)),
                protocol=protocol,
                degradation=degradation,
                detector=name,
                score=score,
                probability=score,
            )
            cell = {"detector": name, "protocol": protocol, "degradation": degradation}
            for generator in ("all", *generators):
                some = part[part["generator"].isin(["real", generator]) | (generator == "all")]
                cells.append(
                    cell | {"generator": generator} | measured(some["label"], some["score"])
                )
            parts.append(part)
            for source, photographs in part[part["label"] == 0].groupby("source"):
                called = int((photographs["score"] >= 0.7).sum())
                share = called / len(photographs)
                counts = (source, len(photographs), called, share, share + 0.05)
                alarms.append((name, protocol, degradation, *counts))
    results = pd.DataFrame(cells)
    results["remark"] = np.where(
        results["auroc_high"] < 0.5, "probably inverted: fakes score lower than reals", ""
    )
    names = list(detectors)
    comparisons = [
        [one, other, protocol, "all", "clean", 0.02, -0.01, 0.05, 0.2, 0.6, "paired bootstrap"]
        for i, one in enumerate(names)
        for other in names[i + 1 :]
        for protocol in ("raw", "aligned")
    ]
    pixels = rng.integers(0, 256, (48, 64, 3)).astype(np.uint8)
    return Benchmark(
        results,
        pd.concat(parts, ignore_index=True),
        {
            "command": "ganscope benchmark corpus --degrade jpeg:75",
            "versions": {"ganscope": "0.1.0", "torch": "2.8.0"},
            "detectors": {name: f"{i:064x}" for i, name in enumerate(names)},
            "thresholds": dict.fromkeys(names, 0.7),
            "corpora": ["corpus"],
            "images": {"count": 2180, "hash": "0fa3"},
            "seconds": 754.2,
            "unreadable": {"corpus/broken.png": "cut off"},
            "missing": ["no weights for 'far-away'"],
            "notes": [],
        },
        {
            "comparisons": pd.DataFrame(
                comparisons,
                columns=[
                    "detector",
                    "other",
                    "protocol",
                    "generator",
                    "degradation",
                    "difference",
                    "low",
                    "high",
                    "p_value",
                    "p_adjusted",
                    "method",
                ],
            ),
            "alarms": pd.DataFrame(
                alarms,
                columns=[
                    "detector",
                    "protocol",
                    "degradation",
                    "source",
                    "photographs",
                    "called_fake",
                    "share",
                    "at_most",
                ],
            ),
            "audit": {
                "auroc": 0.87,
                "interval": [0.84, 0.9],
                "clues": [["container", 0.85], ["dimensions", 0.5]],
            },
            "mistakes": [
                Mistake("corpus/real/1.png", 0, "real", names[0], 0.97, pixels, pixels[:, ::-1]),
                Mistake("corpus/fakes/2.png", 1, generators[0], names[-1], 0.02, pixels),
            ],
        },
    )


class Page(HTMLParser):
    """A page taken apart: tags with their attributes, tables as rows of cells, and all text."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if {"td", "th"} & set(self.open) and not {"small", "sup"} & set(self.open):
            self.tables[-1][-1][-1] += data

    def sections(self) -> list[str]:
        return [str(attrs["id"]) for tag, attrs in self.tags if tag == "section"]

    def images(self) -> list[dict[str, str | None]]:
        return [attrs for tag, attrs in self.tags if tag == "img"]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Benchmark, Path]:
    """A benchmark with a strange detector and generator, and the folder of its report."""
    detectors = {"good": 3.0, STRANGE: 1.0, "weak": 0.2}
    made = simulate(detectors, ("easy", "<b>&hard_1"), ("clean", "jpeg:75", "jpeg:30"))
    out = tmp_path_factory.mktemp("report")
    made.write(out)
    return made, out


@pytest.fixture(scope="module")
def page(written: tuple[Benchmark, Path]) -> Page:
    return Page((written[1] / "report.html").read_text())


def by_name(results: pd.DataFrame, protocol: str, degradation: str = "clean") -> pd.Series:
    rows = results[(results["protocol"] == protocol) & (results["degradation"] == degradation)]
    return rows.set_index(["detector", "generator"])["auroc"]


def test_the_page_holds_the_numbers_of_the_table(
    written: tuple[Benchmark, Path], page: Page
) -> None:
    made, _ = written
    for table, protocol in zip(page.tables, ("aligned", "raw"), strict=False):
        expected = by_name(made.results, protocol)
        assert table[0][1:] == ["all", "easy", "<b>&hard_1"]
        assert [row[0] for row in table[1:]] == ["good", STRANGE, "weak"]
        for row in table[1:]:
            for text, generator in zip(row[1:], ("all", *table[0][2:]), strict=True):
                assert text == f"{expected[row[0], generator]:.3f}"
    gap = by_name(made.results, "raw") - by_name(made.results, "aligned")
    assert page.tables[2][1][1] == summary.signed(gap["good", "all"])
    row = made.results.iloc[0]
    assert f"{row['auroc_low']:.3f}\N{EN DASH}{row['auroc_high']:.3f}" in page.text


def test_every_part_is_on_the_page(page: Page) -> None:
    assert page.sections() == [
        *("matrix", "measures", "curves", "degradations", "calibration", "scores"),
        *("comparisons", "alarms", "mistakes", "audit", "methods", "run", "left-out"),
    ]
    for text in (
        *("Best detector: good", "Hardest generator: <b>&hard_1", "is not significant"),
        *("ganscope benchmark corpus --degrade jpeg:75", "12 min 34 s"),
        *("2,180 images; the hash of all their files is 0fa3", "torch 2.8.0"),
        *("corpus/broken.png: cut off", "no weights for 'far-away'", f"{1:064x}", "0.700"),
        *("Photographs taken for fakes", "0.970 by good", "0.020 by weak; fake by easy"),
    ):
        assert text in " ".join(page.text.split()), text


def test_csv_json_and_tex_hold_the_numbers_of_the_table(written: tuple[Benchmark, Path]) -> None:
    made, out = written
    table = pd.read_csv(out / "results.csv", keep_default_na=False)
    assert list(table.columns) == list(made.results.columns)
    assert table["detector"].tolist() == made.results["detector"].tolist()
    for name in NAMES:
        assert np.allclose(table[name], made.results[name], rtol=1e-5)
    about = json.loads((out / "report.json").read_text())
    assert [row["auroc"] for row in about["results"]] == made.results["auroc"].tolist()
    assert about["results"][0]["n_fake"] == 120
    assert about["about"] == made.about
    assert about["mistakes"][0] == {
        "path": "corpus/real/1.png",
        "label": 0,
        "generator": "real",
        "detector": "good",
        "score": 0.97,
    }
    assert about["findings"][0]["title"] == "Best detector: good"
    tex = (out / "results.tex").read_text()
    rows = [line for line in tex.splitlines() if line.startswith("good & ")]
    for line, protocol in zip(rows, ("aligned", "raw"), strict=True):
        expected = by_name(made.results, protocol)["good"]
        found = re.findall(r"\d\.\d{3}", line)
        assert found == [f"{expected[g]:.3f}" for g in ("all", "easy", "<b>&hard_1")]


def test_names_are_escaped(written: tuple[Benchmark, Path], page: Page) -> None:
    html = (written[1] / "report.html").read_text()
    assert "<script" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; 50_%" in html
    assert not {tag for tag, _ in page.tags} & {"script", "b>&hard_1"}
    tex = (written[1] / "results.tex").read_text()
    name = r"\textless{}script\textgreater{}alert(1)\textless{}/script\textgreater{} \& 50\_\%\$x\$"
    assert tex.count(f"\n{name} & ") == 2
    body = [line for line in tex.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
    assert body
    for line in body:
        assert len(re.findall(r"(?<!\\)&", line)) == 3
        assert not re.search(r"(?<!\\)[%$#_]", line)
    assert tables.tex("a\\b{c}\nd~e^f|#") == (
        r"a\textbackslash{}b\{c\} d\textasciitilde{}e\textasciicircum{}f\textbar{}\#"
    )


def test_nothing_is_loaded_from_elsewhere(written: tuple[Benchmark, Path], page: Page) -> None:
    html = (written[1] / "report.html").read_text()
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "base"}
    assert "@import" not in html
    assert "url(" not in html
    assert not re.search(r"https?://", html)
    local = {"results.csv", "scores.parquet", "results.tex", "report.json"}
    for tag, attrs in page.tags:
        assert not any(name.startswith("on") for name in attrs), tag
        assert (attrs.get("src") or "data:").startswith("data:")
        href = attrs.get("href") or "#"
        assert href in local or href[1:] in {*page.sections(), ""}, href
    assert any("default-src 'none'" in (a.get("content") or "") for _, a in page.tags)


def test_pictures_can_be_read_and_say_what_they_show(page: Page) -> None:
    images = page.images()
    kinds = [str(image["src"]).partition(";")[0] for image in images]
    assert kinds.count("data:image/svg+xml") == 6 + 2 + 2 + 2 + 3
    assert kinds.count("data:image/jpeg") == 3  # two thumbnails, one heatmap
    for image, kind in zip(images, kinds, strict=True):
        assert image["alt"]
        data = base64.b64decode(str(image["src"]).partition(",")[2])
        if kind == "data:image/jpeg":
            pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
            assert pixels.shape == (48, 64, 3)
            continue
        links = [
            value
            for element in ElementTree.fromstring(data).iter()
            for name, value in element.attrib.items()
            if name.endswith("href")
        ]
        assert links
        assert all(link.startswith("#") for link in links)


def test_parts_without_data_are_left_out(tmp_path: Path) -> None:
    made = simulate({"one": 2.0}, ("only",), images=20)
    only = made.results[(made.results["generator"] == "only") & (made.results["protocol"] == "raw")]
    about = {"command": "ganscope benchmark"}
    write_report(tmp_path / "new" / "folder", only, made.scores.iloc[:0], about)
    page = Page((tmp_path / "new" / "folder" / "report.html").read_text())
    assert page.sections() == ["matrix", "measures", "methods", "run"]
    assert not page.images()
    assert "The detector: one" in page.text
    assert "Few images. 20 reals (1 % of them is less than one photograph)" in page.text
    for word in ("Hardest", "False alarms", "gives away", "Comparisons", "Degradations", "all gen"):
        assert word not in page.text.replace("“all generators”", ""), word
    empty = pd.DataFrame(columns=made.rest["alarms"].columns)
    write_report(tmp_path, only, made.scores.iloc[:0], about, empty, empty, None, ())
    again = (tmp_path / "report.html").read_text()
    assert again == (tmp_path / "new" / "folder" / "report.html").read_text()


def test_what_is_not_a_number_is_a_dash_and_null(tmp_path: Path) -> None:
    made = simulate({"one": 2.0}, ("g", "h"), images=20)
    numbers = [c for c in made.results.columns if c.partition("_")[0] in ("auroc", "ece", "tpr")]
    made.results.loc[made.results["generator"] == "g", numbers] = float("nan")
    made.results.loc[made.results["generator"] == "g", "remark"] = "one class only"
    made.results["auroc_low"] = made.results["auroc_high"] = float("nan")
    made.results.loc[made.results["generator"] != "g", "remark"] = None
    made.rest["comparisons"].loc[:, ["low", "high", "p_value", "p_adjusted"]] = float("nan")
    made.scores = made.scores.iloc[:0]
    html = made.write(tmp_path, comparisons=None, mistakes=[])
    assert Page(html).tables[0][1] == [
        "one",
        f"{by_name(made.results, 'aligned')['one', 'all']:.3f}",
        "\N{EN DASH}",
        f"{by_name(made.results, 'aligned')['one', 'h']:.3f}",
    ]
    assert "nan" not in html.lower().replace("&nbsp;", "")
    assert "One class only. one (g; clean)" in Page(html).text

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    about = json.loads((tmp_path / "report.json").read_text(), parse_constant=refuse)
    assert None in [row["auroc"] for row in about["results"]]
    assert "one & " in (tmp_path / "results.tex").read_text()
    assert "nan" not in (tmp_path / "results.tex").read_text()


def test_a_path_of_broken_bytes_is_written(tmp_path: Path) -> None:
    made = simulate({"one": 2.0}, ("g",), images=5)
    made.about["unreadable"] = {b"corpus/\xff.png".decode("utf-8", "surrogateescape"): "cut off"}
    made.scores = made.scores.iloc[:0]
    assert "corpus/\\udcff.png" in made.write(tmp_path)


def test_many_mistakes_are_cut_to_the_surest(tmp_path: Path) -> None:
    pixels = np.zeros((600, 400, 3), np.uint8)
    wrong = [Mistake(f"p/{i}.jpg", 0, "real", "one", 0.5 + i / 1000, pixels) for i in range(100)]
    wrong += [Mistake(f"f/{i}.jpg", 1, "g", "one", i / 1000, pixels) for i in range(10)]
    made = simulate({"one": 2.0}, ("g",), images=5)
    made.scores = made.scores.iloc[:0]
    page = Page(made.write(tmp_path, mistakes=wrong))
    assert "Photographs taken for fakes (38 of 100)" in page.text
    names = [image["alt"] for image in page.images()]
    assert names[:2] == ["p/99.jpg", "p/98.jpg"]
    assert names[38:40] == ["f/0.jpg", "f/1.jpg"]
    assert len(names) == 48
    data = base64.b64decode(str(page.images()[0]["src"]).partition(",")[2])
    assert cv2.imdecode(np.frombuffer(data, np.uint8), 1).shape == (288, 192, 3)
    assert len(json.loads((tmp_path / "report.json").read_text())["mistakes"]) == 110


def rows(*cells: tuple[str, str, str, str, float]) -> pd.DataFrame:
    """Results: detector, protocol, generator, degradation and AUROC; intervals of +- 0.02."""
    table = pd.DataFrame(
        cells, columns=["detector", "protocol", "generator", "degradation", "auroc"]
    )
    table = table.assign(n_real=500, n_fake=500, remark="")
    for name in NAMES:
        value = table["auroc"]
        table = table.assign(**{name: value, f"{name}_low": value - 0.02})
        table[f"{name}_high"] = value + 0.02
    return table


def scored(*cells: tuple[str, str, float]) -> pd.DataFrame:
    """Clean scores of 100 reals and as many fakes with the AUROC that is asked for: detector,
    protocol, AUROC.
    """
    parts = []
    for detector, protocol, auroc in cells:
        fakes = np.where(np.arange(100) < round(100 * auroc), 2.0, 0.0)
        part = pd.DataFrame({"image": np.arange(200), "label": np.repeat([0, 1], 100)})
        part = part.assign(score=np.r_[np.ones(100), fakes], detector=detector, protocol=protocol)
        parts.append(part.assign(generator=np.where(part["label"] == 1, "g", "real")))
    return pd.concat(parts, ignore_index=True).assign(degradation="clean")


def told(results: pd.DataFrame, **rest: Any) -> dict[str, summary.Finding]:
    scores = rest.pop("scores", pd.DataFrame(columns=["detector", "protocol", "degradation"]))
    found, warnings = summary.find(results, scores, rest.pop("about", {}), **rest)
    return {finding.title: finding for finding in [*found, *warnings]}


TWO = rows(
    ("a", "aligned", "all", "clean", 0.80),
    ("a", "aligned", "g", "clean", 0.90),
    ("a", "aligned", "h", "clean", 0.51),
    ("b", "aligned", "all", "clean", 0.85),
    ("b", "aligned", "g", "clean", 0.95),
    ("b", "aligned", "h", "clean", 0.50),
    ("a", "raw", "all", "clean", 0.99),
    ("b", "raw", "all", "clean", 0.86),
    ("b", "aligned", "all", "jpeg:75", 0.80),
    ("b", "aligned", "all", "jpeg:30", 0.60),
    ("b", "aligned", "all", "resize:0.5", 0.70),
)


def compared(p: float) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "detector": ["a"],
            "other": ["b"],
            "protocol": ["aligned"],
            "generator": ["all"],
            "degradation": ["clean"],
            "difference": [-0.05],
            "low": [-0.08],
            "high": [-0.01],
            "p_value": [p / 2],
            "p_adjusted": [p],
            "method": ["paired bootstrap"],
        }
    )


def test_the_best_detector_is_told_with_its_lead() -> None:
    best = told(TWO)["Best detector: b"]
    assert best.figure == "0.850"  # by aligned files, though a wins on raw ones
    assert "(95 % interval 0.830 to 0.870) over all generators" in best.text
    assert "ahead of a by 0.050; whether by chance was not tested" in best.text
    text = told(TWO, comparisons=compared(0.03))["Best detector: b"].text
    assert "by 0.050 (95 % interval 0.010 to 0.080), which is significant (p = 0.030" in text
    text = told(TWO, comparisons=compared(0.3))["Best detector: b"].text
    assert "which is not significant (p = 0.300" in text
    assert "p < 0.001" in told(TWO, comparisons=compared(0.0))["Best detector: b"].text
    elsewhere = compared(0.03).assign(generator="g")
    assert "not tested" in told(TWO, comparisons=elsewhere)["Best detector: b"].text


def test_the_hardest_generator_the_format_and_the_degradations_are_told() -> None:
    scores = scored(
        ("a", "raw", 0.99), ("a", "aligned", 0.80), ("b", "raw", 0.86), ("b", "aligned", 0.85)
    )
    found = told(TWO, scores=scores)
    hardest = found["Hardest generator: h"]
    assert hardest.figure == "0.500"
    assert "cannot be told from guessing" in hardest.text
    assert "a does best on them, 0.510" in hardest.text
    gap = found["What the file format gives away"]
    assert gap.figure == "+0.010"
    assert "b has AUROC 0.860 on files as they are, 0.850 on files of both classes" in gap.text
    assert "helps a most: 0.990 becomes 0.800" in gap.text
    hurt = found["Compression, shrinking and the like"]
    assert (hurt.figure, hurt.unit) == ("\N{MINUS SIGN}0.250", "AUROC, JPEG 30")
    assert "JPEG 30: 0.600" in hurt.text
    assert "resized \N{MULTIPLICATION SIGN} 0.5: 0.700" in hurt.text
    assert "JPEG 75" not in hurt.text


def test_the_gap_is_of_the_same_images() -> None:
    """Small fakes that only files as they are show would count as the format's doing."""
    scores = scored(("a", "raw", 0.90), ("a", "aligned", 0.90))
    small = scored(("a", "raw", 0.0)).assign(generator="small").query("label == 1")
    small["image"] += 1000
    found = summary.format_gap(pd.concat([scores, small], ignore_index=True))
    assert found["generator"].tolist() == ["g"]
    assert found["gap"].tolist() == [0.0]


def test_false_alarms_and_found_fakes_are_told() -> None:
    alarms = pd.DataFrame(
        [["b", "aligned", "clean", "x", 100, 0, 0.0], ["b", "aligned", "clean", "y", 50, 3, 0.06]],
        columns=[
            "detector",
            "protocol",
            "degradation",
            "source",
            "photographs",
            "called_fake",
            "share",
        ],
    ).assign(at_most=0.1)
    scores = pd.DataFrame({"label": [1, 1, 1, 1, 0], "score": [0.9, 0.8, 0.7, 0.1, 0.99]})
    scores = scores.assign(detector="b", protocol="aligned", degradation="clean", generator="g")
    scores["image"] = scores.index
    about = {"thresholds": {"b": 0.8}}
    found = told(TWO, alarms=alarms, scores=scores, about=about)["False alarms"]
    assert found.figure == "2.0 %"
    assert "calls 3 of 150 photographs fake (with 95 % confidence at most 5.1 %" in found.text
    assert "Most from y: 3 of 50" in found.text
    assert "finds 50 % of the fakes" in found.text


def test_warnings_name_what_is_odd() -> None:
    results = TWO.copy()
    results.loc[results["generator"] == "h", "remark"] = "probably inverted: fakes score lower"
    results.loc[results["generator"] == "g", "n_fake"] = 40
    found = told(results, about={"missing": ["no net"], "unreadable": {"x": "cut", "y": "cut"}})
    assert found["Probably inverted"].text == "fakes score lower: a (h; clean); b (h; clean)"
    assert found["Few images"].text.startswith("40 fakes of g. ")
    assert found["Missing"].text == "no net"
    assert found["Unreadable"].text.startswith("2 images are left out")
    assert not {"Few images", "Missing", "Unreadable"} & set(told(TWO))


def test_overall_is_the_row_all_or_the_only_or_the_mean() -> None:
    results = rows(
        ("a", "raw", "g", "clean", 0.6),
        ("a", "raw", "all", "clean", 0.7),
        ("b", "raw", "g", "clean", 0.8),
        ("c", "raw", "g", "clean", 0.5),
        ("c", "raw", "h", "clean", 0.9),
    )
    found = summary.overall(results).set_index("detector")
    assert found["generator"].tolist() == ["all", "g", "mean"]
    assert found["auroc"].tolist() == pytest.approx([0.7, 0.8, 0.7])
    assert np.isnan(found.loc["c", "auroc_low"])
    assert found.loc["c", "n_fake"] == 1000


@pytest.mark.parametrize(
    "scale", [(0, 1, "RdBu"), (-0.5, 0.5, "PuOr_r"), (0, 0.3, "Oranges")], ids=lambda s: s[2]
)
def test_text_stands_out_from_every_cell(scale: tuple[float, float, str]) -> None:
    def luminance(colour: str) -> float:
        parts = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    for value in np.linspace(scale[0] - 0.1, scale[1] + 0.1, 100):
        dark, light = sorted(luminance(colour) for colour in tables.shade(value, *scale))
        assert (light + 0.05) / (dark + 0.05) >= 4.5
    assert tables.shade(float("nan"), *scale) == ("", "")


def test_lines_of_many_detectors_differ() -> None:
    lines = plots.lines_of([str(i) for i in range(32)])
    assert len(set(lines.values())) == 32
    assert len({line.colour for line in list(lines.values())[:8]}) == 8


def test_reliability_and_the_calibration_error_agree() -> None:
    labels = np.array([0, 0, 0, 1, 1, 0, 1, 1])
    stated = np.array([0.1, 0.12, 0.1, 0.1, 0.9, 0.9, 0.88, 0.9])
    mean, share, count = reliability(labels, stated)
    assert count.tolist() == [4, 4]
    assert share.tolist() == [0.25, 0.75]
    gaps = np.abs(mean - share) * count / count.sum()
    assert gaps.sum() == pytest.approx(evaluate_scores(labels, stated, bootstrap=0)["ece"].value)


def test_the_same_figure_gives_the_same_text() -> None:
    drawn = [plots.histogram_figure(np.array([0.1, 0.2]), np.array([0.7]), 0.5) for _ in range(2)]
    assert drawn[0] == drawn[1]


def test_a_browser_shows_it_on_a_phone(written: tuple[Benchmark, Path], tmp_path: Path) -> None:
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next((found for name in names if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip("no chromium here")
    picture = tmp_path / "phone.png"
    done = subprocess.run(
        [
            *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            *(f"--user-data-dir={tmp_path / 'profile'}", "--window-size=400,900"),
            *(f"--screenshot={picture}", "--dump-dom", (written[1] / "report.html").as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "Best detector: good" in done.stdout
    pixels = cv2.imread(str(picture))
    assert pixels is not None
    assert pixels.shape[1] == 400
    assert pixels.std() > 10  # not an empty page


def test_the_best_of_a_column_is_marked_and_cells_say_more_when_hovered() -> None:
    table = tables.by_generator(TWO, "aligned")
    assert table.columns == ["all", "g", "h"]
    a, b = (cells for _, cells in table.rows)
    assert [cell.best for cell in a] == [False, False, True]
    assert [cell.best for cell in b] == [True, True, False]
    assert b[1].title.startswith("b on g, clean, AUROC 0.950 (95 % 0.930\N{EN DASH}0.970), 500 ")
    assert b[1].background == tables.shade(0.95)[0] != a[2].background
    measured = dict(tables.measures(TWO, "aligned").rows)
    by_measure = dict(zip(tables.METRICS, measured["a"], strict=True))  # all 0.80, b's 0.85
    assert {name for name, cell in by_measure.items() if cell.best} == {"eer", "ece", "brier"}
    degraded = tables.by_degradation(TWO, "aligned")
    assert degraded.columns == [
        "clean",
        "JPEG 75",
        "JPEG 30",
        "resized \N{MULTIPLICATION SIGN} 0.5",
    ]
    assert [cell.text for cell in degraded.rows[1][1]] == ["0.850", "0.800", "0.600", "0.700"]
    assert degraded.rows[0][1][1].text == "\N{EN DASH}"
