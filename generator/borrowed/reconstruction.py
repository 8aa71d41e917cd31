"""Photographs through a network and back: autoencoders and upscalers.

The fake shows what the photograph shows and carries the traces of latent-diffusion decoders or of
super-resolution: a corpus of such pairs leaves a detector nothing but those traces to learn.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, relu
from torchvision.transforms.v2.functional import gaussian_blur

from ganscope.errors import GanscopeError, reason_of
from ganscope.folders import hash_files
from ganscope.generator.borrowed.diffusers import import_diffusers, not_loaded
from ganscope.generator.borrowed.options import (
    as_label,
    choice,
    hash_networks,
    number,
    read_state,
    split_options,
    whole,
)
from ganscope.generator.model import AnyGenerator
from ganscope.generator.pixels import LARGE, from_pixels, in_tiles, to_pixels

TAESD = "madebyollin/taesd"
"""What the bare name `taesd` means."""
TILE, OVERLAP = 1024, 64
"""Pixels; rounded down and up to the network's factor."""


class Autoencoder(nn.Module):
    """images (N, 3, H, W) in [0, 1] -> latents (N, channels, H / factor, W / factor) and back."""

    factor: int

    def encode(self, images: Tensor) -> Tensor:
        raise NotImplementedError

    def decode(self, latents: Tensor) -> Tensor:
        raise NotImplementedError


class _Block(nn.Module):
    """Three 3x3 convolutions around a shortcut; before them, with `pool`, a wide 1x1 branch."""

    def __init__(self, before: int, after: int, pool: int | None):
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(before, after, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, padding=1),
        )
        self.skip = nn.Identity() if before == after else nn.Conv2d(before, after, 1, bias=False)
        self.pool = pool and nn.Sequential(
            nn.Conv2d(before, pool, 1, bias=False),
            nn.GroupNorm(4, pool),
            nn.ReLU(),
            nn.Conv2d(pool, before, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.pool:
            x = x + self.pool(x)
        return relu(self.conv(x) + self.skip(x))


class _SoftClamp(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 3 * torch.tanh(x / 3)


class TinyAutoencoder(Autoencoder):
    """TAESD and its kin (github.com/madebyollin/taesd), built from two raw state dicts.

    Layers are numbered. An encoder is convolutions, those without bias of stride 2, and blocks. In
    a decoder the numbers without weights are, in order: a soft clamp before the first convolution,
    a ReLU behind it, doublings of the size elsewhere. Raises `KeyError`, `ValueError` or
    `RuntimeError` if the state dicts are of another kind.
    """

    def __init__(self, encoder: Mapping[str, Tensor], decoder: Mapping[str, Tensor]):
        super().__init__()
        self.encoder, self.decoder = nn.Sequential(), nn.Sequential()
        for parts in _by_layer(encoder):
            self.encoder.append(_layer(parts, stride=1 if "bias" in parts else 2))
        blank = iter((_SoftClamp(), nn.ReLU()))
        for parts in _by_layer(decoder):
            self.decoder.append(
                _layer(parts) if parts else next(blank, nn.Upsample(scale_factor=2))
            )
        self.encoder.load_state_dict(encoder)
        self.decoder.load_state_dict(decoder)
        with torch.inference_mode():
            probe = self.encode(torch.zeros(1, 3, 64, 64))
            self.factor = 64 // probe.shape[2]
            shape = tuple(self.decode(probe).shape)
        if shape != (1, 3, 64, 64):
            raise ValueError(f"(1, 3, 64, 64) comes back as {shape}")

    def encode(self, images: Tensor) -> Tensor:
        return self.encoder(images)

    def decode(self, latents: Tensor) -> Tensor:
        return self.decoder(latents)


def _by_layer(state: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """The weights of layer 0, 1, ... under their names within the layer; {} for those without."""
    layers: dict[int, dict[str, Tensor]] = {}
    for key, value in state.items():
        place, _, rest = key.partition(".")
        layers.setdefault(int(place), {})[rest] = value
    return [layers.get(i, {}) for i in range(max(layers) + 1)]


def _layer(parts: dict[str, Tensor], stride: int = 1) -> nn.Module:
    if "conv.0.weight" in parts:
        after, before = parts["conv.0.weight"].shape[:2]
        pool = parts["pool.0.weight"].shape[0] if "pool.0.weight" in parts else None
        return _Block(before, after, pool)
    after, before = parts["weight"].shape[:2]
    return nn.Conv2d(before, after, 3, stride, padding=1, bias="bias" in parts)


class DiffusersAutoencoder(Autoencoder):
    """diffusers' AutoencoderTiny or AutoencoderKL; of the latter's distribution, the mean."""

    def __init__(self, network: Any):
        super().__init__()
        self.network = network
        self.factor = 2 ** (len(network.config["block_out_channels"]) - 1)

    def encode(self, images: Tensor) -> Tensor:
        found = self.network.encode(images * 2 - 1)
        return found.latents if hasattr(found, "latents") else found.latent_dist.mode()

    def decode(self, latents: Tensor) -> Tensor:
        return (self.network.decode(latents).sample + 1) / 2


class Reconstruction(AnyGenerator):
    """Photographs through an autoencoder and back.

    times: how often, with rounding to 8 bit between. noise: standard deviation of what is added to
    the latents, in their own units; it depends on seed and index only. blend: share of the
    photograph that is mixed back in at the end, 0 to 1. jitter: standard deviation of what every
    weight of the network is multiplied by, anew for each photograph (by seed and index, too): one
    decoder becomes many that are somewhat alike. smooth: standard deviation of a Gaussian over the
    latents, in theirs: detail goes, as it does in what is generated from nothing. upsample: how the
    decoder enlarges what it works on, instead of its own way; textures become smears. Raises
    `GanscopeError` for `upsample` with a network that has no layers of that kind.
    """

    from_photos = True
    size = None

    def __init__(
        self,
        name: str,
        label: str,
        autoencoder: Autoencoder,
        times: int = 1,
        noise: float = 0.0,
        blend: float = 0.0,
        jitter: float = 0.0,
        smooth: float = 0.0,
        upsample: str | None = None,
    ):
        self.name, self.label = name, label
        self.autoencoder = autoencoder.eval().requires_grad_(False)
        self.weights = hash_networks(autoencoder)
        self.times, self.noise, self.blend, self.jitter = times, noise, blend, jitter
        self.smooth = smooth
        if upsample:
            layers = [m for m in self.autoencoder.modules() if isinstance(m, nn.Upsample)]
            if not layers:
                raise GanscopeError(
                    f"--generator {name}: nothing in it that upsample= could change"
                )
            for layer in layers:
                layer.mode = upsample
        # Convolutions of so many channels are 1.4 times as fast in this layout on a CPU.
        self.autoencoder.to(memory_format=torch.channels_last)
        self.device = torch.device("cpu")
        state = self.autoencoder.state_dict()
        self._steady = {k: v.clone() for k, v in state.items()} if jitter else {}

    def to(self, device: torch.device) -> Self:
        self.autoencoder.to(device)
        self.device = device
        return self

    def make(
        self, seed: int, indexes: Sequence[int], photos: Sequence[np.ndarray] | None = None
    ) -> list[np.ndarray]:
        return [
            self._reconstruct(photo, np.random.default_rng((seed, index)))
            for index, photo in zip(indexes, photos or (), strict=True)
        ]

    @torch.inference_mode()
    def _reconstruct(self, photo: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        factor, fake = self.autoencoder.factor, photo
        if self.jitter:
            self._jitter(rng)
        height, width = (-(-side // factor) for side in photo.shape[:2])
        whole_noise: Tensor | None = None

        def through(tile: Tensor, y: int, x: int) -> Tensor:
            nonlocal whole_noise
            latents = self.autoencoder.encode(tile)
            if self.smooth:
                reach = min(math.ceil(3 * self.smooth), min(latents.shape[2:]) - 1)
                side = 2 * reach + 1
                latents = gaussian_blur(latents, [side, side], [self.smooth, self.smooth])
            if self.noise:
                if whole_noise is None:  # of the whole photograph: tiles agree where they overlap
                    shape = (latents.shape[1], height, width)
                    drawn = rng.standard_normal(shape, dtype=np.float32)
                    whole_noise = torch.from_numpy(drawn).to(latents) * self.noise
                below, right = latents.shape[2:]
                y, x = y // factor, x // factor
                latents = latents + whole_noise[:, y : y + below, x : x + right]
            return self.autoencoder.decode(latents)

        for _ in range(self.times):
            whole_noise = None
            fake = map_tiles(fake, factor, through, self.device)
        mixed = (1 - self.blend) * fake.astype(np.float32) + self.blend * photo
        return np.rint(mixed).astype(np.uint8)

    def _jitter(self, rng: np.random.Generator) -> None:
        """Change the network for the next photograph."""
        for name, weights in self.autoencoder.state_dict().items():
            steady = self._steady[name]
            if steady.is_floating_point():
                drawn = rng.standard_normal(tuple(steady.shape), dtype=np.float32)
                weights.copy_(steady * (1 + self.jitter * torch.from_numpy(drawn)))


def map_tiles(
    photo: np.ndarray,
    factor: int,
    work: Callable[[Tensor, int, int], Tensor],
    device: torch.device,
) -> np.ndarray:
    """A photograph (H, W, 3) uint8 of any size through a network that wants multiples of `factor`.

    A grey one comes back grey: colours would give the fake away without a look at its traces.

    work: (tile (1, 3, h, w) in [0, 1], y, x of its corner) -> the same shape. The edges are
    reflected outwards and cut off again. Photographs above `LARGE` pixels go in overlapping tiles
    that fade into each other.
    """
    height, width = photo.shape[:2]
    padding = [(0, -height % factor), (0, -width % factor), (0, 0)]
    padded = np.pad(photo, padding, mode="reflect")
    if height * width <= LARGE:
        made = to_pixels(work(from_pixels(padded, device), 0, 0))[0]
    else:
        tile, overlap = TILE // factor * factor, -(-OVERLAP // factor) * factor

        def through(piece: np.ndarray, y: int, x: int) -> np.ndarray:
            image = work(from_pixels(piece, device), y, x)[0]
            return image.permute(1, 2, 0).float().clamp(0, 1).mul(255).cpu().numpy()

        made = in_tiles(padded, through, tile, overlap)
    return _grey_again(photo, made[:height, :width])


def _grey_again(photo: np.ndarray, made: np.ndarray) -> np.ndarray:
    if not (photo == photo[..., :1]).all():
        return made
    return cv2.cvtColor(cv2.cvtColor(made, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def reconstruction_generator(spec: str, kind: str = "reconstruct") -> Reconstruction:
    """`taesd`, a hub id or a folder; then `?times=2&noise=0.1&jitter=0.05&blend=0.5`: see
    `Reconstruction`. `smooth=0.4` and `upsample=bicubic` go with them.

    A folder holds what diffusers saves (an AutoencoderTiny or AutoencoderKL, or a whole pipeline),
    or `*_encoder` and `*_decoder` state dicts as TAESD publishes them (.pth or .safetensors); where
    there are several, FOLDER/PREFIX names one. kind: what stood before the colon. Raises
    `GanscopeError` if it cannot be had.
    """
    name = f"{kind}:{spec}"
    readers = {
        "times": whole(1),
        "noise": number(0),
        "blend": number(0, 1),
        "jitter": number(0),
        "smooth": number(0),
        "upsample": choice("nearest", "bilinear", "bicubic"),
    }
    head, options = split_options(name, spec, readers)
    pair = _find_pair(name, head)
    autoencoder: Autoencoder
    if pair:
        autoencoder = _open_pair(name, *pair)
        called = pair[0].name.partition("_encoder")[0]
    else:
        autoencoder = _open_diffusers(name, TAESD if head == "taesd" else head)
        called = Path(head).resolve().name if Path(head).is_dir() else head
    label = as_label(kind, called, **options)
    return Reconstruction(name, label, autoencoder, **options)


def _find_pair(name: str, head: str) -> tuple[Path, Path] | None:
    """The two state dicts that a folder or a prefix means; None if there are none."""
    stems = {head}
    if Path(head).is_dir():
        found = Path(head).glob("*_encoder.*")
        stems = {str(path.with_name(path.name.partition("_encoder")[0])) for path in found}
    pairs = {
        stem: (Path(f"{stem}_encoder{suffix}"), Path(f"{stem}_decoder{suffix}"))
        for stem in stems
        for suffix in (".pth", ".safetensors")
        if Path(f"{stem}_encoder{suffix}").is_file()
    }
    if len(pairs) > 1:
        raise GanscopeError(
            f"--generator {name}: there are several; name one of {', '.join(sorted(pairs))}"
        )
    return next(iter(pairs.values()), None)


def _open_pair(name: str, encoder: Path, decoder: Path) -> TinyAutoencoder:
    states = [read_state(name, path) for path in (encoder, decoder)]
    try:
        return TinyAutoencoder(*states)
    except (KeyError, ValueError, RuntimeError) as error:
        raise GanscopeError(
            f"--generator {name}: {encoder.name} and {decoder.name} are no pair of state dicts of "
            f"TAESD's kind ({reason_of(error)})"
        ) from None


def _open_diffusers(name: str, identity: str) -> DiffusersAutoencoder:
    folder = Path(identity)
    if not folder.is_dir() and (identity.count("/") != 1 or identity.startswith((".", "~", "/"))):
        raise GanscopeError(
            f"--generator {name}: no such folder; name taesd, a hub id owner/name, a folder, or "
            "the PREFIX of PREFIX_encoder.pth"
        )
    diffusers = import_diffusers(name)
    below = {"subfolder": "vae"} if (folder / "vae").is_dir() else {}
    try:
        config = diffusers.AutoencoderTiny.load_config(identity, **below)
        kind = config.get("_class_name")
        if kind not in ("AutoencoderTiny", "AutoencoderKL"):
            raise ValueError(f"it is a {kind}, not an AutoencoderTiny or AutoencoderKL")
        network = getattr(diffusers, kind).from_pretrained(identity, **below)
    except Exception as error:  # the library's and the hub's
        raise not_loaded(name, error) from None
    return DiffusersAutoencoder(network.float())


class Upscaler(AnyGenerator):
    """Photographs shrunk and enlarged again by a super-resolution network.

    network: (1, 3, h, w) in [0, 1] -> (1, 3, h * scale, w * scale) in [0, 1].
    """

    from_photos = True
    size = None

    def __init__(self, name: str, label: str, network: nn.Module, weights: str = ""):
        self.name, self.label, self.weights, self.network = name, label, weights, network
        self.device = torch.device("cpu")
        probe = self._enlarge(torch.rand(1, 3, 32, 48))
        shape = tuple(probe.shape) if isinstance(probe, Tensor) else type(probe).__name__
        self.scale = probe.shape[2] // 32 if len(shape) == 4 else 0
        if self.scale < 2 or shape != (1, 3, 32 * self.scale, 48 * self.scale):
            raise GanscopeError(
                f"--generator {name}: turns (1, 3, 32, 48) into {shape}; an upscaler enlarges "
                "height and width by the same whole number"
            )

    def to(self, device: torch.device) -> Self:
        self.network.to(device)
        self.device = device
        return self

    def make(
        self, seed: int, indexes: Sequence[int], photos: Sequence[np.ndarray] | None = None
    ) -> list[np.ndarray]:
        def through(tile: Tensor, y: int, x: int) -> Tensor:
            small = avg_pool2d(tile, self.scale)  # opencv's INTER_AREA for whole factors
            return self._enlarge((small * 255).round() / 255)  # a small image is of 8 bit, too

        return [map_tiles(photo, self.scale, through, self.device) for photo in photos or ()]

    @torch.inference_mode()
    def _enlarge(self, images: Tensor) -> Tensor:
        try:
            return self.network(images)
        except Exception as error:  # TorchScript's reason stands in the last line
            reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
            raise GanscopeError(
                f"--generator {self.name}: refuses an image of {images.shape[3]}x"
                f"{images.shape[2]} pixels ({reason[0][:300]}); export it for any height and width"
            ) from None


def upscale_generator(spec: str) -> Upscaler:
    """`FILE`: TorchScript, or a program of torch.export (.pt2); see `Upscaler`.

    Raises `GanscopeError` if the file cannot be read or holds no upscaler.
    """
    name, path = f"upscale:{spec}", Path(spec)
    if not path.is_file():
        raise GanscopeError(f"--generator {name}: no such file: {path}")
    try:
        if path.suffix == ".pt2":
            network = torch.export.load(path).module()  # evaluation mode is fixed on export
        else:
            network = torch.jit.load(path, map_location="cpu").eval()
    except Exception as error:
        raise GanscopeError(
            f"--generator {name}: neither TorchScript nor a program of torch.export, ending in "
            f".pt2 ({reason_of(error)})"
        ) from None
    return Upscaler(name, as_label("upscale", path.stem), network, hash_files(path))
