"""Barlow Twins: two views' features correlate with themselves and with nothing else."""

from __future__ import annotations

import torch
from torch import Tensor

from lossary.core.checks import check_in_range, check_shape
from lossary.core.objective import Kind, Objective, objective
from lossary.core.values import full_precision, like_first


@objective(
    Kind.PAIRS,
    arguments=lambda input, target: {"input": input, "other": target},
    batch_level=True,
    exempt={
        "infinite_logits": "the correlation of infinite features is not defined",
        "nan_stays_visible": "one value for the batch, and it is NaN; nothing is left to be finite",
    },
)
def barlow_twins_loss(
    input: Tensor,
    other: Tensor,
    *,
    lam: Tensor | float = 5e-3,
    eps: float = 1e-5,
    sample_weight: Tensor | None = None,
) -> Tensor:
    r"""Squared distance of the correlation between two views' features from the identity.

    Reach for it to learn embeddings without labels and without negatives; it wants wide embeddings (thousands of
    features). One value for the whole batch; each rank sees its own rows.

    Formula:
        .. math:: L = \sum_i (1 - C_{ii})^2 + \lambda \sum_{i \ne j} C_{ij}^2

        with C the correlation of the features of ``input`` and ``other`` over the batch.

    Args:
        input: Embeddings of one view.
        other: Embeddings of the other, in the same order.
        lam: The :math:`\lambda`, at least 0.
        eps: Added to variances.
        sample_weight: Weights of rows.

    Shape:
        - input, other: ``(N, D)``, floating point; lam: a number or ``()``; sample_weight: ``(N,)``.

    Returns:
        ``()``; float32 for half-precision input. NaN for an empty batch.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, ``lam`` or ``eps`` is wrong.

    Example:
        >>> features = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        >>> barlow_twins_loss(features, features) < 1e-6
        tensor(True)

    Source:
        Zbontar, Jing, Misra, LeCun, Deny: Barlow Twins: Self-Supervised Learning via Redundancy Reduction (ICML 2021,
        arXiv 2103.03230), equation 1, as in Terven et al. (arXiv 2307.02694).
    """
    check_in_range("lam", lam, 0.0)
    check_in_range("eps", eps, 0.0)
    input, other = like_first("an embedding for each row", input=input, other=other)
    if input.ndim != 2:
        raise ValueError(f"input has shape {tuple(input.shape)}; wanted (N, D).")
    if sample_weight is not None:
        check_shape("sample_weight", sample_weight, input.shape[:1], "a weight for each row")
    weight = torch.ones_like(input[:, 0]) if sample_weight is None else sample_weight.to(input.dtype)
    share = (weight / weight.sum()).unsqueeze(-1)
    with full_precision(input):
        correlation = (share * _standard(input, share, eps)).T @ _standard(other, share, eps)
    own = torch.eye(input.shape[1], dtype=input.dtype, device=input.device)
    return ((own - correlation).square() * (own + lam * (1 - own))).sum()


class BarlowTwinsLoss(Objective):
    """Distance of two views' correlation from the identity; module form of :func:`barlow_twins_loss`.

    Example:
        >>> features = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        >>> BarlowTwinsLoss()(features, features) < 1e-6
        tensor(True)
    """

    function = barlow_twins_loss

    def __init__(self, lam: Tensor | float = 5e-3, *, eps: float = 1e-5) -> None:
        super().__init__(lam=lam, eps=eps)

    def forward(  # type: ignore[override]
        self, input: Tensor, other: Tensor, *, sample_weight: Tensor | None = None
    ) -> Tensor:
        """The loss.

        Args:
            input: Embeddings of one view ``(N, D)``.
            other: Embeddings of the other ``(N, D)``.
            sample_weight: Weights of rows.
        """
        return barlow_twins_loss(input, other, sample_weight=sample_weight, **self.hyperparameters())


def _standard(features: Tensor, share: Tensor, eps: float) -> Tensor:
    """Features of mean 0 and variance 1 over the batch."""
    centred = features - (share * features).sum(0)
    return centred / ((share * centred.square()).sum(0) + eps).sqrt()
