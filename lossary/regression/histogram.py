"""Regression as classification over bins: HL-Gauss, two-hot and the categorical Bellman target (C51)."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lossary.core import sparse
from lossary.core.checks import check_floating, check_in_range, check_shape, may_read_values
from lossary.core.numerics import product, weighted_sum
from lossary.core.objective import Kind, Objective, objective
from lossary.core.others import at_class
from lossary.core.rows import bin_rows, widen
from lossary.core.types import Reduction
from lossary.core.values import reduce_values

_INTERVAL = {"min_value": -3.0, "max_value": 3.0}


@objective(Kind.VALUES, example=lambda num_classes: _INTERVAL)
def hl_gauss_loss(
    input: Tensor,
    target: Tensor,
    *,
    min_value: Tensor | float,
    max_value: Tensor | float,
    num_bins: int | None = None,
    sigma: Tensor | float | None = None,
    sigma_ratio: Tensor | float = 0.75,
    clamp: bool = False,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""Cross-entropy against the target blurred into a histogram by a Gaussian (HL-Gauss).

    Reach for it to train value functions, and other regressions with noisy or drifting targets whose range is known:
    nothing needs normalising. Not where the range is unknown, nor where a squared error on well-scaled targets already
    trains well. Read predictions with :func:`histogram_mean`.

    Formula:
        .. math:: L = -\sum_i p_i \log \mathrm{softmax}(z)_i, \quad
            p_i = \frac{\Phi((e_i - y) / \sigma) - \Phi((e_{i-1} - y) / \sigma)}
            {\Phi((e_m - y) / \sigma) - \Phi((e_0 - y) / \sigma)}

        with m bins between the edges :math:`e_0, ..., e_m` evenly spaced over the interval.

    Args:
        input: Logits over bins, the last axis.
        target: Real values.
        min_value: Left edge of the first bin.
        max_value: Right edge of the last bin.
        num_bins: Number of bins; None takes input's.
        sigma: Standard deviation of the Gaussian, positive; None takes ``sigma_ratio``.
        sigma_ratio: Standard deviation in widths of a bin; 0.75 spreads a value over about six bins.
        clamp: Whether targets are clamped to the interval first.
        sample_weight: Weights of rows.
        reduction: ``none``, ``mean`` or ``sum``.
        normalizer: Divisor in place of the number of rows.

    Shape:
        - input: ``(..., B)``, floating point; target: ``(...)``, floating point.
        - sample_weight: ``(...)``; normalizer: a number or ``()``.

    Returns:
        ``(...)`` for ``none``, else ``()``; float32 for half-precision input. Empty ``mean`` is NaN, 0 if
        ``normalizer`` is given.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, the interval, ``sigma`` or reduction is wrong.

    Example:
        >>> hl_gauss_loss(torch.zeros(1, 4), torch.tensor([0.3]), min_value=-1.0, max_value=1.0)
        tensor(1.3863)

    Source:
        Farebrother, Orbay, Vuong, Taïga, Chebotar, Xiao, Irpan, Levine, Castro, Faust, Kumar, Agarwal: Stop Regressing:
        Training Value Functions via Classification for Scalable Deep RL (ICML 2024, arXiv 2403.03950), section 3.1;
        Imani, White: Improving Regression Performance with Distributional Losses (ICML 2018).
    """
    bins = _check_values(input, target, num_bins)
    p, at = _blurred(target, min_value, max_value, bins, sigma, sigma_ratio, clamp)
    logits = widen(input)
    p = p.to(logits.dtype)
    loss = -weighted_sum(p, logits.log_softmax(-1), -1) if at is None else sparse.cross_entropy(logits, p, at)
    return reduce_values(loss, sample_weight=sample_weight, reduction=reduction, normalizer=normalizer)


class HLGaussLoss(Objective):
    """Cross-entropy against a target blurred into a histogram; module form of :func:`hl_gauss_loss`.

    Example:
        >>> loss = HLGaussLoss(-1.0, 1.0, num_bins=4)
        >>> loss(torch.zeros(1, 4), torch.tensor([0.3]))
        tensor(1.3863)
        >>> loss.decode(loss.target(torch.tensor([0.1])).log())
        tensor([0.0927])
    """

    function = hl_gauss_loss
    min_value: Tensor | float
    max_value: Tensor | float
    num_bins: int | None
    sigma: Tensor | float | None
    sigma_ratio: Tensor | float
    clamp: bool

    def __init__(
        self,
        min_value: Tensor | float,
        max_value: Tensor | float,
        num_bins: int | None = None,
        *,
        sigma: Tensor | float | None = None,
        sigma_ratio: Tensor | float = 0.75,
        clamp: bool = False,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(
            min_value=min_value,
            max_value=max_value,
            num_bins=num_bins,
            sigma=sigma,
            sigma_ratio=sigma_ratio,
            clamp=clamp,
            reduction=reduction,
        )

    def target(self, value: Tensor) -> Tensor:
        """Values ``(...)`` as probabilities over the bins ``(..., num_bins)``."""
        return hl_gauss_target(
            value,
            min_value=self.min_value,
            max_value=self.max_value,
            num_bins=_known(self.num_bins),
            sigma=self.sigma,
            sigma_ratio=self.sigma_ratio,
            clamp=self.clamp,
        )

    def decode(self, input: Tensor) -> Tensor:
        """Predicted values ``(...)`` of logits ``(..., B)``."""
        return histogram_mean(input, min_value=self.min_value, max_value=self.max_value)


@objective(Kind.VALUES, example=lambda num_classes: _INTERVAL)
def two_hot_loss(
    input: Tensor,
    target: Tensor,
    *,
    min_value: Tensor | float,
    max_value: Tensor | float,
    num_bins: int | None = None,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""Cross-entropy against the target shared between its two neighbouring atoms.

    Reach for it where predictions must be exact at the ends of the interval; :func:`hl_gauss_loss` usually trains
    better. Read predictions with :func:`atom_mean`.

    Formula:
        .. math:: L = -\sum_i p_i \log \mathrm{softmax}(z)_i, \quad p_i = \max(0, 1 - |y - a_i| / \Delta)

        with atoms :math:`a_i` evenly spaced by :math:`\Delta` from end to end, and y clamped between them.

    Args:
        input: Logits over atoms, the last axis.
        target: Real values.
        min_value: The first atom.
        max_value: The last atom.
        num_bins: Number of atoms, at least 2; None takes input's.
        sample_weight: Weights of rows.
        reduction: ``none``, ``mean`` or ``sum``.
        normalizer: Divisor in place of the number of rows.

    Shape:
        - input: ``(..., B)``, floating point; target: ``(...)``, floating point.
        - sample_weight: ``(...)``; normalizer: a number or ``()``.

    Returns:
        ``(...)`` for ``none``, else ``()``; float32 for half-precision input. Empty ``mean`` is NaN, 0 if
        ``normalizer`` is given.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, the interval or reduction is wrong.

    Example:
        >>> input = torch.tensor([[0.0, 1.0, 0.0]])
        >>> two_hot_loss(input, torch.tensor([0.5]), min_value=-1.0, max_value=1.0)
        tensor(1.0514)

    Source:
        Farebrother et al. (ICML 2024, arXiv 2403.03950), section 3.1; Schrittwieser et al.: Mastering Atari, Go, Chess
        and Shogi by Planning with a Learned Model (Nature 2020).
    """
    bins = _check_values(input, target, num_bins)
    log_p = widen(input).log_softmax(-1)
    position = _position(target.detach().double(), min_value, max_value, bins).unsqueeze(-1)
    below = position.nan_to_num().floor().clamp(max=bins - 2)
    above_share = (position - below).squeeze(-1).to(log_p.dtype)
    of_below, of_above = (-at_class(log_p, atom.long(), input.ndim - 1) for atom in (below, below + 1))
    loss = product(1 - above_share, of_below) + product(above_share, of_above)
    return reduce_values(loss, sample_weight=sample_weight, reduction=reduction, normalizer=normalizer)


class TwoHotLoss(Objective):
    """Cross-entropy against a target shared between two atoms; module form of :func:`two_hot_loss`.

    Example:
        >>> loss = TwoHotLoss(-1.0, 1.0, num_bins=3)
        >>> loss.target(torch.tensor([0.25]))
        tensor([[0.0000, 0.7500, 0.2500]])
        >>> loss.decode(loss.target(torch.tensor([0.25])).log())
        tensor([0.2500])
    """

    function = two_hot_loss
    min_value: Tensor | float
    max_value: Tensor | float
    num_bins: int | None

    def __init__(
        self,
        min_value: Tensor | float,
        max_value: Tensor | float,
        num_bins: int | None = None,
        *,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(min_value=min_value, max_value=max_value, num_bins=num_bins, reduction=reduction)

    def target(self, value: Tensor) -> Tensor:
        """Values ``(...)`` as probabilities of the atoms ``(..., num_bins)``."""
        return two_hot_target(value, min_value=self.min_value, max_value=self.max_value, num_bins=_known(self.num_bins))

    def decode(self, input: Tensor) -> Tensor:
        """Predicted values ``(...)`` of logits ``(..., B)``."""
        return atom_mean(input, min_value=self.min_value, max_value=self.max_value)


@objective(
    Kind.VALUES,
    example=lambda num_classes: _INTERVAL,
    arguments=lambda input, target: {"input": input, **_transitions(target, input.shape[-1])},
)
def categorical_td_loss(
    input: Tensor,
    next_probs: Tensor,
    reward: Tensor,
    discount: Tensor | float,
    *,
    min_value: Tensor | float,
    max_value: Tensor | float,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""Cross-entropy against the next state's value distribution, moved by a Bellman step and projected (C51).

    Reach for it to learn the distribution of returns. Where only their mean is needed, :func:`hl_gauss_loss` on scalar
    targets usually trains better.

    Formula:
        .. math:: L = -\sum_i p_i \log \mathrm{softmax}(z)_i

        with p of :func:`categorical_projection`, a constant to the gradient.

    Args:
        input: Logits over atoms of the action taken, the last axis.
        next_probs: Probabilities of the atoms for the greedy action of the next state.
        reward: Rewards.
        discount: Discounts; 0 where the episode ended.
        min_value: The first atom.
        max_value: The last atom.
        sample_weight: Weights of rows.
        reduction: ``none``, ``mean`` or ``sum``.
        normalizer: Divisor in place of the number of rows.

    Shape:
        - input, next_probs: ``(..., B)``, floating point; reward: ``(...)``, floating point; discount: as reward, or a
          number or ``()``.
        - sample_weight: ``(...)``; normalizer: a number or ``()``.

    Returns:
        ``(...)`` for ``none``, else ``()``; float32 for half-precision input. Empty ``mean`` is NaN, 0 if
        ``normalizer`` is given.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, the interval or reduction is wrong.

    Example:
        >>> next_probs = torch.tensor([[0.0, 0.0, 1.0]])
        >>> reward, discount = torch.tensor([0.5]), torch.tensor([0.5])
        >>> categorical_td_loss(torch.zeros(1, 3), next_probs, reward, discount, min_value=-1.0, max_value=1.0)
        tensor(1.0986)

    Source:
        Bellemare, Dabney, Munos: A Distributional Perspective on Reinforcement Learning (ICML 2017, arXiv 1707.06887),
        algorithm 1; as compared by Farebrother et al. (ICML 2024, arXiv 2403.03950).
    """
    target = categorical_projection(next_probs, reward, discount, min_value=min_value, max_value=max_value)
    rows = bin_rows(input, target, sample_weight=sample_weight, name="next_probs")
    return rows.reduce(-rows.expect(rows.log_p()), reduction=reduction, normalizer=normalizer)


class CategoricalTDLoss(Objective):
    """Cross-entropy against a projected Bellman step; module form of :func:`categorical_td_loss`.

    Example:
        >>> loss = CategoricalTDLoss(-1.0, 1.0)
        >>> next_probs, reward, discount = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([0.5]), torch.tensor([0.5])
        >>> loss(torch.zeros(1, 3), next_probs, reward, discount)
        tensor(1.0986)
    """

    function = categorical_td_loss
    min_value: Tensor | float
    max_value: Tensor | float

    def __init__(self, min_value: Tensor | float, max_value: Tensor | float, *, reduction: Reduction = "mean") -> None:
        super().__init__(min_value=min_value, max_value=max_value, reduction=reduction)

    def forward(  # type: ignore[override]
        self,
        input: Tensor,
        next_probs: Tensor,
        reward: Tensor,
        discount: Tensor | float,
        *,
        sample_weight: Tensor | None = None,
        normalizer: Tensor | float | None = None,
    ) -> Tensor:
        """The objective on logits ``(..., B)`` and transitions; see :func:`categorical_td_loss`."""
        return categorical_td_loss(
            input,
            next_probs,
            reward,
            discount,
            sample_weight=sample_weight,
            normalizer=normalizer,
            **self.hyperparameters(),
        )

    def decode(self, input: Tensor) -> Tensor:
        """Expected values ``(...)`` of logits ``(..., B)``."""
        return atom_mean(input, min_value=self.min_value, max_value=self.max_value)


class CategoricalValueHead(nn.Module):
    """A linear layer to bins, with the loss and the decoding that belong to them.

    Reach for it in place of the last ``nn.Linear(in_features, out_features)`` of a value network.

    Args:
        in_features: Size of the features.
        min_value: Left end of the interval of values.
        max_value: Right end.
        num_bins: Number of bins.
        out_features: Number of values for each row, such as actions; None for one without an axis of its own.
        encoding: ``hl_gauss`` or ``two_hot``.
        sigma_ratio: Standard deviation of HL-Gauss in widths of a bin.

    Shape:
        - input: ``(..., in_features)``; logits: ``(..., num_bins)``, or ``(..., out_features, num_bins)``.

    Example:
        >>> head = CategoricalValueHead(16, -10.0, 10.0, out_features=4)
        >>> logits = head(torch.zeros(2, 16))
        >>> logits.shape, head.decode(logits).shape
        (torch.Size([2, 4, 51]), torch.Size([2, 4]))
        >>> action = torch.tensor([0, 3])
        >>> head.loss(logits[torch.arange(2), action], torch.tensor([1.0, -2.0])).shape
        torch.Size([])

    Source:
        Farebrother et al. (ICML 2024, arXiv 2403.03950), section 3 (51 bins from -10 to 10 on Atari).
    """

    def __init__(
        self,
        in_features: int,
        min_value: float,
        max_value: float,
        num_bins: int = 51,
        *,
        out_features: int | None = None,
        encoding: Literal["hl_gauss", "two_hot"] = "hl_gauss",
        sigma_ratio: float = 0.75,
    ) -> None:
        super().__init__()
        if encoding not in ("hl_gauss", "two_hot"):
            raise ValueError(f"encoding is {encoding!r}; wanted 'hl_gauss' or 'two_hot'.")
        self.loss: HLGaussLoss | TwoHotLoss = (
            HLGaussLoss(min_value, max_value, num_bins, sigma_ratio=sigma_ratio)
            if encoding == "hl_gauss"
            else TwoHotLoss(min_value, max_value, num_bins)
        )
        self.out_features = out_features
        self.num_bins = num_bins
        self.linear = nn.Linear(in_features, num_bins * (1 if out_features is None else out_features))

    def forward(self, input: Tensor) -> Tensor:
        """Logits over bins."""
        logits: Tensor = self.linear(input)
        return (
            logits if self.out_features is None else logits.reshape(*input.shape[:-1], self.out_features, self.num_bins)
        )

    def decode(self, input: Tensor) -> Tensor:
        """Values ``(...)`` of logits ``(..., num_bins)``."""
        return self.loss.decode(input)


def hl_gauss_target(
    target: Tensor,
    *,
    min_value: Tensor | float,
    max_value: Tensor | float,
    num_bins: int,
    sigma: Tensor | float | None = None,
    sigma_ratio: Tensor | float = 0.75,
    clamp: bool = False,
) -> Tensor:
    """Probabilities of bins under a Gaussian around each value, renormalised to the interval.

    Exact for values far outside too: all mass nears the edge bin, where differences of ``erf`` give 0 / 0.

    Args:
        target: Values ``(...)``, floating point.
        min_value: Left edge of the first bin.
        max_value: Right edge of the last bin.
        num_bins: Number of bins.
        sigma: Standard deviation, positive; None takes ``sigma_ratio``.
        sigma_ratio: Standard deviation in widths of a bin, positive.
        clamp: Whether values are clamped to the interval first.

    Returns:
        ``(..., num_bins)`` in target's dtype (float32 for halves), computed in float64, without gradient.

    Raises:
        TypeError: ``target`` is not floating point.
        ValueError: The interval, ``num_bins``, ``sigma`` or ``sigma_ratio`` is wrong.

    Example:
        >>> hl_gauss_target(torch.tensor([0.5]), min_value=0.0, max_value=1.0, num_bins=5, sigma=0.1)
        tensor([[0.0013, 0.1573, 0.6827, 0.1573, 0.0013]])

    Source:
        Farebrother et al. (ICML 2024, arXiv 2403.03950), section 3.1 and appendix A.
    """
    p, at = _blurred(target, min_value, max_value, num_bins, sigma, sigma_ratio, clamp)
    return p if at is None else p.new_zeros((*target.shape, num_bins)).scatter(-1, at, p)


def two_hot_target(target: Tensor, *, min_value: Tensor | float, max_value: Tensor | float, num_bins: int) -> Tensor:
    """Each value, clamped to the interval, shared linearly between its two neighbouring atoms.

    Args:
        target: Values ``(...)``, floating point.
        min_value: The first atom.
        max_value: The last atom.
        num_bins: Number of atoms, at least 2.

    Returns:
        ``(..., num_bins)`` in target's dtype (float32 for halves), without gradient.

    Raises:
        TypeError: ``target`` is not floating point.
        ValueError: The interval or ``num_bins`` is wrong.

    Example:
        >>> two_hot_target(torch.tensor([0.1, 9.0]), min_value=0.0, max_value=1.0, num_bins=3)
        tensor([[0.8000, 0.2000, 0.0000],
                [0.0000, 0.0000, 1.0000]])

    Source:
        Farebrother et al. (ICML 2024, arXiv 2403.03950), section 3.1.
    """
    check_floating("target", target)
    return _share(target.detach(), min_value, max_value, num_bins)


def categorical_projection(
    next_probs: Tensor,
    reward: Tensor,
    discount: Tensor | float,
    *,
    min_value: Tensor | float,
    max_value: Tensor | float,
) -> Tensor:
    r"""The distribution of reward + discount x value of the next state, projected onto the atoms.

    Formula:
        .. math:: p_i = \sum_j q_j \max(0, 1 - |\mathrm{clamp}(r + \gamma a_j) - a_i| / \Delta)

    Args:
        next_probs: Probabilities q of the atoms for the greedy action of the next state ``(..., B)``.
        reward: Rewards ``(...)``.
        discount: Discounts ``(...)``, or one for all; 0 where the episode ended.
        min_value: The first atom.
        max_value: The last atom.

    Returns:
        ``(..., B)`` in next_probs' dtype (float32 for halves), without gradient.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape or the interval is wrong.

    Example:
        >>> next_probs, one = torch.tensor([[0.0, 0.0, 1.0]]), torch.ones(1)
        >>> categorical_projection(next_probs, 0.2 * one, 0.5 * one, min_value=-1.0, max_value=1.0)
        tensor([[0.0000, 0.3000, 0.7000]])

    Source:
        Bellemare, Dabney, Munos (ICML 2017, arXiv 1707.06887), algorithm 1.
    """
    if not isinstance(discount, Tensor):
        check_in_range("discount", discount, -math.inf)
        discount = torch.as_tensor(float(discount), dtype=torch.float64, device=next_probs.device)
    if discount.ndim == 0:
        discount = discount.expand(next_probs.shape[:-1])
    for name, tensor in (("next_probs", next_probs), ("reward", reward), ("discount", discount)):
        check_floating(name, tensor)
        if name != "next_probs":
            check_shape(name, tensor, next_probs.shape[:-1], "a number for each row of next_probs (bins last)")
    bins = next_probs.shape[-1] if next_probs.ndim else 0
    low, span = _interval(min_value, max_value, bins, next_probs, least=2)
    q, gamma = widen(next_probs.detach()), discount.detach().double().unsqueeze(-1)
    atoms = torch.arange(bins, dtype=torch.float64, device=q.device)
    # In units of the atoms' spacing, from the first of them on.
    start = (reward.detach().double().unsqueeze(-1) + (gamma - 1) * low) / span * (bins - 1)
    position = (start + gamma * atoms).clamp(0.0, bins - 1)
    below = position.nan_to_num().floor().clamp(max=bins - 2)
    to_above = q * (position - below).to(q.dtype)
    below = below.long()
    return torch.zeros_like(q).scatter_add(-1, below, q - to_above).scatter_add(-1, below + 1, to_above)


def histogram_mean(input: Tensor, *, min_value: Tensor | float, max_value: Tensor | float) -> Tensor:
    """Expected value of logits over bins, each standing for its centre: what HL-Gauss predicts.

    Args:
        input: Logits ``(..., B)``, floating point.
        min_value: Left edge of the first bin.
        max_value: Right edge of the last bin.

    Returns:
        ``(...)``; float32 for half-precision input.

    Raises:
        TypeError: ``input`` is not floating point.
        ValueError: The interval is wrong.

    Example:
        >>> histogram_mean(torch.tensor([[0.0, 0.0, 50.0]]), min_value=0.0, max_value=3.0)
        tensor([2.5000])

    Source:
        Farebrother et al. (ICML 2024, arXiv 2403.03950), section 3.
    """
    check_floating("input", input)
    bins = input.shape[-1] if input.ndim else 0
    low, span = _interval(min_value, max_value, bins, input)
    return _expectation(input, low + span * (torch.arange(bins, device=input.device).double() + 0.5) / bins)


def atom_mean(input: Tensor, *, min_value: Tensor | float, max_value: Tensor | float) -> Tensor:
    """Expected value of logits over atoms that lie from end to end: what two-hot and C51 predict.

    Args:
        input: Logits ``(..., B)``, floating point, B >= 2.
        min_value: The first atom.
        max_value: The last atom.

    Returns:
        ``(...)``; float32 for half-precision input.

    Raises:
        TypeError: ``input`` is not floating point.
        ValueError: The interval is wrong, or there is only one atom.

    Example:
        >>> atom_mean(torch.tensor([[0.0, 0.0, 50.0]]), min_value=0.0, max_value=3.0)
        tensor([3.])

    Source:
        Farebrother et al. (ICML 2024, arXiv 2403.03950), section 3.
    """
    check_floating("input", input)
    bins = input.shape[-1] if input.ndim else 0
    low, span = _interval(min_value, max_value, bins, input, least=2)
    return _expectation(input, low + span * torch.linspace(0, 1, bins, dtype=torch.float64, device=input.device))


def _expectation(input: Tensor, positions: Tensor) -> Tensor:
    probability = widen(input).softmax(-1)
    return (probability * positions.to(probability.dtype)).sum(-1)


def _share(value: Tensor, min_value: Tensor | float, max_value: Tensor | float, num_bins: int) -> Tensor:
    """Float64 values ``(...)``, clamped, as shares of their two neighbouring atoms ``(..., num_bins)``."""
    position = _position(value.double(), min_value, max_value, num_bins).unsqueeze(-1)
    home = position.floor()  # positions are split into atom and place above it, so that they keep their digits
    dtype = widen(value).dtype
    atoms = torch.arange(num_bins, dtype=dtype, device=value.device)
    return torch.relu(1 - ((atoms - home.to(dtype)) - (position - home).to(dtype)).abs())


def _position(value: Tensor, min_value: Tensor | float, max_value: Tensor | float, num_bins: int) -> Tensor:
    """Where float64 values lie between the atoms, clamped: 0 on the first, ``num_bins - 1`` on the last."""
    low, span = _interval(min_value, max_value, num_bins, value, least=2)
    return ((value - low) / span).clamp(0.0, 1.0) * (num_bins - 1)


def _blurred(
    target: Tensor,
    min_value: Tensor | float,
    max_value: Tensor | float,
    num_bins: int,
    sigma: Tensor | float | None,
    sigma_ratio: Tensor | float,
    clamp: bool,
) -> tuple[Tensor, Tensor | None]:
    """Shares of the bins that have one, ``(..., W)``, and which bins these are; None where W is all of them."""
    check_floating("target", target)
    low, span = _interval(min_value, max_value, num_bins, target)
    for name, number in (("sigma", 1.0 if sigma is None else sigma), ("sigma_ratio", sigma_ratio)):
        check_in_range(name, number, 0.0, low_open=True)
    width = span / num_bins
    deviation = (
        sigma_ratio * width if sigma is None else torch.as_tensor(sigma, dtype=torch.float64, device=target.device)
    )
    # 100 deviations^2 / width beyond the ends the edge bin holds all but e^-100; farther out digits would get lost.
    reach = 0.0 if clamp else 100 * deviation**2 / width
    value = target.detach().double().clamp(low - reach, low + span + reach).unsqueeze(-1)
    result, scale = widen(target).dtype, width / (math.sqrt(2) * deviation)
    ratio = _bins_a_deviation(sigma, sigma_ratio, min_value, max_value, num_bins)
    # Where a Gaussian is wide, shares are small differences of numbers near 1: float32 has too few digits for them.
    dtype = torch.float64 if ratio is not None and ratio > 30 else result
    position = (value - low) / width
    nearest = position.clamp(0, num_bins)
    home = nearest.ceil() - 1  # positions are split into bin and place in it: in float32 edges keep their digits so
    some = num_bins if ratio is None else _bins_with_a_share(ratio, result, num_bins)
    first = (home - some // 2).clamp(0, num_bins - some).nan_to_num()
    edges = torch.arange(some + 1, dtype=dtype, device=target.device) + (first - home).to(dtype)
    away = (edges - (nearest - home).to(dtype)) * scale.to(dtype)
    distance = ((position - nearest).abs() * scale).to(dtype)
    p = _normal_mass(away, distance, (home - first).nan_to_num().long())
    if dtype != result or result == torch.float64:  # and in the end float64 has too few
        flat = (1 + 2 * distance) * scale * num_bins < 1e-5
        p = torch.where(flat, 1 / num_bins, p)
    at = None if some == num_bins else first.long() + torch.arange(some, device=target.device)
    return p.to(result).detach(), at


def _bins_a_deviation(
    sigma: Tensor | float | None,
    sigma_ratio: Tensor | float,
    min_value: Tensor | float,
    max_value: Tensor | float,
    num_bins: int,
) -> float | None:
    """The standard deviation in bins; None where a tensor holds it."""
    if sigma is None:
        return None if isinstance(sigma_ratio, Tensor) else float(sigma_ratio)
    if any(isinstance(number, Tensor) for number in (sigma, min_value, max_value)):
        return None
    return float(sigma) * num_bins / (float(max_value) - float(min_value))


def _bins_with_a_share(ratio: float, dtype: torch.dtype, num_bins: int) -> int:
    """How many bins around a value may have a share that is not too small for the dtype."""
    kind = torch.finfo(dtype)
    side = ratio * math.sqrt(-2 * math.log(kind.smallest_normal * kind.eps))
    return num_bins if 2 * side + 3 >= num_bins else 2 * math.ceil(side) + 1


def _normal_mass(away: Tensor, distance: Tensor, home: Tensor) -> Tensor:
    """Shares of the bins in the mass exp(-z^2) between the outermost edges.

    Every share keeps its digits: masses are differences of tails erfc(|z|), scaled by exp(distance^2).

    Args:
        away: Edges ``(..., W + 1)`` as seen from the point of the interval that is nearest to z = 0.
        distance: Of that point from z = 0, ``(..., 1)``.
        home: The bin that ends at or after that point ``(..., 1)``, from -1; it holds mass of both tails.
    """
    tail = torch.copysign(_scaled_erfc(away.abs(), distance), away)
    both = torch.where(home >= 0, 2 * _scaled_erfc(torch.zeros_like(distance), distance), 0.0)
    mass = tail[..., :-1] - tail[..., 1:]
    return mass.scatter_add_(-1, home.clamp(min=0), both) / (tail[..., :1] - tail[..., -1:] + both)


def _scaled_erfc(x: Tensor, c: Tensor) -> Tensor:
    """exp(c^2) erfc(x + c) for x, c >= 0."""
    if x.dtype == torch.float64:
        scaled: Tensor = torch.special.erfcx(x + c) * torch.exp(-x * (x + 2 * c))
        return scaled
    if not may_read_values(x):
        return _scaled_erfc_single(x, c)
    # Beyond 9 erfc is below 5e-37 and slow to compute. Few rows are far, where another function takes over.
    scaled, far = torch.erfc(x.clamp(max=9)), c.squeeze(-1) > 0
    scaled[far] = _scaled_erfc_single(x[far], c[far])
    return scaled


def _scaled_erfc_single(x: Tensor, c: Tensor) -> Tensor:
    """To the digits of float32: the Chebyshev fit of Press et al., Numerical Recipes, section 6.2 (error 1.2e-7)."""
    t = 1 / (1 + (x + c) / 2)
    series = torch.zeros_like(t)
    for coefficient in _ERFC:
        series = series * t + coefficient
    return t * torch.exp(series - x * (x + 2 * c))


_ERFC = (
    0.17087277,
    -0.82215223,
    1.48851587,
    -1.13520398,
    0.27886807,
    -0.18628806,
    0.09678418,
    0.37409196,
    1.00002368,
    -1.26551223,
)


def _transitions(target: Any, num_bins: int) -> dict[str, Any]:
    """Next states, rewards and discounts made of one number for each row, for the contract."""
    if not isinstance(target, Tensor):
        return dict.fromkeys(("next_probs", "reward", "discount"), target)
    waves = torch.stack([(k * target).sin() for k in range(num_bins)], -1)
    return {"next_probs": waves.softmax(-1), "reward": target, "discount": target.sigmoid()}


def _interval(
    min_value: Tensor | float, max_value: Tensor | float, num_bins: int, like: Tensor, least: int = 1
) -> tuple[Tensor, Tensor]:
    """Left end and length in float64."""
    if num_bins < least:
        raise ValueError(f"there are {num_bins} bins; wanted at least {least}, on the last axis of logits.")
    check_in_range("min_value", min_value, -math.inf)
    check_in_range("max_value", max_value, -math.inf)
    for name, end in (("min_value", min_value), ("max_value", max_value)):
        if not isinstance(end, Tensor) and math.isinf(end):
            raise ValueError(f"{name} is {end}; wanted a finite number.")
    if not isinstance(min_value, Tensor) and not isinstance(max_value, Tensor) and not min_value < max_value:
        raise ValueError(f"the interval is [{min_value}, {max_value}]; wanted min_value < max_value.")
    low, high = (torch.as_tensor(end, dtype=torch.float64, device=like.device) for end in (min_value, max_value))
    return low, high - low


def _check_values(input: Tensor, target: Tensor, num_bins: int | None) -> int:
    check_floating("input", input)
    check_floating("target", target)
    if input.ndim == 0:
        raise ValueError("input has shape (); wanted logits (..., bins).")
    check_shape("target", target, input.shape[:-1], "a value for each row of input (bins last)")
    if num_bins is not None and num_bins != input.shape[-1]:
        raise ValueError(f"input has {input.shape[-1]} bins on its last axis; wanted num_bins={num_bins}.")
    return input.shape[-1]


def _known(num_bins: int | None) -> int:
    if num_bins is None:
        raise ValueError("num_bins is None; wanted the number of bins that targets are spread over.")
    return num_bins
