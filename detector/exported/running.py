"""Exported detectors, run: the same pixels in and the same verdicts out as of `Detector`.

A file or folder carries the configuration of its detector along, so that it needs nothing beside.
"""

import json
import os
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ganscope.detector.judge import Judge, check_config
from ganscope.errors import GanscopeError, reason_of

ABOUT = "ganscope"
"""Under this name a graph holds what it is, as JSON."""
FORMAT = 1
FOLDER_FILES = ("model.xml", "model.bin", "ganscope.json")
"""What makes up a folder for OpenVINO."""
BYTES_MARGIN = 0.5
"""Logits: those of a view in bytes and exact ones hardly ever differ by more. In forty pictures,
views differed by 0.13, means of two by 0.09 and of four by 0.07 (standard deviations), at most by
0.45 and 0.32."""
MOST_SHARES, FULL = 8, 8
"""Parts that a batch is divided into, at most, and images of a batch that is worth it."""


class ExportedJudge(Judge):
    """A detector that was exported. about: `config`, `name`, `map` ("parts", "places" or None)."""

    def __init__(self, about: dict[str, Any], said: str):
        try:
            self.config, self.map = about["config"], about["map"]
            check_config(self.config)
            version = about["format"]
        except (KeyError, TypeError, ValueError) as error:
            raise GanscopeError(
                f"{said}: was not written by ganscope export ({reason_of(error)}); for other ONNX "
                "files there is ganscope benchmark --detector onnx:FILE"
            ) from None
        if version != FORMAT:
            raise GanscopeError(f"{said}: is of format {version!r}, this ganscope reads {FORMAT}")
        self.name = self.origin = said
        self.about = about

    on_cpu = True
    has_gradients = False

    def prepare(self, device: str = "auto") -> None:
        if device not in ("auto", "cpu"):
            raise GanscopeError(f"--device {device}: exported detectors run on the CPU")

    @property
    def has_map(self) -> bool:
        return self.map is not None

    @property
    def has_places(self) -> bool:
        return self.map == "places"

    def logits(self, pixels: np.ndarray) -> np.ndarray:
        return self._outputs(pixels)[0]

    def local_logits(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if not self.has_map:
            raise GanscopeError(f"{self.name}: holds no map of patches; use tiles")
        whole, local = self._outputs(pixels)
        return local, whole

    def _outputs(self, pixels: np.ndarray) -> list[np.ndarray]:
        """(N, size, size, 3) uint8 -> logits (N,), and the map (N, h, w) where there is one."""
        raise NotImplementedError


class OnnxJudge(ExportedJudge):
    """An ONNX file, run by onnxruntime (an extra)."""

    runtime = "onnx"

    made_of: str = ""
    """Of a graph in the cache: the digest of the detector that it was made of."""

    def __init__(self, path: str | Path, said: str = ""):
        said = said or str(path)
        self.path, self.shares, self.cores = Path(path), 1, _cores()
        self.may_share = self.cores > 1
        onnxruntime = import_onnxruntime(said)
        try:
            self.opened = self.path.stat()
            self.session = self._session(onnxruntime, self.cores)
            found = self.session.get_modelmeta().custom_metadata_map.get(ABOUT, "{}")
            about = json.loads(found)
        except Exception as error:  # its errors share no base but Exception
            why = reason_of(error)[:120]
            if "protobuf" in why.lower() or "No graph" in why:  # as it says of files cut off
                why = "cut off, damaged or no ONNX file"
            raise GanscopeError(
                f"{said}: onnxruntime cannot load it ({why}); export it again"
            ) from None
        super().__init__(about, said)
        if about.get("form") == "int8" and not self.margin:
            self.lasting_margin = BYTES_MARGIN
        self.input = self.session.get_inputs()[0].name

    def _session(self, onnxruntime: Any, threads: int) -> Any:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        return onnxruntime.InferenceSession(
            str(self.path), options, providers=["CPUExecutionProvider"]
        )

    def _share_out(self) -> None:
        """From now on give each core a share of the images, which is a fifth quicker than a share
        of each operation where there are many, but leaves cores idle where there is one. Unless the
        file is another than the one that was opened.
        """
        self.may_share = False
        try:
            now = self.path.stat()
            if (now.st_size, now.st_mtime_ns) != (self.opened.st_size, self.opened.st_mtime_ns):
                return
            self.session = self._session(import_onnxruntime(), self.cores // 2)
        except Exception:  # its errors share no base; the session that there is does it, too
            return
        self.shares = min(self.cores - self.cores // 2 + 1, MOST_SHARES)
        self.pool = ThreadPoolExecutor(self.shares)

    def _outputs(self, pixels: np.ndarray) -> list[np.ndarray]:
        return self._run(None, pixels)

    def logits(self, pixels: np.ndarray) -> np.ndarray:
        return self._run(["logits"], pixels)[0]

    def places(self, pixels: np.ndarray) -> np.ndarray:
        if not self.has_map:
            return super().places(pixels)
        return self._run(["places"], pixels)[0]

    def _run(self, wanted: list[str] | None, pixels: np.ndarray) -> list[np.ndarray]:
        def run(share: np.ndarray) -> list[np.ndarray]:
            return self.session.run(wanted, {self.input: share})

        if self.may_share and len(pixels) >= FULL:
            self._share_out()
        shares = np.array_split(np.ascontiguousarray(pixels), min(self.shares, len(pixels)))
        try:
            found = list(self.pool.map(run, shares)) if len(shares) > 1 else [run(shares[0])]
        except Exception as error:  # its errors share no base but Exception
            raise GanscopeError(f"{self.name}: onnxruntime: {reason_of(error)[:200]}") from None
        return [np.concatenate(parts) for parts in zip(*found, strict=True)]


class OpenVinoJudge(ExportedJudge):
    """A folder for OpenVINO, run by it (an extra)."""

    runtime = "openvino"

    def __init__(self, folder: str | Path, said: str = ""):
        said, folder = said or str(folder), Path(folder)
        openvino = import_openvino(said)
        try:
            about = json.loads((folder / FOLDER_FILES[2]).read_text(encoding="utf-8"))
            model = openvino.Core().read_model(folder / FOLDER_FILES[0])
            named = {output.any_name: output for output in model.outputs}
            alone = openvino.Model([named["logits"]], model.get_parameters(), "logits")
            self.network = self._compiled(alone)
        except Exception as error:
            raise GanscopeError(
                f"{said}: OpenVINO cannot load it ({reason_of(error)[:120]}); export it again"
            ) from None
        super().__init__(about, said)
        self.model = model
        self.whole: Any = None

    def _compiled(self, model: Any) -> Any:
        import openvino

        return openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def logits(self, pixels: np.ndarray) -> np.ndarray:
        found = self.network([np.ascontiguousarray(pixels)])
        return np.array(found[self.network.outputs[0]])

    def _outputs(self, pixels: np.ndarray) -> list[np.ndarray]:
        if self.whole is None:  # the map may cost a backbone of its own
            self.whole = self._compiled(self.model)
        found = self.whole([np.ascontiguousarray(pixels)])
        return [np.array(found[output]) for output in self.whole.outputs]


class ScriptJudge(ExportedJudge):
    """A TorchScript file, run by torch."""

    runtime = "torch"

    def __init__(self, path: str | Path, said: str = ""):
        import torch

        said = said or str(path)
        files = {f"{ABOUT}.json": ""}
        try:
            self.module = torch.jit.load(str(path), map_location="cpu", _extra_files=files).eval()
            self.module.float()  # whatever they are kept as, they are computed with in fp32
            about = json.loads(files[f"{ABOUT}.json"] or "{}")
        except (RuntimeError, ValueError, OSError) as error:
            raise GanscopeError(
                f"{said}: torch cannot load it ({reason_of(error)[:120]}); export it again"
            ) from None
        super().__init__(about, said)
        self.torch = torch

    def logits(self, pixels: np.ndarray) -> np.ndarray:
        if not hasattr(self.module, "logits"):
            return super().logits(pixels)
        with self.torch.inference_mode():
            found: np.ndarray = self.module.logits(self.torch.from_numpy(pixels.copy())).numpy()
        return found

    def _outputs(self, pixels: np.ndarray) -> list[np.ndarray]:
        with self.torch.inference_mode():
            found = self.module(self.torch.from_numpy(np.ascontiguousarray(pixels)))
        found = found if isinstance(found, tuple | list) else (found,)
        return [one.numpy() for one in found]


def _cores() -> int:
    """How many processor cores this process may use."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        cores = os.cpu_count() or 1
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return min(cores, int(wanted)) if wanted.isdecimal() and int(wanted) else cores


def import_onnxruntime(said: str = "--runtime onnx") -> Any:
    """The module onnxruntime; raises `GanscopeError` where it is not installed."""
    try:
        import onnxruntime
    except ImportError:
        raise GanscopeError(f"{said} needs onnxruntime: pip install 'ganscope[onnx]'") from None
    return onnxruntime


def import_openvino(said: str) -> Any:
    """The module openvino; raises `GanscopeError` where it is not installed."""
    try:
        import openvino
    except ImportError:
        raise GanscopeError(f"{said} needs OpenVINO: pip install 'ganscope[openvino]'") from None
    return openvino


def was_exported(path: Path) -> bool:
    """Whether a file or folder is a detector that any ganscope exported; it is not loaded."""
    if path.is_dir():
        return (path / FOLDER_FILES[2]).is_file()
    if zipfile.is_zipfile(path):  # TorchScript
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(f"/extra/{ABOUT}.json") for name in archive.namelist())
    try:
        import onnx

        return any(one.key == ABOUT for one in onnx.load(path).metadata_props)
    except Exception:  # not installed, or no such file: protobuf's errors share no base
        return False


def open_exported(path: str | Path) -> ExportedJudge | None:
    """The exported detector that a user's path means; None if it is no such file or folder."""
    path = Path(path)
    if path.is_dir():
        return OpenVinoJudge(path) if (path / FOLDER_FILES[2]).is_file() else None
    if not path.is_file():
        return None
    return {".onnx": OnnxJudge, ".pt": ScriptJudge}.get(path.suffix.lower(), lambda _: None)(path)
