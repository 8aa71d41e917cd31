"""Networks of torch.hub as generators, from GitHub or a local clone; an image at a time."""

import ast
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from ganscope.errors import GanscopeError, reason_of
from ganscope.generator.borrowed.options import (
    as_label,
    hash_networks,
    seed_of,
    split_options,
    whole,
)
from ganscope.generator.model import AnyGenerator, latent
from ganscope.generator.pixels import to_pixels

LATENT_NAMES = ("latent_dim", "z_dim", "nz")
"""Attributes of a network that may tell the length of its z."""


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
