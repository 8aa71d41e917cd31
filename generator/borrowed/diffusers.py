"""Anybody's generators: a function in a Python file, an installed plug-in, torch.hub, diffusers.

Whatever they are, number i of a seed must come out the same whatever is asked beside it: a function
gets whole batches with a seed each, networks and pipelines make an image at a time.
"""

import ast
import contextlib
import hashlib
import inspect
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from ganscope.errors import GanscopeError, reason_of
from ganscope.folders import hash_files
from ganscope.functions import line_of, load_function
from ganscope.generator.borrowed.options import (
    as_label,
    choice,
    hash_networks,
    seed_of,
    split_options,
    whole,
)
from ganscope.generator.model import AnyGenerator, latent
from ganscope.generator.pixels import to_pixels

GROUP = "ganscope.generators"
"""Entry points group in which packages offer generators."""
FUNCTION_BATCH = 16
"""Images that a Python function is asked for at a time; its fakes depend on it."""
ATTEMPTS = 5
"""Images drawn for a prompt before its pipeline's safety checker is believed."""
LATENT_NAMES = ("latent_dim", "z_dim", "nz")
"""Attributes of a network that may tell the length of its z."""

Function = Callable[[int, int], Any]
"""(n, seed) -> n images: (n, H, W, 3) uint8 or float in [0, 1], (n, 3, H, W) float in [0, 1], or a
list of Pillow images; the same images whenever it is given the same two numbers."""


class FunctionGenerator(AnyGenerator):
    """A Python function `(n, seed) -> images` as a maker of fakes.

    Number i is row i % 16 of the function's batch i // 16, and every batch has a seed of its own.
    The first batch of seed 0 is made at once, to learn the size and to find mistakes early. Raises
    `GanscopeError` if the function raises anything or returns something else than images.
    """

    batch = FUNCTION_BATCH

    def __init__(self, name: str, label: str, function: Function, weights: str = ""):
        self.name, self.label, self.weights, self.function = name, label, weights, function
        self._made: dict[tuple[int, int], np.ndarray] = {}
        self.size: int | None = min(self._images(0, 0).shape[1:3])

    def make(
        self, seed: int, indexes: Sequence[int], photos: Sequence[np.ndarray] | None = None
    ) -> list[np.ndarray]:
        return [self._images(seed, i // FUNCTION_BATCH)[i % FUNCTION_BATCH] for i in indexes]

    def _images(self, seed: int, batch: int) -> np.ndarray:
        if (seed, batch) not in self._made:
            self._made = {(seed, batch): self._call(seed, batch)}  # only the latest is kept
        return self._made[seed, batch]

    def _call(self, seed: int, batch: int) -> np.ndarray:
        own_seed = int(np.random.SeedSequence((seed, batch)).generate_state(1)[0])
        try:
            with torch.no_grad():
                images = self.function(FUNCTION_BATCH, own_seed)
        except Exception as error:
            file = getattr(getattr(self.function, "__code__", None), "co_filename", "")
            raise GanscopeError(
                f"--generator {self.name}: it raised {reason_of(error)}{line_of(error, file)}"
            ) from error
        try:
            return _as_pixels(images, FUNCTION_BATCH)
        except ValueError as error:
            raise GanscopeError(
                f"--generator {self.name}: asked for {FUNCTION_BATCH} images, it returned {error}; "
                "return (n, H, W, 3) uint8, or float in [0, 1]"
            ) from None


def _as_pixels(images: Any, n: int) -> np.ndarray:
    """What a function returned as (n, H, W, 3) uint8; `ValueError` says what it is else."""
    if isinstance(images, list | tuple):
        rows = [np.asarray(i.convert("RGB") if hasattr(i, "convert") else i) for i in images]
        if len({r.shape for r in rows}) != 1:
            raise ValueError("images of several sizes" if rows else "none")
        images = np.stack(rows)
    if isinstance(images, Tensor):
        images = images.detach().cpu()
        images = (images.float() if images.is_floating_point() else images).numpy()
    if not isinstance(images, np.ndarray):
        raise ValueError(f"a {type(images).__name__}")
    if images.ndim == 4 and images.shape[3] != 3 and images.shape[1] == 3:
        images = images.transpose(0, 2, 3, 1)
    if images.ndim != 4 or images.shape[3] != 3 or not images.size:
        raise ValueError(f"an array of the shape {images.shape}")
    if len(images) != n:
        raise ValueError(f"{len(images)}")
    if images.dtype == np.uint8:
        return np.ascontiguousarray(images)
    if not np.issubdtype(images.dtype, np.floating):
        raise ValueError(f"numbers of the type {images.dtype}")
    low, high = float(images.min()), float(images.max())
    if not (low >= -1e-3 and high <= 1 + 1e-3):  # NaN is neither
        raise ValueError(f"floats from {low:.3g} to {high:.3g}")
    return np.rint(np.clip(images.astype(np.float32), 0, 1) * 255).astype(np.uint8)


def python_generator(spec: str) -> FunctionGenerator:
    """`FILE.py:FUNCTION`, somebody's own function; the file is run.

    Raises `GanscopeError` if there is no such file or function, or the file cannot be run.
    """
    name = f"python:{spec}"
    function, path = load_function(spec, f"--generator {name}")
    label = as_label(path.stem, spec.rpartition(":")[2])
    return FunctionGenerator(name, label, function, hash_files(path))


def entry_point_generators() -> dict[str, EntryPoint]:
    """Name -> entry point of the generators that installed packages offer."""
    return {point.name: point for point in entry_points(group=GROUP)}


def entry_point_generator(point: EntryPoint) -> FunctionGenerator:
    """A generator that an installed package offers: a function as in `python_generator`.

    Raises `GanscopeError` if it cannot be imported or is no function.
    """
    try:
        function = point.load()
    except Exception as error:
        raise GanscopeError(
            f"--generator {point.name}: {point.value} cannot be imported ({reason_of(error)}); "
            "install its package anew"
        ) from error
    if not callable(function):
        raise GanscopeError(f"--generator {point.name}: {point.value} is no function")
    weights = ""
    with contextlib.suppress(OSError, TypeError):  # compiled: no source to hash
        weights = hash_files(inspect.getsourcefile(function) or "")
    return FunctionGenerator(point.name, as_label(point.name), function, weights)


class HubGenerator(AnyGenerator):
    """A network from torch.hub as a maker of fakes.

    model: an `nn.Module` that maps z (N, latent_dim), or (N, latent_dim, 1, 1), to images
    (N, 3, H, W) in [-1, 1]; or, as in pytorch_GAN_zoo, an object with `buildNoiseData(n)` and
    `test(z)`, which stays on the device of its own choice. Raises `GanscopeError` if it is neither
    or makes no images.
    """

    def __init__(self, name: str, label: str, model: Any, latent_dim: int | None = None):
        self.name, self.label, self.model = name, label, model
        self.device = torch.device("cpu")
        self._zoo = hasattr(model, "buildNoiseData") and hasattr(model, "test")
        if not self._zoo and not isinstance(model, nn.Module):
            raise GanscopeError(
                f"--generator {name}: gives a {type(model).__name__}, not a network; it must be an "
                "nn.Module from z to images, or have buildNoiseData(n) and test(z)"
            )
        networks = [model] if isinstance(model, nn.Module) else vars(model).values()
        networks = [network for network in networks if isinstance(network, nn.Module)]
        for network in networks:
            network.eval()
        self.weights = hash_networks(*networks)
        self.latent_shape, first = self._probe(latent_dim)
        self.size: int | None = min(first.shape[2:])

    def to(self, device: torch.device) -> Self:
        if not self._zoo:
            self.model.to(device)
            self.device = device
        return self

    def make(
        self, seed: int, indexes: Sequence[int], photos: Sequence[np.ndarray] | None = None
    ) -> list[np.ndarray]:
        made = []
        for index in indexes:
            z = latent(seed, index, self.latent_shape[0]).reshape(1, *self.latent_shape)
            with torch.random.fork_rng():  # the network may draw noise of its own
                torch.manual_seed(seed_of(seed, index))
                made.append(to_pixels((self._images(z) + 1) / 2)[0])
        return made

    @torch.inference_mode()
    def _images(self, z: np.ndarray) -> Tensor:
        rows = torch.from_numpy(z)
        try:
            images = self.model.test(rows) if self._zoo else self.model(rows.to(self.device))
        except Exception as error:
            raise GanscopeError(
                f"--generator {self.name}: refuses z of the shape {z.shape} ({reason_of(error)})"
            ) from error
        shape = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        if len(shape) != 4 or shape[:2] != (1, 3):
            raise GanscopeError(
                f"--generator {self.name}: gives {shape} for one z, not an RGB image (1, 3, H, W) "
                "in [-1, 1]"
            )
        return images

    def _probe(self, latent_dim: int | None) -> tuple[tuple[int, ...], Tensor]:
        """The shape of z without its rows, and the image of an empty one."""
        if self._zoo:
            noise, labels = self.model.buildNoiseData(1)
            if labels is not None:
                raise GanscopeError(
                    f"--generator {self.name}: makes images by class, which is not known here; "
                    "wrap it in a function of your own: python:FILE.py:FUNCTION"
                )
            shape = tuple(noise.shape[1:])
            return shape, self._images(np.zeros((1, *shape), np.float32))
        told = (getattr(self.model, name, None) for name in LATENT_NAMES)
        width = latent_dim or next((n for n in told if isinstance(n, int)), None)
        if width is None:
            raise GanscopeError(
                f"--generator {self.name}: how many numbers does its z have? Add ?latent=NUMBER"
            )
        try:
            return (width,), self._images(np.zeros((1, width), np.float32))
        except GanscopeError as flat:
            try:  # DCGAN's kind begins with a convolution
                return (width, 1, 1), self._images(np.zeros((1, width, 1, 1), np.float32))
            except GanscopeError:
                raise flat from None


def hub_generator(spec: str) -> HubGenerator:
    """`REPO:MODEL[?key=value&...]` of torch.hub, which runs the repository's code.

    REPO is owner/name[:branch] on GitHub, or the folder of a local clone; the options are given to
    the model's function, but for `latent`, the length of z. Of a repository that it does not know
    yet, torch asks whether it is trusted. Raises `GanscopeError` if it cannot be had or loaded.
    """
    name = f"hub:{spec}"
    head, options = split_options(name, spec, {"latent": whole(1)}, other=_literal)
    latent_dim = options.pop("latent", None)
    repository, _, model_name = head.rpartition(":")
    local = Path(repository).is_dir()
    if not repository or not model_name:
        raise GanscopeError(f"--generator {name}: write hub:REPO:MODEL")
    if not local and repository.count("/") != 1:
        raise GanscopeError(
            f"--generator {name}: no such folder: {repository}; name a local clone, or owner/name "
            "on GitHub"
        )
    source: dict[str, Any] = {"source": "local"} if local else {"trust_repo": "check"}
    try:
        with contextlib.redirect_stdout(sys.stderr):  # torch tells of its downloads
            model = torch.hub.load(repository, model_name, **source, **options)
    except Exception as error:  # whatever the repository's code raises, and urllib's
        advice = f"; offline, clone it elsewhere: hub:FOLDER:{model_name}" if not local else ""
        raise GanscopeError(
            f"--generator {name}: could not be loaded ({reason_of(error)}){advice}"
        ) from error
    label = as_label(Path(repository).resolve().name if local else repository, model_name)
    return HubGenerator(name, label, model, latent_dim)


def _literal(text: str) -> Any:
    """A Python literal, or else the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


class DiffusersGenerator(AnyGenerator):
    """A pipeline of Hugging Face diffusers: text to image, or unconditional as DDPMPipeline.

    identity: a hub id owner/name or a folder. prompts: number i shows prompt i modulo their count,
    and fakes of one prompt are one group. steps, size: the pipeline's own if None. precision:
    "fp32", "fp16" or "bf16". Raises `GanscopeError` if diffusers is missing, the pipeline cannot be
    had, is of another kind, or lacks prompts.
    """

    batch = 1

    def __init__(
        self,
        name: str,
        identity: str,
        prompts: Sequence[str] = (),
        steps: int | None = None,
        size: int | None = None,
        precision: str = "fp32",
    ):
        self.name, self.prompts = name, list(prompts)
        folder = Path(identity)
        self.label = as_label(folder.resolve().name if folder.is_dir() else identity)
        self.pipeline, self.weights = _open_pipeline(name, identity, precision)
        self.pipeline.set_progress_bar_config(disable=True)
        accepted = inspect.signature(self.pipeline.__call__).parameters
        kind = type(self.pipeline).__name__
        if not {"prompt", "batch_size"} & accepted.keys():
            raise GanscopeError(
                f"--generator {name}: a {kind} is neither text to image nor unconditional"
            )
        if "prompt" in accepted and not prompts:
            raise GanscopeError(
                f"--generator {name}: a {kind} needs --prompts FILE with a prompt a line"
            )
        if "prompt" not in accepted and prompts:
            raise GanscopeError(f"--prompts: a {kind} takes none; leave it out")
        if size is not None and "height" not in accepted:
            raise GanscopeError(f"--generator {name}: a {kind} makes one size only; leave size out")
        self.size: int | None = size or _own_size(self.pipeline)
        self._options = {"num_inference_steps": steps, "height": size, "width": size}

    def to(self, device: torch.device) -> Self:
        self.pipeline.to(device)
        return self

    def columns(self, index: int) -> dict[str, str]:
        if not self.prompts:
            return {}
        prompt = self.prompts[index % len(self.prompts)]
        return {"prompt": prompt, "group": hashlib.sha256(prompt.encode()).hexdigest()[:12]}

    def make(
        self, seed: int, indexes: Sequence[int], photos: Sequence[np.ndarray] | None = None
    ) -> list[np.ndarray]:
        return [self._image(seed, index) for index in indexes]

    def _image(self, seed: int, index: int) -> np.ndarray:
        arguments: dict[str, Any] = {k: v for k, v in self._options.items() if v is not None}
        shown = self.columns(index).get("prompt")
        arguments |= {"batch_size": 1} if shown is None else {"prompt": shown}
        for attempt in range(ATTEMPTS):
            # On the CPU, so that the noise is the same on every device.
            noise = torch.Generator().manual_seed(seed_of(seed, index, attempt))
            try:
                result = self.pipeline(**arguments, generator=noise, output_type="pil")
                pixels = np.asarray(result.images[0].convert("RGB"))
            except Exception as error:  # the pipeline's, and out of memory
                raise GanscopeError(f"--generator {self.name}: {reason_of(error)}") from error
            if not any(getattr(result, "nsfw_content_detected", None) or ()):
                return pixels
        raise GanscopeError(
            f"--generator {self.name}: its safety checker blacked out {ATTEMPTS} images of "
            f"{shown!r}; leave that prompt out"
        )


def diffusers_generator(spec: str, prompts: Path | None = None) -> DiffusersGenerator:
    """`ID[?steps=N&size=PIXELS&precision=fp16]`: see `DiffusersGenerator`."""
    name = f"diffusers:{spec}"
    readers = {"steps": whole(1), "size": whole(8), "precision": choice("fp32", "fp16", "bf16")}
    identity, options = split_options(name, spec, readers)
    return DiffusersGenerator(name, identity, read_prompts(prompts) if prompts else (), **options)


def read_prompts(path: Path) -> list[str]:
    """The prompts of a text file, a line each; empty lines are passed over.

    Raises `GanscopeError` if there is no such file or no prompt in it.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise GanscopeError(f"--prompts {path}: cannot be read ({reason_of(error)})") from None
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise GanscopeError(f"--prompts {path}: is empty; write a prompt in every line")
    return prompts


def import_diffusers(name: str) -> Any:
    """Hugging Face diffusers; raises `GanscopeError` if it is not installed."""
    try:
        diffusers: Any = import_module("diffusers")
    except ImportError:
        raise GanscopeError(
            f"--generator {name}: needs Hugging Face diffusers; pip install 'ganscope[diffusers]'"
        ) from None
    diffusers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.set_verbosity_error()
    return diffusers


def _open_pipeline(name: str, identity: str, precision: str) -> tuple[Any, str]:
    """The pipeline, and the hash of its files."""
    diffusers = import_diffusers(name)
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    folder = Path(identity)
    try:
        if not folder.is_dir():
            folder = Path(diffusers.DiffusionPipeline.download(identity))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # older ones know no other name for it
            pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, torch_dtype=dtype)
    except Exception as error:  # the library's, the hub's, and those of libraries that it needs
        raise GanscopeError(
            f"--generator {name}: could not be loaded ({reason_of(error)}); offline, download its "
            "folder elsewhere and name the path"
        ) from None
    files = [p for p in sorted(folder.rglob("*")) if p.suffix in (".json", ".safetensors", ".bin")]
    return pipeline, hash_files(*files)


def _own_size(pipeline: Any) -> int | None:
    """Side in pixels of the images that a pipeline makes if it is not told."""
    network = getattr(pipeline, "unet", None) or getattr(pipeline, "transformer", None)
    side = getattr(pipeline, "default_sample_size", None)
    if side is None and network is not None:
        side = network.config.get("sample_size")
    if not isinstance(side, int):
        return None
    vae = getattr(pipeline, "vae", None) or getattr(pipeline, "vqvae", None)
    factor = 2 ** (len(vae.config.block_out_channels) - 1) if vae is not None else 1
    return side * getattr(pipeline, "vae_scale_factor", factor)
