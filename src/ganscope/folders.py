"""Networks on disk: a folder of `config.json`, `model.safetensors` and `README.md` (the model
card).

It is the shape that the Hugging Face hub uses, so `save_pretrained`, `from_pretrained` and
`push_to_hub` work. A name means, in this order: a folder, a shipped network, a hub id owner/name.
Weights are kept in fp16 and computed with in fp32; large matrices, where the configuration says
`storage: int8`, as bytes with a scale a row. Where it names `steps`, a part of the network that was
fine-tuned with adapters is kept as these, beside the part that it began as (`named.with_steps`).
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import ModelHubMixin
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from ganscope.errors import GanscopeError
from ganscope.files import FULL, damaged, gone, replacing, take_place, write_json, write_text
from ganscope.named import (
    CARD,
    CONFIG,
    FORMAT_VERSION,
    SAVED_WITH,
    SCALE,
    STEPS,
    WEIGHTS,
    faulty,
    find_folder,
    hash_files,
    read_config,
    scale_of,
    shipped,
    weights_hash,
    with_steps,
)

__all__ = ["CARD", "CONFIG", "WEIGHTS", "find_folder", "hash_files", "shipped", "weights_hash"]

CHECKPOINT, SPEED = "checkpoint.pt", "speed.json"
"""In the run folder of an unfinished training only."""
LARGE = 2**16
"""Numbers from which on a matrix is kept as bytes where that is asked for."""
STEP_RANK = 32
"""Of the matrices that a fine-tuned part is kept as (`to_steps`), at most."""
NOTHING = 1e-4
"""Of the largest singular value of such a way: what is smaller is rounding."""


def to_bytes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The large matrices of a network as int8, each with `<name>.scale` (fp32, one a row).

    Embeddings of positions (1, N, D) are no matrices, and small.
    """
    found = {}
    for key, value in state.items():
        if (
            value.is_floating_point()
            and len(value) > 1
            and value.ndim > 1
            and value.numel() >= LARGE
        ):
            rows = value.float().flatten(1)
            scale = (rows.abs().amax(1) / 127).clamp_min(1e-12)
            found[key] = (rows / scale[:, None]).round().to(torch.int8).view(value.shape)
            found[key + SCALE] = scale
    return found


def from_bytes(state: dict[str, Tensor], said: str) -> dict[str, Tensor]:
    """The opposite of `to_bytes`; said: where the weights are from.

    Raises `GanscopeError` if a matrix of bytes has no scales, or none that fit.
    """
    found = {}
    packed = {key for key, value in state.items() if value.dtype == torch.int8}
    for key, value in state.items():
        if key in packed:
            scale = scale_of(state, key, said)
            found[key] = value.float() * scale.float().view(-1, *[1] * (value.ndim - 1))
        elif key.removesuffix(SCALE) not in packed:
            found[key] = value
    return found


def to_steps(state: dict[str, Tensor], steps: dict[str, str], rank: int) -> dict[str, Tensor]:
    """The opposite of `named.with_steps`, as near as matrices of this rank, or of a lower one that
    is as good, come to it; what is the same in both is left out.
    """
    found = dict(state)
    for mine, theirs in steps.items():
        for key in [key for key in state if key.startswith(mine)]:
            step = state[key].float() - state[theirs + key.removeprefix(mine)].float()
            if not step.any():
                del found[key]
            elif step.ndim == 2 and step.numel() >= LARGE:
                del found[key]
                u, s, v = torch.linalg.svd(step, full_matrices=False)
                n = min(rank, int((s > NOTHING * s[0]).sum()))
                root = s[:n].sqrt()
                found[f"{key}.A"] = (root[:, None] * v[:n]).contiguous()
                found[f"{key}.B"] = (u[:, :n] * root).contiguous()
    return found


class FolderModel(torch.nn.Module, ModelHubMixin):
    """A network that saves to and loads from a folder; base of `Generator` and `Detector`.

    `config` is the dictionary that `config.json` holds: enough to build the network again. A
    subclass sets `kind` and overrides `from_config`.
    """

    kind: str
    config: dict[str, Any]
    card: str
    """Text of the model card."""
    name: str
    """What the user called it, or the folder's name."""
    weights: str
    """`weights_hash` of the folder it was loaded from; "" before it is saved."""
    folder: Path | None = None
    """The folder that it was loaded from."""

    def __init__(self, config: dict[str, Any]):
        super().__init__()
        self.config = config
        self.card = self.name = self.weights = ""

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Build the network, untrained, from the contents of a `config.json`."""
        raise NotImplementedError

    @classmethod
    def load(cls, name: str | Path) -> Self:
        """Load by folder, shipped name or hub id, in evaluation mode, in fp32, on the CPU.

        Raises `GanscopeError` if the folder is missing, incomplete, damaged, or config and weights
        disagree.
        """
        folder = find_folder(os.fspath(name), cls.kind)
        config = read_config(folder, name, cls.kind)
        saved_with = config.pop(SAVED_WITH, None)  # folders of earlier versions do not tell
        try:
            state = load_file(folder / WEIGHTS)
        except FileNotFoundError:
            raise GanscopeError(f"{name}: {WEIGHTS} is missing; fetch or train it again") from None
        except (SafetensorError, OSError) as error:
            raise GanscopeError(
                f"{name}: {WEIGHTS} is damaged ({error}); fetch or train it again"
            ) from None
        for key, value in state.items():
            if value.is_floating_point() and not torch.isfinite(value).all():
                raise GanscopeError(f"{name}: {WEIGHTS} holds NaN or infinity in {key!r}")
        try:
            try:
                model = cls.from_config(config)
            except GanscopeError as error:  # which does not know whose configuration it was
                raise faulty(name, error) from None
            state = from_bytes(state, f"{name}: {WEIGHTS}")
            state = {k: v.float() if v.is_floating_point() else v for k, v in state.items()}
            model.load_state_dict(with_steps(state, config, f"{name}: {WEIGHTS}"), assign=True)
        except ValueError as error:
            raise faulty(name, error) from None
        except (KeyError, TypeError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:120]
            raise GanscopeError(
                f"{name}: {CONFIG} and {WEIGHTS} disagree ({reason}...); take both from one run"
            ) from None
        model.name = os.fspath(name)
        model.weights = weights_hash(folder)
        if saved_with not in (None, model.weights):
            raise GanscopeError(
                f"{name}: {WEIGHTS} is damaged, or not the one that {CONFIG} was written with; "
                "fetch or train it again"
            )
        model.folder = folder
        card = folder / CARD
        model.card = card.read_text(encoding="utf-8") if card.is_file() else ""
        return model.eval()

    def save(self, folder: str | Path) -> None:
        """Write config, weights (fp16, or as `storage` in the configuration says) and card into
        `folder`; each file atomically, config last.

        Raises `GanscopeError` for weights that are not finite, or not in fp16: `load` refuses them.
        """
        folder = Path(folder)
        whole = {k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()}
        if steps := self.config.get(STEPS):
            whole = to_steps(whole, steps, STEP_RANK)
        state = {k: v.half() if v.is_floating_point() else v for k, v in whole.items()}
        if self.config.get("storage") == "int8":
            state |= to_bytes(whole)
        for key, value in state.items():
            if value.is_floating_point() and not torch.isfinite(value).all():
                raise GanscopeError(
                    f"{folder}: not saved, for the weights hold NaN or infinity in {key!r}: the "
                    "training went astray; lower --learning-rate and name another --out"
                )
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / WEIGHTS) as part:
            part.write_bytes(save(state, metadata={"format": "pt"}))  # save_file makes it private
        write_text(folder / CARD, self.card)
        about = {"kind": self.kind, "format_version": FORMAT_VERSION, **self.config}
        write_json(folder / CONFIG, about | {SAVED_WITH: weights_hash(folder)})

    def _save_pretrained(self, save_directory: Path) -> None:
        self.save(save_directory)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **_: Any) -> Self:
        return cls.load(model_id)

    def generate_model_card(self, *_: Any, **__: Any) -> Any:
        """`push_to_hub` asks for the card; ours is written with the weights."""
        from huggingface_hub import ModelCard

        return ModelCard(self.card)


def save_checkpoint(run: Path, state: dict[str, Any]) -> None:
    """Write what a training needs to go on, atomically; a full disk is a `GanscopeError`."""
    part = run / f".{CHECKPOINT}.part"
    try:
        part.open("wb").close()  # torch tells no errno
        torch.save(state, part)
        take_place(part, run / CHECKPOINT)
    except (OSError, RuntimeError) as error:
        if not run.is_dir():
            raise gone(run) from None
        known = isinstance(error, OSError) and error.errno not in FULL
        remedy = "see that it may be written to" if known else "free some space"
        raise GanscopeError(
            f"{run}: the checkpoint cannot be written ({error}); {remedy} and run the same "
            "command again: it continues where it stopped"
        ) from None
    finally:
        with suppress(OSError):  # a signal may have ended it; its folder may be gone
            part.unlink(missing_ok=True)


def load_checkpoint(run: Path) -> dict[str, Any] | None:
    """The state that `save_checkpoint` left in a run folder, on the CPU; None if there is none.

    Raises `GanscopeError` if it is damaged.
    """
    if not (run / CHECKPOINT).exists():
        return None
    with restoring(run):
        state = torch.load(run / CHECKPOINT, map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise TypeError(f"holds a {type(state).__name__}")
        return state


@contextmanager
def restoring(run: Path) -> Iterator[None]:
    """Turn what a checkpoint raises that does not fit into a line that says what to delete."""
    finished = (run / CONFIG).exists()  # another run wants to go on from it
    remedy = "delete its folder, and the same command trains it again"
    if not finished:
        remedy = "delete it, and the same command begins this training anew"
    with damaged(run / CHECKPOINT, remedy):
        yield
