"""Vision transformers read at several depths: normalised images (N, 3, H, W) in, logits (N,) out.

What tells generated images from photographs lies in the middle of a large backbone, not at its end,
where only the content is left. So the class token and the patches' mean are taken after several
blocks, what comes after the last of them is cut off, and one classifier sees them all.
"""

import copy
from collections.abc import Sequence
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from ganscope.detector.networks.face_head import FaceHead, unbiased, zones
from ganscope.detector.networks.reads import usual_reads


class BlockFeatures(nn.Module):
    """A transformer of timm, read after several of its blocks.

    name: of timm. reads: block (from 0) and what of it, "cls" or "mean" (of the patches), each a
    part of the features; None: `usual_reads`. map_block: the block whose patches each give a logit
    of their own, too; None: the last of those read. hidden: width of a curved (two-layer)
    classifier beside the linear one, 0 for none. beside: width of a curved classifier of what the
    untouched twin `plain` of the backbone reads, 0 for none. where: the blocks whose patches say
    where a picture is fake, by a linear layer of their own that was fitted to pictures fake in
    parts (patches know where in the view they are, so each place has a bias); None: the head's
    share in the map. where_plain: blocks of `plain` that say it with them. where_own: blocks of a
    third backbone, `local`, that say it with them; it learned nothing else. size: side of its
    images where timm's is another.

    features (N, D): every part normalised over its width without weights of its own, the mean of
    the patches of `map_block` last. logit = head(features) + curve(features). As the head is
    linear, its share in the last part is a map of logits, one a patch.
    """

    def __init__(
        self,
        name: str,
        *,
        reads: Sequence[Sequence[Any]] | None = None,
        map_block: int | None = None,
        hidden: int = 0,
        where: int | Sequence[int] | None = None,
        where_plain: Sequence[int] = (),
        where_own: Sequence[int] = (),
        beside: int = 0,
        size: int | None = None,
    ):
        super().__init__()
        self.options: dict[str, Any] = {"img_size": size} if size else {}
        self.name = name
        self.backbone: Any
        self.backbone = timm.create_model(name, num_classes=0, **self.options)
        depth = len(self.backbone.blocks)
        prefix = bool(self.backbone.num_prefix_tokens)
        if reads is None:
            reads, usual_map = usual_reads(depth, prefix)
            map_block = usual_map if map_block is None else map_block
        self.reads = [(int(block), str(what)) for block, what in reads]
        self.blocks = sorted({block for block, _ in self.reads})
        self.map_block = self.blocks[-1] if map_block is None else map_block
        where = [] if where is None else [where] if isinstance(where, int) else where
        self.where_blocks = [int(block) for block in where]
        self.where_plain = [int(block) for block in where_plain]
        if self.where_plain and not (beside and self.where_blocks):
            raise ValueError("where_plain without beside and where")
        wanted = sorted({*self.blocks, self.map_block, *self.where_blocks, *self.where_plain})
        self.where_own = sorted({int(block) for block in where_own})
        kept = sorted({*wanted, *self.where_own})
        if kept[0] < 0 or kept[-1] >= depth:
            raise ValueError(f"blocks {kept} of a transformer that has {depth}")
        if not prefix and any(what == "cls" for _, what in self.reads):
            raise ValueError(f"{name} has no class token to read")
        self.wanted = wanted
        self.backbone.prune_intermediate_layers(kept, prune_norm=True, prune_head=True)
        self.width = int(self.backbone.embed_dim)
        features = self.width * (len(self.reads) + 1)
        self.head = nn.Linear(features, 1)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)
        self.curve: nn.Module | None = None
        if hidden:
            self.curve = _curved(features, hidden)
        self.plain: Any = None
        self.beside: nn.Module | None = None
        if beside:
            self.plain = copy.deepcopy(self.backbone)
            self.beside = _curved(features, beside)
        self.local: Any = None
        if self.where_own:
            self.local = copy.deepcopy(self.backbone)
        self.where: nn.Linear | None = None
        looked_at = [*self.where_blocks, *self.where_plain, *self.where_own]
        if looked_at:
            self.where = nn.Linear(self.width * len(looked_at), 1, bias=False)
            places = int(self.backbone.patch_embed.num_patches)
            self.where_bias = nn.Parameter(torch.zeros(places))

    def read(
        self, x: Tensor, blocks: Sequence[int] = (), backbone: Any = None
    ) -> tuple[Tensor, Tensor]:
        """Features (N, D), and the patches after blocks that are read (N, h*w, blocks * width);
        without any, those of the map. backbone: None for the fine-tuned one.
        """
        after = self._after(self.wanted, x, backbone or self.backbone)

        def part(block: int, what: str) -> Tensor:
            tokens, first = after[block]
            return self._normal(first[:, 0] if what == "cls" else tokens.mean(1))

        of_map = self._normal(after[self.map_block][0])
        parts = [part(number, what) for number, what in self.reads]
        local = [self._normal(after[number][0]) for number in blocks] or [of_map]
        return torch.cat([*parts, of_map.mean(1)], 1), torch.cat(local, 2)

    def _after(self, blocks: list[int], x: Tensor, backbone: Any) -> dict[int, Any]:
        """Block -> what comes out of it: patches (N, h*w, width), and the tokens before them."""
        found = backbone.forward_intermediates(
            x.to(next(backbone.parameters()).dtype),
            indices=blocks,
            return_prefix_tokens=True,
            norm=False,
            stop_early=True,
            output_fmt="NLC",
            intermediates_only=True,
        )
        whole = [one if isinstance(one, tuple) else (one, one) for one in found]
        return dict(zip(blocks, whole, strict=True))

    def in_bf16(self) -> "BlockFeatures":
        """The same network with backbones of its own in bf16; images and logits stay float32."""
        twin = copy.copy(self)
        twin._modules = dict(self._modules)
        for name in ("backbone", "plain", "local"):
            own = getattr(self, name)
            setattr(twin, name, None if own is None else copy.deepcopy(own).bfloat16())
        return twin

    def face_features(self, x: Tensor, block: int, margin: float) -> Tensor:
        """What a `FaceHead` looks at in squares around faces: (N, PARTS * width) float32. Of the
        untouched backbone, where there is one, else of the only one.
        """
        backbone = self.backbone if self.plain is None else self.plain
        patches, first = self._after([block], x, backbone)[block]
        normal = self._normal(patches)
        within = zones(self._grid(x)[0], margin)
        weights = torch.from_numpy(within).to(x.device)
        mean, square = weights @ normal, weights @ normal.square()
        more = torch.from_numpy(unbiased(within)).to(x.device)
        spread = ((square - mean.square()) * more).clamp_min(0).sqrt()
        return torch.cat([self._normal(first[:, :1]), mean, spread], 1).flatten(1)

    def face_logits(self, x: Tensor, head: FaceHead) -> Tensor:
        """Logits (N,) that the faces in squares around them were put there."""
        weight = torch.from_numpy(head.weight).to(x.device)
        return self.face_features(x, head.block, head.margin) @ weight + head.bias

    def _normal(self, tokens: Tensor) -> Tensor:
        return F.layer_norm(tokens.float(), (self.width,))

    def features(self, x: Tensor) -> Tensor:
        return self.read(x)[0]

    def classify(self, features: Tensor) -> Tensor:
        """features (N, D) -> logits (N,), without what `beside` has to say."""
        logits = self.head(features)
        if self.curve is not None:
            logits = logits + self.curve(features)
        return logits.squeeze(1).float()

    def forward(self, x: Tensor) -> Tensor:
        return self._logits(x, self.features(x))

    def _logits(self, x: Tensor, features: Tensor, second: Tensor | None = None) -> Tensor:
        """second: what `plain` reads, if it was asked already."""
        logits = self.classify(features)
        if self.beside is not None:
            if second is None:
                second, _ = self.read(x, backbone=self.plain)
            logits = logits + self.beside(second).squeeze(1).float()
        return logits

    def patch_logits(self, x: Tensor) -> Tensor:
        """(N, h, w): the image's logit, moved at each patch by as much as the patch differs from
        the others; the mean is the logit.
        """
        features, patches = self.read(x)
        local = patches @ self.head.weight[0, -self.width :]
        local = local - local.mean(1, keepdim=True) + self._logits(x, features)[:, None]
        return local.unflatten(1, self._grid(x)).float()

    def where_logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (N, h, w) of the patches alone, and those of the images (N,).

        Only with `where`; without, `patch_logits` says what there is to say of places.
        """
        features, second, patches = self.patches(x)
        return self._places(x, patches), self._logits(x, features, second)

    def read_places(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features (N, D), and the logits (N, h, w) of the patches alone; only with `where`."""
        features, _, patches = self.patches(x)
        return features, self._places(x, patches)

    def patches(self, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """Features (N, D), those that `plain` reads if it was asked, and what the layer `where`
        looks at: patches (N, h*w, blocks * width), those of the fine-tuned backbone first, of
        `local` last.
        """
        features, patches = self.read(x, self.where_blocks)
        second, seen = None, [patches] if self.where_blocks else []
        if self.where_plain:
            second, others = self.read(x, self.where_plain, self.plain)
            seen.append(others)
        if self.where_own:
            seen.append(self._own_patches(x))
        return features, second, torch.cat(seen, 2)

    @property
    def places_apart(self) -> bool:
        """Whether `local` alone says where."""
        return bool(self.where_own) and not (self.where_blocks or self.where_plain)

    def own_places(self, x: Tensor, dropout: float = 0.0) -> Tensor:
        """Logits (N, h, w) of the patches where `local` alone says where; asks nothing else.

        dropout: share of what the layer `where` looks at that is left out, as it learns.
        """
        return self._places(x, F.dropout(self._own_patches(x), dropout, dropout > 0))

    def _own_patches(self, x: Tensor) -> Tensor:
        after = self._after(self.where_own, x, self.local)
        return torch.cat([self._normal(after[block][0]) for block in self.where_own], 2)

    def _places(self, x: Tensor, patches: Tensor) -> Tensor:
        assert self.where is not None
        local = self.where(patches).squeeze(-1) + self.where_bias
        return local.unflatten(1, self._grid(x)).float()

    def _grid(self, x: Tensor) -> tuple[int, int]:
        return self.backbone.patch_embed.dynamic_feat_size(x.shape[-2:])

    def of_backbone(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The part of a whole transformer's weights, in timm's names, that this network keeps."""
        depth = len(self.backbone.blocks)

        def kept(key: str) -> bool:
            if key.startswith("blocks."):
                return int(key.split(".")[1]) < depth
            return not key.startswith(("norm.", "head.", "fc_norm.", "head_drop.", "attn_pool."))

        return {f"backbone.{key}": value for key, value in state.items() if kept(key)}

    def twin_of(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The backbone's weights (`of_backbone`) once more, for `plain` and `local`, where they
        are.
        """
        own = self.state_dict().keys()
        copies = {
            f"{twin}.{key.removeprefix('backbone.')}": value
            for key, value in state.items()
            if key.startswith("backbone.")
            for twin in ("plain", "local")
        }
        return {key: value for key, value in copies.items() if key in own}

    def at_own_size(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights (`of_backbone`) of images of another size, positions resampled to this one's."""
        name = "backbone.pos_embed"
        mine, theirs = getattr(self.backbone, "pos_embed", None), state.get(name)
        if mine is None or theirs is None or theirs.ndim != 3 or mine.shape == theirs.shape:
            return state
        if mine.shape[-1] != theirs.shape[-1]:
            return state  # of another network, which will be told
        prefix = 0 if self.backbone.no_embed_class else self.backbone.num_prefix_tokens
        grid = self.backbone.patch_embed.grid_size
        moved = resample_abs_pos_embed(theirs, new_size=list(grid), num_prefix_tokens=prefix)
        return {**state, name: moved}

    def gradcam_layers(self) -> list[nn.Module]:
        return [self.backbone.blocks[-1].norm1]


def _curved(features: int, hidden: int) -> nn.Sequential:
    """features (N, D) -> (N, 1), which is 0 before it learns."""
    last = nn.Linear(hidden, 1)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(features, hidden), nn.GELU(), last)
