"""Heads for frozen features: a linear naive Bayes fitted in one pass, and what logistic regression promises."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossary.core import seeding
from lossary.core.checks import check_floating, check_in_range, check_labels, check_shape
from lossary.core.rows import widen


class LinearNaiveBayes:
    r"""Gaussian naive Bayes with one variance vector for all classes: a linear classifier fitted in one pass.

    Reach for it on frozen features with few labels a class. It needs on the order of log D rows to reach its limit,
    where logistic regression needs D; with plenty of labels the latter's limit is better.

    Formula:
        .. math:: s_k(x) = \log \pi_k - \frac12 \sum_d \frac{(x_d - \mu_{kd})^2}{v_d}, \quad v = \sum_k \pi_k v_k

        with biased variances :math:`v_k` within classes, each plus the smoothing.

    Args:
        var_smoothing: What is added to variances, at least 0.
        relative: Whether ``var_smoothing`` is in units of the largest variance of a feature, as scikit-learn has it.

    Attributes:
        counts: Rows of each class ``(K,)``.
        prior: Their shares ``(K,)``.
        class_mean: ``(K, D)``.
        class_variance: ``(K, D)``, smoothed.
        variance: The shared variance ``(D,)``.

    Raises:
        ValueError: ``var_smoothing`` is negative.

    Example:
        >>> x = torch.tensor([[0.0, 0.0], [2.0, 1.0], [8.0, 9.0], [10.0, 10.0]])
        >>> head = LinearNaiveBayes().fit(x, torch.tensor([0, 0, 1, 1]))
        >>> head.predict(torch.tensor([[1.0, 3.0], [9.0, 7.0]]))
        tensor([0, 1])
        >>> head.to_linear()
        Linear(in_features=2, out_features=2, bias=True)

    Source:
        Zheng, Wu, Bao, Cao, Li, Zhu: Revisiting Discriminative vs. Generative Classifiers: Theory and Implications
        (ICML 2023, arXiv 2302.02334), section 3. The original fails on a batch that lacks a class; here its statistics
        stay as they are.
    """

    counts: Tensor
    class_mean: Tensor
    _raw_variance: Tensor

    def __init__(self, var_smoothing: float = 1e-9, *, relative: bool = False) -> None:
        check_in_range("var_smoothing", var_smoothing, 0.0)
        self.var_smoothing = var_smoothing
        self.relative = relative

    def fit(self, input: Tensor, target: Tensor) -> LinearNaiveBayes:
        """Forget what came before and fit rows ``(N, D)`` with class indices ``(N,)``."""
        for name in ("counts", "class_mean", "_raw_variance"):
            self.__dict__.pop(name, None)
        return self.partial_fit(input, target)

    def partial_fit(self, input: Tensor, target: Tensor) -> LinearNaiveBayes:
        """Add rows ``(N, D)`` with class indices ``(N,)``; how rows are cut into batches does not matter."""
        check_floating("input", input)
        if input.ndim != 2 or len(input) == 0:
            raise ValueError(f"input has shape {tuple(input.shape)}; wanted rows (N, D), at least one.")
        check_shape("target", target, input.shape[:1], "a class index for each row of input")
        if target.is_floating_point() or target.dtype == torch.bool or target.is_complex():
            raise TypeError(f"target has dtype {target.dtype}; wanted class indices, such as int64.")
        target = target.long()
        known = len(self.counts) if hasattr(self, "counts") else 0
        classes = max(int(target.max()) + 1, known)
        check_labels(target, classes, ignore_index=classes)
        x = input.detach().double()
        count = torch.bincount(target, minlength=classes).double()
        if not known:
            self.counts = torch.zeros_like(count)
            self.class_mean = x.new_zeros(classes, x.shape[1])
            self._raw_variance = torch.zeros_like(self.class_mean)
        elif input.shape[1] != self.class_mean.shape[1]:
            raise ValueError(f"input has {input.shape[1]} columns; wanted {self.class_mean.shape[1]}, as before.")
        grow = classes - len(self.counts)
        old = F.pad(self.counts, (0, grow)).unsqueeze(1)
        old_mean, old_variance = (F.pad(part, (0, 0, 0, grow)) for part in (self.class_mean, self._raw_variance))
        new, divisor = count.unsqueeze(1), count.clamp(min=1).unsqueeze(1)
        mean = torch.zeros_like(old_mean).index_add(0, target, x) / divisor
        variance = torch.zeros_like(old_mean).index_add(0, target, (x - mean[target]).square()) / divisor
        total = (old + new).clamp(min=1)
        # Chan's update: nothing is ever a difference of large sums.
        self._raw_variance = (
            old * old_variance + new * variance + old * new / total * (old_mean - mean).square()
        ) / total
        self.class_mean = old_mean + new / total * (mean - old_mean)
        self.counts = (old + new)[:, 0]
        return self

    @property
    def prior(self) -> Tensor:
        """Shares of the classes ``(K,)``."""
        self._check_fitted()
        return self.counts / self.counts.sum()

    @property
    def class_variance(self) -> Tensor:
        """Variances within classes ``(K, D)``, smoothed."""
        return self._raw_variance + self._smoothing()

    @property
    def variance(self) -> Tensor:
        """The variance that classes share ``(D,)``, smoothed."""
        return self.prior @ self._raw_variance + self._smoothing()

    def decision_function(self, query: Tensor) -> Tensor:
        """Joint log scores ``(Q, K)`` of rows ``(Q, D)``, without their common constant."""
        self._check_fitted()
        check_floating("query", query)
        if query.shape[-1:] != self.variance.shape:
            raise ValueError(f"query has shape {tuple(query.shape)}; wanted (Q, {len(self.variance)}), as fitted.")
        query, variance = query.double(), self.variance
        distance = [((query - mean).square() / variance).sum(-1) for mean in self.class_mean]
        return self.prior.log() - torch.stack(distance, -1) / 2

    def predict(self, query: Tensor) -> Tensor:
        """Class indices ``(Q,)`` of rows ``(Q, D)``."""
        return self.decision_function(query).argmax(-1)

    def to_linear(self) -> nn.Linear:
        """The same classifier as a float64 layer; its outputs differ from the scores by a number for each row.

        It takes features of any precision.
        """
        self._check_fitted()
        linear = nn.Linear(self.class_mean.shape[1], len(self.counts), dtype=torch.float64, device=self.counts.device)
        with torch.no_grad():
            linear.weight.copy_(self.class_mean / self.variance)
            linear.bias.copy_(self.prior.log() - (self.class_mean.square() / self.variance).sum(1) / 2)
        linear.register_forward_pre_hook(_to_the_dtype_of_weights)
        return linear

    def __call__(self, query: Tensor) -> dict[str, Tensor]:
        """Predictions of rows ``(Q, D)`` with their scores and the statistics behind them."""
        score = self.decision_function(query)
        return {
            "prediction": score.argmax(-1),
            "class_mean": self.class_mean,
            "variance": self.variance,
            "prior": self.prior,
            "joint_log_score": score,
        }

    def _smoothing(self) -> Tensor | float:
        self._check_fitted()
        if not self.relative:
            return self.var_smoothing
        spread = self.class_mean - self.prior @ self.class_mean
        return self.var_smoothing * (self.prior @ (self._raw_variance + spread.square())).max()

    def _check_fitted(self) -> None:
        if not hasattr(self, "counts"):
            raise ValueError("nothing is fitted yet; wanted fit(input, target) or partial_fit first.")


class GaussianMixtureTask(NamedTuple):
    """Rows of a simulation.

    Attributes:
        features: ``(N, D)``.
        labels: ``(N,)``.
    """

    features: Tensor
    labels: Tensor


def gaussian_mixture_task(
    num_features: int,
    num_classes: int,
    num_samples: int,
    *,
    mode: Literal["easy", "hard"] = "easy",
    generator: torch.Generator | None = None,
) -> GaussianMixtureTask:
    """Gaussian classes that a linear classifier separates: the simulation that holds naive Bayes against logistic.

    Class 0 has the mean -1 in every coordinate, class k the mean 2^(k - 1). The covariance is shared: the variance of
    the first half of the coordinates is ``num_features``, of the others 1. ``hard`` adds correlations, the same in
    every call, so that naive Bayes is wrong about them.

    Args:
        num_features: D.
        num_classes: K, at least 2.
        num_samples: N; classes take turns.
        mode: ``easy`` or ``hard``.
        generator: Source of randomness.

    Returns:
        A :class:`GaussianMixtureTask`, float32.

    Raises:
        ValueError: A number or ``mode`` is wrong.

    Example:
        >>> task = gaussian_mixture_task(4, 3, 6, generator=torch.Generator().manual_seed(0))
        >>> task.features.shape, task.labels
        (torch.Size([6, 4]), tensor([0, 1, 2, 0, 1, 2]))

    Source:
        Zheng et al. (ICML 2023, arXiv 2302.02334), section 6.1 and its public code. The covariance of ``hard`` is not
        positive definite as defined; its eigenvalues are taken by absolute value, which is what NumPy does there.
    """
    if num_features < 1 or num_classes < 2 or num_samples < 1:
        raise ValueError(f"asked for {num_features} features, {num_classes} classes, {num_samples} rows: too few.")
    if mode not in ("easy", "hard"):
        raise ValueError(f"mode is {mode!r}; wanted 'easy' or 'hard'.")
    labels = torch.arange(num_samples) % num_classes
    mean = torch.tensor([-1.0, *(2.0 ** (k - 1) for k in range(1, num_classes))], dtype=torch.float64)[labels]
    variance = torch.ones(num_features, dtype=torch.float64)
    variance[: num_features // 2] = num_features
    noise = torch.randn(num_samples, num_features, dtype=torch.float64, generator=generator)
    if mode == "easy":
        noise = noise * variance.sqrt()
    else:
        shape = (num_features, num_features)
        mixing = 2 * torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 1
        products = mixing.T @ mixing
        values, vectors = torch.linalg.eigh(products - products.diag().diag() + variance.diag())
        noise = noise * values.abs().sqrt() @ vectors.T
    return GaussianMixtureTask((mean.unsqueeze(1) + noise).float(), labels)


def linear_evaluation_curve(
    features: Tensor,
    labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    sizes: Sequence[int],
    heads: Sequence[Literal["naive_bayes", "logistic"]] = ("naive_bayes", "logistic"),
    seeds: Sequence[int] = (0,),
    var_smoothing: float = 1e-9,
) -> dict[str, Tensor]:
    """Test errors of heads on frozen features, by number of training rows.

    The rows of a size contain those of smaller ones, all classes as evenly as they last. Logistic regression is
    multinomial with C = 1, scikit-learn's where that is installed.

    Args:
        features: Training features ``(N, D)``.
        labels: Class indices ``(N,)``.
        test_features: ``(T, D)``.
        test_labels: ``(T,)``.
        sizes: Numbers of training rows, each at least the number of classes.
        heads: ``naive_bayes``, ``logistic`` or both.
        seeds: One shuffle of the training rows for each.
        var_smoothing: Of naive Bayes.

    Returns:
        For each head errors ``(len(seeds), len(sizes))``, float64.

    Raises:
        ValueError: A size is out of range, or a head is unknown.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> train, test = (gaussian_mixture_task(20, 3, rows, generator=generator) for rows in (60, 300))
        >>> errors = linear_evaluation_curve(*train, *test, sizes=[6, 30], heads=["naive_bayes"])
        >>> bool(errors["naive_bayes"][0, 1] < 0.1)
        True

    Source:
        Zheng et al. (ICML 2023, arXiv 2302.02334), section 6.
    """
    features, test_features = widen(features.detach()), widen(test_features.detach())
    check_shape("labels", labels, features.shape[:1], "a class index for each row of features")
    check_shape("test_labels", test_labels, test_features.shape[:1], "a class index for each row of test_features")
    labels, test_labels = labels.long(), test_labels.long()
    classes = int(torch.cat([labels, test_labels]).max()) + 1
    for size in sizes:
        if not classes <= size <= len(features):
            raise ValueError(f"sizes contains {size}; wanted {classes} (one row a class) to {len(features)}.")
    for head in heads:
        if head not in ("naive_bayes", "logistic"):
            raise ValueError(f"heads contains {head!r}; wanted 'naive_bayes' or 'logistic'.")
    errors: dict[str, Tensor] = {head: torch.zeros(len(seeds), len(sizes), dtype=torch.float64) for head in heads}
    for row, seed in enumerate(seeds):
        order = _classes_in_turn(labels, seed)
        for column, size in enumerate(sizes):
            x, y = features[order[:size]], labels[order[:size]]
            for head in heads:
                if head == "naive_bayes":
                    guess = LinearNaiveBayes(var_smoothing).fit(x, y).predict(test_features)
                else:
                    guess = _logistic(x, y, test_features)
                errors[head][row, column] = (guess != test_labels).double().mean()
    return errors


def logistic_excess_bound(excess: Tensor | float, num_classes: int = 2) -> Tensor:
    r"""How far above the least possible the error of a classifier can lie, given the excess of its cross-entropy.

    The bound is the same for any number of classes, and reached with two. For hypotheses that cannot represent every
    function add their minimisability gap to the excess.

    Formula:
        .. math:: R_{01} - R_{01}^* \le \Psi^{-1}(R_{\log} - R_{\log}^*), \quad
            \Psi(t) = \frac{1 + t}{2} \log(1 + t) + \frac{1 - t}{2} \log(1 - t)

        It is at most :math:`\sqrt{2 (R_{\log} - R_{\log}^*)}`.

    Args:
        excess: Excess of the expected cross-entropy over the least possible, in nats, at least 0.
        num_classes: Number of classes, at least 2.

    Returns:
        Excess error in [0, 1], float64, shaped as ``excess``.

    Raises:
        ValueError: ``excess`` is negative or ``num_classes`` below 2.

    Example:
        >>> logistic_excess_bound(0.02)
        tensor(0.1993, dtype=torch.float64)

    Source:
        The bound that Zheng et al. (ICML 2023, arXiv 2302.02334), section 4, build on, in its tight form: where the
        predicted class j trails the best class i by t, cross-entropy exceeds its least value by at least the divergence
        that remains when :math:`p_i` and :math:`p_j` are predicted equal. With :math:`s = p_i + p_j \le 1` that is
        :math:`s \Psi(t / s) \ge \Psi(t)`, and Jensen's inequality takes the mean. Mao, Mohri, Zhong: Cross-Entropy
        Loss Functions: Theoretical Analysis and Applications (ICML 2023, arXiv 2304.07288) prove it in general.
    """
    if num_classes < 2:
        raise ValueError(f"num_classes is {num_classes}; wanted at least 2.")
    check_in_range("excess", excess, 0.0)
    goal = torch.as_tensor(excess, dtype=torch.float64)
    low, high = torch.zeros_like(goal), torch.ones_like(goal)
    for _ in range(60):  # bisection: the curve rises from 0 to log 2
        middle = (low + high) / 2
        above = (torch.special.xlog1py(1 + middle, middle) + torch.special.xlog1py(1 - middle, -middle)) / 2 > goal
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return torch.where(goal.isnan(), goal, high)


def _to_the_dtype_of_weights(module: nn.Linear, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(tensor.to(module.weight.dtype) for tensor in inputs)


def _classes_in_turn(labels: Tensor, seed: int) -> Tensor:
    """A shuffle in which every class has come k times before any comes k + 2 times, as long as it lasts."""
    order = torch.randperm(len(labels), generator=seeding.generator(seed, "linear evaluation"))
    shuffled = labels.cpu()[order]
    rank = torch.zeros(len(labels), dtype=torch.long)
    for label in range(int(labels.max()) + 1):
        members = (shuffled == label).nonzero()[:, 0]
        rank[members] = torch.arange(len(members))
    return order[rank.argsort(stable=True)]


def _logistic(x: Tensor, y: Tensor, query: Tensor) -> Tensor:
    if importlib.util.find_spec("sklearn"):
        from sklearn.linear_model import LogisticRegression

        model = LogisticRegression(C=1.0, max_iter=1000).fit(x.cpu().numpy(), y.cpu().numpy())
        return torch.from_numpy(model.predict(query.cpu().numpy())).to(query.device)
    return _logistic_by_torch(x, y, query)


def _logistic_by_torch(x: Tensor, y: Tensor, query: Tensor) -> Tensor:
    """The same objective: the sum of cross-entropies + |W|^2 / 2, the bias free."""
    linear = nn.Linear(x.shape[1], int(y.max()) + 1, dtype=torch.float64, device=x.device)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    x = x.double()
    optimizer = torch.optim.LBFGS(
        linear.parameters(), max_iter=1000, tolerance_grad=1e-5, line_search_fn="strong_wolfe"
    )

    def closure() -> float:
        optimizer.zero_grad()
        loss = F.cross_entropy(linear(x), y, reduction="sum") + linear.weight.square().sum() / 2
        torch.autograd.backward(loss)
        return float(loss.detach())

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        guess: Tensor = linear(query.double()).argmax(1)
    return guess
