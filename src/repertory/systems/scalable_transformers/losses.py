"""What sub-models learn from the widest: its distribution, without a gradient into it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from repertory.systems.scalable_transformers.crops import Crop

SUPERVISIONS = ("distillation", "labels")


def distillation_loss(
    student: Tensor, teacher: Tensor, temperature: float = 1.0, counts: Tensor | None = None
) -> Tensor:
    """KL(teacher || student), summed over classes and averaged over rows; the teacher gets no gradient.

    Args:
        student: logits (…, K).
        teacher: logits (…, K), detached here.
        temperature: T, which divides both; the loss is multiplied by T ** 2, as the authors do (at T = 1).
        counts: which rows count (…), bool: of a sentence, those that are no padding. None is all; where none counts the
            loss is zero.

    Raises:
        ValueError: for a temperature that is not above 0, or shapes that differ.
    """
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be above 0")
    if student.shape != teacher.shape:
        raise ValueError(f"student is {tuple(student.shape)}, teacher {tuple(teacher.shape)}; they must be alike")
    student, teacher = student.flatten(0, -2), teacher.detach().flatten(0, -2)
    if counts is not None:
        student, teacher = student[counts.flatten()], teacher[counts.flatten()]
    if student.dtype != torch.float64:
        student, teacher = student.float(), teacher.float()
    log_p, log_q = (F.log_softmax(logits / temperature, -1) for logits in (teacher, student))
    return F.kl_div(log_q, log_p, reduction="sum", log_target=True) * (temperature**2 / max(1, len(student)))


def sub_model_losses(
    model: Any,
    images: Tensor,
    teacher: Tensor,
    crops: Sequence[Crop],
    temperature: float = 1.0,
    labels: Tensor | None = None,
) -> list[Tensor]:
    """The loss of each of ``crops`` on ``images`` (B, C, H, W), given the logits (B, K) of the whole network on them.

    The teacher's pass is the one whose cross-entropy is trained: its logits are used again, detached, not computed
    anew. With ``labels``, (B,) or soft (B, K), crops learn from them in place of the teacher: the joint training that
    distillation is compared with.
    """
    losses = []
    for crop in crops:
        logits = model(images, crop)
        if labels is None:
            losses.append(distillation_loss(logits, teacher, temperature))
        else:
            losses.append(F.cross_entropy(logits, labels))
    return losses
