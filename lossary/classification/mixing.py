"""Mixup: training on convex combinations of examples, alone and as a regulariser beside clean cross-entropy."""

from __future__ import annotations

from typing import overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossary.core.checks import check_floating, check_in_range, check_shape, check_unit_interval, may_read_values
from lossary.core.numerics import product
from lossary.core.objective import Kind, Objective, objective
from lossary.core.rows import class_rows
from lossary.core.types import Reduction


@objective(
    Kind.CLASSES,
    example=lambda num_classes: {"lam": 0.3},
    arguments=lambda input, target: {
        "input": input,
        "mixed_input": 0.5 * input,
        "target": target,
        "permuted_target": target,
    },
    exempt={
        "module": "its module draws the mixture and calls the model; tested in tests/classification/test_mixing.py"
    },
)
def regmixup_loss(
    input: Tensor,
    mixed_input: Tensor,
    target: Tensor,
    permuted_target: Tensor,
    *,
    lam: Tensor | float,
    eta: Tensor | float = 1.0,
    normalize: bool = False,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: Tensor | float = 0.0,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""Cross-entropy on clean examples plus ``eta`` times the cross-entropy on their mixtures.

    Reach for it when a classifier must tell what it does not know: predictions on unknown inputs become less certain
    while those on known ones stay sharp, which mixup alone spoils. It costs a second forward of each batch. Not where
    mixtures of inputs mean nothing (categories, tokens).

    Formula:
        .. math:: L = -\log p_y(x) - \eta \big(\lambda \log p_y(\tilde x) + (1 - \lambda) \log p_{y'}(\tilde x)\big),
            \quad \tilde x = \lambda x + (1 - \lambda) x'

        divided by :math:`1 + \eta` if ``normalize``.

    Args:
        input: Logits of the clean batch.
        mixed_input: Logits of the mixed batch.
        target: Class indices or probabilities of the clean batch.
        permuted_target: Those of the examples that were mixed in.
        lam: Share of the clean example in each mixture, in [0, 1]: one for the batch or one for each row.
        eta: Weight of the mixtures, at least 0; 0 leaves cross-entropy.
        normalize: Whether to divide by 1 + ``eta``, as the mean over the concatenated batch does.
        weight: Class weights, of each term by its own label.
        ignore_index: Label of rows that count for nothing; as the label mixed in, it drops that share of its row.
        label_smoothing: Share of the target spread evenly over the classes, in [0, 1].
        sample_weight: Weights of rows, clean and mixed.
        reduction: ``none``, ``mean`` or ``sum``.
        normalizer: Divisor in place of the one of ``mean``.

    Shape:
        - input, mixed_input: ``(N, C, ...)`` or ``(C,)``, floating point.
        - target, permuted_target: ``(N, ...)`` integer, or ``(N, C, ...)`` floating point.
        - lam: a number, ``()`` or ``(N,)``; weight: ``(C,)``; sample_weight: ``(N, ...)``; normalizer: a number or
          ``()``.

    Returns:
        ``(N, ...)`` for ``none``, else ``()``; float32 for half-precision input. ``mean`` divides by the summed weights
        of the clean batch. Empty or all-ignored ``mean`` is NaN as in PyTorch, 0 if ``normalizer`` is given.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, label, ``lam``, ``eta`` or reduction is wrong.

    Example:
        >>> clean, mixed = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, 0.0]])
        >>> regmixup_loss(clean, mixed, torch.tensor([0, 1]), torch.tensor([1, 0]), lam=0.5)
        tensor(0.9733)

    Source:
        Pinto, Yang, Lim, Torr, Dokania: RegMixup: Mixup as a Regularizer Can Surprisingly Improve Accuracy and Out
        Distribution Robustness (NeurIPS 2022, arXiv 2206.14502), equation 5. The public code takes the mean over both
        halves: ``normalize=True``.
    """
    check_in_range("eta", eta, 0.0)
    check_floating("mixed_input", mixed_input)
    check_shape("mixed_input", mixed_input, input.shape, "logits shaped as input")
    rows = class_rows(
        input,
        target,
        weight=weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        sample_weight=sample_weight,
    )
    if input.ndim == 1 and isinstance(lam, Tensor):
        check_shape("lam", lam, (), "one share for the one row")
    share = _share(lam, rows.logits).reshape([-1] + [1] * (input.ndim - 2) if _per_row(lam) else ())
    own, other = (
        _cross_entropy(mixed_input, label, weight, ignore_index, label_smoothing) for label in (target, permuted_target)
    )
    loss = rows.expect(-rows.log_p()) + eta * (product(share, own) + product(1 - share, other))
    return rows.reduce(loss / (1 + eta) if normalize else loss, reduction=reduction, normalizer=normalizer)


class RegMixupLoss(Objective):
    """The whole training objective around a model; module form of :func:`regmixup_loss`.

    Mixes the batch, runs clean and mixed examples through the model in one forward, so that batch normalisation sees
    both, and returns the loss. At test time call the model on clean examples alone.

    Args:
        alpha: Parameter of the symmetric Beta distribution of ``lam``, positive: large values mix half and half.
        eta: Weight of the mixtures, at least 0.
        normalize: Whether to divide by 1 + ``eta``.
        weight: Class weights ``(C,)``.
        ignore_index: Label of rows that count for nothing.
        label_smoothing: Share of the target spread evenly over the classes, in [0, 1].
        reduction: ``none``, ``mean`` or ``sum``.

    Example:
        >>> model = torch.nn.Linear(4, 3)
        >>> loss = RegMixupLoss(alpha=20.0)(model, torch.randn(8, 4), torch.randint(3, (8,)))
        >>> loss.backward()
    """

    function = regmixup_loss
    alpha: float

    def __init__(
        self,
        alpha: float = 20.0,
        eta: Tensor | float = 1.0,
        normalize: bool = False,
        *,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        label_smoothing: Tensor | float = 0.0,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(
            alpha=alpha,
            eta=eta,
            normalize=normalize,
            weight=weight,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            reduction=reduction,
        )

    def forward(  # type: ignore[override]
        self,
        model: nn.Module,
        x: Tensor,
        target: Tensor,
        *,
        lam: Tensor | float | None = None,
        index: Tensor | None = None,
        sample_weight: Tensor | None = None,
        normalizer: Tensor | float | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The loss of a batch; one call of the model on ``2 N`` examples.

        Args:
            model: From examples ``(M, ...)`` to logits ``(M, C, ...)``.
            x: Examples ``(N, ...)``, floating point.
            target: Class indices ``(N, ...)`` or probabilities ``(N, C, ...)``.
            lam: The share, where it is drawn elsewhere.
            index: The permutation ``(N,)``, where it is drawn elsewhere.
            sample_weight: One weight for each row.
            normalizer: Divisor of ``mean`` and ``sum`` in place of their own.
            generator: Source of randomness.
        """
        options = self.hyperparameters()
        mixed, target, permuted_target, lam = mixup(
            x, target, alpha=options.pop("alpha"), lam=lam, index=index, generator=generator
        )
        input, mixed_input = model(torch.cat([x, mixed])).chunk(2)
        return regmixup_loss(
            input,
            mixed_input,
            target,
            permuted_target,
            lam=lam,
            sample_weight=sample_weight,
            normalizer=normalizer,
            **options,
        )


@overload
def mixup(
    x: Tensor,
    target: None = None,
    *,
    alpha: float = 20.0,
    beta: float | None = None,
    lam: Tensor | float | None = None,
    index: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor: ...


@overload
def mixup(
    x: Tensor,
    target: Tensor,
    *,
    alpha: float = 20.0,
    beta: float | None = None,
    lam: Tensor | float | None = None,
    index: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | float]: ...


def mixup(
    x: Tensor,
    target: Tensor | None = None,
    *,
    alpha: float = 20.0,
    beta: float | None = None,
    lam: Tensor | float | None = None,
    index: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor | tuple[Tensor, Tensor, Tensor, Tensor | float]:
    r"""Convex combinations of the examples of a batch with their permutation.

    Formula:
        .. math:: \tilde x_i = \lambda x_i + (1 - \lambda) x_{\pi(i)}, \quad \lambda \sim \mathrm{Beta}(\alpha, \beta)

    Args:
        x: Examples, floating point.
        target: Their targets, of any kind; None for the mixtures alone.
        alpha: First parameter of the Beta distribution, positive. 0.1 to 0.4 are common for mixup alone, 10 to 32
            where it is a regulariser.
        beta: The second parameter; None takes ``alpha``.
        lam: The share itself, one for the batch or one for each example; None draws one.
        index: The permutation itself; None draws one.
        generator: Source of randomness.

    Shape:
        - x: ``(N, ...)``; target: ``(N, ...)``; lam: a number, ``()`` or ``(N,)``; index: ``(N,)`` int64.

    Returns:
        The mixtures; with a ``target`` the tuple (mixtures, target, permuted target, lam).

    Raises:
        TypeError: ``x`` is not of floating point, or ``index`` not of integers.
        ValueError: A shape or parameter is wrong.

    Example:
        >>> x = torch.tensor([[0.0], [1.0]])
        >>> mixup(x, torch.tensor([0, 1]), lam=0.75, index=torch.tensor([1, 0]))
        (tensor([[0.2500],
                [0.7500]]), tensor([0, 1]), tensor([1, 0]), 0.75)

    Source:
        Zhang, Cisse, Dauphin, Lopez-Paz: mixup: Beyond Empirical Risk Minimization (ICLR 2018, arXiv 1710.09412); one
        draw for a batch, as in RegMixup (arXiv 2206.14502).
    """
    check_floating("x", x)
    if x.ndim == 0:
        raise ValueError("x has shape (); wanted a batch of examples (N, ...).")
    device = x.device if generator is None else generator.device
    if lam is None:
        lam = _draw_share(alpha, alpha if beta is None else beta, device, generator).to(x.device)
    if index is None:
        index = torch.randperm(len(x), generator=generator, device=device).to(x.device)
    check_shape("index", index, x.shape[:1], "a permutation of the batch")
    if index.is_floating_point() or index.dtype == torch.bool:
        raise TypeError(f"index has dtype {index.dtype}; wanted int64, a permutation of the batch.")
    share = _share(lam, x).reshape([-1] + [1] * (x.ndim - 1) if _per_row(lam) else ())
    mixed = torch.lerp(x[index], x, share)
    if target is None:
        return mixed
    if target.shape[:1] != x.shape[:1]:
        raise ValueError(f"target has shape {tuple(target.shape)}; wanted one target for each of {len(x)} examples.")
    return mixed, target, target[index], lam


def weighted_mixup(x: Tensor, noise_probability: Tensor, index: Tensor) -> Tensor:
    r"""Mixtures in which each example counts as far as its label is likely right.

    Reach for it in place of :func:`mixup` once a :class:`NoiseModel` is there: of a pair the likely right one
    dominates.

    Formula:
        .. math:: \tilde x_i = \frac{(1 - B_i) x_i + (1 - B_j) x_j}{(1 - B_i) + (1 - B_j)}, \quad j = \pi(i)

    Args:
        x: Examples, floating point.
        noise_probability: The probability B that each label is wrong.
        index: The permutation.

    Shape:
        - x: ``(N, ...)``; noise_probability: ``(N,)``, in [0, 1]; index: ``(N,)`` int64.

    Returns:
        The mixtures, shaped as ``x``; half and half where both labels are wrong for sure.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape is wrong, or a probability lies outside [0, 1].

    Example:
        >>> x, wrong = torch.tensor([[0.0], [1.0]]), torch.tensor([0.0, 0.5])
        >>> weighted_mixup(x, wrong, torch.tensor([1, 0]))
        tensor([[0.3333],
                [0.3333]])

    Source:
        Arazo, Ortego, Albert, O'Connor, McGuinness: Unsupervised Label Noise Modeling and Loss Correction (ICML 2019,
        arXiv 1904.11238), section 3.4.
    """
    check_floating("x", x)
    check_floating("noise_probability", noise_probability)
    check_shape("noise_probability", noise_probability, x.shape[:1], "a probability for each example")
    check_shape("index", index, x.shape[:1], "a permutation of the batch")
    if may_read_values(noise_probability):
        check_unit_interval("noise_probability", noise_probability)
    own = 1 - noise_probability.detach()  # as precise as it came: in half precision 0.9999 is 1
    both = own + own[index]
    return mixup(x, lam=torch.where(both > 0, own / both, 0.5), index=index)


def predictive_entropy(logits: Tensor) -> Tensor:
    r"""Entropy of the predicted classes: high where the model does not know.

    Reach for it as a score of unknown inputs (out-of-distribution detection).

    Formula:
        .. math:: H = -\sum_k p_k \log p_k

    Args:
        logits: Logits, of a clean forward.

    Shape:
        - logits: ``(N, C, ...)`` or ``(C,)``, floating point.

    Returns:
        ``(N, ...)`` in nats, from 0 to log C.

    Raises:
        TypeError: ``logits`` is no floating-point tensor.

    Example:
        >>> predictive_entropy(torch.tensor([[0.0, 0.0], [0.0, 5.0]]))
        tensor([0.6931, 0.0402])

    Source:
        Pinto et al. (NeurIPS 2022, arXiv 2206.14502), section 4.
    """
    check_floating("logits", logits)
    dim = min(1, logits.ndim - 1)
    log_p = F.log_softmax(logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits, dim)
    return -product(log_p.exp(), log_p).sum(dim)


def _cross_entropy(
    input: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, label_smoothing: Tensor | float
) -> Tensor:
    """Cross-entropy of each row, 0 where ignored."""
    rows = class_rows(input, target, weight=weight, ignore_index=ignore_index, label_smoothing=label_smoothing)
    return rows.reduce(rows.expect(-rows.log_p()), reduction="none", normalizer=None)


def _per_row(lam: Tensor | float) -> bool:
    return isinstance(lam, Tensor) and lam.ndim > 0


def _share(lam: Tensor | float, batch: Tensor) -> Tensor:
    """Lam checked, in the batch's dtype and on its device."""
    check_in_range("lam", lam, 0.0, 1.0)
    if isinstance(lam, Tensor):
        if _per_row(lam):
            check_shape("lam", lam, batch.shape[:1], "one share for the batch, or one for each row")
        if may_read_values(lam):
            check_unit_interval("lam", lam)
    return torch.as_tensor(lam, dtype=batch.dtype, device=batch.device)


def _draw_share(alpha: float, beta: float, device: torch.device, generator: torch.Generator | None) -> Tensor:
    """One draw of Beta(alpha, beta), by two Gamma draws that follow the generator."""
    check_in_range("alpha", alpha, 0.0, low_open=True, high_open=True)
    check_in_range("beta", beta, 0.0, low_open=True, high_open=True)
    concentration = torch.tensor([alpha, beta], dtype=torch.float64, device=device)
    return torch._sample_dirichlet(concentration, generator=generator)[0].to(torch.get_default_dtype())
