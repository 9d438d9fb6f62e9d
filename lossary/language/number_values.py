"""Which entries of a vocabulary are numbers, and what numbers a model predicts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from lossary.core.checks import check_class_vector, check_floating
from lossary.core.rows import widen
from lossary.language.number_rows import Numbers


def number_values_from_vocab(vocab: Mapping[str, int], size: int, *, digit_level: bool = True) -> Tensor:
    """Value of each entry of a vocabulary, NaN for those that are no number.

    Reach for it where there is a dictionary of tokens and no tokenizer; tokens are taken as they are written, so a mark
    for a space makes text of them (:func:`number_values_from_tokenizer` knows the marks).

    Args:
        vocab: The entry of each token.
        size: Entries of the head, V; those without a token are no number.
        digit_level: Take single ASCII digits for numbers; otherwise every token that parses as a finite float.

    Returns:
        The values ``(size,)``, float32.

    Raises:
        ValueError: A token's entry lies outside the head.

    Example:
        >>> number_values_from_vocab({"a": 0, "1": 1, "12": 2}, 4)
        tensor([nan, 1., nan, nan])
        >>> number_values_from_vocab({"a": 0, "1": 1, "12": 2}, 4, digit_level=False)
        tensor([nan, 1., 12., nan])

    Source:
        Zausinger et al.: Regress, Don't Guess (ICML 2025, arXiv 2411.02083).
    """
    return _values(vocab.items(), size, digit_level)


def number_values_from_tokenizer(
    tokenizer: Any, size: int | None = None, *, digit_level: bool = True, marked: bool = True
) -> Tensor:
    """Value of each entry of a Hugging Face tokenizer's vocabulary, NaN for those that are no number.

    Reach for it before training with a number loss. Tokenizers of numbers by the piece (123 as one token) want
    ``digit_level=False``.

    Args:
        tokenizer: Any tokenizer with ``get_vocab``; special tokens are no numbers.
        size: Entries of the head, where it has more than the tokenizer.
        digit_level: Take single ASCII digits for numbers; otherwise every token that parses as a finite float.
        marked: Read past the marks of tokenizers, so that 5 with a space before it is 5, too.

    Returns:
        The values ``(size,)``, float32.

    Raises:
        ValueError: No token is a number, or one lies outside the head.

    Example:
        >>> from tokenizers import Tokenizer, models
        >>> from transformers import PreTrainedTokenizerFast
        >>> words = Tokenizer(models.WordLevel({"a": 0, "7": 1, "12": 2}, unk_token="a"))
        >>> number_values_from_tokenizer(PreTrainedTokenizerFast(tokenizer_object=words))
        tensor([nan, 7., nan])

    Source:
        Zausinger et al.: Regress, Don't Guess (ICML 2025, arXiv 2411.02083). Their package adds digits that a tokenizer
        lacks to it; here nobody's tokenizer is changed.
    """
    special = set(tokenizer.all_special_tokens)
    vocab = {token: entry for token, entry in tokenizer.get_vocab().items() if token not in special}
    if size is None:
        size = max(len(tokenizer), 1 + max(vocab.values(), default=0))
    values = _values(((_unmarked(t) if marked else t, entry) for t, entry in vocab.items()), size, digit_level)
    if not values.isfinite().any():
        wanted = "a single digit" if digit_level else "a number"
        raise ValueError(f"tokenizer has {len(vocab)} tokens, none of them {wanted}; wanted some.")
    return values


def predict_numbers(
    logits: Tensor, number_values: Tensor, *, number_index: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    r"""Expected number of each token, and how likely it is that the token is a number at all.

    Reach for it to read numbers off a language model without sampling.

    Formula:
        .. math:: \hat y = \sum_{k \in K} q_k v_k, \quad a = \sum_{k \in K} p_k

        for p the softmax over the vocabulary, q that over the number tokens K with values v.

    Args:
        logits: Logits, the vocabulary last.
        number_values: Value of each entry of the vocabulary, NaN for text.
        number_index: As in :func:`number_token_loss`.

    Shape:
        - logits: ``(B, T, V)`` or ``(..., V)``; number_values: ``(V,)``; number_index: ``(K,)``.

    Returns:
        Numbers and masses, both ``(B, T)`` or ``(...)``; float32 for half-precision logits.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape is wrong.

    Example:
        >>> values = torch.tensor([float("nan"), 0.0, 1.0, 2.0])
        >>> predict_numbers(torch.zeros(1, 1, 4), values)
        (tensor([[1.]]), tensor([[0.7500]]))

    Source:
        ``predict_numbers`` of the authors' package ``ntloss`` to Zausinger et al. (arXiv 2411.02083).
    """
    check_floating("logits", logits)
    if logits.ndim == 0:
        raise ValueError("logits has shape (); wanted (..., V).")
    check_class_vector("number_values", number_values, logits.shape[-1])
    numbers = Numbers(number_values.to(widen(logits).dtype), number_index)
    log_p = numbers.among(widen(logits).log_softmax(-1))
    return (log_p.softmax(-1) * numbers.values).sum(-1), log_p.exp().sum(-1)


_BEFORE, _AFTER = ("\u2581", "\u0120", "##"), "</w>"
"""What tokenizers write for a space before a token (SentencePiece, byte-level BPE), for a token within a word
(WordPiece), and for the end of a word (BPE)."""


def _values(tokens: Iterable[tuple[str, int]], size: int, digit_level: bool) -> Tensor:
    values = [math.nan] * size
    for token, entry in tokens:
        if not 0 <= entry < size:
            raise ValueError(f"{token!r} is entry {entry} of the vocabulary; wanted 0 to {size - 1}, by size={size}.")
        if not digit_level or (len(token) == 1 and token.isascii()):
            values[entry] = _number(token)
    return torch.tensor(values, dtype=torch.float32)


def _number(token: str) -> float:
    try:
        value = float(token)
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan


def _unmarked(token: str) -> str:
    for mark in _BEFORE:
        token = token.removeprefix(mark)
    return token.removesuffix(_AFTER)
