"""Knowledge ensembling and the distillation loss of BAKE.

Ge et al., "Self-distillation with Batch Knowledge Ensembling", arXiv 2104.13298. Each batch is its own teacher: the
tempered predictions of the other samples are propagated to every anchor along the similarity of features, to
convergence, and the result is the soft target of the same network. Training only; there is nothing at inference.

For a batch of N samples with pooled features F (N, D) and logits Z (N, C), temperature tau, weight omega::

    P = softmax(Z / tau)                       (N, C)
    A = softmax over j != i of cos(F_i, F_j)   (N, N), no temperature on the similarity
    W = (1 - omega) (I - omega A)^-1           (N, N), rows sum to one
    Q = W P                                    (N, C), the limit of Q <- omega A Q + (1 - omega) P
    L = (tau^2 / N) sum_i KL(Q_i || softmax(Z_i / tau))

Everything here is computed in float32 (float64 for float64 input) with autocast off: half precision knows neither the
solver nor the range.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


def affinity(features: Tensor) -> Tensor:
    """Row-stochastic similarity A (N, N) of ``features`` (N, D), zero on the diagonal.

    The softmax runs over cosines, so a row's weights differ by at most e squared; a zero row is similar to all alike.
    ValueError for fewer than two samples: nobody would be left to learn from.
    """
    _check_features(features)
    with torch.autocast(features.device.type, enabled=False):
        unit = F.normalize(_full_precision(features), dim=1, eps=1e-12)
        similarity = unit @ unit.T
        own = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
        return similarity.masked_fill(own, float("-inf")).softmax(dim=1)


def propagate(affinities: Tensor, values: Tensor, omega: float) -> Tensor:
    """(1 - omega) (I - omega A)^-1 ``values``: (N, C) ``values`` spread to convergence along ``affinities`` (N, N).

    I - omega A is strictly diagonally dominant for 0 <= omega < 1, so the solve cannot fail and need not be checked.
    """
    check_omega(omega)
    with torch.autocast(affinities.device.type, enabled=False):
        identity = torch.eye(len(affinities), dtype=affinities.dtype, device=affinities.device)
        solution, _ = torch.linalg.solve_ex(identity - omega * affinities, values.to(affinities.dtype))
        return (1 - omega) * solution


@torch.no_grad()
def soft_targets(features: Tensor, logits: Tensor, temperature: float = 4.0, omega: float = 0.5) -> Tensor:
    """Soft targets Q (N, C) of a batch, without gradient.

    Args:
        features: (N, D) pooled features of this step's forward, before the classifier.
        logits: (N, C) of the same forward.
        temperature: tau above 0, divides the logits.
        omega: weight of the others' knowledge, 0 (each its own teacher) to below 1.

    Returns:
        (N, C) float32 (float64 for float64 input); rows are distributions.

    Raises:
        ValueError: for N < 2, rows that do not match, temperature <= 0 or omega outside [0, 1).
    """
    _check_pair(features, logits)
    return propagate(affinity(features), tempered(logits, temperature), omega)


@torch.no_grad()
def gathered_soft_targets(
    features: Tensor,
    logits: Tensor,
    temperature: float = 4.0,
    omega: float = 0.5,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """Like :func:`soft_targets`, over the batch of all processes of ``group``; each gets the rows of its own samples.

    Unit features and tempered predictions are gathered (batches of different length are allowed), and every process
    solves for the whole batch, so the result is what one process would compute on it. Without an initialised process
    group, or in a group of one, it is :func:`soft_targets`.
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size(group) == 1:
        return soft_targets(features, logits, temperature, omega)
    _check_pair(features, logits)
    with torch.autocast(features.device.type, enabled=False):
        unit = F.normalize(_full_precision(features), dim=1, eps=1e-12)
        known = tempered(logits, temperature)
        rows, first = _gather_rows(torch.cat([unit, known.to(unit.dtype)], dim=1), group)
    everyone = propagate(affinity(rows[:, : unit.shape[1]]), rows[:, unit.shape[1] :], omega)
    return everyone[first : first + len(features)]


def distillation_loss(logits: Tensor, targets: Tensor, temperature: float = 4.0) -> Tensor:
    """(tau^2 / N) sum of KL(``targets`` || softmax(``logits`` / tau)) over the N samples: a scalar.

    Written as entropy + logsumexp - inner product, which equals the divergence because target rows sum to one, and
    whose gradient is (tau / N) (softmax(Z / tau) - Q) with no factor left over: exactly zero where Q is the prediction.
    """
    _check_temperature(temperature)
    if targets.shape != logits.shape:
        raise ValueError(f"targets are {tuple(targets.shape)}; they must be {tuple(logits.shape)}, like the logits")
    with torch.autocast(logits.device.type, enabled=False):
        scaled = _full_precision(logits) / temperature
        targets = targets.to(scaled.dtype)
        negative_entropy = torch.xlogy(targets, targets).sum(dim=1)
        divergence = negative_entropy + torch.logsumexp(scaled, dim=1) - (targets * scaled).sum(dim=1)
        return divergence.sum() * (temperature**2 / len(logits))


class BAKELoss(nn.Module):
    """The term that BAKE adds: ``loss = F.cross_entropy(logits, labels) + bake(features, logits)``.

    Args:
        temperature: tau of predictions and targets, above 0.
        omega: weight of the others' knowledge, 0 to below 1; at 0 the term has no gradient at all.
        weight: lambda, the factor of the term.
        gather: ensemble over the samples of all processes where torch.distributed is initialised.
    """

    def __init__(self, temperature: float = 4.0, omega: float = 0.5, weight: float = 1.0, gather: bool = True) -> None:
        super().__init__()
        _check_temperature(temperature)
        check_omega(omega)
        if not 0 <= weight < float("inf"):
            raise ValueError(f"weight is {weight}; it must be finite and at least 0")
        self.temperature, self.omega, self.weight, self.gather = temperature, omega, weight, gather

    def forward(self, features: Tensor, logits: Tensor) -> Tensor:
        """lambda L_kd, a scalar, of ``features`` (N, D) and ``logits`` (N, C); gradients reach the logits only."""
        ensemble = gathered_soft_targets if self.gather else soft_targets
        targets = ensemble(features.detach(), logits.detach(), self.temperature, self.omega)
        return self.weight * distillation_loss(logits, targets, self.temperature)

    def extra_repr(self) -> str:
        """Settings, for printing."""
        return f"temperature={self.temperature}, omega={self.omega}, weight={self.weight}, gather={self.gather}"


def tempered(logits: Tensor, temperature: float) -> Tensor:
    """softmax(``logits`` / tau), (N, C), by the same operations as the gradient of logsumexp: equal to the last bit."""
    _check_temperature(temperature)
    with torch.autocast(logits.device.type, enabled=False):
        scaled = _full_precision(logits) / temperature
        return (scaled - torch.logsumexp(scaled, dim=1, keepdim=True)).exp()


def check_omega(omega: float) -> None:
    """ValueError unless 0 <= ``omega`` < 1: at 1 the system is singular."""
    if not 0 <= omega < 1:
        raise ValueError(f"omega is {omega}; it must be at least 0 and below 1")


def _check_temperature(temperature: float) -> None:
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature is {temperature}; it must be finite and above 0")


def _check_features(features: Tensor) -> None:
    if features.ndim != 2:
        raise ValueError(f"features are {tuple(features.shape)}; they must be (N, D), pooled, one row a sample")
    if len(features) < 2:
        raise ValueError(f"the batch has {len(features)} sample(s); knowledge ensembling needs at least 2")


def _check_pair(features: Tensor, logits: Tensor) -> None:
    if features.ndim != 2 or logits.ndim != 2 or len(features) != len(logits):
        raise ValueError(
            f"features are {tuple(features.shape)} and logits {tuple(logits.shape)}; they must be (N, D) and (N, C)"
        )


def _full_precision(x: Tensor) -> Tensor:
    """``x`` as float32, or as it is where it is float64."""
    return x if x.dtype == torch.float64 else x.float()


def _gather_rows(rows: Tensor, group: dist.ProcessGroup | None) -> tuple[Tensor, int]:
    """The ``rows`` of all processes in order of rank, and the position of this process's first."""
    world, rank = dist.get_world_size(group), dist.get_rank(group)
    lengths = [torch.zeros(1, dtype=torch.long, device=rows.device) for _ in range(world)]
    dist.all_gather(lengths, torch.tensor([len(rows)], device=rows.device), group=group)
    counts = torch.cat(lengths).tolist()
    padded = F.pad(rows, (0, 0, 0, max(counts) - len(rows)))  # collectives want one shape from everybody
    blocks = [torch.empty_like(padded) for _ in range(world)]
    dist.all_gather(blocks, padded.contiguous(), group=group)
    return torch.cat([block[:count] for block, count in zip(blocks, counts)]), sum(counts[:rank])
