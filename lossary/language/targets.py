"""From tokens to targets: which are predicted, from where, and which count for nothing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lossary.core.checks import check_shape


def shift_labels(
    labels: Tensor,
    *,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    ignore_index: int = -100,
) -> Tensor:
    """Targets aligned with the logits: each token's is the label of the next one.

    Reach for it where labels are the tokens themselves, as Hugging Face has them, before any objective over tokens that
    has no ``shift``; and for any objective where several sequences are packed into a row.

    Args:
        labels: Class indices, ``ignore_index`` for those that are not predicted.
        attention_mask: 0 for padding.
        position_ids: Place of each token in its own sequence: the first, at 0, is not predicted from the sequence
            before.
        ignore_index: Label of tokens that count for nothing; the last of a row has it.

    Shape:
        - labels, attention_mask, position_ids: ``(B, T)`` or ``(..., T)``.

    Returns:
        The targets, of the shape of ``labels``.

    Raises:
        TypeError: An argument is no tensor.
        ValueError: A shape is wrong.

    Example:
        >>> shift_labels(torch.tensor([[5, 6, 7, 8]]), position_ids=torch.tensor([[0, 1, 0, 1]]))
        tensor([[   6, -100,    8, -100]])
    """
    keep = torch.ones_like(labels, dtype=torch.bool)
    if attention_mask is not None:
        check_shape("attention_mask", attention_mask, labels.shape, "1 for each token, 0 for padding")
        keep = keep & (attention_mask != 0)
    if position_ids is not None:
        check_shape("position_ids", position_ids, labels.shape, "the place of each token in its sequence")
        keep = keep & (position_ids != 0)
    labels = torch.where(keep, labels, ignore_index)
    return F.pad(labels, (0, 1), value=ignore_index)[..., 1:]


def instruction_mask(
    input_ids: Tensor,
    start: Sequence[int],
    end: Sequence[int],
    *,
    score_end: bool = True,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    ignore_index: int = -100,
) -> Tensor:
    r"""Labels of a dialogue in which answers alone are scored: all else is ``ignore_index``.

    Reach for it in instruction tuning, where there is a text and a chat format but no mask. The tokens that open an
    answer, and everything of system and user, are not scored.

    Args:
        input_ids: Tokens, of one dialogue a row or of several that are packed.
        start: Tokens that open an answer, those of ``<|im_start|>assistant\n`` for instance.
        end: Tokens that close it, those of ``<|im_end|>``; what follows is not scored until the next opening.
        score_end: Whether the closing tokens are scored, so that the model learns to stop.
        attention_mask: 0 for padding.
        position_ids: Place of each token in its own sequence; an answer ends where the next sequence begins.
        ignore_index: Label of tokens that count for nothing.

    Shape:
        - input_ids, attention_mask, position_ids: ``(B, T)`` or ``(..., T)``.

    Returns:
        The labels, of the shape of ``input_ids`` and not shifted: :func:`shift_labels` aligns them with logits.

    Raises:
        TypeError: An argument is no tensor.
        ValueError: A shape is wrong, or a marker has no tokens.

    Example:
        >>> dialogue = torch.tensor([[1, 7, 8, 2, 1, 9, 5, 6, 2, 3]])  # 1 9 opens an answer, 2 ends a turn
        >>> instruction_mask(dialogue, start=[1, 9], end=[2])
        tensor([[-100, -100, -100, -100, -100, -100,    5,    6,    2, -100]])

    Source:
        Ociepa, Flis, Wróbel, Gwoździej, Kinas: Bielik 7B v0.1 (arXiv 2410.18565), whose scripts score the end of an
        answer too.
    """
    place = torch.arange(input_ids.shape[-1], device=input_ids.device).expand(input_ids.shape)
    opening, closing = (_ends_of(input_ids, name, marker) for name, marker in (("start", start), ("end", end)))
    nowhere = place.new_full((), -1)
    # The last of each marker that ended before a token says whether it is part of an answer.
    opened, closed = (
        F.pad(torch.where(found, place, nowhere).cummax(-1).values, (1, -1), value=-1) for found in (opening, closing)
    )
    scored = opened > closed
    if not score_end:
        ahead = F.pad(closing, (0, len(end) - 1))
        scored = scored & ~torch.stack([ahead[..., i : i + place.shape[-1]] for i in range(len(end))]).any(0)
    if position_ids is not None:
        check_shape("position_ids", position_ids, input_ids.shape, "the place of each token in its sequence")
        began = torch.where(position_ids == 0, place, 0).cummax(-1).values
        scored = scored & (opened - len(start) + 1 >= began)
    if attention_mask is not None:
        check_shape("attention_mask", attention_mask, input_ids.shape, "1 for each token, 0 for padding")
        scored = scored & (attention_mask != 0)
    return torch.where(scored, input_ids, ignore_index)


def _ends_of(input_ids: Tensor, name: str, marker: Sequence[int]) -> Tensor:
    """Where the marker ends."""
    if not len(marker):
        raise ValueError(f"{name} is {list(marker)}; wanted the tokens of the marker, at least one.")
    found = torch.ones_like(input_ids, dtype=torch.bool)
    for back, token in enumerate(reversed(list(marker))):
        found = found & (F.pad(input_ids, (back, 0), value=-1)[..., : input_ids.shape[-1]] == token)
    return found
