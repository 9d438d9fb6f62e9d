"""Odd-k-out: learning from sets in which two examples share a class and the others do not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler

from lossary.core.checks import check_floating, check_shape, may_read_values
from lossary.core.objective import Kind, Objective, objective
from lossary.core.rows import class_rows
from lossary.core.types import Reduction


@objective(
    Kind.CLASSES,
    arguments=lambda input, target: {
        "input": torch.stack([input, input], 1 if input.ndim > 1 else 0),
        "target": target,
    },
)
def oko_loss(
    input: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: Tensor | float = 0.0,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
) -> Tensor:
    r"""Cross-entropy of the summed logits of a set, whose label is the class that two members share.

    Reach for it with few or imbalanced examples, on sets drawn by :class:`OddKOutSampler`: accuracy and log-loss
    improve without anything to tune. Single examples are classified by the same network as it is; since it was trained
    on sums, it is less sure of one example, underconfident where training is short. Not with plenty of balanced data,
    where it costs k + 2 forwards a label.

    Formula:
        .. math:: L = -\log \mathrm{softmax}\Big(\sum_{i \in S} z_i\Big)_{y}

    Args:
        input: Logits of every member of every set.
        target: The class of each set's pair, or probabilities (:func:`oko_soft_targets`).
        weight: Class weights.
        ignore_index: Label of sets that count for nothing.
        label_smoothing: Share of the target spread evenly over the classes, in [0, 1].
        sample_weight: Weights of sets.
        reduction: ``none``, ``mean`` or ``sum``.
        normalizer: Divisor in place of the one of ``mean``.

    Shape:
        - input: ``(B, k + 2, C, ...)`` or, for one set, ``(k + 2, C)``, floating point.
        - target: ``(B, ...)`` integer, or ``(B, C, ...)`` floating point.
        - weight: ``(C,)``; sample_weight: ``(B, ...)``; normalizer: a number or ``()``.

    Returns:
        ``(B, ...)`` for ``none``, else ``()``; float32 for half-precision input. Empty or all-ignored ``mean`` is NaN
        as in PyTorch, 0 if ``normalizer`` is given.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, label, probability or reduction is wrong.

    Example:
        >>> pair_and_odd = torch.tensor([[[2.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]])
        >>> oko_loss(pair_and_odd, torch.tensor([0]))
        tensor(0.1698)

    Source:
        Muttenthaler, Vandermeulen, Zhang, Unterthiner, Müller: Set Learning for Accurate and Calibrated Models (ICLR
        2024, arXiv 2307.02245), equation 2. With soft targets the public code subtracts their constant entropy.
    """
    check_floating("input", input)
    if input.ndim < 2 or input.shape[0 if input.ndim == 2 else 1] == 0:
        raise ValueError(f"input has shape {tuple(input.shape)}; wanted the logits of sets, (B, k + 2, C).")
    rows = class_rows(
        _sum_of_members(input, 0 if input.ndim == 2 else 1),
        target,
        weight=weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        sample_weight=sample_weight,
    )
    return rows.reduce(rows.expect(-rows.log_p()), reduction=reduction, normalizer=normalizer)


class OKOLoss(Objective):
    """Cross-entropy of the summed logits of a set; module form of :func:`oko_loss`.

    Example:
        >>> OKOLoss()(torch.zeros(2, 3, 4), torch.tensor([0, 3]))
        tensor(1.3863)
    """

    function = oko_loss

    def __init__(
        self,
        *,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        label_smoothing: Tensor | float = 0.0,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(weight=weight, ignore_index=ignore_index, label_smoothing=label_smoothing, reduction=reduction)


def oko_soft_targets(pair_class: Tensor, odd_classes: Tensor, *, num_classes: int) -> Tensor:
    """Class shares of sets: 2 / (k + 2) for the pair's class, 1 / (k + 2) for each odd one.

    Args:
        pair_class: The class of each set's pair.
        odd_classes: The classes of its other members, distinct.
        num_classes: Number of classes C.

    Shape:
        - pair_class: ``(B,)``; odd_classes: ``(B, k)``, integer.

    Returns:
        ``(B, C)`` in the default dtype; rows sum to 1.

    Raises:
        TypeError: Classes are no integers.
        ValueError: A shape or class is wrong.

    Example:
        >>> oko_soft_targets(torch.tensor([0]), torch.tensor([[2]]), num_classes=3)
        tensor([[0.6667, 0.0000, 0.3333]])

    Source:
        Muttenthaler et al. (ICLR 2024, arXiv 2307.02245), section 3, soft variant.
    """
    for name, classes in (("pair_class", pair_class), ("odd_classes", odd_classes)):
        if not isinstance(classes, Tensor) or classes.is_floating_point():
            raise TypeError(f"{name} is {getattr(classes, 'dtype', type(classes).__name__)}; wanted class indices.")
    if odd_classes.ndim != 2:
        raise ValueError(f"odd_classes has shape {tuple(odd_classes.shape)}; wanted (B, k).")
    check_shape("pair_class", pair_class, odd_classes.shape[:1], "the pair's class of each set")
    members = torch.cat([pair_class[:, None], pair_class[:, None], odd_classes], 1).long()
    if may_read_values(members) and members.numel() and not (members.min() >= 0 and members.max() < num_classes):
        raise ValueError(f"classes run from {members.min()} to {members.max()}; wanted 0 to {num_classes - 1}.")
    counts = torch.zeros(len(members), num_classes, device=members.device)
    return counts.scatter_add(1, members, torch.ones_like(members, dtype=counts.dtype)) / members.shape[1]


class OddKOutSampler(Sampler[tuple[Tensor, Tensor]]):
    """Draws batches of sets: two examples of one class and one of each of ``k`` others.

    Reach for it to train with :func:`oko_loss`. Classes are drawn evenly whatever their frequency, so imbalanced data
    are balanced. Each step sees ``batch_size * (k + 2)`` examples: compare methods at equal numbers of examples.

    Args:
        labels: Class index of each example ``(n,)``, not negative.
        k: Number of odd examples, from 0 (the pair alone) to the number of classes less 1.
        batch_size: Sets in a batch; the last one may be smaller.
        num_sets: Sets in an epoch.
        generator: Source of randomness.
        targets: ``hard`` yields the pair's class ``(B,)``, ``soft`` the class shares ``(B, C)``.
        num_classes: Number of classes C of soft targets; None takes the largest label plus 1.

    Returns:
        Iterating yields (index ``(B, k + 2)`` int64, target). Members come in random order. A class with one example
        gives it twice as a pair.

    Raises:
        ValueError: An argument is out of range.

    Example:
        >>> labels = torch.tensor([0, 0, 1, 1, 2, 2])
        >>> sampler = OddKOutSampler(labels, batch_size=8, num_sets=20, generator=torch.Generator().manual_seed(0))
        >>> [tuple(index.shape) for index, target in sampler]
        [(8, 3), (8, 3), (4, 3)]

        A step: ``logits = model(x[index.flatten()]).unflatten(0, index.shape)``, then ``oko_loss(logits, target)``.

    Source:
        Muttenthaler et al. (ICLR 2024, arXiv 2307.02245), section 3. The public code fails on a class with one example.
    """

    def __init__(
        self,
        labels: Tensor | Sequence[int],
        *,
        k: int = 1,
        batch_size: int,
        num_sets: int,
        generator: torch.Generator | None = None,
        targets: Literal["hard", "soft"] = "hard",
        num_classes: int | None = None,
    ) -> None:
        labels = torch.as_tensor(labels).cpu()
        if labels.ndim != 1 or labels.is_floating_point() or len(labels) == 0 or int(labels.min()) < 0:
            raise ValueError(f"labels has shape {tuple(labels.shape)} and dtype {labels.dtype}; wanted class indices.")
        self.classes, counts = torch.unique(labels.long(), return_counts=True)
        if not 0 <= k < len(self.classes):
            raise ValueError(
                f"k is {k}; wanted 0 to {len(self.classes) - 1}, labels having {len(self.classes)} classes."
            )
        if batch_size < 1 or num_sets < 0:
            raise ValueError(f"batch_size is {batch_size} and num_sets {num_sets}; wanted at least 1 and 0.")
        if targets not in ("hard", "soft"):
            raise ValueError(f"targets is {targets!r}; wanted 'hard' or 'soft'.")
        self.num_classes = int(self.classes[-1]) + 1 if num_classes is None else num_classes
        if self.num_classes <= int(self.classes[-1]):
            raise ValueError(f"num_classes is {num_classes}; labels contains {int(self.classes[-1])}.")
        self.k, self.batch_size, self.num_sets = k, batch_size, num_sets
        self.targets, self.generator = targets, generator
        self._counts, self._starts = counts, counts.cumsum(0) - counts
        self._by_class = labels.argsort(stable=True)

    def __len__(self) -> int:
        """Batches in an epoch."""
        return -(-self.num_sets // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of sets, drawn afresh."""
        for start in range(0, self.num_sets, self.batch_size):
            yield self._draw(min(self.batch_size, self.num_sets - start))

    def _draw(self, size: int) -> tuple[Tensor, Tensor]:
        drawn = self._uniform(size, len(self.classes)).argsort(1)[:, : self.k + 1]
        counts = self._counts[drawn]
        first = self._below(counts)
        second = (first[:, :1] + 1 + self._below(counts[:, :1] - 1)) % counts[:, :1]  # another of the pair's class
        places = self._starts[drawn[:, [0, *range(self.k + 1)]]] + torch.cat([second, first], 1)
        index = self._by_class[places.gather(1, self._uniform(size, self.k + 2).argsort(1))]
        pair, odd = self.classes[drawn[:, 0]], self.classes[drawn[:, 1:]]
        return index, pair if self.targets == "hard" else oko_soft_targets(pair, odd, num_classes=self.num_classes)

    def _uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, dtype=torch.float64, generator=self.generator)

    def _below(self, bounds: Tensor) -> Tensor:
        """Integers drawn evenly from 0 to each bound less 1; 0 for the bound 0."""
        return torch.minimum((self._uniform(*bounds.shape) * bounds).long(), (bounds - 1).clamp(min=0))


class OKOHead(nn.Linear):
    """A linear layer whose logits are summed over each set in training, and left as they are in evaluation.

    Reach for it as the last layer where the model, not the loss, shall know of sets; train it with
    ``torch.nn.functional.cross_entropy``.

    Args:
        in_features: Size of the features.
        num_classes: Number of classes C.
        k: Number of odd examples in a set.
        bias: Whether the layer has a bias.

    Shape:
        - input: in training ``(B (k + 2), ..., in_features)``, the members of a set side by side; in evaluation
          ``(N, ..., in_features)``.
        - output: ``(B, ..., C)`` in training, at least float32; ``(N, ..., C)`` in evaluation.

    Raises:
        ValueError: There are no rows, or their number in training is no multiple of ``k + 2``.

    Example:
        >>> head = OKOHead(4, 3, k=1)
        >>> head(torch.randn(6, 4)).shape, head.eval()(torch.randn(6, 4)).shape
        (torch.Size([2, 3]), torch.Size([6, 3]))

    Source:
        Muttenthaler et al. (ICLR 2024, arXiv 2307.02245) and its public code.
    """

    def __init__(self, in_features: int, num_classes: int, *, k: int, bias: bool = True) -> None:
        super().__init__(in_features, num_classes, bias=bias)
        if k < 0:
            raise ValueError(f"k is {k}; wanted 0 or more.")
        self.k = k

    def forward(self, input: Tensor) -> Tensor:
        """Logits of sets in training, of single examples in evaluation."""
        logits = super().forward(input)
        if not self.training:
            return logits
        if input.ndim < 2:
            raise ValueError(f"input has shape {tuple(input.shape)}; wanted the members of sets, (B (k + 2), D).")
        if len(logits) % (self.k + 2):
            raise ValueError(f"input has {len(logits)} rows; wanted a multiple of k + 2 = {self.k + 2} in training.")
        return _sum_of_members(logits.reshape(-1, self.k + 2, *logits.shape[1:]), 1)

    def extra_repr(self) -> str:
        """The sizes."""
        return f"{super().extra_repr()}, k={self.k}"


def _sum_of_members(logits: Tensor, dim: int) -> Tensor:
    """Halves are summed in float32."""
    return (logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits).sum(dim)
