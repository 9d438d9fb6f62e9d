"""Markov sources: texts whose entropy rate is known, so that a language model's loss has a floor to be held against."""

from __future__ import annotations

from bisect import bisect_right

import torch
from torch import Tensor

from lossary.core.checks import check_floating, check_in_range


class MarkovSource:
    r"""A stationary source of symbols, each drawn given the k before it.

    Reach for it to see how far a model, a tokenizer or a context is from the best that any can do. Natural text is no
    such source: its entropy rate is not known.

    Formula:
        .. math:: H = \sum_s \pi(s) \, H(P(\cdot \mid s)), \quad \pi = \pi P

    Args:
        transition: P, the probability of the next symbol given the last k, the oldest first.

    Shape:
        - transition: ``(A, ..., A)`` with k + 1 axes, which sum to 1 over the last; ``(A, A)`` for k = 1.

    Attributes:
        transition: As given, in float64.
        order: k.
        alphabet_size: A.

    Raises:
        TypeError: ``transition`` is no floating-point tensor.
        ValueError: Its axes differ in size, it is not a probability, or its stationary law is not unique.

    Example:
        >>> source = MarkovSource(torch.tensor([[0.9, 0.1], [0.3, 0.7]]))
        >>> source.stationary()
        tensor([0.7500, 0.2500], dtype=torch.float64)
        >>> round(source.entropy_rate(), 4)
        0.3965

    Source:
        Rajaraman, Jiao, Ramchandran: Toward a Theory of Tokenization in LLMs (2024, arXiv 2404.08335).
    """

    def __init__(self, transition: Tensor) -> None:
        check_floating("transition", transition)
        if transition.ndim < 2 or len(set(transition.shape)) != 1:
            raise ValueError(f"transition has shape {tuple(transition.shape)}; wanted (A, A), or k + 1 axes of size A.")
        transition = transition.double()
        if not (transition >= 0).all() or not torch.allclose(transition.sum(-1), transition.new_ones(()), atol=1e-6):
            raise ValueError("transition is no probability; wanted values in [0, 1] that sum to 1 over the last axis.")
        self.transition = transition / transition.sum(-1, keepdim=True)
        self.order = transition.ndim - 1
        self.alphabet_size = transition.shape[-1]

    def stationary(self) -> Tensor:
        """Law of k consecutive symbols: float64, k axes of size A."""
        contexts = self.alphabet_size**self.order
        # The context (x_1 .. x_k) becomes (x_2 .. x_k, y): flat indices c and (c A + y) mod A^k.
        here = torch.arange(contexts).repeat_interleave(self.alphabet_size)
        there = torch.arange(contexts * self.alphabet_size) % contexts
        step = torch.zeros(contexts, contexts, dtype=torch.float64)
        step.index_put_((here, there), self.transition.flatten(), accumulate=True)
        system = torch.eye(contexts, dtype=torch.float64) - step.T + 1  # with sum(pi) = 1 added to every equation
        if torch.linalg.matrix_rank(system) < contexts:
            raise ValueError("transition has several stationary laws; wanted one, as where all contexts communicate.")
        law: Tensor = torch.linalg.solve(system, torch.ones(contexts, dtype=torch.float64)).clamp(min=0)
        law = law / law.sum()
        return law.reshape((self.alphabet_size,) * self.order)

    def symbol_law(self) -> Tensor:
        """Law of a single symbol ``(A,)``, float64."""
        return self.stationary().reshape(self.alphabet_size, -1).sum(1)

    def entropy_rate(self) -> float:
        """Nats per symbol that no model can go below."""
        of_contexts: Tensor = torch.special.entr(self.transition).sum(-1)
        return (self.stationary() * of_contexts).sum().item()

    def unigram_entropy(self) -> float:
        """Nats per symbol of the best model that ignores what came before."""
        entropy: float = torch.special.entr(self.symbol_law()).sum().item()
        return entropy

    def entropies(self) -> dict[str, float]:
        """``entropy_rate`` and ``unigram_entropy`` in nats."""
        return {"entropy_rate": self.entropy_rate(), "unigram_entropy": self.unigram_entropy()}

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw a text of n symbols that starts in the stationary law: ``(n,)`` of int64."""
        size, contexts = self.alphabet_size, self.alphabet_size**self.order
        draws = torch.rand(n + 1, generator=generator, dtype=torch.float64).tolist()
        starts = self.stationary().flatten().cumsum(0)[:-1].tolist()
        bounds = self.transition.reshape(contexts, size).cumsum(1)[:, :-1].tolist()
        context = bisect_right(starts, draws[0])
        symbols = [context // size**place % size for place in reversed(range(self.order))]
        for draw in draws[1 : n - self.order + 1]:
            symbol = bisect_right(bounds[context], draw)
            symbols.append(symbol)
            context = (context * size + symbol) % contexts
        return torch.tensor(symbols[:n], dtype=torch.int64)


class SwitchingSource(MarkovSource):
    r"""Bits of which each depends on the one k before it alone, and switches with probability p (from 0) or q (from 1).

    Reach for it where characters look like coin tosses to a model that ignores the past, although they are easy to
    predict: the smaller p and q, the larger that gap. Transformers stay at the unigram loss on it for k > 1.

    Formula:
        .. math:: \pi_1 = \frac{p}{p + q}, \quad H = (1 - \pi_1) h(p) + \pi_1 h(q), \quad
            h(x) = -x \log x - (1 - x) \log (1 - x)

    Args:
        order: k.
        p: Probability of a 1 given that the bit k before is 0, in (0, 1].
        q: Probability of a 0 given that the bit k before is 1, in (0, 1].

    Raises:
        TypeError: ``order`` is no integer.
        ValueError: A number is out of its range.

    Example:
        >>> {name: round(value, 4) for name, value in SwitchingSource(2, 0.1, 0.1).entropies().items()}
        {'entropy_rate': 0.3251, 'unigram_entropy': 0.6931, 'stationary_one': 0.5}

    Source:
        Rajaraman, Jiao, Ramchandran: Toward a Theory of Tokenization in LLMs (2024, arXiv 2404.08335).
    """

    def __init__(self, order: int, p: float, q: float) -> None:
        if isinstance(order, bool) or not isinstance(order, int):
            raise TypeError(f"order is {order!r}; wanted an integer.")
        check_in_range("order", order, 1)
        check_in_range("p", p, 0.0, 1.0, low_open=True)
        check_in_range("q", q, 0.0, 1.0, low_open=True)
        flip = torch.tensor([[1 - p, p], [q, 1 - q]], dtype=torch.float64)
        super().__init__(flip.reshape(2, *[1] * (order - 1), 2).expand((2,) * (order + 1)))
        self.p, self.q = p, q

    def stationary(self) -> Tensor:
        """Law of k consecutive bits: they belong to k chains that know nothing of each other."""
        one = self.p / (self.p + self.q)
        law = torch.ones((), dtype=torch.float64)
        for _ in range(self.order):
            law = law.unsqueeze(-1) * torch.tensor([1 - one, one], dtype=torch.float64)
        return law

    def entropies(self) -> dict[str, float]:
        """``entropy_rate`` and ``unigram_entropy`` in nats, and ``stationary_one``, the share of ones."""
        return {**super().entropies(), "stationary_one": self.symbol_law()[1].item()}
