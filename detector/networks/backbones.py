"""A backbone of timm with one logit as its head."""

from typing import Any

import timm
import torch.nn.functional as F
from timm.models.efficientnet import EfficientNet
from timm.models.resnet import ResNet
from torch import Tensor, nn

FINEST, WIDTH = 8, 32
"""Of the head that says where: the finest stride that it sees, and its channels."""


class TimmNet(nn.Module):
    """A backbone of timm with one output.

    size: image side for networks that are built for one size (vision transformers), else unused.
    stem_stride: stride of the first convolution; 1 keeps traces that a stride of 2 would lose.
    where: with a head of its own that says which places are fake; it sees the feature maps of all
    strides from `FINEST` on.
    """

    def __init__(
        self,
        name: str,
        size: int | None = None,
        stem_stride: int | None = None,
        where: bool = False,
    ):
        super().__init__()
        self.name = name
        self.options: dict[str, Any] = {"img_size": size} if size else {}
        self.backbone: Any
        self.backbone = timm.create_model(name, num_classes=1, **self.options)
        for name in self.head_names():
            # Some backbones begin with logits of +-10 where one output is asked for, and spend
            # their training on coming back.
            for parameter in self.backbone.get_submodule(name).parameters():
                nn.init.normal_(parameter, std=0.01)
        if stem_stride:
            stem = next(m for m in self.backbone.modules() if isinstance(m, nn.Conv2d))
            stem.stride = (stem_stride, stem_stride)
        self.where: nn.Module | None = None
        if where:
            info = self.backbone.feature_info
            strides = {info[i]["reduction"]: i for i in range(len(info))}  # the last of each
            self.read = sorted(i for stride, i in strides.items() if stride >= FINEST)
            if not self.read or not hasattr(self.backbone, "forward_intermediates"):
                raise ValueError(f"{self.name} has no feature maps to read")
            self.where = nn.ModuleDict(
                {
                    "maps": nn.ModuleList(
                        nn.Conv2d(info[i]["num_chs"], WIDTH, 1) for i in self.read
                    ),
                    "head": nn.Conv2d(WIDTH, 1, 3, padding=1),
                }
            )

    def where_logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (N, h, w) of places, by the head that sees them, and those of the images (N,).

        Only with `where`.
        """
        assert isinstance(self.where, nn.ModuleDict)
        last, found = self.backbone.forward_intermediates(x, indices=self.read)
        total: Any = 0
        layers: Any = self.where["maps"]
        for layer, features in zip(layers, found, strict=True):
            total = total + F.interpolate(
                layer(features), found[0].shape[2:], mode="bilinear", align_corners=False
            )
        local = self.where["head"](F.relu(total)).squeeze(1)
        return local.float(), self.backbone.forward_head(last).flatten().float()

    def forward(self, x: Tensor) -> Tensor:
        return self.backbone(x).flatten().float()

    @property
    def has_map(self) -> bool:
        """Whether the logit is the mean of a map: the classifier sees averages, and is linear."""
        pool = getattr(self.backbone, "global_pool", None)
        return (
            isinstance(self.backbone, EfficientNet | ResNet)
            and getattr(pool, "pool_type", "") == "avg"
            and isinstance(self.backbone.get_classifier(), nn.Linear)
        )

    def patch_logits(self, x: Tensor) -> Tensor | None:
        """Logits of all positions of the last feature map (Zhou et al. 2016, arXiv:1512.04150)."""
        if not self.has_map:
            return None
        features = self.backbone.forward_features(x).permute(0, 2, 3, 1)
        return self.backbone.get_classifier()(features).squeeze(-1).float()

    def head_names(self) -> tuple[str, ...]:
        """Names of the classifier's layers inside the backbone."""
        names = self.backbone.pretrained_cfg.get("classifier") or ()
        return (names,) if isinstance(names, str) else tuple(names)

    def gradcam_layers(self) -> list[nn.Module]:
        blocks = getattr(self.backbone, "blocks", None)
        if blocks is not None and hasattr(blocks[-1], "norm1"):
            return [blocks[-1].norm1]  # in a transformer only the class token outlives this layer
        return [self.backbone.get_submodule(self.backbone.feature_info[-1]["module"])]
