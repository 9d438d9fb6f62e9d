"""Distillation between two linear heads over one vocabulary, neither of which stores its logits."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

from lossary.core.checks import check_in_range
from lossary.core.types import Reduction
from lossary.kernels import Divergence, divergence, head_rows


def linear_distillation(
    input: Tensor,
    linear_weight: Tensor,
    teacher_input: Tensor,
    teacher_weight: Tensor,
    target: Tensor | None = None,
    *,
    linear_bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    kind: Divergence = "forward_kl",
    mixture: float = 0.5,
    temperature: float = 1.0,
    softcap: float | None = None,
    teacher_softcap: float | None = None,
    ignore_index: int = -100,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: Tensor | float | None = None,
    backend: Literal["auto", "reference", "cpu"] = "auto",
) -> Tensor:
    r"""Divergence between a student's and a teacher's prediction of the next token, at the memory of no logits.

    Reach for it to distil language models: both models' logits together are what runs out of memory first. The forward
    divergence makes the student cover all that the teacher finds likely, the reverse one makes it keep to what the
    teacher finds most likely, Jensen-Shannon lies between.

    Formula:
        With the teacher's :math:`q`, the student's :math:`p` and :math:`m = \beta q + (1 - \beta) p`:

        - ``forward_kl``: :math:`\sum_v q_v \log (q_v / p_v)`
        - ``reverse_kl``: :math:`\sum_v p_v \log (p_v / q_v)`
        - ``jensen_shannon``: :math:`\beta\,\mathrm{KL}(q \| m) + (1 - \beta)\,\mathrm{KL}(p \| m)`

    Args:
        input: Hidden states of the student.
        linear_weight: Head of the student.
        teacher_input: Hidden states of the teacher; its width may differ.
        teacher_weight: Head of the teacher, over the same vocabulary. No gradient reaches the teacher.
        target: Labels, used for one thing: tokens labelled ``ignore_index`` count for nothing.
        linear_bias: Bias of the student's head.
        teacher_bias: Bias of the teacher's head.
        kind: ``forward_kl``, ``reverse_kl`` or ``jensen_shannon``.
        mixture: Weight :math:`\beta` of the teacher in the mixture, in (0, 1).
        temperature: Divisor of both models' logits. Multiply the loss by its square to keep the size of gradients.
        softcap: Bound k of ``k tanh(z / k)`` on the student's logits.
        teacher_softcap: The same on the teacher's.
        ignore_index: Label of tokens that count for nothing.
        sample_weight: Weights of tokens.
        reduction: ``none``, ``mean`` or ``sum``.
        normalizer: Divisor in place of the one of ``mean``.
        backend: ``cpu`` are tiles in plain PyTorch, on any device; ``reference`` stores the logits.

    Shape:
        - input: ``(..., D)``; linear_weight: ``(V, D)``; teacher_input: ``(..., E)``; teacher_weight: ``(V, E)``.
        - linear_bias, teacher_bias: ``(V,)``; target, sample_weight: ``(...)``.

    Returns:
        ``(...)`` for ``none``, else ``()``; float32 for half-precision input. Empty or all-ignored ``mean`` is NaN, 0
        if ``normalizer`` is given.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, label or option is wrong.

    Example:
        >>> import torch
        >>> student, teacher = torch.zeros(1, 2), torch.tensor([[1.0, 0.0]])
        >>> linear_distillation(student, torch.eye(2), teacher, torch.eye(2))
        tensor(0.1109)

    Source:
        Hinton, Vinyals, Dean (arXiv 1503.02531); Agarwal et al.: On-Policy Distillation of Language Models (ICLR 2024,
        arXiv 2306.13649), section 2, for the three divergences; on the head of Cut Your Losses (arXiv 2411.09009).
    """
    if kind not in get_args(Divergence):
        raise ValueError(f"kind is {kind!r}; wanted {', '.join(map(repr, get_args(Divergence)))}.")
    check_in_range("mixture", mixture, 0.0, 1.0, low_open=True, high_open=True)
    if backend not in ("auto", "reference", "cpu"):
        raise ValueError(f"backend is {backend!r}; wanted 'auto', 'reference' or 'cpu'.")
    if linear_weight.shape[:1] != teacher_weight.shape[:1] or input.shape[:-1] != teacher_input.shape[:-1]:
        raise ValueError(
            f"input has shape {tuple(input.shape)}, linear_weight {tuple(linear_weight.shape)}, teacher_input "
            f"{tuple(teacher_input.shape)} and teacher_weight {tuple(teacher_weight.shape)}; wanted the same tokens "
            "and the same vocabulary on both sides."
        )
    chosen: Literal["reference", "cpu"] = "reference" if backend == "reference" else "cpu"
    student, teacher = (
        head_rows(
            hidden,
            head,
            target,
            bias,
            ignore_index=ignore_index,
            sample_weight=sample_weight,
            softcap=cap,
            temperature=temperature,
            backend=chosen,
        )
        for hidden, head, bias, cap in (
            (input, linear_weight, linear_bias, softcap),
            (teacher_input, teacher_weight, teacher_bias, teacher_softcap),
        )
    )
    loss = divergence(student, teacher, kind, mixture)
    return student.reduce(loss, reduction=reduction, normalizer=normalizer)
