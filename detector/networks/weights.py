"""Weights files that others wrote: read without running code in them, and fitted to a network.

What is wrong with one is told in one line: the file, as the user named it, and the keys.
"""

import os
from argparse import Namespace
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ganscope.errors import GanscopeError, reason_of
from ganscope.folders import from_bytes


def read_weights(path: str, said: str) -> dict[str, Tensor]:
    """Name -> tensor of a weights file (.safetensors, .pth), in fp32, on the CPU.

    What training scripts wrap around them ({"state_dict": ...}, {"model": ...}) and put before
    their names (module., net.) is taken off. said: how the user named the file; it begins every
    message. Raises `GanscopeError` if there is no such file or it is no file of plain weights.
    """
    if not os.path.isfile(path):
        raise GanscopeError(f"{said}: no such file")
    try:
        if path.endswith(".safetensors"):
            return _unwrapped(from_bytes(load_file(path), said), said)
        # Many scripts keep their command line, which is plain data, beside the weights.
        with torch.serialization.safe_globals([Namespace]):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError) as error:
        raise GanscopeError(f"{said}: cannot be read ({reason_of(error)})") from None
    except Exception:  # pickle.UnpicklingError and its kin share no other base
        raise GanscopeError(
            f"{said}: not a file of plain weights, and code in such files is not run"
        ) from None
    return _unwrapped(state, said)


def _unwrapped(state: Any, said: str) -> dict[str, Tensor]:
    for wrapper in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict):
        raise GanscopeError(f"{said}: the file holds no dictionary of weights")
    return {
        key.removeprefix("module.").removeprefix("net."): value.float()
        if value.is_floating_point()
        else value
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def load_strictly(
    net: nn.Module, state: dict[str, Tensor], said: str, may_lack: tuple[str, ...] = ()
) -> None:
    """Load weights into a network whose names and shapes they must fit.

    may_lack: beginnings of names that keep what they hold if `state` has none for them. Raises
    `GanscopeError` naming what is missing, what is not in the network and what is of another shape.
    """
    own = net.state_dict()
    faults = {
        "missing": [
            key
            for key in own
            # Nothing but training ever reads how many batches there were.
            if key not in state and not key.startswith(may_lack) and "num_batches" not in key
        ],
        "not in the network": [key for key in state if key not in own],
        "of another shape": [k for k in state if k in own and own[k].shape != state[k].shape],
    }
    if any(faults.values()):
        found = "; ".join(f"{what}: {_some(keys)}" for what, keys in faults.items() if keys)
        raise GanscopeError(f"{said}: its keys do not fit the architecture ({found})")
    net.load_state_dict(state, strict=False)


def _some(keys: list[str], most: int = 5) -> str:
    return ", ".join(keys[:most]) + (f" and {len(keys) - most} more" if len(keys) > most else "")


def load_from_hub(name: str, said: str, offline: str, **options: Any) -> nn.Module:
    """A backbone of timm with the weights that timm publishes for it; options: for timm.

    Raises `GanscopeError` if they are not to be had; offline: what to do then without a network.
    """
    try:
        return timm.create_model(name, pretrained=True, **options)
    except (OSError, RuntimeError, ValueError) as error:
        raise GanscopeError(
            f"{said}: the weights of {name} are not to be had ({reason_of(error)}); "
            f"offline, {offline}"
        ) from None
