"""Which of a detector's forms judges: its network in torch, or a graph without torch.

The graph of a transformer is made from the detector's own weights on first use, in seconds and
without torch, and kept in the user's cache; later commands begin with it.
"""

import hashlib
import importlib.util
import json
import os
import sys
import threading
import warnings
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ganscope.detector.exported.running import (
    ABOUT,
    BYTES_MARGIN,
    FORMAT,
    ExportedJudge,
    OnnxJudge,
    import_onnxruntime,
    open_exported,
)
from ganscope.detector.judge import Judge, read_detector_config
from ganscope.detector.networks.face_head import FaceHead
from ganscope.errors import GanscopeError, GanscopeWarning, reason_of
from ganscope.files import cache_folder, replacing, write_json
from ganscope.locks import holding_file
from ganscope.named import (
    CONFIG,
    FACES,
    SAVED_WITH,
    WEIGHTS,
    find_folder,
    hash_files,
    weights_hash,
)

if TYPE_CHECKING:
    import onnx

    from ganscope.detector.model import Detector

VERSION = 3
"""Of the graphs in the cache; to be raised with every change of what they are made of."""
LOGIT, MAP = ("logits",), ("places",)
BOTH = (*LOGIT, *MAP)
"""What comes out of a graph: onnxruntime computes all of it, asked or not."""
WAIT = 600.0
"""Seconds to wait for another command that makes the same graph."""


def load_judge(
    name: str = "default",
    runtime: str = "auto",
    device: str = "auto",
    gradients: bool = False,
    lasting: bool = False,
) -> Judge:
    """A detector by shipped name, run folder, hub id, or exported file or folder, ready to judge.

    runtime: torch; onnx: by onnxruntime, from a graph that is made on first use; auto: the quicker
    of the two (onnx for a `clip` detector on a machine without a GPU, if it is installed).
    gradients: Grad-CAM is wanted, for which auto takes torch. lasting: it is to judge many images,
    so that the seconds in which torch begins are soon made up for, where torch is quicker (in bf16,
    on a processor that is made for it). Raises `GanscopeError` if it cannot be had.
    """
    exported = open_exported(name)
    if exported is not None:
        _refuse_unlike(exported, runtime)
        return exported
    if runtime == "onnx":
        return cached_graph(name)
    if runtime == "auto" and not gradients and _is_quicker(name, device):
        FaceHead.load(find_folder(name, "detectors"))  # where that is damaged, torch is no help
        if lasting and _says_amx():
            judge = _with_torch(name, device)
            if judge.margin:  # it is quick
                return judge
        try:
            return cached_graph(name)
        except GanscopeError as error:  # weights of another kind, say, or no room for a graph
            warnings.warn(f"judged with torch, not onnxruntime: {error}", GanscopeWarning, 2)
    return _with_torch(name, device)


def _refuse_unlike(exported: ExportedJudge, runtime: str) -> None:
    if runtime not in ("auto", exported.runtime):
        raise GanscopeError(
            f"--runtime {runtime}: {exported.name} is exported for {exported.runtime}; leave "
            "--runtime out"
        )


def _with_torch(name: str, device: str) -> "Detector":
    from ganscope.detector.model import load_detector
    from ganscope.devices import pick_device

    found = load_detector(name)
    if pick_device(device).type == "cpu":
        found.quicken()
    return found


def _is_quicker(name: str, device: str) -> bool:
    """Whether onnxruntime judges sooner than torch: on the CPU, with a graph made without it."""
    if device not in ("auto", "cpu") or (device == "auto" and _may_have_gpu()):
        return False
    if any(importlib.util.find_spec(one) is None for one in ("onnxruntime", "onnx")):
        return False
    return read_detector_config(find_folder(name, "detectors"), name)["architecture"] == "clip"


def _says_amx() -> bool:
    """Whether the processor says that it multiplies matrices of bf16; asked without torch."""
    try:
        return "amx_bf16" in Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    except OSError:
        return False


def _may_have_gpu() -> bool:
    """Whether torch may find a GPU here; asked without torch, which takes seconds to begin."""
    if "torch" in sys.modules:
        from ganscope.devices import pick_device

        return pick_device("auto").type != "cpu"
    known = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg", "/dev/kfd")
    return sys.platform == "darwin" or os.name == "nt" or any(map(os.path.exists, known))


class QuickJudge(OnnxJudge):
    """A transformer in bytes, and the same exactly, for what that leaves in doubt."""

    exact: OnnxJudge | None = None
    mapped: OnnxJudge | None = None
    faces: OnnxJudge | None = None
    head: FaceHead | None = None
    margin = BYTES_MARGIN

    @property
    def face_head(self) -> FaceHead | None:
        return self.head

    def face_logits(self, pixels: np.ndarray) -> np.ndarray:
        if self.faces is None:  # most images show no face
            self.faces = self._of_same(int8=True, face=self.head)
        return self.faces.logits(pixels)

    def exact_logits(self, pixels: np.ndarray) -> np.ndarray:
        return self._exact().logits(pixels)

    def local_logits(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.places(pixels), self.exact_logits(pixels)

    def places(self, pixels: np.ndarray) -> np.ndarray:
        if self.mapped is None:
            self.mapped = self._of_same(int8=False, outputs=MAP)
        return self.mapped.places(pixels)

    def _exact(self) -> OnnxJudge:
        """Loaded when it is first asked for: most images need no second look."""
        if self.exact is None:
            self.exact = self._of_same(int8=False, outputs=LOGIT)
        return self.exact

    def _of_same(
        self, int8: bool, face: FaceHead | None = None, outputs: Collection[str] = LOGIT
    ) -> OnnxJudge:
        """Another graph of the very weights that this was made of."""
        found = _from_cache(self.origin, OnnxJudge, int8, face, outputs)
        if found.made_of != self.made_of:
            raise GanscopeError(
                f"{self.origin}: was trained anew since it was loaded; start this again"
            )
        return found


def cached_graph(name: str) -> OnnxJudge:
    """A detector's graph from the user's cache, made there if it is not yet.

    It is checked by its hash before it is used; a damaged one is made again.
    """
    import_onnxruntime()
    config = read_detector_config(find_folder(name, "detectors"), name)
    if config["architecture"] == "clip":
        head = FaceHead.load(find_folder(name, "detectors"))
        judge = _from_cache(name, QuickJudge, int8=True, outputs=LOGIT)
        assert isinstance(judge, QuickJudge)
        judge.head = head
        return judge
    return _from_cache(name, OnnxJudge, int8=False)


def _from_cache(
    name: str,
    kind: type[OnnxJudge],
    int8: bool,
    face: FaceHead | None = None,
    outputs: Collection[str] = BOTH,
) -> OnnxJudge:
    """face: the graph of this, which goes with the detector. outputs: as in `graph_of`."""
    folder = find_folder(name, "detectors")
    config = read_detector_config(folder, name)
    try:
        weights = (folder / WEIGHTS).stat()
    except OSError:
        raise GanscopeError(f"{name}: {WEIGHTS} is missing; fetch or train it again") from None
    place = str(folder.resolve())
    made_of = [VERSION, place, weights.st_size, weights.st_mtime_ns, config]
    digest = own = _digest(made_of)
    if face is not None:
        digest = _digest([*made_of, face.digest])
        place += f"#{FACES}"
    ending = ("-int8" if int8 else "") + ("-places" if outputs == MAP else "")
    path = cache_folder() / "graphs" / f"{digest}{ending}.onnx"
    judge = _checked(path, name, kind)
    if judge:
        judge.made_of = own
        return judge
    with holding_file(path, WAIT):
        judge = _checked(path, name, kind)  # another command may have made it meanwhile
        if judge is None:
            with replacing(path) as part:
                form = "int8" if int8 else "smallest"
                model = graph_of(name, folder, config, part, form, face=face, outputs=outputs)
                save_graph(model, part)
                told = {"folder": place, "made of": digest, "sha256": hash_files(part)}
                write_json(path.with_suffix(".json"), told)
            _forget_older(path.parent, place, digest)
            judge = _checked(path, name, kind)
    if judge is None:
        raise GanscopeError(f"{path}: is damaged as soon as it is written; is the disk full?")
    judge.made_of = own
    return judge


def _digest(made_of: list[Any]) -> str:
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]


def graph_of(
    name: str,
    folder: Path,
    config: dict[str, Any],
    part: Path,
    form: str = "float",
    portable: bool = False,
    face: FaceHead | None = None,
    outputs: Collection[str] = BOTH,
    mapped: bool = True,
) -> "onnx.ModelProto":
    """The graph of a detector, with what it needs to judge.

    part: a file for torch to write to. form: float, half, smallest (that gives the same numbers),
    or int8. portable: not for onnxruntime alone; int8 then keeps weights as bytes, no more. face:
    the graph of this, for squares around faces. outputs: what comes out of that of a `clip`
    detector. mapped: without, it is told to have no map, and has none. Raises `GanscopeError` for
    a network that ONNX cannot express.
    """
    from ganscope.detector.exported import graph, shrinking

    known = {}
    if config["architecture"] == "clip":
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        if config.get(SAVED_WITH) not in (None, weights_hash(folder)):
            raise GanscopeError(
                f"{name}: {WEIGHTS} is damaged, or not the one that {CONFIG} was written with; "
                "fetch or train it again"
            )
        try:
            state = load_file(folder / WEIGHTS)
        except (SafetensorError, OSError) as error:
            raise GanscopeError(
                f"{name}: {WEIGHTS} is damaged ({error}); fetch or train it again"
            ) from None
        try:
            bytes_alone = form == "int8" and not portable  # these shift each matrix in its own way
            weights = graph.plain_weights(state, config, f"{name}: {WEIGHTS}", bytes_alone)
            wanted = outputs if mapped else LOGIT
            model = graph.transformer_graph(config, weights, portable, face, wanted)
            known = graph.amplitudes()
        except (ValueError, KeyError, TypeError) as error:
            raise GanscopeError(f"{name}: no graph is made of it ({reason_of(error)})") from None
        about_places = [config["arguments"].get(one) for one in ("where", "where_own")]
        kind: str | None = "parts" if all(one in (None, []) for one in about_places) else "places"
    else:
        from ganscope.detector.exported.tracing import traced_onnx
        from ganscope.detector.model import load_detector

        detector = load_detector(name)
        model, kind = traced_onnx(detector, part, mapped), kind_of_map(detector)
    if form == "int8" and not portable:
        model = shrinking.to_bytes(model, known)
    elif form != "float":
        forms = {
            "half": shrinking.to_half,
            "int8": shrinking.to_weight_bytes,
            "smallest": shrinking.to_smallest,
        }
        model = forms[form](model)
    own = {key: value for key, value in config.items() if key != SAVED_WITH}
    if face is not None:
        kind = None
        looking = {"looks_at": "faces", "margin": face.margin}
        own["input"] = {k: v for k, v in own["input"].items() if k != "views"} | looking
        own["thresholds"] = dict.fromkeys(own["thresholds"], face.threshold)
    return described(model, about(own, name, kind if mapped else None, form))


def kind_of_map(judge: Judge) -> str | None:
    """What map of logits a detector has, as `ExportedJudge` is told it."""
    return None if not judge.has_map else "places" if judge.has_places else "parts"


def about(config: dict[str, Any], name: str, kind: str | None, form: str) -> dict[str, Any]:
    """What an exported detector tells of itself: enough to judge, and where it is from. form: of
    its weights, as in `graph_of`.
    """
    import ganscope

    return {
        "format": FORMAT,
        "name": name,
        "made by": f"ganscope {ganscope.__version__}",
        "labels": {"real": 0, "fake": 1},
        "map": kind,
        "form": form,
        "config": config,
    }


def described(model: "onnx.ModelProto", what: dict[str, Any]) -> "onnx.ModelProto":
    """The graph with `about` in its metadata."""
    del model.metadata_props[:]
    entry = model.metadata_props.add()
    entry.key, entry.value = ABOUT, json.dumps(what)
    return model


def save_graph(model: "onnx.ModelProto", path: Path) -> None:
    path.write_bytes(model.SerializeToString())


def _checked(path: Path, name: str, kind: type[OnnxJudge]) -> OnnxJudge | None:
    """A graph of the cache, if it is there and as it was written."""
    try:
        expected = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["sha256"]
        found: list[str] = []

        def look() -> None:
            with suppress(OSError):
                found.append(hash_files(path))

        hashing = threading.Thread(target=look)
        hashing.start()  # takes as long as loading does, beside it
        judge = kind(path, name)
        hashing.join()
    except (OSError, ValueError, KeyError, TypeError, GanscopeError):
        return None
    return judge if found == [expected] else None


def _forget_older(graphs: Path, folder: str, digest: str) -> None:
    """Remove graphs of what the same folder held before."""
    for about in graphs.glob("*.json"):
        try:
            told = json.loads(about.read_text(encoding="utf-8"))
            if told["folder"] == folder and told["made of"] != digest:
                about.with_suffix(".onnx").unlink(missing_ok=True)
                about.unlink()
        except (OSError, ValueError, KeyError, TypeError):
            continue
