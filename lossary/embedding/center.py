"""Centre loss: embeddings drawn to a centre of their class that follows them."""

from __future__ import annotations

import torch
from torch import Tensor

from lossary.core.checks import check_in_range, check_labels, check_shape, may_read_values
from lossary.core.objective import Kind, Objective, objective
from lossary.core.types import Reduction
from lossary.core.values import reduce_values, widened


def _with_centers(input: Tensor, target: Tensor) -> dict[str, Tensor]:
    centers = torch.linspace(-1.0, 1.0, 25).reshape(5, 5)
    return {"input": input, "target": target, "centers": centers}


@objective(Kind.EMBEDDINGS, arguments=_with_centers, stateful=True)
def center_loss(
    input: Tensor,
    target: Tensor,
    centers: Tensor,
    *,
    alpha: Tensor | float = 0.5,
    ignore_index: int = -100,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Half the squared distance to the centre of the class, and the centres after the batch.

    Reach for it beside cross-entropy, with a small coefficient (0.001 to 0.1), to make classes compact. Alone it is
    minimal where all embeddings are one point. Each rank follows its own batches.

    Formula:
        .. math:: L_i = \frac{1}{2} \|x_i - c_{y_i}\|^2, \quad
            c_j \leftarrow c_j - \alpha \frac{\sum_{i : y_i = j} (c_j - x_i)}{1 + n_j}

    Args:
        input: Embeddings.
        target: Class indices.
        centers: The centres c, constants to the gradient.
        alpha: How fast centres follow, in [0, 1].
        ignore_index: Label of rows that count for nothing, for the centres too.
        sample_weight: Weights of rows, for the centres too.
        reduction: ``none``, ``mean`` or ``sum``.
        normalizer: Divisor in place of the number of rows.

    Shape:
        - input: ``(N, D)`` or ``(D,)``, floating point; centers: ``(C, D)``.
        - target: ``(N,)`` integer.
        - alpha: a number or ``()``; sample_weight: ``(N,)``; normalizer: a number or ``()``.

    Returns:
        The loss, ``(N,)`` for ``none``, else ``()``, float32 for half-precision input; and the centres ``(C, D)`` for
        the next batch, without gradient. Empty or all-ignored ``mean`` is NaN, 0 if ``normalizer`` is given.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, label, ``alpha`` or reduction is wrong.

    Example:
        >>> loss, centers = center_loss(torch.tensor([[2.0, 0.0]]), torch.tensor([1]), torch.zeros(2, 2))
        >>> loss
        tensor(2.)
        >>> centers
        tensor([[0.0000, 0.0000],
                [0.5000, 0.0000]])

    Source:
        Wen, Zhang, Li, Qiao: A Discriminative Feature Learning Approach for Deep Face Recognition (ECCV 2016),
        equations 2 and 4, as in Terven et al. (arXiv 2307.02694), face recognition losses.
    """
    check_in_range("alpha", alpha, 0.0, 1.0)
    input, centers = widened(input=input, centers=centers)
    _check(input, target, centers, ignore_index)
    centers = centers.detach()
    keep, valid = target != ignore_index, (target >= 0) & (target < centers.shape[0])
    index = torch.where(keep & valid, target, 0).long()
    away = torch.where(keep.unsqueeze(-1), input, 0.0) - centers[index]
    loss = torch.where(valid | ~keep, away.square().sum(-1) / 2, torch.nan)
    value = reduce_values(loss, sample_weight=sample_weight, reduction=reduction, normalizer=normalizer, keep=keep)
    counted = (keep & valid).to(away.dtype) if sample_weight is None else (keep & valid) * sample_weight.to(away.dtype)
    pull = torch.zeros_like(centers).index_add(
        0, index.reshape(-1), (counted.unsqueeze(-1) * away.detach()).reshape(-1, centers.shape[1])
    )
    number = torch.zeros_like(centers[:, 0]).index_add(0, index.reshape(-1), counted.reshape(-1))
    return value, centers + alpha * pull / (1 + number).unsqueeze(-1)


class CenterLoss(Objective):
    """Half the squared distance to centres that follow the embeddings; module form of :func:`center_loss`.

    Args:
        num_classes: C.
        num_features: D.
        alpha: How fast centres follow, in [0, 1].
        ignore_index: Label of rows that count for nothing.
        reduction: ``none``, ``mean`` or ``sum``.

    Attributes:
        centers: ``(C, D)``, zero at the start; move in training mode only.

    Example:
        >>> loss = CenterLoss(num_classes=2, num_features=2)
        >>> loss(torch.tensor([[2.0, 0.0]]), torch.tensor([1]))
        tensor(2.)
        >>> loss.centers[1]
        tensor([0.5000, 0.0000])
    """

    function = center_loss
    centers: Tensor

    def __init__(
        self,
        num_classes: int,
        num_features: int,
        *,
        alpha: Tensor | float = 0.5,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(
            centers=torch.zeros(num_classes, num_features),
            alpha=alpha,
            ignore_index=ignore_index,
            reduction=reduction,
        )

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        *,
        sample_weight: Tensor | None = None,
        normalizer: Tensor | float | None = None,
    ) -> Tensor:
        """The loss; in training mode the centres move for the next batch.

        Args:
            input: Embeddings ``(N, D)``.
            target: Class indices ``(N,)``.
            sample_weight: Weights of rows.
            normalizer: Divisor of ``mean`` and ``sum`` in place of their own.
        """
        loss, centers = center_loss(
            input, target, sample_weight=sample_weight, normalizer=normalizer, **self.hyperparameters()
        )
        if self.training:
            self.centers = centers.to(self.centers.dtype)
        return loss


def _check(input: Tensor, target: Tensor, centers: Tensor, ignore_index: int) -> None:
    if not isinstance(target, Tensor) or target.is_floating_point():
        raise TypeError(f"target is {getattr(target, 'dtype', type(target).__name__)}; wanted int64 class indices.")
    if input.ndim not in (1, 2):
        raise ValueError(f"input has shape {tuple(input.shape)}; wanted (N, D) or (D,).")
    check_shape("target", target, input.shape[:-1], "a class index for each row of input")
    if centers.ndim != 2 or centers.shape[1] != input.shape[-1]:
        raise ValueError(f"centers has shape {tuple(centers.shape)}; wanted (C, {input.shape[-1]}).")
    if may_read_values(target):
        check_labels(target, centers.shape[0], ignore_index)
