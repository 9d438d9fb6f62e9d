"""Tokenizers on any alphabet, and what a unigram model over their tokens loses per character."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import product
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lossary.core.checks import check_in_range, check_indices, check_shape
from lossary.language.markov import MarkovSource

Text = Sequence[int] | Tensor
Ids = npt.NDArray[np.int64]


class DictionaryTokenizer:
    """A tokenizer with a given dictionary: the longest token that matches, or as few tokens as can be.

    Reach for it to see what a dictionary, and the way of encoding with it, do to a model's loss
    (:func:`tokenization_gap`). For natural text at speed use Hugging Face's ``tokenizers``.

    Args:
        dictionary: Tokens, each a sequence of symbols. Symbols that it lacks are appended at the end, since every text
            must have an encoding.
        alphabet_size: Symbols are 0 to ``alphabet_size`` - 1.

    Attributes:
        dictionary: The tokens as tuples; a token's id is its position.

    Raises:
        ValueError: A token is empty or has a symbol out of range.

    Example:
        >>> tokenizer = DictionaryTokenizer([(0, 0), (0, 1, 1)], alphabet_size=2)
        >>> tokenizer.encode([0, 0, 1, 1])
        tensor([0, 3, 3])
        >>> tokenizer.encode([0, 0, 1, 1], method="minimal")
        tensor([2, 1])
        >>> tokenizer.decode([2, 1])
        tensor([0, 0, 1, 1])

    Source:
        Rajaraman, Jiao, Ramchandran: Toward a Theory of Tokenization in LLMs (2024, arXiv 2404.08335).
    """

    def __init__(self, dictionary: Iterable[Sequence[int]], alphabet_size: int = 2) -> None:
        check_in_range("alphabet_size", alphabet_size, 1)
        self.alphabet_size = alphabet_size
        self._set(dictionary)

    def fit(self, sequence: Text) -> Self:
        """Learn the dictionary from a text; a given one stays as it is."""
        return self

    def encode(self, text: Text, method: Literal["greedy", "minimal"] = "greedy") -> Tensor:
        """Ids of the tokens that make up a text.

        Args:
            text: Symbols ``(n,)``.
            method: ``greedy``, the longest token that is a prefix of the rest; or ``minimal``, as few tokens as can be.

        Raises:
            ValueError: A symbol is out of range, or the method is unknown.
        """
        symbols = _symbols("text", text, self.alphabet_size)
        if method == "greedy":
            return torch.tensor(self._greedy(symbols), dtype=torch.int64)
        if method == "minimal":
            return torch.tensor(self._minimal(symbols), dtype=torch.int64)
        raise ValueError(f"method is {method!r}; wanted 'greedy' or 'minimal'.")

    def decode(self, ids: Text) -> Tensor:
        """The symbols of a sequence of ids."""
        known = _symbols("ids", ids, len(self.dictionary))
        return torch.tensor([symbol for token in known for symbol in self.dictionary[token]], dtype=torch.int64)

    def min_tokens(self, text: Text) -> int:
        """The least number of tokens that make up a text."""
        return len(self._minimal(_symbols("text", text, self.alphabet_size)))

    @property
    def lengths(self) -> Tensor:
        """Symbols of each token ``(V,)``."""
        return torch.tensor([len(token) for token in self.dictionary])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.dictionary)} tokens, alphabet_size={self.alphabet_size})"

    def _set(self, dictionary: Iterable[Sequence[int]]) -> None:
        tokens = [tuple(int(symbol) for symbol in token) for token in dictionary]
        for token in tokens:
            if not token or not all(0 <= symbol < self.alphabet_size for symbol in token):
                raise ValueError(f"dictionary contains {token}; wanted symbols from 0 to {self.alphabet_size - 1}.")
        known = set(tokens)
        self.dictionary = tokens + [(symbol,) for symbol in range(self.alphabet_size) if (symbol,) not in known]
        self._trie = _Trie()
        for place, symbols in enumerate(self.dictionary):
            self._trie.add(symbols, place)

    def _greedy(self, symbols: list[int]) -> list[int]:
        ids: list[int] = []
        start = 0
        while start < len(symbols):
            token, start = self._trie.matches(symbols, start)[-1]
            ids.append(token)
        return ids

    def _minimal(self, symbols: list[int]) -> list[int]:
        """Dynamic programme from the end; of equals the longest first token."""
        fewest = [0] * (len(symbols) + 1)
        first = [(0, 0)] * len(symbols)
        for start in reversed(range(len(symbols))):
            first[start] = min(reversed(self._trie.matches(symbols, start)), key=lambda match: fewest[match[1]])
            fewest[start] = 1 + fewest[first[start][1]]
        ids: list[int] = []
        start = 0
        while start < len(symbols):
            token, start = first[start]
            ids.append(token)
        return ids


class LZWTokenizer(DictionaryTokenizer):
    r"""The dictionary of Lempel and Ziv: over and over, the shortest prefix of what is left that is no token yet.

    Reach for it where a dictionary with a guarantee is wanted: with d tokens and greedy encoding a unigram model loses
    at most H / (1 - eps) per character, with eps = O(log(1 / delta) / log d) and delta the least transition
    probability. It has long tokens only for what is frequent, which takes a long text to learn.

    Args:
        dict_size: Number of tokens to learn; symbols that are not among them are appended.
        alphabet_size: Symbols are 0 to ``alphabet_size`` - 1.

    Attributes:
        dictionary: The tokens as tuples in the order in which they were made; before ``fit`` the symbols alone.

    Raises:
        ValueError: A size is not positive.

    Example:
        >>> tokenizer = LZWTokenizer(dict_size=4, alphabet_size=2).fit([0, 0, 0, 1, 1, 1, 1, 0])
        >>> tokenizer.dictionary
        [(0,), (0, 0), (1,), (1, 1)]
        >>> tokenizer.encode([0, 0, 0, 1])
        tensor([1, 0, 2])

    Source:
        Rajaraman, Jiao, Ramchandran: Toward a Theory of Tokenization in LLMs (2024, arXiv 2404.08335). The
        dictionary starts empty; classical LZW starts from the alphabet and keeps the last symbol of a new token.
    """

    def __init__(self, dict_size: int, alphabet_size: int = 2) -> None:
        check_in_range("dict_size", dict_size, 1)
        super().__init__((), alphabet_size)
        self.dict_size = dict_size

    def fit(self, sequence: Text) -> Self:
        """Learn the dictionary from a text, up to ``dict_size`` tokens or to its end."""
        symbols = _symbols("sequence", sequence, self.alphabet_size)
        dictionary: list[tuple[int, ...]] = []
        trie, start = _Trie(), 0
        while len(dictionary) < self.dict_size and start < len(symbols):
            known = trie.matches(symbols, start)
            end = known[-1][1] + 1 if known else start + 1
            if end > len(symbols):  # what is left is a token already
                break
            trie.add(symbols[start:end], len(dictionary))
            dictionary.append(tuple(symbols[start:end]))
            start = end
        self._set(dictionary)
        return self


class BPETokenizer(DictionaryTokenizer):
    """Byte-pair encoding: the most frequent pair of neighbours becomes a token, again and again.

    Reach for it to compare the usual dictionary with :class:`LZWTokenizer`'s, or its usual way of encoding with others.
    Pairs equally frequent are taken in the order of their ids; counting pairs, "aaa" has two.

    Args:
        num_merges: Number of merges.
        dict_size: Number of tokens, in place of ``num_merges``.
        alphabet_size: Symbols are 0 to ``alphabet_size`` - 1, and the first tokens.
        min_count: Merges end where the most frequent pair is rarer than this.

    Attributes:
        dictionary: The tokens as tuples in the order in which they were made; before ``fit`` the symbols alone.
        merges: Triples of ids: a pair, and what it becomes.

    Raises:
        ValueError: A size is wrong, or not exactly one of ``num_merges`` and ``dict_size`` is given.

    Example:
        >>> tokenizer = BPETokenizer(num_merges=2).fit([0, 1, 0, 1, 1, 0, 1, 0, 1])
        >>> tokenizer.dictionary
        [(0,), (1,), (0, 1), (0, 1, 0, 1)]
        >>> tokenizer.encode([0, 1, 0, 1, 0, 1], method="merges")
        tensor([3, 2])

    Source:
        Rajaraman, Jiao, Ramchandran: Toward a Theory of Tokenization in LLMs (2024, arXiv 2404.08335);
        Sennrich, Haddow, Birch: Neural Machine Translation of Rare Words with Subword Units (ACL 2016).
    """

    def __init__(
        self,
        num_merges: int | None = None,
        dict_size: int | None = None,
        alphabet_size: int = 2,
        *,
        min_count: int = 2,
    ) -> None:
        if (num_merges is None) == (dict_size is None):
            raise ValueError(f"num_merges is {num_merges} and dict_size {dict_size}; wanted exactly one of them.")
        super().__init__((), alphabet_size)
        if num_merges is not None:
            check_in_range("num_merges", num_merges, 0)
        if dict_size is not None:
            check_in_range("dict_size", dict_size, alphabet_size)
        check_in_range("min_count", min_count, 1)
        self.num_merges, self.dict_size, self.min_count = num_merges, dict_size, min_count
        self.merges: list[tuple[int, int, int]] = []

    def fit(self, sequence: Text) -> Self:
        """Learn merges from a text until there are enough, or the most frequent pair is too rare."""
        ids = np.array(_symbols("sequence", sequence, self.alphabet_size), dtype=np.int64)
        dictionary: list[tuple[int, ...]] = [(symbol,) for symbol in range(self.alphabet_size)]
        known = {token: place for place, token in enumerate(dictionary)}
        self.merges = []
        most = math.inf if self.num_merges is None else self.num_merges
        size = math.inf if self.dict_size is None else self.dict_size
        while len(self.merges) < most and len(dictionary) < size:
            pair, count = _most_frequent_pair(ids, len(dictionary))
            if count < self.min_count:
                break
            token = dictionary[pair[0]] + dictionary[pair[1]]
            if token not in known:  # other merges may have made the same string
                known[token] = len(dictionary)
                dictionary.append(token)
            self.merges.append((*pair, known[token]))
            ids = _merge(ids, self.merges[-1])
        self._set(dictionary)
        return self

    def encode(self, text: Text, method: Literal["greedy", "merges", "minimal"] = "greedy") -> Tensor:
        """Ids of the tokens that make up a text.

        Args:
            text: Symbols ``(n,)``.
            method: ``greedy``, the longest token that is a prefix of the rest; ``merges``, the merges in the order in
                which they were learned; or ``minimal``, as few tokens as can be.

        Raises:
            ValueError: A symbol is out of range, or the method is unknown.
        """
        if method != "merges":
            return super().encode(text, method)
        ids = np.array(_symbols("text", text, self.alphabet_size), dtype=np.int64)
        for merge in self.merges:
            ids = _merge(ids, merge)
        return torch.from_numpy(ids)


def fixed_length_tokenizer(r: int, alphabet_size: int = 2) -> DictionaryTokenizer:
    """The tokenizer whose tokens are all strings of length r (and the symbols, for a shorter end of a text).

    Reach for it as the plainest dictionary that helps: a unigram model over it knows all that happens within r symbols,
    so that its loss exceeds the entropy rate by O(1 / r). It spends tokens on strings that never occur.

    Args:
        r: Length of the tokens.
        alphabet_size: Symbols are 0 to ``alphabet_size`` - 1.

    Returns:
        The tokenizer; there is nothing to fit.

    Raises:
        ValueError: ``r`` is not positive.

    Example:
        >>> fixed_length_tokenizer(2).encode([0, 1, 1, 1, 0])
        tensor([1, 3, 4])

    Source:
        Rajaraman, Jiao, Ramchandran: Toward a Theory of Tokenization in LLMs (2024, arXiv 2404.08335).
    """
    check_in_range("r", r, 1)
    return DictionaryTokenizer(product(range(alphabet_size), repeat=r), alphabet_size)


def unigram_cross_entropy(
    ids: Text,
    lengths: Text,
    *,
    test_ids: Text | None = None,
    base: str | float = "e",
    smoothing: float = 0.5,
) -> float:
    r"""Loss per character of the unigram model that fits tokens best.

    Reach for it to compare dictionaries of different sizes: per token a larger one always looks worse.

    Formula:
        .. math:: L = \frac{-\sum_i \log Q(t_i)}{\sum_i \ell(t_i)}, \quad Q(t) = \frac{n_t}{\sum_v n_v}

        with :math:`\ell` the length of a token; with ``test_ids`` the sums are over those, and
        :math:`Q(t) = (n_t + a) / \sum_v (n_v + a)`.

    Args:
        ids: Tokens that the model is fitted to.
        lengths: Characters of each token of the dictionary.
        test_ids: Tokens that it is judged on; None takes ``ids``.
        base: Base of the logarithm: ``e`` for nats, 2 for bits.
        smoothing: The a that is added to every count where ``test_ids`` are given. With 0 a token that was never seen
            makes the loss infinite.

    Shape:
        - ids, test_ids: ``(n,)``; lengths: ``(V,)``.

    Returns:
        The loss.

    Raises:
        ValueError: An id is out of range, there are none, or ``base`` or ``smoothing`` is out of range.

    Example:
        >>> round(unigram_cross_entropy([0, 1, 1, 0], lengths=[1, 3], base=2), 4)
        0.5

    Source:
        Rajaraman, Jiao, Ramchandran: Toward a Theory of Tokenization in LLMs (2024, arXiv 2404.08335).
    """
    logarithm = math.log(_base(base))
    check_in_range("smoothing", smoothing, 0.0)
    length = torch.as_tensor(lengths)
    check_shape("lengths", length, (len(length),), "the characters of each token")
    seen = _counts("ids", ids, len(length))
    judged = seen
    if test_ids is not None:
        judged, seen = _counts("test_ids", test_ids, len(length)), seen + smoothing
    log_law = (seen / seen.sum()).log()
    return -(torch.where(judged > 0, judged * log_law, 0.0).sum() / (judged * length).sum()).item() / logarithm


def tokenization_gap(
    source: MarkovSource,
    tokenizer: DictionaryTokenizer,
    n_train: int,
    n_test: int,
    *,
    method: str = "greedy",
    generator: torch.Generator | None = None,
) -> dict[str, float]:
    """What a unigram model over a tokenizer's tokens loses per character, between the entropy rate and no tokens.

    Reach for it to measure any tokenizer against the best that could be had.

    Args:
        source: Where the text comes from.
        tokenizer: The tokenizer, which is fitted to the training text.
        n_train: Symbols of the text that tokenizer and model are fitted to.
        n_test: Symbols of the text, drawn apart, that they are judged on.
        method: How the tokenizer encodes.
        generator: Source of randomness.

    Returns:
        ``loss`` in nats per character, ``entropy_rate`` (its floor), ``unigram_loss`` (without tokens) and ``ratio`` of
        the loss to the entropy rate.

    Raises:
        ValueError: A number of symbols is not positive, or the alphabets differ.

    Example:
        >>> from lossary.language import SwitchingSource
        >>> source = SwitchingSource(order=2, p=0.1, q=0.1)
        >>> gap = tokenization_gap(source, LZWTokenizer(64), 20_000, 5_000, generator=torch.Generator().manual_seed(0))
        >>> gap["entropy_rate"] < gap["loss"] < gap["unigram_loss"]
        True

    Source:
        Rajaraman, Jiao, Ramchandran: Toward a Theory of Tokenization in LLMs (2024, arXiv 2404.08335).
    """
    check_in_range("n_train", n_train, 1)
    check_in_range("n_test", n_test, 1)
    if tokenizer.alphabet_size != source.alphabet_size:
        raise ValueError(f"tokenizer has {tokenizer.alphabet_size} symbols and source {source.alphabet_size}.")
    train, test = (source.sample(n, generator) for n in (n_train, n_test))
    encode: Any = tokenizer.fit(train).encode
    loss = unigram_cross_entropy(encode(train, method), tokenizer.lengths, test_ids=encode(test, method))
    rate = source.entropy_rate()
    return {
        "loss": loss,
        "entropy_rate": rate,
        "unigram_loss": source.unigram_entropy(),
        "ratio": loss / rate if rate > 0 else math.inf,
    }


class _Trie:
    """Tokens by prefix."""

    def __init__(self) -> None:
        self._children: list[dict[int, int]] = [{}]
        self._tokens: list[int | None] = [None]

    def add(self, symbols: Sequence[int], token: int) -> None:
        node = 0
        for symbol in symbols:
            if symbol not in self._children[node]:
                self._children[node][symbol] = len(self._children)
                self._children.append({})
                self._tokens.append(None)
            node = self._children[node][symbol]
        if self._tokens[node] is None:
            self._tokens[node] = token

    def matches(self, symbols: Sequence[int], start: int) -> list[tuple[int, int]]:
        """All tokens that begin at ``start``, the shortest first, each with where it ends."""
        found: list[tuple[int, int]] = []
        node, place = 0, start
        while place < len(symbols):
            child = self._children[node].get(symbols[place])
            if child is None:
                break
            node, place = child, place + 1
            token = self._tokens[node]
            if token is not None:
                found.append((token, place))
        return found


def _most_frequent_pair(ids: Ids, size: int) -> tuple[tuple[int, int], int]:
    if len(ids) < 2:
        return (0, 0), 0
    pairs, counts = np.unique(ids[:-1] * size + ids[1:], return_counts=True)
    best = counts.argmax()
    return (int(pairs[best]) // size, int(pairs[best]) % size), int(counts[best])


def _merge(ids: Ids, merge: tuple[int, int, int]) -> Ids:
    """Replace a pair wherever it occurs, from the left: of "aaa" the first two."""
    left, right, token = merge
    found = np.flatnonzero((ids[:-1] == left) & (ids[1:] == right))
    if left == right and len(found):  # pairs of a run overlap: keep every other one of each run
        starts = np.flatnonzero(np.diff(found, prepend=-2) > 1)
        runs = np.repeat(starts, np.diff(starts, append=len(found)))
        found = found[(np.arange(len(found)) - runs) % 2 == 0]
    merged = ids.copy()
    merged[found] = token
    return np.delete(merged, found + 1)


def _symbols(name: str, text: Text, size: int) -> list[int]:
    """A text as a list of ints, checked to lie in [0, size)."""
    tensor = torch.as_tensor(text)
    if tensor.numel() == 0:
        return []
    if tensor.ndim != 1 or tensor.is_floating_point():
        raise ValueError(f"{name} has shape {tuple(tensor.shape)} and dtype {tensor.dtype}; wanted integers (n,).")
    check_indices(name, tensor, size)
    return tensor.tolist()


def _counts(name: str, ids: Text, size: int) -> Tensor:
    known = _symbols(name, ids, size)
    if not known:
        raise ValueError(f"{name} is empty; wanted at least one token.")
    return torch.bincount(torch.tensor(known), minlength=size).double()


def _base(base: str | float) -> float:
    try:
        number = math.e if base == "e" else float(base)
    except ValueError:
        number = math.nan
    if not number > 1:
        raise ValueError(f"base is {base!r}; wanted 'e' or a number above 1, such as 2.")
    return number
