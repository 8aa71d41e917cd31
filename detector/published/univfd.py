"""UnivFD: a linear classifier on the image features of CLIP's ViT-L/14.

Ojha, Li, Lee: Towards universal fake image detectors that generalize across generative models, CVPR
2023, arXiv:2302.10174. https://github.com/WisconsinAIVision/UniversalFakeDetect, MIT.

Weights: `univfd`, `univfd:HEAD` or `univfd:HEAD,BACKBONE`. HEAD is the repository's
`pretrained_weights/fc_weights.pth`, downloaded where it is not named. Without BACKBONE, timm
fetches OpenAI's CLIP from the hub, of whatever revision is there; offline, BACKBONE is the weights
file of https://huggingface.co/timm/vit_large_patch14_clip_224.openai, in timm's names or with the
whole of CLIP in OpenAI's.

Preprocessing: the central 224x224, smaller images on black, CLIP's mean and std.
"""

import numpy as np
import timm
from timm.data.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from torch import Tensor, nn

from ganscope.detector.networks.weights import load_from_hub, load_strictly, read_weights
from ganscope.detector.published.detector import PublishedDetector
from ganscope.detector.published.preparing import cropped, normalised
from ganscope.folders import hash_files

TOWER = "vit_large_patch14_clip_quickgelu_224.openai"
"""CLIP's image tower and projection; timm's namesake without quickgelu computes other features."""
FEATURES = 768
NAMES = (
    ("conv1", "patch_embed.proj"),
    ("class_embedding", "cls_token"),
    ("positional_embedding", "pos_embed"),
    ("ln_pre", "norm_pre"),
    ("ln_post", "norm"),
    ("transformer.resblocks", "blocks"),
    ("attn.in_proj_", "attn.qkv."),
    ("attn.out_proj", "attn.proj"),
    ("ln_1", "norm1"),
    ("ln_2", "norm2"),
    ("mlp.c_fc", "mlp.fc1"),
    ("mlp.c_proj", "mlp.fc2"),
)
"""Parts of names: OpenAI's, timm's."""


class UnivFD(nn.Module):
    """The tower's features (N, 768), as they are, into one logit."""

    def __init__(self, tower: nn.Module, fc: nn.Module):
        super().__init__()
        self.tower, self.fc = tower, fc

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.tower(x)).squeeze(1)


def in_timms_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The image tower's tensors under timm's names, from a state of the whole CLIP model.

    Any other state is given back as it is.
    """
    if "visual.class_embedding" not in state:
        return state
    found = {}
    for key, value in state.items():
        if not key.startswith("visual."):
            continue
        key = key.removeprefix("visual.")
        if key == "proj":
            found["head.weight"], found["head.bias"] = value.T, value.new_zeros(value.shape[1])
            continue
        for theirs, timms in NAMES:
            key = key.replace(theirs, timms)
        found[key] = value.reshape(1, -1, value.shape[-1]) if "." not in key else value
    return found


def prepare(pixels: np.ndarray) -> Tensor:
    return normalised(cropped(pixels, 224), OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)


def load(weights: str) -> PublishedDetector:
    """A linear classifier on CLIP's features of the central 224x224 (Ojha et al., CVPR 2023)."""
    head, _, backbone = weights.partition(",")
    fc = nn.Linear(FEATURES, 1)
    load_strictly(fc, read_weights(head, f"univfd:{head}"), f"univfd:{head}")
    if backbone:
        said = f"univfd's backbone {backbone}"
        tower = timm.create_model(TOWER)
        load_strictly(tower, in_timms_names(read_weights(backbone, said)), said)
    else:
        tower = load_from_hub(TOWER, "univfd", "name the file: univfd:HEAD,BACKBONE")
    files = [head, backbone] if backbone else [head]
    return PublishedDetector("univfd", UnivFD(tower, fc).eval(), prepare, hash_files(*files))
