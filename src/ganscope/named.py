"""What a user's name for a network means: a folder, a shipped network, or a hub id owner/name.

Apart from `folders`, which makes networks of them, since that needs torch and this does not.
"""

import hashlib
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, TypeGuard

from ganscope.errors import GanscopeError, reason_of
from ganscope.files import read_json
from ganscope.prints import LEARNED
from ganscope.registry import unknown

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
FACES = "faces.safetensors"
"""Of detectors, beside their weights: what tells swapped faces."""
SAVED_WITH = "weights"
"""In a configuration: the `weights_hash` of the weights that it was written with."""
STEPS = "steps"
"""In a configuration: beginnings of names -> those of the network that these began as, of which
only the way from there is kept."""
FORMAT_VERSION = 1
MOST = 2**14
"""No number that a network is built from is larger."""
WHOLE = ("size", "width", "depth", "hidden", "beside")
"""Arguments that are whole numbers from 0 on, or None."""
SCALE = ".scale"
"""What follows a matrix' name in the name of its scales, where it is kept as bytes."""


def shipped(kind: str) -> dict[str, Path]:
    """Name -> folder of the networks that come with the package; kind: "detectors",
    "generators".
    """
    root = Path(str(resources.files("ganscope"))) / "weights" / kind
    if not root.is_dir():
        return {}
    return {p.name: p for p in sorted(root.iterdir()) if (p / CONFIG).is_file()}


def find_folder(name: str, kind: str) -> Path:
    """The folder that a user's `name` means; downloads a hub id. kind: "detectors", "generators".

    Raises `GanscopeError` if there is none, saying which names are known.
    """
    path, known = Path(name), shipped(kind)
    if (path / CONFIG).is_file():
        return path
    if name in known:
        return known[name]
    if kind == "detectors" and (path.is_file() or path.suffix in (".onnx", ".pt")):
        raise GanscopeError(
            f"{name}: this file is no run folder; check --detector takes what ganscope export wrote"
            if path.is_file()
            else f"{name}: no such file"
        )
    if path.is_dir():
        raise GanscopeError(f"{name}: this folder holds no {CONFIG}; is the training finished?")
    if Path(name).parent.is_dir() and "/" in name:
        raise GanscopeError(f"{name}: no such run folder")
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        from huggingface_hub import snapshot_download  # slow to import, and seldom wanted
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        try:
            return Path(
                snapshot_download(name, allow_patterns=[CONFIG, WEIGHTS, CARD, LEARNED, FACES])
            )
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
            reason = reason_of(error)
            raise GanscopeError(
                f"{name}: no such folder here, and not to be had from the hub ({reason}); "
                "offline, download the folder elsewhere and name its path"
            ) from None
    raise GanscopeError(
        unknown(kind.removesuffix("s"), name, sorted(known)) + "; or name a run folder"
    )


def hash_files(*paths: str | Path) -> str:
    """12 hexadecimal digits of the SHA-256 of files, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:12]


def weights_hash(folder: str | Path) -> str:
    """The first 12 hexadecimal digits of the SHA-256 of a folder's weights file."""
    return hash_files(Path(folder) / WEIGHTS)


def read_config(folder: Path, name: str | Path, kind: str) -> dict[str, Any]:
    """The `config.json` of a network's folder; name: what the user called it.

    Raises `GanscopeError` if it is missing, of another kind, or of a version that is not read here.
    """
    config = read_json(folder / CONFIG)
    if config.get("kind") != kind:
        raise GanscopeError(f"{name}: holds one of {config.get('kind')!r}, not of {kind!r}")
    if config.get("format_version") != FORMAT_VERSION:
        raise GanscopeError(
            f"{name}: format version {config.get('format_version')!r}, this ganscope reads "
            f"{FORMAT_VERSION}; install the version it was made with"
        )
    return config


def faulty(name: str | Path, reason: object) -> GanscopeError:
    """The line about a configuration that cannot be; name: what the user called the network."""
    return GanscopeError(f"{name}: {CONFIG} is faulty ({reason}); fetch or train it again")


def check_network(config: Mapping[str, Any]) -> None:
    """Raise `ValueError` where no network is told of: `architecture`, a name, and `arguments`, from
    which its builder makes it.
    """
    architecture, arguments = config.get("architecture"), config.get("arguments")
    if not isinstance(architecture, str):
        raise ValueError(f"architecture is {shown(architecture)}, no name")
    if not isinstance(arguments, dict):
        raise ValueError(f"arguments is {shown(arguments)}, no object")
    for name, value in arguments.items():
        if not all(abs(number) <= MOST for number in _numbers(value)):  # NaN is not, either
            raise ValueError(f"arguments: {name} is {shown(value)}, beyond any network's")
        if name in WHOLE and value is not None and not (is_whole(value) and value >= 0):
            raise ValueError(f"arguments: {name} is {shown(value)}, no whole number from 0 on")


def is_whole(value: Any) -> TypeGuard[int]:
    """Whether JSON tells of a whole number: 8, and neither 8.0 nor true."""
    return isinstance(value, int) and not isinstance(value, bool)


def shown(value: Any) -> str:
    """A value of a configuration, for a line about it."""
    said = repr(value)
    return said if len(said) <= 60 else f"{said[:57]}..."


def _numbers(value: Any) -> Iterator[float]:
    """All numbers within a value that JSON can hold."""
    if isinstance(value, int | float):
        yield value
    elif isinstance(value, dict | list | tuple):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _numbers(one)


def scale_of(state: Mapping[str, Any], key: str, said: str) -> Any:
    """The scales, an array or tensor (rows,), of a matrix that is kept as bytes; said: where the
    weights are from. Raises `GanscopeError` if there are none, or none that fit.
    """
    scale = state.get(key + SCALE)
    if scale is None or scale.shape != state[key].shape[:1] or not (scale > 0).all():
        what = "no scales" if scale is None else "scales that do not fit"
        raise GanscopeError(f"{said} is damaged ({key!r} has {what}); fetch it again")
    return scale


def with_steps(state: dict[str, Any], config: Mapping[str, Any], said: str) -> dict[str, Any]:
    """Weights, arrays or tensors, of which some were kept as the way from others (`STEPS`), whole.

    What has `<name>.A` (rank, in) and `<name>.B` (out, rank) is the other one's plus B @ A; what is
    not there at all is the other one's. said: where they are from. Raises `GanscopeError` if they
    do not fit, `ValueError` for a configuration that is faulty.
    """
    found, steps = dict(state), config.get(STEPS, {})
    if not isinstance(steps, dict) or not all(isinstance(one, str) for one in steps.values()):
        raise ValueError(f"{STEPS} names no parts of the network")
    for mine, theirs in steps.items():
        for key in [key for key in state if key.startswith(theirs)]:
            name = mine + key.removeprefix(theirs)
            a, b = found.pop(f"{name}.A", None), found.pop(f"{name}.B", None)
            if (a is None) != (b is None):
                raise GanscopeError(f"{said} is damaged ({name!r} is half there); fetch it again")
            if name in found:
                continue
            found[name] = state[key]
            if a is not None and b is not None:
                try:
                    found[name] = state[key] + b @ a
                except (RuntimeError, ValueError):
                    raise GanscopeError(
                        f"{said} is damaged (the steps of {name!r} do not fit); fetch it again"
                    ) from None
    return found
