"""Local edits of any photograph: a region filled by a network, or taken from another photograph."""

import inspect
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import cv2
import numpy as np
import torch
from PIL import Image

from ganscope.datasets.blending import poisson, toned_like
from ganscope.errors import GanscopeError, ImageError, reason_of
from ganscope.faces import FINDERS, Face
from ganscope.folders import hash_files
from ganscope.generator.borrowed.diffusers import import_diffusers, not_loaded, read_prompts
from ganscope.generator.borrowed.editor import Edit, Editor
from ganscope.generator.borrowed.options import (
    Reader,
    as_label,
    choice,
    number,
    seed_of,
    split_options,
    whole,
)
from ganscope.generator.borrowed.reconstruction import Reconstruction, reconstruction_generator

AREAS = (0.02, 0.3)
"""Of the picture: how much a region covers, unless it is told."""
REGIONS = ("any", "ellipse", "polygon", "face")
EDGES = ("any", "hard", "soft", "poisson")
FAINT = 0.05
"""Less of the new is none: masks have an end."""
_REGION: dict[str, Reader] = {
    "region": choice(*REGIONS),
    "area": number(0.001, 0.9),
    "finder": choice(*FINDERS),
}


def draw_region(
    shape: Sequence[int],
    rng: np.random.Generator,
    kind: str = "any",
    area: float | None = None,
    face: Face | None = None,
) -> np.ndarray:
    """(H, W) bool: a turned ellipse or an irregular polygon somewhere in a picture, or the face.

    area: its part of the picture, else drawn from `AREAS`.
    """
    height, width = shape[:2]
    mask = np.zeros((height, width), np.uint8)
    if kind == "face" and face is not None:
        left, top, right, bottom = face.box
        points = np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
        if face.landmarks is not None:
            points = face.landmarks
        cv2.fillConvexPoly(mask, cv2.convexHull(np.rint(points).astype(np.int32)), 1)
        return mask > 0
    if kind == "any":
        kind = str(rng.choice(("ellipse", "polygon")))
    if area is None:
        area = float(np.exp(rng.uniform(*np.log(AREAS))))
    ratio = rng.uniform(0.6, 1.7)
    half = np.sqrt(area * height * width / np.pi * np.array([ratio, 1 / ratio]))
    half = np.minimum(half, (0.48 * width, 0.48 * height))
    middle = rng.uniform(0.8 * half, np.array([width, height]) - 0.8 * half)
    turn = rng.uniform(0, 180) if half.max() < 0.3 * min(height, width) else 0.0
    if kind == "ellipse":
        axes = tuple(max(round(float(side)), 2) for side in half)
        cv2.ellipse(mask, tuple(np.rint(middle).astype(int).tolist()), axes, turn, 0, 360, 1, -1)
        return mask > 0
    corners = int(rng.integers(5, 11))
    angles = (np.arange(corners) + rng.uniform(-0.35, 0.35, corners)) * 2 * np.pi / corners
    reach = rng.uniform(0.75, 1.25, (corners, 1)) * half * 1.1
    points = middle + reach * np.stack([np.cos(angles), np.sin(angles)], 1)
    cv2.fillPoly(mask, [np.rint(points).astype(np.int32)], 1)
    return mask > 0


def _softened(region: np.ndarray, width: float) -> np.ndarray:
    """(H, W) float32 in [0, 1]: a region whose edge fades over about so many pixels."""
    soft = cv2.GaussianBlur(region.astype(np.float32), (0, 0), max(width / 2, 0.3))
    return np.where(soft < FAINT, 0, soft).astype(np.float32)


def _box(region: np.ndarray, margin: float, least: int) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a region and what is around it, by a part of its size and at
    least so many pixels, within the picture.
    """
    x, y, width, height = cv2.boundingRect(region.astype(np.uint8))
    more = max(round(margin * max(width, height)), least)
    below, right = region.shape
    return (
        max(x - more, 0),
        max(y - more, 0),
        min(x + width + more, right),
        min(y + height + more, below),
    )


class _RegionEditor(Editor):
    """Changes a region that is drawn at random, or the largest face."""

    def __init__(
        self,
        name: str,
        label: str,
        region: str = "any",
        area: float | None = None,
        finder: str = "auto",
        edge: str = "any",
    ):
        super().__init__(name, label, finder if region == "face" else None)
        self.region, self.area, self.edge = region, area, edge

    def _change(
        self,
        seed: int,
        index: int,
        number: int,
        photo: np.ndarray,
        face: Face | None,
        rng: np.random.Generator,
    ) -> Edit | None:
        region = draw_region(photo.shape, rng, self.region, self.area, face)
        edge = self.edge if self.edge != "any" else str(rng.choice(self._edges()))
        size = float(np.sqrt(region.sum()))
        mask = region.astype(np.float32)
        if edge == "soft":
            mask = _softened(region, rng.uniform(0.02, 0.1) * size)
        left, top, right, bottom = _box(mask > 0, 0.3, 16)
        inner = (slice(top, bottom), slice(left, right))
        found = self._new(seed, index, number, photo[inner], mask[inner], rng)
        if found is None:
            return None
        new, columns = found
        if edge == "poisson":
            new = poisson(photo[inner], new, region[inner])
        if (photo == photo[..., :1]).all():  # colours in a grey picture would give it away
            new = cv2.cvtColor(cv2.cvtColor(new, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        pixels = photo.copy()
        below = pixels[inner].astype(np.float32)
        mixed = below + mask[inner][..., None] * (new.astype(np.float32) - below)
        pixels[inner] = np.rint(np.clip(mixed, 0, 255))
        return Edit(pixels, mask, columns)

    def _edges(self) -> tuple[str, ...]:
        return EDGES[1:]

    def _new(
        self,
        seed: int,
        index: int,
        number: int,
        piece: np.ndarray,
        mask: np.ndarray,
        rng: np.random.Generator,
    ) -> tuple[np.ndarray, dict[str, Any]] | None:
        """What a piece (h, w, 3) uint8 shall look like where the mask (h, w) is above 0, and what
        the manifest says of it; None without a photograph to take from.
        """
        raise NotImplementedError


# --- splice ---


class Splice(_RegionEditor):
    """A region taken from another photograph, resampled.

    colour: "match" takes over the colours of the place, "keep" does not, "any" does it in half of
    the fakes. edge: hard, soft, poisson or any.
    """

    donates = True

    def __init__(self, name: str, label: str, colour: str = "any", **region: Any):
        super().__init__(name, label, **region)
        self.colour = colour

    def _new(
        self,
        seed: int,
        index: int,
        number: int,
        piece: np.ndarray,
        mask: np.ndarray,
        rng: np.random.Generator,
    ) -> tuple[np.ndarray, dict[str, Any]] | None:
        for donor in self._donors(number, rng):
            try:
                given = self.source.photo(donor)
            except ImageError as error:
                self.source.unusable[donor] = error.reason
                continue
            new = _taken(given, piece.shape, rng)
            match = self.colour == "match" or (self.colour == "any" and rng.random() < 0.5)
            if match:
                new = toned_like(new, piece, mask > 0)
            return new, {"donor": self.source.groups[donor]}
        return None


def _taken(given: np.ndarray, shape: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """A piece of a photograph, from half to twice as large, perhaps mirrored, as (h, w, 3)."""
    height, width = shape[:2]
    by = 2 ** float(rng.uniform(-1, 1))
    by = max(by, height / given.shape[0], width / given.shape[1])
    below, right = given.shape[:2]
    h, w = max(min(round(height / by), below), 1), max(min(round(width / by), right), 1)
    y, x = int(rng.integers(below - h + 1)), int(rng.integers(right - w + 1))
    piece = np.ascontiguousarray(given[y : y + h, x : x + w])
    if rng.random() < 0.5:
        piece = np.ascontiguousarray(piece[:, ::-1])
    kernel = cv2.INTER_AREA if by < 1 else cv2.INTER_CUBIC
    return cv2.resize(piece, (width, height), interpolation=kernel)


def splice_generator(spec: str) -> Splice:
    """`splice:`, then `?region=polygon&area=0.1&colour=match&edge=soft`: see `Splice`."""
    name = f"splice:{spec}"
    readers = _REGION | {"colour": choice("any", "match", "keep"), "edge": choice(*EDGES)}
    _, options = split_options(name, spec, readers, headless=True)
    return Splice(name, as_label("splice", **options), **options)


# --- inpaint ---


class AutoencoderFilling:
    """A piece through an autoencoder and back."""

    def __init__(self, reconstruction: Reconstruction):
        self.reconstruction, self.weights = reconstruction, reconstruction.weights

    def to(self, device: torch.device) -> None:
        self.reconstruction.to(device)

    def __call__(
        self, seed: int, index: int, piece: np.ndarray, region: np.ndarray
    ) -> tuple[np.ndarray, dict[str, Any]]:
        return self.reconstruction.make(seed, [index], [piece])[0], {}


class PipelineFilling:
    """A piece, or its surroundings, through an inpainting pipeline of Hugging Face diffusers.

    The pipeline sees a square of its own size, whose rest is enlarged or shrunk with it.
    """

    def __init__(
        self,
        name: str,
        pipeline: Any,
        weights: str,
        prompts: Sequence[str] = (),
        steps: int | None = None,
        strength: float | None = None,
        size: int | None = None,
    ):
        self.name, self.pipeline, self.weights = name, pipeline, weights
        self.prompts = list(prompts)
        accepted = inspect.signature(pipeline.__call__).parameters
        kind = type(pipeline).__name__
        if not {"image", "mask_image"} <= accepted.keys():
            raise GanscopeError(
                f"--generator {name}: a {kind} fills no regions; name a pipeline for inpainting"
            )
        self._options = {"num_inference_steps": steps, "strength": strength}
        self._options = {k: v for k, v in self._options.items() if v is not None}
        for key in self._options:
            if key not in accepted:
                option = "steps" if key == "num_inference_steps" else key
                raise GanscopeError(f"--generator {name}: a {kind} takes no {option}; leave it out")
        self._takes_prompts = "prompt" in accepted
        self._sizes = {"height", "width"} <= accepted.keys()
        if prompts and not self._takes_prompts:
            raise GanscopeError(f"--prompts: a {kind} takes none; leave it out")
        network = getattr(pipeline, "unet", None) or getattr(pipeline, "transformer", None)
        side = getattr(getattr(network, "config", None), "sample_size", None) or 64
        self.side = size or side * getattr(pipeline, "vae_scale_factor", 1)
        pipeline.set_progress_bar_config(disable=True)

    def to(self, device: torch.device) -> None:
        self.pipeline.to(device)

    def __call__(
        self, seed: int, index: int, piece: np.ndarray, region: np.ndarray
    ) -> tuple[np.ndarray, dict[str, Any]]:
        height, width = piece.shape[:2]
        side = (self.side, self.side)
        image = Image.fromarray(piece).resize(side, Image.Resampling.LANCZOS)
        mask = Image.fromarray(region.astype(np.uint8) * 255).resize(side, Image.Resampling.NEAREST)
        arguments: dict[str, Any] = dict(self._options)
        columns: dict[str, Any] = {}
        if self._takes_prompts:
            prompt = self.prompts[index % len(self.prompts)] if self.prompts else ""
            arguments["prompt"] = prompt
            columns = {"prompt": prompt}
        if self._sizes:
            arguments |= {"height": self.side, "width": self.side}
        noise = torch.Generator().manual_seed(seed_of(seed, index))
        try:
            result = self.pipeline(
                image=image, mask_image=mask, generator=noise, output_type="pil", **arguments
            )
            made = result.images[0].convert("RGB")
        except Exception as error:  # the pipeline's, and out of memory
            raise GanscopeError(f"--generator {self.name}: {reason_of(error)}") from error
        return np.asarray(made.resize((width, height), Image.Resampling.LANCZOS)), columns


Filling = AutoencoderFilling | PipelineFilling


class Inpainting(_RegionEditor):
    """A region filled by a network: what it shows comes back from an autoencoder, or a pipeline
    thinks of something new.
    """

    parallel = False

    def __init__(self, name: str, label: str, filling: Filling, **region: Any):
        super().__init__(name, label, **region)
        self.filling = filling
        self.weights = self._made_by(filling.weights, self.finder.name if self.finder else "")

    def to(self, device: torch.device) -> Self:
        self.filling.to(device)
        return self

    def columns(self, index: int) -> dict[str, Any]:
        prompts = isinstance(self.filling, PipelineFilling) and self.filling.prompts
        return super().columns(index) | ({"prompt": ""} if prompts else {})

    def _edges(self) -> tuple[str, ...]:
        return EDGES[1:3]

    def _new(
        self,
        seed: int,
        index: int,
        number: int,
        piece: np.ndarray,
        mask: np.ndarray,
        rng: np.random.Generator,
    ) -> tuple[np.ndarray, dict[str, Any]] | None:
        new, columns = self.filling(seed, index, piece, mask > 0)
        known = self.columns(index)
        return new, {k: v for k, v in columns.items() if k in known}


def inpaint_generator(spec: str, prompts: Path | None = None) -> Inpainting:
    """`inpaint:taesd`, or any other autoencoder that `reconstruct:` takes, with its options; or an
    inpainting pipeline of diffusers, folder or hub id, with `?steps=20&strength=0.8&size=512`.

    `region=face&area=0.1&edge=soft` go with both. Raises `GanscopeError` if it cannot be had.
    """
    name = f"inpaint:{spec}"
    head, _, tail = spec.partition("?")
    own = _REGION | {"edge": choice(*EDGES)}
    parts = tail.split("&") if tail else []
    mine = [p for p in parts if p.partition("=")[0] in own]
    rest = [p for p in parts if p not in mine]
    _, region = split_options(name, _joined(head, mine), own)
    opened = _find_pipeline(name, head)
    filling: Filling
    if opened is None:
        if prompts is not None:
            raise GanscopeError(f"--prompts: {name!r} is an autoencoder, which takes none")
        made = reconstruction_generator(_joined(head, rest), "inpaint")
        label, filling = made.label, AutoencoderFilling(made)
    else:
        readers = {"steps": whole(1), "strength": number(0, 1), "size": whole(8)}
        _, options = split_options(name, _joined(head, rest), readers)
        pipeline, weights = opened()
        texts = read_prompts(prompts) if prompts else ()
        filling = PipelineFilling(name, pipeline, weights, texts, **options)
        called = Path(head).resolve().name if Path(head).is_dir() else head
        label = as_label("inpaint", called, **options)
    return Inpainting(name, as_label(label, **region), filling, **region)


def _joined(head: str, parts: Sequence[str]) -> str:
    return f"{head}?{'&'.join(parts)}" if parts else head


def _find_pipeline(name: str, head: str) -> Callable[[], tuple[Any, str]] | None:
    """What opens a pipeline, if a folder or hub id is one for inpainting; None: an autoencoder."""
    folder = Path(head)
    if head == "taesd" or (folder.is_dir() and not (folder / "model_index.json").is_file()):
        return None
    if not folder.is_dir() and (head.count("/") != 1 or head.startswith((".", "~", "/"))):
        return None
    diffusers = import_diffusers(name)
    try:
        config = diffusers.DiffusionPipeline.load_config(head)
    except Exception:  # no pipeline, or none that can be had: the autoencoder's reader says why
        return None
    if "Inpaint" not in str(config.get("_class_name")):
        return None

    def opened() -> tuple[Any, str]:
        try:
            place = folder
            if not folder.is_dir():
                place = Path(diffusers.DiffusionPipeline.download(head))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)
                pipeline = diffusers.DiffusionPipeline.from_pretrained(place)
        except Exception as error:  # the library's, the hub's, and those of libraries it needs
            raise not_loaded(name, error) from None
        endings = (".json", ".safetensors", ".bin")
        return pipeline, hash_files(*(p for p in sorted(place.rglob("*")) if p.suffix in endings))

    return opened
