"""The settings of `ganscope train-detector`."""

from dataclasses import dataclass
from pathlib import Path

from ganscope.config.validation import (
    PRECISIONS,
    as_lists,
    as_paths,
    at_least,
    enough_seeds,
    one_of,
    valid_device,
)
from ganscope.errors import GanscopeError

RECIPES: dict[str, dict[str, float]] = {
    "full": {"degrade": 0.8, "mix": 0.4, "pairs": 0.8, "hard_examples": 1.0},
    "frozen-linear": {"degrade": 0.8, "mix": 0.4, "pairs": 0.8},
    "aligned": {"degrade": 0.8, "mix": 0.0, "pairs": 1.0, "hard_examples": 0.0},
    "cnndetect": {"degrade": 1.0, "mix": 0.0, "pairs": 0.5, "hard_examples": 0.0},
    "npr": {"degrade": 0.0, "mix": 0.0, "pairs": 0.5, "hard_examples": 0.0},
    "finetune": {"degrade": 1.0},
    "faces": {"degrade": 0.9},
}
"""Recipe of a training -> what it takes for the settings that the user leaves open."""


@dataclass(frozen=True, kw_only=True)
class TrainDetectorSettings:
    """Settings of `ganscope train-detector`."""

    corpora: tuple[Path, ...] = ()
    """Corpus folders; empty: the newest one here."""
    data: tuple[str, ...] = ()
    """Streams to learn from instead of corpora: webdataset shards (`shards-{000..010}.tar`, a
    folder of .tar files, an address that fsspec or https reads) and `hf:owner/name[:split]`."""
    label_column: str | None = None
    """Where a stream says what is fake: a column, a field of the JSON beside a picture, the ending
    of a file beside it, or `__key__` for its folder; None: label or cls."""
    group_column: str | None = None
    """What pictures have in common that must not be learned from and validated on; None: nothing,
    each stands alone. A tenth of the groups of a stream is held out."""
    allow_private: bool = False
    """Fetch shards from private and loopback addresses, too."""
    detector: str = "cnn"
    """An architecture: see `ganscope list detectors`, or timm:<name>."""
    recipe: str = "full"
    """full: ours, all weights learn; frozen-linear: a classifier on a backbone's features;
    finetune: low-rank adapters on a transformer (clip, vit:<name>), and a classifier; aligned:
    photographs and the fakes made of them only, alike in all else; cnndetect: blur and JPEG by
    chance; npr: images as they are; faces: faces of real photographs, blended onto themselves while
    it learns. See `RECIPES`."""
    masks: bool = False
    """Learn where images are fake, too, from the `mask` column of corpora that have one; a fake
    without a mask is fake everywhere."""
    fuse: str | None = None
    """Another detector whose logits are joined to this one's, in the proportion that validation
    asks for: a shipped name, run folder or hub id (it should not have learned from those images),
    or an architecture, which is then trained first."""
    out: Path | None = None
    """Run folder; None: runs/<detector>, numbered on if that is finished already."""
    epochs: int = 10
    """Passes over the training images (an epoch draws as many images as the training split has)."""
    batch_size: int = 32
    size: int | None = None
    """Side of the native-resolution crops in pixels; None: the architecture's own."""
    learning_rate: float | None = None
    """AdamW's peak; None: the architecture's own. With finetune that of adapters and norms; the
    classifier's is 1e-3."""
    rank: int = 16
    """Of the adapters that finetune learns: a matrix moves by B @ A, with A (rank, in)."""
    last_blocks: int = 0
    """finetune adapts only so many blocks at the end of those that are read; 0: all."""
    layer_decay: float = 1.0
    """finetune multiplies the learning rate by this for each block towards the input; 1: the same
    everywhere."""
    hidden: int = 0
    """Width of a curved classifier (two layers) beside the linear one; 0: none."""
    checkpointing: bool = False
    """finetune computes activations twice instead of keeping them: less memory, a third slower."""
    steps: int | None = None
    """Budget in updates, of finetune and faces (None: `minutes` or `epochs`) and of `data`."""
    minutes: float | None = None
    """Budget of finetune and faces in minutes of training; None: `steps`, or else `epochs`."""
    pretrained: str | None = None
    """Start from a weights file (.safetensors, .pth), or from a detector of the same architecture
    (a shipped name or a run folder); "hub": the weights that timm publishes."""
    val_generator: tuple[str, ...] = ()
    """Generators used for validation only; empty: one is chosen when there are two or more."""
    test_generator: tuple[str, ...] = ()
    """Generators kept out of training and validation: the detector never meets them."""
    val_source: tuple[str, ...] = ()
    """Sources whose photographs are used for validation only: thresholds then hold for photographs
    of a kind that the detector has not learned from."""
    drop_declared: bool = False
    """Leave out reals that declare themselves generated or edited with AI, and fakes that a camera
    took, both by their files' own word; they are named in any case."""
    degrade: float | None = None
    """Probability that an image is degraded (both classes alike) before it is learned from. None,
    here and in the next three: the recipe's."""
    mix: float | None = None
    """Probability that a fake is mixed with the photograph that it was made from, where there is
    one, before it is learned from."""
    pairs: float | None = None
    """Share of the fakes that are drawn from those made of the corpora's own photographs, where
    there are others, too. Pairs differ by the generator's traces alone; other fakes also by what
    they show, by size and by sharpness, and a detector that sees many of them learns that."""
    hard_examples: float | None = None
    """How strongly images that the detector gets wrong are drawn more often; 0: all alike."""
    patience: int = 5
    """Epochs without a better validation AUROC before training stops; 0: never stop early."""
    soup: int = 1
    """So many trainings from one start, with seeds counted on from `seed`; their weights are
    averaged. The start is `pretrained`, or else one training more."""
    seed: int = 0
    split_seed: int | None = None
    """Seed of the splits alone; None: `seed`."""
    device: str = "auto"
    precision: str = "auto"
    """fp32, bf16 or fp16; auto: by the device for `finetune`, else measured once at the start."""
    workers: int | None = None
    """Processes that read images; None: as many as there are spare cores, at most 32."""

    def __post_init__(self) -> None:
        as_lists(self)
        as_paths(self, "out", "corpora")
        at_least(
            self, epochs=1, batch_size=2, size=16, learning_rate=1e-9, degrade=0, hard_examples=0
        )
        at_least(self, patience=0, seed=0, split_seed=0, workers=0, soup=1)
        at_least(self, rank=1, last_blocks=0, layer_decay=0, hidden=0, steps=1, minutes=0.001)
        one_of(self, precision=PRECISIONS, recipe=tuple(RECIPES))
        if self.layer_decay > 1:
            raise GanscopeError(f"--layer-decay must be at most 1, not {self.layer_decay:g}")
        if self.data and self.corpora:
            raise GanscopeError("--data: name streams or corpora, not both")
        for name in ("label_column", "group_column", "allow_private"):
            if getattr(self, name) and not self.data:
                raise GanscopeError(f"--{name.replace('_', '-')} is of --data alone; leave it out")
        if self.steps is not None and self.minutes is not None:
            raise GanscopeError("--steps, --minutes: name one budget")
        enough_seeds(self.seed, self.soup)
        valid_device(self.device)
        for name, value in RECIPES[self.recipe].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        for name in ("degrade", "mix", "pairs"):
            share = getattr(self, name)
            if share is not None and not 0 <= share <= 1:
                raise GanscopeError(f"--{name} must be from 0 to 1, not {share:g}")
