"""CONTAINER-PAM: DeiT whose attention has a learned static matrix added after the softmax. A READING of the paper.

Gao et al., "Container: Context Aggregation Network", NeurIPS 2021, arXiv 2106.01401. With S of shape
(heads, 1 + N, 1 + N), class token included, the affinity of each head is softmax(Q K^T / sqrt(d)) + S [third-party,
quoting the paper's pseudo code]: :class:`ContextAggregation` of a dynamic and a dense affinity with both weights 1.

Neither code nor weights were released. Inferred here: that the network around it is DeiT without change, one S a block,
and the 0.02 of the truncated normal that S starts from. Nothing is training-only but drop-path.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from repertory.systems.container.aggregation import ContextAggregation, DenseAffinity, DynamicAffinity
from repertory.systems.container.model import PREPROCESSING


class TokenAggregation(nn.Module):
    """:class:`ContextAggregation` of a token sequence (B, N, C), in the place of a transformer's attention.

    Args:
        dim: channels C.
        tokens: length N of the sequences; no other is taken.
        num_heads: heads of both affinities; must divide ``dim``.
        drop: dropout of attention's output.
        backend: ``auto``, or ``reference``, which shows every product to a FLOP counter.
    """

    def __init__(self, dim: int, tokens: int, num_heads: int, drop: float = 0.0, backend: str = "auto") -> None:
        super().__init__()
        dynamic = DynamicAffinity(dim, num_heads, drop, backend)
        self.aggregation = ContextAggregation(dim, [dynamic, DenseAffinity(dim, (tokens, 1), num_heads)])
        for layer in (self.aggregation.project, self.aggregation.output):
            nn.init.trunc_normal_(layer.weight, std=0.02)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """(B, N, C) to (B, N, C). A static matrix has no masked form: ``attn_mask`` and ``is_causal`` are refused."""
        if attn_mask is not None or is_causal:
            raise ValueError("attn_mask or is_causal is given; attention with a static matrix takes neither")
        return self.aggregation(x.transpose(1, 2).unsqueeze(-1)).squeeze(-1).transpose(1, 2)


class ContainerPAM(VisionTransformer):
    """DeiT with a static matrix beside each attention; its classifier reads the class token. A READING of the paper.

    Args:
        num_classes: width of the classifier; 0 leaves the class token.
        in_chans: channels of the images.
        embed_dim: width.
        depth: blocks.
        num_heads: heads of each block.
        img_size: (height, width) of the images, or its side; the static matrices take no other.
        patch_size: side of the patches.
        drop: dropout of tokens and MLPs.
        drop_path: rate of dropped residual branches, rising linearly from 0 over all blocks.
        backend: ``auto``, or ``reference``, which shows every product to a FLOP counter.

    Raises:
        ValueError: for heads that do not divide the width, or sizes that patches do not divide.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        drop: float = 0.0,
        drop_path: float = 0.0,
        backend: str = "auto",
    ) -> None:
        size = (img_size, img_size) if isinstance(img_size, int) else (int(img_size[0]), int(img_size[1]))
        if min(size) < 1 or any(side % patch_size for side in size):
            raise ValueError(f"img_size is {size}; height and width must be multiples of patch_size, {patch_size}")
        if num_heads < 1 or embed_dim % num_heads:
            raise ValueError(f"embed_dim is {embed_dim}; it must be a multiple of num_heads, which is {num_heads}")
        super().__init__(
            img_size=size,
            patch_size=patch_size,
            in_chans=in_chans,
            num_classes=num_classes,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            pos_drop_rate=drop,
            proj_drop_rate=drop,
            drop_path_rate=drop_path,
        )
        self.image_shape = (in_chans, *size)
        self.preprocessing = replace(PREPROCESSING, size=size)
        tokens = 1 + (size[0] // patch_size) * (size[1] // patch_size)
        for block in self.blocks:
            block.attn = TokenAggregation(embed_dim, tokens, num_heads, drop, backend)  # type: ignore[assignment]

    def _check(self, x: Tensor) -> None:
        if x.ndim != 4 or tuple(x.shape[1:]) != self.image_shape:
            channels, height, width = self.image_shape
            raise ValueError(
                f"images are {tuple(x.shape)}; they must be (B, {channels}, {height}, {width}), "
                "since a static matrix is bound to its size: give img_size for another"
            )

    def forward_features(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Tokens (B, 1 + N, embed_dim), the class token first, normalised."""
        self._check(x)
        return super().forward_features(x, *args, **kwargs)

    def forward_intermediates(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Maps of chosen blocks, all at the stride of the patches, as timm's feature extractors ask for them."""
        self._check(x)
        return super().forward_intermediates(x, *args, **kwargs)

    def deploy(self) -> ContainerPAM:
        """A copy for inference: the same parameters, none being training-only, in evaluation mode."""
        model = copy.deepcopy(self).eval()
        model.set_grad_checkpointing(False)
        return model


def container_pam_tiny(num_classes: int = 1000, in_chans: int = 3, **settings: Any) -> ContainerPAM:
    """CONTAINER-PAM on DeiT-Tiny, a READING: 7.1 M parameters. ``settings`` are those of :class:`ContainerPAM`."""
    sizes: dict[str, Any] = {"embed_dim": 192, "num_heads": 3}
    return ContainerPAM(num_classes, in_chans, **sizes | settings)


def container_pam_small(num_classes: int = 1000, in_chans: int = 3, **settings: Any) -> ContainerPAM:
    """CONTAINER-PAM on DeiT-Small, a READING: 24.8 M parameters. ``settings`` are those of :class:`ContainerPAM`."""
    return ContainerPAM(num_classes, in_chans, **settings)


BACKBONES: dict[str, dict[str, Any]] = {  # for timm
    builder.__name__: {
        "feature_cfg": {"out_indices": (2, 5, 8, 11), "feature_cls": "getter"},
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    }
    for builder in (container_pam_tiny, container_pam_small)
}
