"""How far confidences are from the share of right answers: calibration errors and reliability diagrams.

Every error is a function of two numbers a row, the confidence in [0, 1] and whether the answer was right;
:func:`reliability_bins` bins these, the errors sum up the bins. For measuring, not for training: bins have no gradient.
Rows with the label -100 are left out, as in training.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from lossary.core import checks
from lossary.core.optional import optional
from lossary.core.rows import class_rows

if TYPE_CHECKING:
    import plotly.graph_objects as go

Strategy = Literal["uniform", "quantile"]


@dataclasses.dataclass(frozen=True)
class ReliabilityBins:
    """Confidences and right answers, bin by bin.

    Attributes:
        edges: Ends of the bins ``(B + 1,)``; a bin holds confidences above its lower end and up to its upper one (the
            first one its lower end too).
        count: Rows in each bin ``(B,)``.
        confidence: Mean confidence of each bin ``(B,)``; NaN in an empty one.
        accuracy: Share of right answers of each bin ``(B,)``; NaN in an empty one.
    """

    edges: Tensor
    count: Tensor
    confidence: Tensor
    accuracy: Tensor

    def gap(self) -> Tensor:
        """Confidence less accuracy of each bin ``(B,)``, 0 in an empty one: positive where over-confident."""
        return torch.where(self.count > 0, self.confidence - self.accuracy, 0.0)

    def share(self) -> Tensor:
        """Share of the rows in each bin ``(B,)``; NaN without rows."""
        return self.count / self.count.sum()

    def expected_error(self) -> Tensor:
        """Mean gap, whatever its sign, over the rows ``()``; NaN without rows."""
        return (self.share() * self.gap().abs()).sum()

    def overconfidence(self) -> Tensor:
        """Gap of over-confident bins, weighed by their confidence, over the rows ``()``; NaN without rows."""
        return (self.share() * self.confidence.nan_to_num() * self.gap().relu()).sum()


def reliability_bins(
    confidence: Tensor, correct: Tensor, n_bins: int = 15, *, strategy: Strategy = "uniform"
) -> ReliabilityBins:
    """Bin confidences together with whether they were right.

    Args:
        confidence: Numbers in [0, 1].
        correct: Whether each was right: bool, or 0 and 1.
        n_bins: Number of bins, at least 1.
        strategy: ``uniform`` bins are equally wide, ``quantile`` bins hold about equally many rows (ties stay
            together, so that the order of rows never matters).

    Shape:
        - confidence, correct: the same, any shape.

    Returns:
        The bins, float64.

    Raises:
        TypeError: ``confidence`` is not of floating point.
        ValueError: A shape, confidence, ``n_bins`` or ``strategy`` is wrong.

    Example:
        >>> bins = reliability_bins(torch.tensor([0.6, 0.9, 0.8]), torch.tensor([True, True, False]), n_bins=2)
        >>> bins.count, bins.accuracy
        (tensor([0., 3.], dtype=torch.float64), tensor([   nan, 0.6667], dtype=torch.float64))
    """
    checks.check_floating("confidence", confidence)
    checks.check_shape("correct", correct, confidence.shape, "right or wrong for each confidence")
    checks.check_in_range("n_bins", n_bins, 1)
    if checks.may_read_values(confidence):
        checks.check_unit_interval("confidence", confidence)
    s, c = confidence.detach().double().reshape(-1), correct.detach().double().reshape(-1)
    edges = _edges(s, n_bins, strategy, confidence.dtype)
    place = torch.bucketize(s.contiguous(), edges[1:-1].contiguous())

    def total(values: Tensor) -> Tensor:
        return s.new_zeros(n_bins).scatter_add(0, place, values)

    count = total(torch.ones_like(s))
    return ReliabilityBins(edges, count, total(s) / count, total(c) / count)


def reliability_curve(
    logits: Tensor,
    target: Tensor,
    n_bins: int = 15,
    *,
    strategy: Strategy = "uniform",
    label: int | None = None,
) -> ReliabilityBins:
    """The reliability of a classifier's most likely class, or of the probability of one class.

    Args:
        logits: Logits.
        target: Class indices.
        n_bins: Number of bins, at least 1.
        strategy: ``uniform`` or ``quantile``, as in :func:`reliability_bins`.
        label: A class whose probability is binned against its frequency; None bins the most likely class.

    Shape:
        - logits: ``(N, C, ...)``; target: ``(N, ...)`` integer.

    Returns:
        The bins; :func:`reliability_diagram` draws them.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, label, ``n_bins`` or ``strategy`` is wrong.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
        >>> reliability_curve(logits, torch.tensor([0, 0]), n_bins=2).accuracy
        tensor([   nan, 0.5000], dtype=torch.float64)
    """
    if label is None:
        return reliability_bins(*_confidence(logits, target), n_bins, strategy=strategy)
    p, hit = _per_class(logits, target)
    checks.check_in_range("label", label, 0, p.shape[1] - 1)
    return reliability_bins(p[:, label], hit[:, label], n_bins, strategy=strategy)


def reliability_diagram(
    bins: ReliabilityBins | Mapping[str, ReliabilityBins], *, title: str = "Reliability"
) -> go.Figure:
    """Draw accuracy against confidence; on the diagonal a confidence is what it says. Needs Plotly.

    Args:
        bins: What :func:`reliability_curve` gave, or several by name.
        title: Title of the figure.

    Returns:
        A Plotly figure: a line for each, its markers as large as its bins, and the share of rows below.

    Raises:
        ImportError: Plotly is not installed.

    Example:
        >>> bins = reliability_bins(torch.rand(100), torch.rand(100) < 0.5)
        >>> figure = reliability_diagram({"model": bins})
        >>> [trace.name for trace in figure.data]
        ['perfect', 'model', 'model']
    """
    subplots = optional("plotly.subplots", needed_by="reliability_diagram")
    figure: go.Figure = subplots.make_subplots(
        rows=2, shared_xaxes=True, row_heights=[0.75, 0.25], vertical_spacing=0.05
    )
    figure.add_scatter(
        x=[0, 1], y=[0, 1], mode="lines", name="perfect", line={"dash": "dot", "color": "gray"}, row=1, col=1
    )
    colors = figure.layout.template.layout.colorway or ("#636efa", "#ef553b", "#00cc96", "#ab63fa", "#ffa15a")
    named = bins if isinstance(bins, Mapping) else {"model": bins}
    for place, (name, found) in enumerate(named.items()):
        color, kept, share = colors[place % len(colors)], found.count > 0, found.share()
        figure.add_scatter(
            x=found.confidence[kept].tolist(),
            y=found.accuracy[kept].tolist(),
            name=name,
            mode="lines+markers",
            line={"color": color},
            marker={"size": (6 + 14 * share[kept].sqrt()).tolist()},
            row=1,
            col=1,
        )
        center = (found.edges[1:] + found.edges[:-1]) / 2
        width = found.edges.diff()
        figure.add_bar(
            x=center.tolist(),
            y=share.tolist(),
            width=width.tolist(),
            name=name,
            marker={"color": color},
            opacity=0.5,
            showlegend=False,
            row=2,
            col=1,
        )
    figure.update_xaxes(range=[0, 1], row=1, col=1)
    figure.update_xaxes(range=[0, 1], title="confidence", row=2, col=1)
    figure.update_yaxes(range=[0, 1], title="accuracy", row=1, col=1)
    figure.update_yaxes(title="share", row=2, col=1)
    figure.update_layout(title=title, template="plotly_white", barmode="overlay", width=560, height=620)
    return figure


def expected_calibration_error(logits: Tensor, target: Tensor, n_bins: int = 15) -> Tensor:
    r"""Mean gap between confidence and accuracy over equally wide bins (ECE).

    The usual number. Never above the mean of \|confidence - correctness\|, whatever the bins; depends on their number,
    and a mean gap within a bin hides gaps of both signs.

    Formula:
        .. math:: \sum_b \frac{n_b}{N} |\mathrm{conf}_b - \mathrm{acc}_b|

    Args:
        logits: Logits.
        target: Class indices.
        n_bins: Number of bins (lo, hi]; empty ones count for nothing.

    Shape:
        - logits: ``(N, C, ...)``; target: ``(N, ...)`` integer.

    Returns:
        ``()`` float64; NaN without rows.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, label or ``n_bins`` is wrong.

    Example:
        >>> expected_calibration_error(torch.tensor([[0.0, 0.0], [0.0, 3.0]]), torch.tensor([0, 1]))
        tensor(0.2737, dtype=torch.float64)

    Source:
        Naeini, Cooper, Hauskrecht (AAAI 2015); Guo, Pleiss, Sun, Weinberger: On Calibration of Modern Neural Networks
        (ICML 2017, arXiv 1706.04599).
    """
    return reliability_curve(logits, target, n_bins).expected_error()


def maximum_calibration_error(logits: Tensor, target: Tensor, n_bins: int = 15) -> Tensor:
    """Largest gap between confidence and accuracy over equally wide bins (MCE).

    For the worst case; with few rows it is the noise of a nearly empty bin. Arguments and shapes as in
    :func:`expected_calibration_error`.

    Example:
        >>> maximum_calibration_error(torch.tensor([[0.0, 0.0], [0.0, 3.0]]), torch.tensor([0, 1]))
        tensor(0.5000, dtype=torch.float64)
    """
    bins = reliability_curve(logits, target, n_bins)
    return torch.where(bins.count.sum() > 0, bins.gap().abs().amax(), torch.nan)


def adaptive_calibration_error(logits: Tensor, target: Tensor, n_bins: int = 15) -> Tensor:
    """Mean gap between confidence and accuracy over bins of equally many rows (adaptive ECE).

    In place of :func:`expected_calibration_error` where most confidences crowd near 1. The form over all classes is
    :func:`classwise_calibration_error` with ``strategy="quantile"``. Arguments and shapes as there.

    Example:
        >>> adaptive_calibration_error(torch.tensor([[0.0, 0.0], [0.0, 3.0]]), torch.tensor([0, 1]), n_bins=2)
        tensor(0.2737, dtype=torch.float64)

    Source:
        Nguyen, O'Connor (EMNLP 2015); Mukhoti, Kulharia, Sanyal, Golodetz, Torr, Dokania (NeurIPS 2020, arXiv
        2002.09437).
    """
    return reliability_curve(logits, target, n_bins, strategy="quantile").expected_error()


def classwise_calibration_error(
    logits: Tensor, target: Tensor, n_bins: int = 15, *, strategy: Strategy = "uniform"
) -> Tensor:
    """Mean over classes of the gap between the class's probability and its frequency.

    Where probabilities of all classes matter, not the winner's alone. With many classes nearly all probabilities are
    near 0 and so is the error.

    Args:
        logits: Logits.
        target: Class indices.
        n_bins: Number of bins.
        strategy: ``uniform``: classwise ECE, also called static; ``quantile``: adaptive calibration error.

    Shape:
        - logits: ``(N, C, ...)``; target: ``(N, ...)`` integer.

    Returns:
        ``()`` float64; NaN without rows.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, label, ``n_bins`` or ``strategy`` is wrong.

    Example:
        >>> classwise_calibration_error(torch.tensor([[0.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 1]))
        tensor(0., dtype=torch.float64)

    Source:
        Kull et al.: Beyond temperature scaling (NeurIPS 2019, arXiv 1910.12656); Nixon, Dusenberry, Zhang, Jerfel,
        Tran: Measuring Calibration in Deep Learning (arXiv 1904.01685).
    """
    p, hit = _per_class(logits, target)
    errors = [
        reliability_bins(p[:, k], hit[:, k], n_bins, strategy=strategy).expected_error() for k in range(p.shape[1])
    ]
    return torch.stack(errors).mean()


def overconfidence_error(logits: Tensor, target: Tensor, n_bins: int = 15) -> Tensor:
    r"""Gap of the over-confident bins, weighed by their confidence.

    For safety: a confident mistake counts, modesty does not. Arguments and shapes as in
    :func:`expected_calibration_error`.

    Formula:
        .. math:: \sum_b \frac{n_b}{N}\, \mathrm{conf}_b \max(\mathrm{conf}_b - \mathrm{acc}_b, 0)

    Example:
        >>> overconfidence_error(torch.tensor([[0.0, 0.0], [0.0, 3.0]]), torch.tensor([1, 0]))
        tensor(0.5787, dtype=torch.float64)

    Source:
        Thulasidasan et al. (NeurIPS 2019, arXiv 1905.11001).
    """
    return reliability_curve(logits, target, n_bins).overconfidence()


def ks_calibration_error(logits: Tensor, target: Tensor) -> Tensor:
    r"""Largest gap between summed confidence and summed correctness, rows sorted by confidence (KS error).

    Needs no bins, and so no choice of their number.

    Formula:
        .. math:: \max_k \frac{1}{N} \Big| \sum_{i \le k} (s_i - c_i) \Big|, \quad s_1 \le s_2 \le \dots

        Rows of equal confidence enter together.

    Args:
        logits: Logits.
        target: Class indices.

    Shape:
        - logits: ``(N, C, ...)``; target: ``(N, ...)`` integer.

    Returns:
        ``()`` float64; NaN without rows.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape or label is wrong.

    Example:
        >>> ks_calibration_error(torch.tensor([[0.0, 0.0], [0.0, 3.0]]), torch.tensor([0, 1]))
        tensor(0.2737, dtype=torch.float64)

    Source:
        Gupta, Rahimi, Ajanthan, Mensink, Sminchisescu, Hartley: Calibration of Neural Networks using Splines (ICLR
        2021, arXiv 2006.12800).
    """
    confidence, correct = (values.double() for values in _confidence(logits, target))
    if len(confidence) == 0:
        return confidence.sum() / 0
    order = confidence.sort()
    gap = (order.values - correct[order.indices]).cumsum(0) / len(confidence)
    last_of_tie = torch.cat([order.values.diff() > 0, torch.ones_like(order.values[:1], dtype=torch.bool)])
    return torch.where(last_of_tie, gap.abs(), 0.0).amax()


def correctness_brier(logits: Tensor, target: Tensor) -> Tensor:
    r"""Mean squared gap between the confidence and whether the prediction was right.

    A proper score of confidences as such: it rewards calibration and telling right from wrong.

    Formula:
        .. math:: \frac{1}{N} \sum_i (\max_k p_{ik} - [\hat y_i = y_i])^2

    Args:
        logits: Logits.
        target: Class indices.

    Shape:
        - logits: ``(N, C, ...)``; target: ``(N, ...)`` integer.

    Returns:
        ``()`` float64; NaN without rows.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape or label is wrong.

    Example:
        >>> correctness_brier(torch.tensor([[0.0, 0.0], [0.0, 3.0]]), torch.tensor([0, 1]))
        tensor(0.1261, dtype=torch.float64)
    """
    confidence, correct = _confidence(logits, target)
    return (confidence - correct.double()).square().mean()


def dense_ece(probabilities: Tensor, target: Tensor, *, bins: int = 10, threshold: float = 0.5) -> Tensor:
    """Expected calibration error of binary maps, all pixels of all images binned together.

    Args:
        probabilities: Probability of the foreground at each pixel; it is predicted where that is above ``threshold``.
            The confidence is p or 1 - p, whichever is larger.
        target: The truth, 0 or 1 (or bool).
        bins: Number of bins in [0, 1]; confidences fill the upper half.
        threshold: Above which probability the foreground is predicted.

    Shape:
        - probabilities, target: the same, any shape.

    Returns:
        ``()`` float64; NaN without pixels.

    Raises:
        TypeError: ``probabilities`` is not of floating point.
        ValueError: A shape, probability or ``bins`` is wrong.

    Example:
        >>> dense_ece(torch.tensor([0.9, 0.2]), torch.tensor([1.0, 0.0]))
        tensor(0.1500, dtype=torch.float64)

    Source:
        Liu, Ye, Wang, Cui, Zhang, Zhang, Barnes: Model Calibration in Dense Classification with Adaptive Label
        Perturbation (ICCV 2023, arXiv 2307.13539). Its code reads probabilities from 8-bit images and so predicts the
        foreground from 128/255 on.
    """
    return _dense(probabilities, target, bins, threshold).expected_error()


def dense_overconfidence_error(
    probabilities: Tensor, target: Tensor, *, bins: int = 10, threshold: float = 0.5
) -> Tensor:
    """Over-confidence error of binary maps: :func:`overconfidence_error` with the words of :func:`dense_ece`.

    Example:
        >>> dense_overconfidence_error(torch.tensor([0.9, 0.8]), torch.tensor([1.0, 0.0]))
        tensor(0.3200, dtype=torch.float64)
    """
    return _dense(probabilities, target, bins, threshold).overconfidence()


def _edges(s: Tensor, n_bins: int, strategy: str, dtype: torch.dtype) -> Tensor:
    if strategy == "uniform":
        # As numbers of the confidences' dtype, so that those on an edge are equal to it.
        return (torch.arange(n_bins + 1, dtype=s.dtype, device=s.device) / n_bins).to(dtype).to(s.dtype)
    if strategy != "quantile":
        raise ValueError(f"strategy is {strategy!r}; wanted 'uniform' or 'quantile'.")
    # The bin's last row is its upper end: nothing is interpolated, so that bins (lo, hi] hold whole ties.
    last = -(-torch.arange(1, n_bins, device=s.device) * len(s) // n_bins) - 1
    inner = s.sort().values[last.clamp(min=0)] if len(s) else s.new_zeros(n_bins - 1)
    return torch.cat([s.new_zeros(1), inner, s.new_ones(1)])


def _confidence(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Probability of the most likely class and whether it is the label's, each ``(rows,)``."""
    p, target = _probabilities(logits, target)
    top = p.max(1)
    return top.values, top.indices == target


def _per_class(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities and whether the label is that class, each ``(rows, C)``."""
    p, target = _probabilities(logits, target)
    return p, target[:, None] == torch.arange(p.shape[1], device=p.device)


def _probabilities(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities ``(rows, C)`` float64 and labels ``(rows,)``, without ignored rows (label -100)."""
    rows = class_rows(logits.detach(), target, index_only=True)
    p = rows.logits.double().softmax(rows.dim).movedim(rows.dim, -1).reshape(-1, rows.num_classes)
    kept = target.reshape(-1) != -100
    return p[kept], target.reshape(-1)[kept]


def _dense(probabilities: Tensor, target: Tensor, bins: int, threshold: float) -> ReliabilityBins:
    checks.check_floating("probabilities", probabilities)
    checks.check_shape("target", target, probabilities.shape, "0 or 1 for each probability")
    confidence = torch.maximum(probabilities, 1 - probabilities)
    return reliability_bins(confidence, (probabilities > threshold) == (target > 0.5), bins)
