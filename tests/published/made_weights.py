"""Weights of the keys and shapes of published detectors, and of no use."""

import itertools
import math
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor

from ganscope.detector.published import deepfakebench, sbi

Shapes = dict[str, tuple[int, ...]]

State = dict[str, Tensor]


def resnet50(**changes: tuple[int, ...]) -> Shapes:
    """Shapes of torchvision's ResNet-50 with one output; __ in the names of changes is a dot."""
    with torch.device("meta"):
        state = torchvision.models.resnet50(num_classes=1).state_dict()
    changed = {key.replace("__", "."): shape for key, shape in changes.items()}
    return {key: tuple(value.shape) for key, value in state.items()} | changed


def half(outputs: int, **changes: tuple[int, ...]) -> Shapes:
    first = ("conv1.", "bn1.", "layer1.", "layer2.")
    shapes = {k: v for k, v in resnet50(conv1__weight=(64, 3, 3, 3)).items() if k.startswith(first)}
    return shapes | {"fc1.weight": (outputs, 512), "fc1.bias": (outputs,)}


def ladeda() -> Shapes:
    shapes = resnet50(conv1__weight=(64, 3, 1, 1), conv2__weight=(64, 64, 3, 3))
    for key, shape in shapes.items():
        if ".conv2." in key and not key.startswith(("layer1.0.", "layer2.0.")):
            shapes[key] = (*shape[:2], 1, 1)
    return shapes


def norm(name: str, n: int) -> Shapes:
    four = {f"{name}.{part}": (n,) for part in ("weight", "bias", "running_mean", "running_var")}
    return four | {f"{name}.num_batches_tracked": ()}


def tiny_ladeda() -> Shapes:
    return {
        "conv1.weight": (8, 3, 1, 1),
        "conv2.weight": (8, 8, 3, 3),
        "layer1.0.conv1.weight": (8, 8, 1, 1),
        "layer1.0.conv2.weight": (8, 8, 3, 3),
        "fc.weight": (1, 8),
        "fc.bias": (1,),
        **norm("bn1", 8),
        **norm("layer1.0.bn1", 8),
        **norm("layer1.0.bn2", 8),
    }


def freqnet() -> Shapes:
    shapes = {k: v for k, v in half(1).items() if not k.startswith(("conv1.", "bn1."))}
    for i, (before, after) in {1: (3, 64), 2: (64, 64), 3: (256, 256), 4: (256, 256)}.items():
        shapes[f"weight{i}"], shapes[f"bias{i}"] = (after, before, 1, 1), (after,)
        shapes[f"realconv{i}.weight"] = shapes[f"imagconv{i}.weight"] = (after, after, 1, 1)
    return shapes


def clip(width: int = 1024, depth: int = 24, patch: int = 14) -> Shapes:
    """OpenAI's CLIP with a ViT for images, of which the text half is only hinted at."""
    block = {
        "attn.in_proj_weight": (3 * width, width),
        "attn.in_proj_bias": (3 * width,),
        "attn.out_proj.weight": (width, width),
        "attn.out_proj.bias": (width,),
        "ln_1.weight": (width,),
        "ln_1.bias": (width,),
        "mlp.c_fc.weight": (4 * width, width),
        "mlp.c_fc.bias": (4 * width,),
        "mlp.c_proj.weight": (width, 4 * width),
        "mlp.c_proj.bias": (width,),
        "ln_2.weight": (width,),
        "ln_2.bias": (width,),
    }
    return {
        "logit_scale": (),
        "transformer.resblocks.0.ln_1.weight": (768,),
        "visual.class_embedding": (width,),
        "visual.positional_embedding": ((224 // patch) ** 2 + 1, width),
        "visual.proj": (width, 768),
        "visual.conv1.weight": (width, 3, patch, patch),
        **{f"visual.ln_{end}.{part}": (width,) for end in ("pre", "post") for part in PARTS},
        **{
            f"visual.transformer.resblocks.{i}.{k}": s
            for i in range(depth)
            for k, s in block.items()
        },
    }


def vit(width: int, depth: int, patch: int, side: int, dino: bool = False) -> Shapes:
    """A ViT of timm with one output; dino: with four registers and scaled layers, as DINOv2's."""
    block = {
        "norm1.weight": (width,),
        "norm1.bias": (width,),
        "attn.qkv.weight": (3 * width, width),
        "attn.qkv.bias": (3 * width,),
        "attn.proj.weight": (width, width),
        "attn.proj.bias": (width,),
        "norm2.weight": (width,),
        "norm2.bias": (width,),
        "mlp.fc1.weight": (4 * width, width),
        "mlp.fc1.bias": (4 * width,),
        "mlp.fc2.weight": (width, 4 * width),
        "mlp.fc2.bias": (width,),
    } | ({"ls1.gamma": (width,), "ls2.gamma": (width,)} if dino else {})
    return {
        "cls_token": (1, 1, width),
        **({"reg_token": (1, 4, width)} if dino else {}),
        "pos_embed": (1, (side // patch) ** 2 + (not dino), width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
        **{f"blocks.{i}.{k}": s for i in range(depth) for k, s in block.items()},
        "norm.weight": (width,),
        "norm.bias": (width,),
        "head.weight": (1, width),
        "head.bias": (1,),
    }


def community(width: int = 384, depth: int = 12) -> Shapes:
    return {f"vit.{key}": shape for key, shape in vit(width, depth, 16, 384).items()}


def dino(width: int = 768, depth: int = 12) -> Shapes:
    return vit(width, depth, 14, 504, dino=True)


def efficientnet_b4() -> Shapes:
    """In the names of efficientnet_pytorch, with two outputs."""
    shapes = {"_conv_stem.weight": (48, 3, 3, 3), "_conv_head.weight": (1792, 448, 1, 1)}
    shapes |= norm("_bn0", 48) | norm("_bn1", 1792)
    stages = [
        (24, 2, 3),
        (32, 4, 3),
        (56, 4, 5),
        (112, 6, 3),
        (160, 6, 5),
        (272, 8, 5),
        (448, 2, 3),
    ]
    before, number = 48, 0
    for stage, (after, blocks, kernel) in enumerate(stages):
        for _ in range(blocks):
            inner = before * (6 if stage else 1)
            own: Shapes = norm("_bn1", inner) | norm("_bn2", after)
            if stage:
                own |= {"_expand_conv.weight": (inner, before, 1, 1)} | norm("_bn0", inner)
            own |= {
                "_depthwise_conv.weight": (inner, 1, kernel, kernel),
                "_se_reduce.weight": (before // 4, inner, 1, 1),
                "_se_reduce.bias": (before // 4,),
                "_se_expand.weight": (inner, before // 4, 1, 1),
                "_se_expand.bias": (inner,),
                "_project_conv.weight": (after, inner, 1, 1),
            }
            shapes |= {f"_blocks.{number}.{key}": shape for key, shape in own.items()}
            before, number = after, number + 1
    return shapes | {"_fc.weight": (2, 1792), "_fc.bias": (2,)}


def xception(channels: int = 3) -> Shapes:
    """In the names of DeepfakeBench, with the layer that it does not use."""

    def separable(name: str, before: int, after: int) -> Shapes:
        return {
            f"{name}.conv1.weight": (before, 1, 3, 3),
            f"{name}.pointwise.weight": (after, before, 1, 1),
        }

    shapes: Shapes = {"conv1.weight": (32, channels, 3, 3), "conv2.weight": (64, 32, 3, 3)}
    shapes |= norm("bn1", 32) | norm("bn2", 64) | norm("bn3", 1536) | norm("bn4", 2048)
    shapes |= separable("conv3", 1024, 1536) | separable("conv4", 1536, 2048)
    widths = [(64, 128, 128), (128, 256, 256), (256, 728, 728)]
    widths += [(728, 728, 728, 728)] * 8 + [(728, 728, 1024)]
    for block, steps in enumerate(widths, 1):
        for i, (before, after) in enumerate(itertools.pairwise(steps)):
            place = 3 * i + (block > 1)  # the first block begins without an activation
            shapes |= separable(f"block{block}.rep.{place}", before, after)
            shapes |= norm(f"block{block}.rep.{place + 1}", after)
        if steps[0] != steps[-1]:
            shapes[f"block{block}.skip.weight"] = (steps[-1], steps[0], 1, 1)
            shapes |= norm(f"block{block}.skipbn", steps[-1])
    last = "last_linear.1" if channels > 3 else "last_linear"
    shapes |= {"adjust_channel.0.weight": (512, 2048, 1, 1), "adjust_channel.0.bias": (512,)}
    shapes |= norm("adjust_channel.1", 512)
    shapes |= {f"{last}.weight": (2, 2048), f"{last}.bias": (2,)}
    return {f"backbone.{key}": shape for key, shape in shapes.items()}


def f3net() -> Shapes:
    names = ["_DCT_all", "_DCT_all_T"]
    names += [f"filters.{i}.{part}" for i in range(4) for part in ("base", "learnable")]
    return {f"FAD_head.{name}": (256, 256) for name in names} | xception(12)


PARTS = ("weight", "bias")

SMALL = {"width": 64, "depth": 2, "patch": 56}

KEYS: dict[str, Callable[[], Shapes]] = {
    "cnndetect": resnet50,
    "npr": lambda: half(1),
    "univfd": lambda: {"weight": (1, 768), "bias": (1,)},
    "ladeda": ladeda,
    "ladeda-wildrf": ladeda,
    "tiny-ladeda": tiny_ladeda,
    "safe": lambda: half(2),
    "freqnet": freqnet,
    "commfor": lambda: community(64, 2),
    "bfree": lambda: dino(64, 2),
    "sbi": efficientnet_b4,
    "xception-faces": xception,
    "f3net": f3net,
}

TIMMS: dict[str, Callable[[State], State]] = {
    "sbi": sbi.in_timms_names,
    "xception-faces": deepfakebench.in_timms_names,
    "f3net": deepfakebench.in_timms_names,
}
"""Whose weights get timm's names before they are compared."""

WRAPPED = {
    "cnndetect": lambda state: {"model": state, "optimizer": {"state": {}}, "total_steps": 7},
    "safe": lambda state: {"model": state, "epoch": "best", "args": Namespace(lr=1e-3, gpu=0)},
    "freqnet": lambda state: {"model": {f"module.{k}": v for k, v in state.items()}},
    "bfree": lambda state: {"model": state},
    "sbi": lambda state: {"model": {f"net.{k}": v for k, v in state.items()}, "epoch": 7},
}


def weights_of(shapes: Shapes) -> State:
    """Random weights, the same with every version of numpy and torch."""
    random = np.random.RandomState(0)
    state = {}
    for key, shape in sorted(shapes.items()):
        value = torch.tensor(random.standard_normal(shape), dtype=torch.float32)
        if "num_batches" in key:
            value = torch.tensor(5)
        elif key.endswith("running_var"):
            value = value.abs() / 2 + 0.5
        elif len(shape) < 2:
            value = value / 10 + 0.7 * key.endswith("weight")
        elif not key.endswith(("embedding", "proj")):
            value = value * math.sqrt(2 / math.prod(shape[1:]))
        state[key] = value
    return state


def save(name: str, state: State, folder: Path) -> str:
    """Write weights in their published wrapper; what the user names (univfd: with a backbone)."""
    path = folder / f"{name}.pth"
    torch.save(WRAPPED.get(name, dict)(state), path)
    if name != "univfd":
        return str(path)
    save_file(weights_of(clip(**SMALL)), folder / "clip.safetensors")
    return f"{path},{folder / 'clip.safetensors'}"


Saved = Callable[[str], str]


def normal(pixels: np.ndarray) -> np.ndarray:
    """(3, H, W), with ImageNet's mean and std."""
    scaled = (pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    return scaled.transpose(2, 0, 1)
