"""The statistics of a row from logits that are stored: what the other backends are held against.

Every mode of differentiation works here, at the memory of naive code.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lossary.core import numerics


def logits(
    input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, softcap: float, temperature: Tensor | float
) -> Tensor:
    """Logits ``(N, V)``, at least float32: head, bias, cap, temperature."""
    wide = torch.promote_types(input.dtype, torch.float32)
    z = F.linear(input.to(wide), linear_weight.to(wide), None if linear_bias is None else linear_bias.to(wide))
    if softcap:
        z = softcap * torch.tanh(z / softcap)
    if not isinstance(temperature, Tensor):
        return z / temperature
    out = z == -torch.inf  # an entry out of the vocabulary has no gradient in the temperature
    return torch.where(out, z, torch.where(out, 0.0, z) / temperature)


def statistics(names: Sequence[str], z: Tensor, target: Tensor | None, weight: Tensor | None) -> Tensor:
    """The statistics named ``(S, N)`` of logits ``(N, V)``; a target below 0 counts as 0."""
    log_p = F.log_softmax(z, 1)
    label = torch.zeros_like(z[:, :1], dtype=torch.int64) if target is None else target.clamp(min=0).unsqueeze(1)

    def one(name: str) -> Tensor:
        if name == "log_prob":
            return log_p.gather(1, label)[:, 0]
        if name == "log_miss":
            return numerics.logsumexp(log_p.scatter(1, label, -torch.inf), 1)
        if name == "logsumexp":
            return torch.logsumexp(z, 1)
        if name == "squared_logsumexp":
            return torch.logsumexp(z, 1).square()
        if name == "entropy":
            return -numerics.product(log_p.exp(), log_p).sum(1)
        if name == "mean_log_prob":
            return log_p.mean(1)
        if name == "weighted_mean_log_prob":
            assert weight is not None
            return numerics.product(weight.to(z.dtype).expand_as(log_p), log_p).mean(1)
        if name == "target_logit":
            return z.gather(1, label)[:, 0]
        return numerics.product(log_p.exp(), z).sum(1)

    return torch.stack([one(name) for name in names])


def sample(z: Tensor, noise: Tensor) -> Tensor:
    """Entries ``(N, S)`` drawn from the softmax of ``z`` by inverse CDF."""
    ends = torch.softmax(z.double(), 1).cumsum(1)
    last = z.shape[1] - 1 - (z.flip(1) > -torch.inf).int().argmax(1, keepdim=True)  # never a masked entry
    return torch.minimum(torch.searchsorted(ends, noise.double() * ends[:, -1:], right=True), last)
