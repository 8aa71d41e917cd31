"""The settings of `ganscope train-generator`."""

from dataclasses import dataclass
from pathlib import Path

from ganscope.config.validation import LOSSES, PRECISIONS, as_paths, at_least, one_of, valid_device
from ganscope.errors import GanscopeError


@dataclass(frozen=True, kw_only=True)
class TrainGeneratorSettings:
    """Settings of `ganscope train-generator`."""

    real: str
    """The photographs to learn from: a source's name, a folder, or hf:owner/name."""
    generator: str = "dcgan"
    """An architecture: see `ganscope list generators`."""
    input: str | None = None
    """What an image-to-image generator starts from: edges, grey, small, blur (made from the
    photographs), or a folder: paired by name for pix2pix, unpaired for cyclegan."""
    out: Path | None = None
    """Run folder; None: runs/<generator>, numbered on if that is finished already."""
    size: int = 64
    """Side of the images in pixels; which ones there are depends on the architecture."""
    steps: int = 20_000
    """Generator updates."""
    batch_size: int = 64
    width: int = 64
    """Channels of the generator's last hidden layer; deeper layers have up to 8 times as many."""
    discriminator_width: int | None = None
    """Channels of the discriminator's first layer; None: the same as `width`."""
    learning_rate: float | None = None
    """For all networks; None: the architecture's own."""
    loss: str | None = None
    """minimax or non-saturating, for generators with the original GAN's loss; None: the latter."""
    label_smoothing: float = 0.0
    """The discriminator is told 1 - this for reals (one-sided), so that it never grows too sure."""
    instance_noise: float = 0.0
    """Noise on all that the discriminator sees, in [-1, 1] units, fading to 0 until the end."""
    gradient_penalty: float | None = None
    """Weight of `wgan-gp`'s penalty (the paper's lambda); None: 10."""
    unroll: int | None = None
    """Steps of the discriminator that `unrolled` looks ahead; None: 5."""
    mirror: bool = True
    """Mirror half of the images; not for digits and letters."""
    ema: float = 0.999
    """Decay of the averaged generator that is saved, a step; 0: no averaging."""
    zoom: float = 4.0
    """Crops come from 1 to `zoom` times the size and are shrunk to it; 1: native crops only."""
    sample_every: int = 500
    """Steps between sample grids; checkpoints are written as often."""
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    """auto (measured once at the start), fp32, bf16 or fp16."""

    def __post_init__(self) -> None:
        as_paths(self, "out")
        at_least(
            self, steps=1, batch_size=1, width=4, discriminator_width=4, zoom=1, sample_every=1
        )
        at_least(self, seed=0, learning_rate=1e-9, ema=0, unroll=1, instance_noise=0)
        at_least(self, label_smoothing=0, size=4, gradient_penalty=0)
        one_of(self, precision=PRECISIONS, loss=LOSSES)
        valid_device(self.device)
        if self.label_smoothing >= 0.5:
            raise GanscopeError(
                f"--label-smoothing must be below 0.5, not {self.label_smoothing:g}"
            )
        if self.ema >= 1:
            raise GanscopeError(f"--ema must be below 1, not {self.ema:g}")
