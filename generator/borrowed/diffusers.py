"""Pipelines of Hugging Face diffusers as generators: text to image or unconditional, one at a time.

Number i of a seed comes out the same whatever is asked beside it.
"""

import hashlib
import inspect
import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from huggingface_hub.errors import LocalEntryNotFoundError

from ganscope.errors import GanscopeError, reason_of
from ganscope.folders import hash_files
from ganscope.generator.borrowed.options import (
    as_label,
    choice,
    seed_of,
    split_options,
    whole,
)
from ganscope.generator.model import AnyGenerator

ATTEMPTS = 5
"""Images drawn for a prompt before its pipeline's safety checker is believed."""


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


def not_loaded(name: str, error: Exception) -> GanscopeError:
    """The line about a model that diffusers could not open; name: the generator, as typed."""
    reason, one = reason_of(error), error.__context__
    while one is not None:
        # diffusers says of a file that could not be downloaded that the model has none.
        if isinstance(one, LocalEntryNotFoundError):
            reason = "it is not in the hub's cache, and cannot be downloaded"
        one = one.__context__
    return GanscopeError(
        f"--generator {name}: could not be loaded ({reason}); offline, download its folder "
        "elsewhere and name the path"
    )


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
        raise not_loaded(name, error) from None
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
