"""One-versus-rest losses, and switching to them on the examples whose margins are smallest (SOVR)."""

from __future__ import annotations

import torch
from torch import Tensor

from lossary.core import checks
from lossary.core.numerics import product
from lossary.core.objective import Kind, Objective, objective
from lossary.core.rows import ClassRows, class_rows
from lossary.core.types import Reduction


@objective(Kind.CLASSES)
def one_vs_rest_loss(
    input: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""Sum of one binary logistic loss for each class: is it this one or not.

    Reach for it when logits of classes shall mean something one by one, or when large margins matter: under it they
    grow twice as fast as under cross-entropy. Shifting all logits changes it. It is about C times larger in scale.

    Formula:
        .. math:: L = \phi(z_y) + \sum_{k \ne y} \phi(-z_k), \quad \phi(u) = \log(1 + e^{-u})

    Args:
        input: Logits.
        target: Class indices.
        weight: Class weights of the label, on the whole row.
        ignore_index: Label of rows that count for nothing.
        sample_weight: Weights of rows.
        reduction: ``none``, ``mean`` or ``sum``.
        normalizer: Divisor in place of the one of ``mean``.

    Shape:
        - input: ``(N, C, ...)`` or ``(C,)``, floating point.
        - target: ``(N, ...)`` integer.
        - weight: ``(C,)``; sample_weight: ``(N, ...)``; normalizer: a number or ``()``.

    Returns:
        ``(N, ...)`` for ``none``, else ``()``; float32 for half-precision input. Summed over classes. Empty or
        all-ignored ``mean`` is NaN as in PyTorch, 0 if ``normalizer`` is given.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, label or reduction is wrong.

    Example:
        >>> one_vs_rest_loss(torch.zeros(1, 3), torch.tensor([1]))
        tensor(2.0794)

    Source:
        Kanai, Yamaguchi, Yamada, Takahashi, Ohno, Ida: One-vs-the-Rest Loss to Focus on Important Samples in
        Adversarial Training (ICML 2023, arXiv 2207.10283), equation 9.
    """
    rows = class_rows(
        input, target, weight=weight, ignore_index=ignore_index, sample_weight=sample_weight, index_only=True
    )
    return rows.reduce(rows.label_weight() * rows.one_vs_rest(), reduction=reduction, normalizer=normalizer)


class OneVsRestLoss(Objective):
    """Sum of one binary logistic loss for each class; module form of :func:`one_vs_rest_loss`.

    Example:
        >>> OneVsRestLoss()(torch.zeros(1, 3), torch.tensor([1]))
        tensor(2.0794)
    """

    function = one_vs_rest_loss

    def __init__(
        self, *, weight: Tensor | None = None, ignore_index: int = -100, reduction: Reduction = "mean"
    ) -> None:
        super().__init__(weight=weight, ignore_index=ignore_index, reduction=reduction)


@objective(Kind.CLASSES, example=lambda num_classes: {"reduction": "mean"})
def logit_margin_loss(
    input: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "none",
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""How far the best other logit lies above the label's: negative where the row is classified right.

    Reach for it to rank examples by difficulty, and as the objective of an attack (:func:`pgd_attack`), which it guides
    where cross-entropy is flat. Not to train on: right rows go on growing without bound.

    Formula:
        .. math:: L = \max_{k \ne y} z_k - z_y

    Args:
        input: Logits.
        target: Class indices.
        weight: Class weights of the label.
        ignore_index: Label of rows that count for nothing.
        sample_weight: Weights of rows.
        reduction: ``none``, the default here, ``mean`` or ``sum``.
        normalizer: Divisor in place of the one of ``mean``.

    Shape:
        - input: ``(N, C, ...)`` or ``(C,)``, floating point, C >= 2.
        - target: ``(N, ...)`` integer.
        - weight: ``(C,)``; sample_weight: ``(N, ...)``; normalizer: a number or ``()``.

    Returns:
        ``(N, ...)`` for ``none``, else ``()``; float32 for half-precision input. Empty or all-ignored ``mean`` is NaN
        as in PyTorch, 0 if ``normalizer`` is given.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, label or reduction is wrong.

    Example:
        >>> logit_margin_loss(torch.tensor([[3.0, 1.0, 0.0], [3.0, 1.0, 0.0]]), torch.tensor([0, 1]))
        tensor([-2.,  2.])

    Source:
        Kanai et al. (ICML 2023, arXiv 2207.10283), equation 6; known from Carlini and Wagner (arXiv 1608.04644).
    """
    rows = class_rows(
        input, target, weight=weight, ignore_index=ignore_index, sample_weight=sample_weight, index_only=True
    )
    return rows.reduce(rows.label_weight() * _logit_margin(rows), reduction=reduction, normalizer=normalizer)


class LogitMarginLoss(Objective):
    """How far the best other logit lies above the label's; module form of :func:`logit_margin_loss`.

    Example:
        >>> LogitMarginLoss()(torch.tensor([[3.0, 1.0]]), torch.tensor([0]))
        tensor([-2.])
    """

    function = logit_margin_loss

    def __init__(
        self, *, weight: Tensor | None = None, ignore_index: int = -100, reduction: Reduction = "none"
    ) -> None:
        super().__init__(weight=weight, ignore_index=ignore_index, reduction=reduction)


@objective(
    Kind.CLASSES,
    exempt={"accumulation_and_ranks_equal_one_batch": "it selects within the batch that it is given"},
)
def switching_one_vs_rest_loss(
    input: Tensor,
    target: Tensor,
    *,
    fraction: Tensor | float = 0.4,
    weight: Tensor | float = 0.5,
    selection_input: Tensor | None = None,
    class_weight: Tensor | None = None,
    ignore_index: int = -100,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""Cross-entropy, switched to the one-versus-rest loss on the hardest examples of the batch (SOVR).

    Reach for it in adversarial training (:class:`AdversarialTrainer`), where weighting hard examples shrinks the
    margins of all others; both numbers want tuning between 0.2 and 1. It selects within each rank's own batch, which
    must be large enough to be typical. Not with wrong labels: they are the hardest examples.

    Formula:
        .. math:: L = \frac 1 N \Big(\sum_{i \in S} L_{CE} + w \sum_{i \in H} L_{OVR}\Big)

        where H are the :math:`\lfloor f N \rfloor` rows of largest :func:`logit_margin_loss`, the earlier of equal
        ones, and S the others.

    Args:
        input: Logits, of adversarial inputs.
        target: Class indices.
        fraction: Share f of the batch that is switched, in [0, 1]; 0 leaves cross-entropy.
        weight: Weight w of the one-versus-rest loss, at least 0. The weights of classes are ``class_weight``.
        selection_input: Logits that the selection looks at; None takes ``input``.
        class_weight: Class weights of the label.
        ignore_index: Label of rows that count for nothing, in the selection too.
        sample_weight: Weights of rows; a row of weight 2 counts twice in the selection too, so that the last one may be
            switched in part.
        reduction: ``none``, ``mean`` or ``sum``.
        normalizer: Divisor in place of the one of ``mean``.

    Shape:
        - input, selection_input: ``(N, C, ...)`` or ``(C,)``, floating point, C >= 2.
        - target: ``(N, ...)`` integer.
        - class_weight: ``(C,)``; sample_weight: ``(N, ...)``; fraction, weight, normalizer: a number or ``()``.

    Returns:
        ``(N, ...)`` for ``none``, else ``()``; float32 for half-precision input. Empty or all-ignored ``mean`` is NaN
        as in PyTorch, 0 if ``normalizer`` is given.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, label, ``fraction``, ``weight`` or reduction is wrong.

    Example:
        >>> input = torch.tensor([[3.0, 0.0], [0.5, 0.0]])
        >>> switching_one_vs_rest_loss(input, torch.tensor([0, 0]), fraction=0.5, weight=1.0, reduction="none")
        tensor([0.0486, 1.1672])

    Source:
        Kanai et al. (ICML 2023, arXiv 2207.10283), equation 13.
    """
    rows = _class_rows(input, target, class_weight, ignore_index, sample_weight)
    selection = rows
    if selection_input is not None:
        checks.check_floating("selection_input", selection_input)
        checks.check_shape("selection_input", selection_input, input.shape, "logits shaped as input")
        selection = _class_rows(selection_input, target, None, ignore_index, sample_weight)
    loss = _switched(rows, selection, fraction, weight, sample_weight)
    return rows.reduce(rows.label_weight() * loss, reduction=reduction, normalizer=normalizer)


class SwitchingOneVsRestLoss(Objective):
    """Cross-entropy, switched on the hardest examples; module form of :func:`switching_one_vs_rest_loss`.

    Example:
        >>> loss = SwitchingOneVsRestLoss(fraction=0.5, weight=1.0, reduction="none")
        >>> loss(torch.tensor([[3.0, 0.0], [0.5, 0.0]]), torch.tensor([0, 0]))
        tensor([0.0486, 1.1672])
    """

    function = switching_one_vs_rest_loss

    def __init__(
        self,
        fraction: Tensor | float = 0.4,
        weight: Tensor | float = 0.5,
        *,
        class_weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(
            fraction=fraction, weight=weight, class_weight=class_weight, ignore_index=ignore_index, reduction=reduction
        )

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        *,
        selection_input: Tensor | None = None,
        sample_weight: Tensor | None = None,
        normalizer: Tensor | float | None = None,
    ) -> Tensor:
        """The objective; see :func:`switching_one_vs_rest_loss`.

        Args:
            input: Logits.
            target: Class indices.
            selection_input: Logits that the selection looks at; None takes ``input``.
            sample_weight: One weight for each row.
            normalizer: Divisor of ``mean`` and ``sum`` in place of their own.
        """
        return switching_one_vs_rest_loss(
            input,
            target,
            selection_input=selection_input,
            sample_weight=sample_weight,
            normalizer=normalizer,
            **self.hyperparameters(),
        )


@objective(
    Kind.CLASSES,
    arguments=lambda input, target: {"clean_input": input, "adversarial_input": 0.5 * input, "target": target},
    exempt={
        "words": "its inputs are two, clean_input and adversarial_input",
        "accumulation_and_ranks_equal_one_batch": "it selects within the batch that it is given",
    },
)
def trades_sovr_loss(
    clean_input: Tensor,
    adversarial_input: Tensor,
    target: Tensor,
    *,
    fraction: Tensor | float = 0.4,
    weight: Tensor | float = 0.5,
    beta: Tensor | float = 6.0,
    class_weight: Tensor | None = None,
    ignore_index: int = -100,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""TRADES with the switched loss in place of its cross-entropy (TSOVR).

    Reach for it in place of :func:`switching_one_vs_rest_loss` where clean accuracy shall be traded for robustness by
    one number; a step costs one more forward.

    Formula:
        .. math:: L = L_{SOVR}(z, y) + \beta\, \mathrm{KL}(\mathrm{softmax}(z) \,\|\, \mathrm{softmax}(z'))

        selecting by the margins of the adversarial logits z'.

    Args:
        clean_input: Logits of the clean inputs.
        adversarial_input: Logits of the perturbed ones.
        target: Class indices.
        fraction: Share of the batch that is switched, in [0, 1].
        weight: Weight of the one-versus-rest loss, at least 0. The weights of classes are ``class_weight``.
        beta: Weight of the divergence, at least 0.
        class_weight: Class weights of the label, on the whole row.
        ignore_index: Label of rows that count for nothing.
        sample_weight: Weights of rows, in the selection too.
        reduction: ``none``, ``mean`` or ``sum``.
        normalizer: Divisor in place of the one of ``mean``.

    Shape:
        - clean_input, adversarial_input: ``(N, C, ...)`` or ``(C,)``, floating point, C >= 2.
        - target: ``(N, ...)`` integer.
        - class_weight: ``(C,)``; sample_weight: ``(N, ...)``; fraction, weight, beta, normalizer: a number or ``()``.

    Returns:
        ``(N, ...)`` for ``none``, else ``()``; float32 for half-precision input. Empty or all-ignored ``mean`` is NaN
        as in PyTorch, 0 if ``normalizer`` is given.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, label, ``fraction``, ``weight``, ``beta`` or reduction is wrong.

    Example:
        >>> clean, adversarial = torch.tensor([[3.0, 0.0], [0.5, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 0.5]])
        >>> trades_sovr_loss(clean, adversarial, torch.tensor([0, 0]), fraction=0.5, weight=1.0, beta=1.0)
        tensor(0.7540)

    Source:
        Kanai et al. (ICML 2023, arXiv 2207.10283), section 4.4; TRADES is Zhang et al. (ICML 2019, arXiv 1901.08573).
    """
    checks.check_floating("clean_input", clean_input)
    checks.check_floating("adversarial_input", adversarial_input)
    checks.check_shape("adversarial_input", adversarial_input, clean_input.shape, "logits shaped as clean_input")
    checks.check_in_range("beta", beta, 0.0)
    rows = _class_rows(clean_input, target, class_weight, ignore_index, sample_weight)
    adversarial = _class_rows(adversarial_input, target, None, ignore_index, sample_weight)
    divergence = adversarial.kl_from(clean_input.to(rows.logits.dtype))
    loss = _switched(rows, adversarial, fraction, weight, sample_weight) + beta * divergence
    return rows.reduce(rows.label_weight() * loss, reduction=reduction, normalizer=normalizer)


class TradesSOVRLoss(Objective):
    """TRADES with the switched loss; module form of :func:`trades_sovr_loss`.

    Example:
        >>> clean, adversarial = torch.tensor([[3.0, 0.0], [0.5, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 0.5]])
        >>> TradesSOVRLoss(fraction=0.5, weight=1.0, beta=1.0)(clean, adversarial, torch.tensor([0, 0]))
        tensor(0.7540)
    """

    function = trades_sovr_loss

    def __init__(
        self,
        fraction: Tensor | float = 0.4,
        weight: Tensor | float = 0.5,
        beta: Tensor | float = 6.0,
        *,
        class_weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(
            fraction=fraction,
            weight=weight,
            beta=beta,
            class_weight=class_weight,
            ignore_index=ignore_index,
            reduction=reduction,
        )

    def forward(  # type: ignore[override]
        self,
        clean_input: Tensor,
        adversarial_input: Tensor,
        target: Tensor,
        *,
        sample_weight: Tensor | None = None,
        normalizer: Tensor | float | None = None,
    ) -> Tensor:
        """The objective; see :func:`trades_sovr_loss`.

        Args:
            clean_input: Logits of the clean inputs.
            adversarial_input: Logits of the perturbed ones.
            target: Class indices.
            sample_weight: One weight for each row.
            normalizer: Divisor of ``mean`` and ``sum`` in place of their own.
        """
        return trades_sovr_loss(
            clean_input,
            adversarial_input,
            target,
            sample_weight=sample_weight,
            normalizer=normalizer,
            **self.hyperparameters(),
        )


def _switched(
    rows: ClassRows,
    selection: ClassRows,
    fraction: Tensor | float,
    weight: Tensor | float,
    sample_weight: Tensor | None,
) -> Tensor:
    """Cross-entropy or weighted one-versus-rest loss of each row, by the margins of the selection's logits."""
    checks.check_in_range("fraction", fraction, 0.0, 1.0)
    checks.check_in_range("weight", weight, 0.0)
    if isinstance(weight, Tensor):
        checks.check_shape("weight", weight, (), "a number; the weights of classes are class_weight")
    hard = _share_of_hardest(_logit_margin(selection).detach(), fraction, selection.keep, sample_weight)
    return product(1 - hard, -rows.log_p_of_label()) + product(hard, weight * rows.one_vs_rest())


def _share_of_hardest(
    margin: Tensor, fraction: Tensor | float, keep: Tensor | None, sample_weight: Tensor | None
) -> Tensor:
    """1 for the rows of largest margin loss that make up ``fraction`` of the batch, 0 for the others.

    Weighted rows count by their weight; the one that the border falls into gets a share in between.
    """
    count = torch.ones_like(margin) if sample_weight is None else sample_weight.to(margin.dtype)
    count = (count if keep is None else torch.where(keep, count, 0.0)).flatten()
    wanted = torch.floor(fraction * count.sum() + 1e-9)  # 0.3 * 10 is 3
    order = margin.flatten().argsort(descending=True, stable=True)
    ranked = count.gather(0, order)
    room = (wanted - (ranked.cumsum(0) - ranked)) / torch.where(ranked > 0, ranked, 1.0)
    return torch.zeros_like(ranked).scatter(0, order, room.clamp(0, 1)).reshape(margin.shape)


def _logit_margin(rows: ClassRows) -> Tensor:
    if rows.num_classes < 2:
        raise ValueError("input has one class; wanted at least 2 on the class axis.")
    return -rows.margin()


def _class_rows(
    input: Tensor, target: Tensor, class_weight: Tensor | None, ignore_index: int, sample_weight: Tensor | None
) -> ClassRows:
    if class_weight is not None and input.ndim:
        checks.check_class_vector("class_weight", class_weight, input.shape[min(1, input.ndim - 1)])
    return class_rows(
        input, target, weight=class_weight, ignore_index=ignore_index, sample_weight=sample_weight, index_only=True
    )
