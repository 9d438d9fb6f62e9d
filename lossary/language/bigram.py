"""A law of text that is known: first token, transitions, end. What a model learns of it can be measured exactly."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lossary.core.checks import check_in_range, check_shape
from lossary.core.rows import widen

_IMPOSSIBLE = 1e-30
_PADDING = -100


class BigramSource:
    r"""Texts in which every token depends on the one before, and whose probabilities are known.

    Reach for it to see what an objective does to a model's law, where real text leaves only samples to compare:
    train on :meth:`sample`, then ask :meth:`log_prob` of the model's texts, or :func:`transition_metrics` of its
    transitions.

    Formula:
        .. math:: P(x) = a_{x_1} \prod_{i > 1} A_{x_{i - 1} x_i}, \text{ up to and with the end}

    Args:
        transition: Probabilities A of the next token, a row for each; that of ``eos`` is never used.
        first: Probabilities a of the first token.
        eos: Token that ends a text.

    Shape:
        - transition: ``(V, V)``; first: ``(V,)``.

    Raises:
        ValueError: A shape is wrong, or ``eos`` is no entry.

    Example:
        >>> source = BigramSource(torch.tensor([[0.5, 0.5], [0.0, 0.0]]), torch.tensor([1.0, 0.0]), eos=1)
        >>> source.log_prob(torch.tensor([[0, 0, 1]])).exp()
        tensor([0.2500])

    Source:
        Zhang et al.: MixCE (ACL 2023, arXiv 2305.16958), synthetic experiments. Impossible events have the logarithm of
        1e-30, as there, so that gradients of samples stay finite.
    """

    def __init__(self, transition: Any, first: Any, eos: int) -> None:
        self.transition = _tensor(transition)
        self.first = _tensor(first).to(self.transition)
        self.eos = int(eos)
        if self.transition.ndim != 2 or self.transition.shape[0] != self.transition.shape[1]:
            raise ValueError(f"transition has shape {tuple(self.transition.shape)}; wanted (V, V).")
        check_shape("first", self.first, self.transition.shape[:1], "a probability for each token")
        if not 0 <= self.eos < self.vocab_size:
            raise ValueError(f"eos is {eos}; wanted a token from 0 to {self.vocab_size - 1}.")

    @property
    def vocab_size(self) -> int:
        """V, the end included."""
        return len(self.first)

    @classmethod
    def random(
        cls, vocab_size: int, zero_percent: float = 0.5, generator: torch.Generator | None = None
    ) -> BigramSource:
        """A source at random: rows from Dirichlet(1/2), many transitions impossible, the first token uniform.

        Args:
            vocab_size: V; the last token is the end, which every other may be followed by.
            zero_percent: Chance, in [0, 1], that a transition between two other tokens is impossible.
            generator: Source of randomness.
        """
        check_in_range("zero_percent", zero_percent, 0.0, 1.0)
        # A squared normal number has the law Gamma(1/2), and rows of those, divided by their sum, are Dirichlet(1/2).
        shape, last = (vocab_size, vocab_size), vocab_size - 1
        weight = torch.randn(shape, dtype=torch.float64, generator=generator).square()
        impossible = torch.rand(shape, dtype=torch.float64, generator=generator) < zero_percent
        impossible[last], impossible[:, last] = False, False
        weight = torch.where(impossible, 0.0, weight)
        transition = weight / weight.sum(1, keepdim=True)
        transition[last] = 0.0
        return cls(transition, torch.full((vocab_size,), 1 / vocab_size, dtype=torch.float64), last)

    def sample(self, n: int, max_length: int = 500, generator: torch.Generator | None = None) -> Tensor:
        """Texts ``(n, length)`` of the longest one's length, -100 after their end; one that is too long is ended.

        Args:
            n: Number of texts.
            max_length: Largest length, the end included.
            generator: Source of randomness.
        """
        token = torch.full((n,), self.eos)
        text: list[Tensor] = []
        done = torch.zeros(n, dtype=torch.bool)
        while len(text) < max_length and not done.all():
            law = (
                self.first.expand(n, -1) if not text else torch.where(done[:, None], self.first, self.transition[token])
            )
            token = torch.multinomial(law, 1, generator=generator)[:, 0]
            if text and len(text) == max_length - 1:
                token = torch.full_like(token, self.eos)
            text.append(torch.where(done, _PADDING, token))
            done = done | (token == self.eos)
            token = torch.where(done, self.eos, token)
        return torch.stack(text, 1) if text else torch.empty(n, 0, dtype=torch.long)

    def log_prob(self, sequences: Tensor) -> Tensor:
        """Log-probability ``(N,)`` of texts up to and with their end.

        Args:
            sequences: Tokens ``(N, T)``, anything after the end and negative numbers for padding; or one-hots
                ``(N, T, V)``, as :func:`gumbel_rollout` gives them, to which there is a gradient. The token before is a
                constant to it.
        """
        first, transition = ((law + _IMPOSSIBLE).log() for law in (self.first, self.transition))
        if sequences.is_floating_point():
            tokens = sequences.argmax(-1)
            begin = first.to(sequences).expand(len(sequences), 1, -1)
            law = torch.cat([begin, sequences[:, :-1].detach() @ transition.to(sequences)], 1)
            steps = (sequences * law).sum(-1)
        else:
            tokens = sequences
            inside = tokens.clamp(0, self.vocab_size - 1)
            steps = torch.cat([first[inside[:, :1]], transition[inside[:, :-1], inside[:, 1:]]], 1)
        end = (tokens == self.eos).long()
        counts = (end.cumsum(1) == end) & (tokens >= 0)  # no end before it
        return torch.where(counts, steps, 0.0).sum(1)


def transition_metrics(learned: Any, transition: Any, first: Any) -> dict[str, Tensor]:
    r"""How far a model's transitions are from those of a :class:`BigramSource`.

    Reach for it to see precision and recall apart: ``avg_zeros`` is what the model gives to the impossible,
    ``avg_js`` is its distance from the law as a whole.

    Formula:
        .. math:: \mathrm{JS}(p, q) = \tfrac12 \mathrm{KL}(p \| m) + \tfrac12 \mathrm{KL}(q \| m),
            \quad m = \tfrac12 (p + q)

    Args:
        learned: The model's probabilities of the next token. Its first token begins a text and is never said.
        transition: Those of the source, without that token; the end is its last.
        first: Probabilities of the first token.

    Shape:
        - learned: ``(V + 1, V + 1)``; transition: ``(V, V)``; first: ``(V,)``.

    Returns:
        ``avg_zeros``, the mean learned probability over impossible transitions (NaN where none is), and ``avg_js``, the
        mean Jensen-Shannon divergence of rows in nats; rows of ``learned`` are normalised for it.

    Raises:
        ValueError: A shape is wrong.

    Example:
        >>> source = BigramSource.random(5, generator=torch.Generator().manual_seed(0))
        >>> learned = torch.full((6, 6), 1 / 6)
        >>> found = transition_metrics(learned, source.transition, source.first)
        >>> {name: round(float(value), 3) for name, value in found.items()}
        {'avg_zeros': 0.167, 'avg_js': 0.156}

    Source:
        Zhang et al.: MixCE (ACL 2023, arXiv 2305.16958), synthetic experiments.
    """
    learned, transition, first = (_tensor(law).double() for law in (learned, transition, first))
    vocab = len(first)
    check_shape("transition", transition, (vocab, vocab), "a row of probabilities for each token of first")
    check_shape("learned", learned, (vocab + 1, vocab + 1), "a token that begins texts, then those of first")
    ours, law = learned[:-1, 1:], torch.cat([first[None], transition[:-1]])
    impossible = law == 0
    p, q = (rows / rows.sum(1, keepdim=True) for rows in (ours, law))
    middle = (p + q) / 2
    divergence = [(torch.xlogy(rows, rows) - torch.xlogy(rows, middle)).sum(1) for rows in (p, q)]
    return {
        "avg_zeros": torch.where(impossible, ours, 0.0).sum() / impossible.sum(),
        "avg_js": ((divergence[0] + divergence[1]) / 2).mean(),
    }


def _tensor(law: Any) -> Tensor:
    return widen(law.detach()) if isinstance(law, Tensor) else torch.as_tensor(law, dtype=torch.float64)
