"""Frozen baselines of drop-and-pick training: every sample in every epoch, and the loss of easy samples masked.

Plain PyTorch. The second is what leaving samples out comes to where the loader is not told: they are loaded and put
through the network all the same. Shares nothing with ``repertory``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset


def train_on_all(model: nn.Module, dataset: Dataset, batch_size: int, epochs: int, device: str) -> int:
    """``epochs`` passes over ``dataset`` of (image, label, index), SGD with momentum; returns samples processed."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    loader, processed = _loader(dataset, batch_size), 0
    for _ in range(epochs):
        for images, labels, _ in loader:
            loss = F.cross_entropy(model(images.to(device)), labels.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            processed += len(images)
    return processed


def train_masked(model: nn.Module, dataset: Dataset, batch_size: int, dropped: Sequence[float], device: str) -> int:
    """As :func:`train_on_all`, an epoch for each of ``dropped``: the share of samples whose loss is masked in it."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    loader, processed = _loader(dataset, batch_size), 0
    last = torch.zeros(len(dataset), device=device)  # type: ignore[arg-type]
    for share in dropped:
        before, threshold = last.clone(), last.quantile(share) if share else -1.0
        for images, labels, indices in loader:
            losses = F.cross_entropy(model(images.to(device)), labels.to(device), reduction="none")
            hard = (before[indices.to(device)] > threshold).float()
            optimizer.zero_grad()
            ((losses * hard).sum() / hard.sum().clamp(min=1)).backward()
            optimizer.step()
            last[indices.to(device)] = losses.detach()
            processed += len(images)
    return processed


def _loader(dataset: Dataset, batch_size: int) -> DataLoader:
    order = torch.Generator().manual_seed(0)
    return DataLoader(dataset, batch_size, shuffle=True, drop_last=True, generator=order)
