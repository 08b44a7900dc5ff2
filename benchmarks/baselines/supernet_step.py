"""A network of its own for every size, as one would train them without a supernet: timm's vision transformers.

Frozen: what a step of the supernet is timed against. Each network meets images of the size that gives it the tokens of
the sub-model that it stands for, runs forward and backward by itself, and its gradients belong to nobody else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional as F


def separate_step(
    sizes: Sequence[tuple[int, int, int]], images: Tensor, labels: Tensor, classes: int, head_width: int = 64
) -> Callable[[], None]:
    """The call to measure: ``sizes`` are (heads, blocks, side in pixels), the first the teacher of the others."""
    models = [
        VisionTransformer(
            img_size=side, num_classes=classes, embed_dim=head_width * heads, num_heads=heads, depth=depth
        ).to(images.device)
        for heads, depth, side in sizes
    ]
    resized = [F.interpolate(images, (side, side), mode="bilinear") for _, _, side in sizes]

    def call() -> None:
        teacher = None
        for model, inputs in zip(models, resized, strict=True):
            model.zero_grad()
            logits = model(inputs)
            if teacher is None:
                teacher = logits.detach()
                loss = F.cross_entropy(logits, labels)
            else:
                student = F.log_softmax(logits, 1)
                loss = F.kl_div(student, F.log_softmax(teacher, 1), reduction="batchmean", log_target=True)
            loss.backward()

    torch.manual_seed(0)
    return call
