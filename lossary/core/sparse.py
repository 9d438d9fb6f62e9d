"""Cross-entropy against targets that have mass on a few bins."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lossary.core.checks import is_plain, is_transformed
from lossary.core.numerics import weighted_sum


def cross_entropy(logits: Tensor, probability: Tensor, at: Tensor) -> Tensor:
    """Cross-entropy of each row.

    Its gradient is written out where no transform stands in the way: the softmax, and a scatter into few bins. That of
    a gather from the log-softmax is a tensor of all bins, nearly all 0, which the log-softmax's own then reads.

    Args:
        logits: ``(..., B)``.
        probability: Mass of the bins that have some ``(..., W)``, a constant to the gradient.
        at: Which bins these are, each once in a row.

    Returns:
        ``(...)``; a bin without mass counts for nothing, infinite or not.
    """
    if is_plain(logits, probability) or (torch.compiler.is_compiling() and not is_transformed()):
        return _CrossEntropy.apply(logits, probability, at)[0]  # type: ignore[no-untyped-call, no-any-return]
    return -weighted_sum(probability, logits.log_softmax(-1).gather(-1, at), -1)


class _CrossEntropy(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(logits: Tensor, probability: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        log_p = logits.log_softmax(-1)
        return -weighted_sum(probability, log_p.gather(-1, at), -1), log_p

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs, output[1])

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, None, None]:
        logits, probability, at, log_p = ctx.saved_tensors
        if upstream[0] is None:
            return None, None, None
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # to be differentiated again
            log_p = logits.log_softmax(-1)
        mass = upstream[0].unsqueeze(-1) * probability
        return log_p.exp().mul_(mass.sum(-1, keepdim=True)).scatter_add_(-1, at, -mass), None, None
