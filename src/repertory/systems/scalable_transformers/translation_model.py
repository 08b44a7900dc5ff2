"""Scalable Transformers for translation: an encoder and a decoder whose leading channels are smaller ones.

Gao et al., "Scalable Transformers for Neural Machine Translation", arXiv 2106.02242 (2021). A reading: the abstract
says that every sub-Transformer is a crop of the largest one's parameters; no code of the translation model is public.
What is inferred is an argument here, or said where it stands:

- sizes, and post-norm layers, after the standard Transformer (``norm_first``);
- one embedding for source, target and output words, cropped on its channel side alone;
- sinusoidal positions with sines and cosines in turn, so that a crop keeps whole pairs of them, the fastest ones;
- words are scaled by the root of the *whole* width in every crop (``embed_scale``), so that a crop's embedding is the
  crop of the embedding;
- crops in depth, which the vision version has and the abstract does not name.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repertory.data.translation_vocabulary import PADDING
from repertory.systems.scalable_transformers.crops import Crop, CropSpace, crop_of_width
from repertory.systems.scalable_transformers.layers import (
    CroppedLayerNorm,
    CroppedLinear,
    FeedForward,
    copy_leading,
    leading,
)
from repertory.systems.scalable_transformers.model import check_sizes

KeyValues = tuple[Tensor, Tensor]


class CrossAttention(nn.Module):
    """Attention of ``x`` to keys and values that are projected once and kept; heads keep their width."""

    def __init__(self, dim: int, num_heads: int, drop: float) -> None:
        super().__init__()
        self.head_width, self.drop = dim // num_heads, drop
        self.query, self.key, self.value, self.out = (CroppedLinear(dim, dim) for _ in range(4))

    def project(self, x: Tensor) -> KeyValues:
        """Keys and values (B, h, N, d) of ``x`` (B, N, C)."""
        return self._heads(self.key(x, x.shape[-1])), self._heads(self.value(x, x.shape[-1]))

    def forward(self, x: Tensor, context: KeyValues, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """(B, T, C) to the same; ``mask`` (B, 1, 1, N) is true where there is something to attend to."""
        query, drop = self._heads(self.query(x, x.shape[-1])), self.drop if self.training else 0.0
        out = F.scaled_dot_product_attention(query, *context, mask, drop, causal, scale=self.head_width**-0.5)
        return self.out(out.transpose(1, 2).flatten(2), x.shape[-1])

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_width)).transpose(1, 2)


class Residual(nn.Module):
    """What every sub-layer is wrapped in: dropout, the sum with its input, and a norm after or before it."""

    def __init__(self, dim: int, drop: float, norm_first: bool) -> None:
        super().__init__()
        self.norm, self.drop, self.norm_first = CroppedLayerNorm(dim), nn.Dropout(drop), norm_first

    def forward(self, x: Tensor, layer: Callable[[Tensor], Tensor]) -> Tensor:
        """(B, T, C) to the same."""
        if self.norm_first:
            return x + self.drop(layer(self.norm(x)))
        return self.norm(x + self.drop(layer(x)))


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: int, drop: float, norm_first: bool) -> None:
        super().__init__()
        self.attention, self.mlp = CrossAttention(dim, num_heads, drop), FeedForward(dim, mlp_ratio, drop, F.relu)
        self.around_attention, self.around_mlp = (Residual(dim, drop, norm_first) for _ in range(2))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, S, C) to the same; ``mask`` (B, 1, 1, S) is false at padding."""
        x = self.around_attention(x, lambda y: self.attention(y, self.attention.project(y), mask))
        return self.around_mlp(x, self.mlp)


class DecoderLayer(nn.Module):
    """Self-attention to what has been said, attention to the source, feed-forward."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: int, drop: float, norm_first: bool) -> None:
        super().__init__()
        self.attention, self.cross = (CrossAttention(dim, num_heads, drop) for _ in range(2))
        self.mlp = FeedForward(dim, mlp_ratio, drop, F.relu)
        self.around_attention, self.around_cross, self.around_mlp = (Residual(dim, drop, norm_first) for _ in range(3))

    def forward(self, x: Tensor, source: KeyValues, mask: Tensor) -> Tensor:
        """All words at once, each seeing those before it: (B, T, C) to the same."""
        x = self.around_attention(x, lambda y: self.attention(y, self.attention.project(y), causal=True))
        x = self.around_cross(x, lambda y: self.cross(y, source, mask))
        return self.around_mlp(x, self.mlp)

    def step(self, x: Tensor, past: KeyValues | None, source: KeyValues, mask: Tensor) -> tuple[Tensor, KeyValues]:
        """One more word of every hypothesis, (B, K, C) to the same, and keys and values (B * K, h, t, d) with it.

        Hypotheses of a sentence attend to its source side by side, so that the source is held once for all of them.
        """
        sentences, beams, _ = x.shape
        kept: list[KeyValues] = []

        def attend(y: Tensor) -> Tensor:
            y = y.reshape(sentences * beams, 1, -1)
            new = self.attention.project(y)
            known = new if past is None else tuple(torch.cat([a, b], 2) for a, b in zip(past, new))
            kept.append((known[0], known[1]))
            return self.attention(y, kept[0]).reshape(sentences, beams, -1)

        x = self.around_attention(x, attend)
        x = self.around_cross(x, lambda y: self.cross(y, source, mask))
        return self.around_mlp(x, self.mlp), kept[0]


class ScalableTransformer(nn.Module):
    """An encoder-decoder Transformer and all its sub-models.

    Sentences are rows of token numbers, padded at the end by zeros. ``forward(source, target)`` gives the logits of the
    next word at each place of ``target``, by the whole network or by the sub-model of a :class:`Crop`.

    Args:
        vocabulary: number of tokens, the special ones among them.
        embed_dim: width of the whole; ``num_heads`` must divide it. Sub-widths are multiples of a head's width.
        depth: layers of the encoder, and of the decoder.
        num_heads: heads of the whole.
        mlp_ratio: hidden width of the feed-forward over the width, a whole number.
        drop: dropout of embeddings, of every sub-layer's output, and of attention weights.
        max_length: most tokens of a sentence, with its end mark.
        norm_first: normalise before a sub-layer (and once at the end) in place of after it.
        embed_scale: factor of the embeddings; None is the root of ``embed_dim``.

    Raises:
        ValueError: for sizes that do not divide.
    """

    def __init__(
        self,
        vocabulary: int,
        embed_dim: int = 512,
        depth: int = 6,
        num_heads: int = 8,
        mlp_ratio: float = 4,
        drop: float = 0.1,
        max_length: int = 256,
        norm_first: bool = False,
        embed_scale: float | None = None,
    ) -> None:
        super().__init__()
        self.settings = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        check_sizes(embed_dim, depth, num_heads, mlp_ratio)
        if embed_dim % 2:
            raise ValueError(f"embed_dim is {embed_dim}; it must be even, for sines and cosines of positions")
        if vocabulary < 1:
            raise ValueError(f"vocabulary is {vocabulary}; it must be at least 1")
        self.vocabulary, self.embed_dim, self.num_heads = vocabulary, embed_dim, num_heads
        self.head_width, self.max_length = embed_dim // num_heads, max_length
        self.embed_scale = math.sqrt(embed_dim) if embed_scale is None else embed_scale
        self.embedding = nn.Embedding(vocabulary, embed_dim)
        self.register_buffer("positions", sinusoids(max_length, embed_dim), persistent=False)
        self.drop = nn.Dropout(drop)
        sizes = (embed_dim, num_heads, int(mlp_ratio), drop, norm_first)
        self.encoder = nn.ModuleList(EncoderLayer(*sizes) for _ in range(depth))
        self.decoder = nn.ModuleList(DecoderLayer(*sizes) for _ in range(depth))
        self.encoder_norm, self.decoder_norm = (
            CroppedLayerNorm(embed_dim) if norm_first else nn.Identity() for _ in range(2)
        )
        nn.init.normal_(self.embedding.weight, std=embed_dim**-0.5)
        for module in self.modules():
            if isinstance(module, CroppedLinear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def crop(self, crop: Crop | None = None) -> Crop:
        """``crop`` with nothing left open.

        Raises:
            TypeError, ValueError: naming the size that this network does not have.
        """
        crop = (crop or Crop()).within(self.num_heads, len(self.encoder))
        if crop.resolution is not None:
            raise ValueError(f"resolution is {crop.resolution}; sentences have none, so it must be None")
        return crop

    def crop_space(self, heads: tuple[int, ...] | None = None, depths: tuple[int, ...] | None = None) -> CropSpace:
        """The sub-models to train: those named, and else (inferred) every second width at the whole depth."""
        if heads is None:
            heads = tuple(range(self.num_heads, 0, -max(1, self.num_heads // 4)))
        return CropSpace(heads, depths or (len(self.encoder),)).within(self.num_heads, len(self.encoder))

    def embed(self, tokens: Tensor, width: int, first: int = 0) -> Tensor:
        """Embeddings (B, T, ``width``) of ``tokens`` (B, T), of which the first stands at place ``first``.

        Raises:
            ValueError: for a sentence over ``max_length``.
        """
        length = first + tokens.shape[1]
        if length > self.max_length:
            raise ValueError(
                f"a sentence has {length} tokens; the limit of the model, max_length, is {self.max_length}"
            )
        words = F.embedding(tokens, leading(self.embedding.weight, self.vocabulary, width))
        return self.drop(words * self.embed_scale + self.get_buffer("positions")[first:length, :width])

    def encode(self, source: Tensor, crop: Crop | None = None) -> tuple[list[KeyValues], Tensor]:
        """What the decoder attends to of ``source`` (B, S): keys and values for each of its layers, and the mask.

        Raises:
            ValueError: for a sentence over ``max_length``, or a token that the vocabulary does not have.
        """
        crop = self.crop(crop)
        assert crop.heads is not None
        self.check_tokens(source)
        mask = (source != PADDING)[:, None, None]
        x = self.embed(source, crop.heads * self.head_width)
        for layer in list(self.encoder)[: crop.depth]:
            x = layer(x, mask)
        x = self.encoder_norm(x)
        layers: list[Any] = list(self.decoder)[: crop.depth]
        return [layer.cross.project(x) for layer in layers], mask

    def decode(self, target: Tensor, source: list[KeyValues], mask: Tensor) -> Tensor:
        """Logits (B, T, vocabulary) of the word after each of ``target`` (B, T), of the crop that encoded the source.

        Padding stands at the end, where no word before it can see it.
        """
        x = self.embed(target, self._width(source))
        for layer, context in zip(self.decoder, source):
            x = layer(x, context, mask)
        return self._logits(x)

    def step(
        self, tokens: Tensor, place: int, past: list[KeyValues] | None, source: list[KeyValues], mask: Tensor
    ) -> tuple[Tensor, list[KeyValues]]:
        """Logits (B, K, vocabulary) after one more word ``tokens`` (B, K) at ``place``, and what the next one needs.

        ``past`` holds keys and values (B * K, h, place, d) of every layer, None at the first place.
        """
        x = self.embed(tokens.flatten()[:, None], self._width(source), place).reshape(*tokens.shape, -1)
        kept = []
        layers: list[Any] = list(self.decoder)
        for index, context in enumerate(source):
            x, known = layers[index].step(x, past[index] if past else None, context, mask)
            kept.append(known)
        return self._logits(x), kept

    def forward(self, source: Tensor, target: Tensor, crop: Crop | None = None) -> Tensor:
        """Logits (B, T, vocabulary) of the next word at each place of ``target`` (B, T), given ``source`` (B, S)."""
        self.check_tokens(target)
        return self.decode(target, *self.encode(source, crop))

    def _width(self, source: list[KeyValues]) -> int:
        return source[0][0].shape[1] * self.head_width

    def _logits(self, x: Tensor) -> Tensor:
        """The vocabulary is never cropped: only the channels that its embedding is compared in."""
        return F.linear(self.decoder_norm(x), leading(self.embedding.weight, self.vocabulary, x.shape[-1]))

    def check_tokens(self, tokens: Tensor) -> None:
        """ValueError where a token is not of this network's vocabulary, or the row is longer than ``max_length``."""
        if tokens.ndim != 2 or tokens.shape[1] > self.max_length:
            raise ValueError(f"tokens are {tuple(tokens.shape)}; they must be (B, T), T at most {self.max_length}")
        if torch.compiler.is_compiling() or not tokens.numel():
            return
        least, most = tokens.aminmax()
        if least < 0 or most >= self.vocabulary:
            wrong = int(most if most >= self.vocabulary else least)
            raise ValueError(f"token {wrong} is not of the model's vocabulary, which has 0 to {self.vocabulary - 1}")

    def extract(
        self, width: int | None = None, depth: int | None = None, *, heads: int | None = None
    ) -> ScalableTransformer:
        """A network of its own with the parameters that the sub-model uses, contiguous, and no others.

        Its output is that of the crop. Give ``width`` in channels or ``heads``; what is left out stays whole.

        Raises:
            TypeError, ValueError: naming the size that this network does not have.
        """
        crop = self.crop(Crop(crop_of_width(width, heads, self.head_width), depth))
        assert crop.heads is not None
        changed = {
            "embed_dim": crop.heads * self.head_width,
            "num_heads": crop.heads,
            "depth": crop.depth,
            "embed_scale": self.embed_scale,
        }
        with torch.device("meta"):  # nothing is drawn that would be overwritten
            part = ScalableTransformer(**{**self.settings, **changed})
        whole = self.embedding.weight
        copy_leading(self, part.to(whole.dtype).to_empty(device=whole.device))
        part.positions = leading(self.get_buffer("positions"), self.max_length, part.embed_dim).contiguous()
        return part.train(self.training)


def sinusoids(length: int, width: int) -> Tensor:
    """Positions (length, width): sine and cosine in turn, of wavelengths from 2 pi to 20,000 pi."""
    rates = torch.exp(torch.arange(0, width, 2, dtype=torch.float64) * (-math.log(10_000) / width))
    angles = torch.arange(length, dtype=torch.float64)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1).float()
