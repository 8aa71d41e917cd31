"""Generators: what `generate` asks of any, and those trained here, kept in a folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from accelerate import init_empty_weights
from torch import Tensor

from ganscope.errors import GanscopeError
from ganscope.folders import FolderModel
from ganscope.generator.kinds.architectures import architectures
from ganscope.generator.kinds.translation import inputs, translate
from ganscope.generator.pixels import to_pixels
from ganscope.named import check_network, is_whole, shown
from ganscope.registry import unknown

CPU_BATCH, GPU_BATCH = 16, 256
"""Fakes are always computed in batches of this many: the last bits of a convolution depend on the
batch, and a fake must be the same bytes however many are made beside it. A small batch stays in a
CPU's cache."""


class AnyGenerator:
    """What makes fakes, wherever it comes from: trained here, a library's, somebody's function."""

    name: str
    """What the user called it."""
    label: str
    """Its name in a corpus: the manifest's `generator` and the folder 1_fake/<label>."""
    weights: str = ""
    """12 hexadecimal digits of the SHA-256 of what makes its images; "" if that is not known."""
    size: int | None
    """Side of its images in pixels; None: it takes any, or that of the photograph it is given."""
    batch: int = 16
    """Images that it is asked for at a time, at most."""
    from_photos = False
    """True: it makes its fakes from photographs."""
    parallel = False
    """True: several threads may call `make` at once."""

    def to(self, device: torch.device) -> Any:
        """Move to a device; returns itself."""
        return self

    def make(
        self, seed: int, indexes: Sequence[int], photos: Sequence[np.ndarray] | None = None
    ) -> Sequence[np.ndarray] | np.ndarray:
        """Fakes number `indexes` of `seed`, each (H, W, 3) uint8 RGB.

        Number i of a seed is the same whatever else is asked for. photos: for each number the
        (H, W, 3) uint8 RGB it is made from; the fake is of the same height and width.
        """
        raise NotImplementedError

    def columns(self, index: int) -> dict[str, Any]:
        """Further columns of fake number `index` in the manifest, the same ones for all."""
        return {}


class Generator(FolderModel, AnyGenerator):
    """A generator trained here: z (N, latent_dim) standard normal, and labels (N,) if it is
    conditional -> images (N, 3, size, size) float RGB in [0, 1]; or photographs -> photographs.

    config: `architecture` (a name), `arguments` (size, latent_dim, width), `input` (of one that
    starts from photographs, how they are prepared), `training`, `versions`.
    """

    kind = "generators"
    parallel = True

    def __init__(self, config: dict[str, Any]):
        super().__init__(config)
        self.architecture = architectures[config["architecture"]]
        self.net = self.architecture.generator(**config["arguments"])
        self.from_photos = self.architecture.from_photos
        self.class_: str | None = None
        self.truncation = 1.0
        # Transposed convolutions run 1.0 to 1.4 times as fast in this layout on every CPU tried; it
        # is fixed, not measured, because the layout changes last bits and a seed must give the same
        # bytes.
        self.to(memory_format=torch.channels_last)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """The network without weights; raises `ValueError` for what no generator can have."""
        check_network(config)
        arguments, architecture = config["arguments"], architectures[config["architecture"]]
        for name in ("size", "width", *([] if architecture.from_photos else ["latent_dim"])):
            value = arguments.get(name)
            if not is_whole(value) or value < 1:
                raise ValueError(f"arguments: {name} is {shown(value)}, no number from 1 on")
        if arguments["size"] not in architecture.sizes:
            raise ValueError(f"arguments: size is {arguments['size']}, none that it makes")
        classes = arguments.get("classes", [])
        if not isinstance(classes, list) or not all(isinstance(one, str) for one in classes):
            raise ValueError(f"arguments: classes is {shown(classes)}, no list of names")
        if config.get("input") not in (None, *inputs):
            raise ValueError(f"input is {shown(config['input'])}; known: {', '.join(inputs)}")
        with init_empty_weights(include_buffers=False):
            return cls(config)

    @property
    def label(self) -> str:  # type: ignore[override]
        """A folder's own name, or owner--name of a hub id."""
        if Path(self.name).is_dir():
            return Path(self.name).resolve().name
        return self.name.replace("/", "--")

    @property
    def size(self) -> int:  # type: ignore[override]
        """Side of the images in pixels; one that starts from photographs makes any other, too."""
        return self.config["arguments"]["size"]

    @property
    def latent_dim(self) -> int:
        return self.config["arguments"]["latent_dim"]

    @property
    def classes(self) -> list[str]:
        """Names of the classes that a conditional generator makes; of others, none."""
        return self.config["arguments"].get("classes", [])

    @property
    def batch(self) -> int:  # type: ignore[override]
        """Fakes that are computed at a time where the weights are now."""
        return CPU_BATCH if next(self.parameters()).device.type == "cpu" else GPU_BATCH

    def choose(self, class_: str | None = None, truncation: float = 1.0) -> Self:
        """Make only one class, or stray less from the average (psi, 0 to 1); returns itself.

        Raises `GanscopeError` for a class that it was not trained on.
        """
        if class_ is not None and not self.classes:
            raise GanscopeError(f"--class: the generator {self.name!r} knows no classes")
        if class_ is not None and class_ not in self.classes:
            raise GanscopeError(unknown(f"class of {self.name!r}", class_, self.classes))
        if truncation != 1 and self.from_photos:
            raise GanscopeError(
                f"--truncation: {self.name!r} starts from photographs; leave it out"
            )
        self.class_, self.truncation = class_, truncation
        return self

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        if self.truncation != 1 and self.architecture.truncates:
            return (self.net(z, self.truncation) + 1) / 2
        z = z * self.truncation
        return ((self.net(z) if labels is None else self.net(z, labels)) + 1) / 2

    @torch.inference_mode()
    def pixels(self, z: np.ndarray, labels: Sequence[int] | None = None) -> np.ndarray:
        """z (N, latent_dim), numbers of classes (N,) -> (N, size, size, 3) uint8 RGB, computed
        where the weights are.
        """
        device, batch = next(self.parameters()).device, self.batch
        made = []
        for start in range(0, len(z), batch):
            part = np.zeros((batch, self.latent_dim), np.float32)
            rows = z[start : start + batch]
            part[: len(rows)] = rows
            known = None
            if labels is not None:
                known = torch.zeros(batch, dtype=torch.int64)
                known[: len(rows)] = torch.tensor(labels[start : start + batch])
                known = known.to(device)
            images = self(torch.from_numpy(part).to(device), known)
            made.append(to_pixels(images)[: len(rows)])
        return np.concatenate(made)

    def make(
        self,
        seed: int,
        indexes: Sequence[int],
        photos: Sequence[np.ndarray] | None = None,
        labels: Sequence[int] | None = None,
    ) -> np.ndarray | list[np.ndarray]:
        """Fakes of a seed, (N, size, size, 3) or a list if from photographs; see
        `AnyGenerator.make`. labels: numbers of classes (N,) instead of the chosen ones.
        """
        if self.from_photos:
            if photos is None:
                raise ValueError(f"{self.name} makes fakes from photographs and was given none")
            return [self._translate(photo) for photo in photos]
        z = np.stack([latent(seed, i, self.latent_dim) for i in indexes])
        if self.classes and labels is None:
            labels = [self.classes.index(self._class_of(i)) for i in indexes]
        return self.pixels(z, labels)

    def _translate(self, photo: np.ndarray) -> np.ndarray:
        prepare = self.config.get("input")
        start = inputs[prepare](photo) if prepare else photo
        return translate(self.net, start, next(self.parameters()).device)

    def columns(self, index: int) -> dict[str, Any]:
        """The class of a conditional generator's fake; psi if it is not 1."""
        found: dict[str, Any] = {"class": self._class_of(index)} if self.classes else {}
        return found | ({"truncation": self.truncation} if self.truncation != 1 else {})

    def _class_of(self, index: int) -> str:
        return self.class_ or self.classes[index % len(self.classes)]


def latent(seed: int, index: int, latent_dim: int) -> np.ndarray:
    """The z (latent_dim,) float32 of fake number `index` of a seed: it depends on nothing else."""
    return np.random.default_rng((seed, index)).standard_normal(latent_dim, dtype=np.float32)


def load_generator(name: str = "photos") -> Generator:
    """Load a generator by shipped name, run folder or hub id; see `Generator.load`."""
    return Generator.load(name)
