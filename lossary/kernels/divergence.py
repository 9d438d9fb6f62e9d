"""Divergences between the predictions of two linear heads, neither's logits stored.

A first sweep normalises both heads, a second sums the divergence tile by tile from terms that are never negative, and
the backward sweep makes the tiles again for the gradient of the student.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from lossary.core.numerics import product
from lossary.kernels import cpu, ops, state
from lossary.kernels.cpu import Head
from lossary.kernels.options import SCHEMA, Options
from lossary.kernels.rows import HeadRows

Divergence = Literal["forward_kl", "reverse_kl", "jensen_shannon"]


def divergence(student: HeadRows, teacher: HeadRows, kind: Divergence, mixture: float) -> Tensor:
    """Divergence of each row, differentiable in the student alone; see ``lossary.distillation``."""
    if student.options.backend == "reference":
        a, b = student.logits().log_softmax(1), teacher.logits().detach().log_softmax(1)
        return student.shaped(_terms(kind, mixture, a, b, masked=True)[0].sum(1))
    heads = (*student.head[:3], *(None if tensor is None else tensor.detach() for tensor in teacher.head[:3]))
    function: Any = _Divergence if torch.compiler.is_compiling() else _DivergenceEagerly
    caps = (teacher.options.softcap, teacher.options.temperature)
    return student.shaped(function.apply(*heads, student.keep, kind, mixture, caps, student.options)[0])


def _terms(kind: str, mixture: float, a: Tensor, b: Tensor, *, masked: bool) -> tuple[Tensor, Tensor]:
    """Terms of the divergence, each >= 0, and what the gradient's inner sum adds up; of log-probabilities.

    ``a`` is the student's, ``b`` the teacher's. A Kullback-Leibler divergence sum p log(p / q) is unchanged by the
    terms q - p, which make each summand positive. An entry that is out of both vocabularies (``masked`` says that there
    may be such) has no term.
    """
    if masked:
        out = (a == -torch.inf) & (b == -torch.inf)
        terms, inner = _terms(kind, mixture, torch.where(out, 0.0, a), torch.where(out, 0.0, b), masked=False)
        return torch.where(out, 0.0, terms), torch.where(out, 0.0, inner)
    p, q = a.exp(), b.exp()
    if kind == "forward_kl":
        terms = product(q, b - a) - q + p
        return terms, terms
    if kind == "reverse_kl":
        inner = product(p, a - b)
        return inner - p + q, inner
    c = torch.logaddexp(b + _log(mixture), a + _log(1 - mixture))
    inner = (1 - mixture) * product(p, a - c)
    return mixture * product(q, b - c) + inner, inner


def _log(share: float) -> Tensor:
    return torch.tensor(share, dtype=torch.float64).log().to(torch.get_default_dtype())


class _Pair:
    """Tiles of two heads, as log-probabilities."""

    def __init__(
        self, student: Head, teacher: Head, caps: Sequence[float], options: Options, norms: Tensor | None = None
    ) -> None:
        options = options._replace(block_rows=options.block_rows or 256)  # several tiles are there at once
        others = options._replace(softcap=caps[0], temperature=caps[1])
        self.student, self.teacher = cpu.Tiles(student, options), cpu.Tiles(teacher, others)
        biases = student.linear_bias, teacher.linear_bias
        self.masked = all(bias is not None and bool((bias == -torch.inf).any()) for bias in biases)
        if norms is None:
            norms = torch.cat([_norm(student, options), _norm(teacher, others)])
        self.norms = norms

    def log_probs(self, rows: slice, columns: slice) -> tuple[Tensor, Tensor]:
        norms = self.norms[:, rows].unsqueeze(2)
        a = self.student.logits(rows, columns).sub_(norms[0]).sub_(norms[1])
        return a, self.teacher.logits(rows, columns).sub_(norms[2]).sub_(norms[3])


def _norm(head: Head, options: Options) -> Tensor:
    """Largest logit, and logsumexp relative to it: ``(2, N)``."""
    partial = state.Partial(*cpu.sweep((), head, options).unbind(0))
    return torch.stack([partial.maximum, partial.total.log()])


def _heads(tensors: Sequence[Any], keep: Tensor | None) -> tuple[Head, Head]:
    # Only the label's being ignored matters here.
    code = None if keep is None else torch.where(keep, 0, cpu.IGNORED)
    input, weight, bias, teacher_input, teacher_weight, teacher_bias = tensors
    student = cpu.prepare(input, weight, bias, code, None)
    teacher = cpu.prepare(teacher_input, teacher_weight, teacher_bias, code, None)
    return student._replace(target=None), teacher._replace(target=None)


def _values(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    *tensors, keep, kind, mixture, caps = arguments[:10]
    options = Options(*arguments[10:])
    student, teacher = _heads(tensors, keep)
    pair = _Pair(student, teacher, caps, options)
    sums = student.input.new_zeros(2, len(student.input))
    for columns in pair.student.vocab_blocks():
        for rows in pair.student.row_blocks():
            terms, inner = _terms(kind, mixture, *pair.log_probs(rows, columns), masked=pair.masked)
            sums[:, rows] += torch.stack([terms.sum(1), inner.sum(1)])
    value, inner_sum = student.put_back(sums, 1).unbind(0)
    return value.clone(), inner_sum.clone(), student.put_back(pair.norms, 1)


def _gradients(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    *tensors, keep, inner_sum, norms, upstream, kind, mixture, caps, needs = arguments[:14]
    options = Options(*arguments[14:])
    student, teacher = _heads(tensors, keep)
    input, weight, bias = tensors[:3]
    pair = _Pair(student, teacher, caps, options, student.take(norms))
    inner_sum, upstream = (student.take(vector).unsqueeze(1) for vector in (inner_sum, upstream / options.temperature))
    d_input = torch.zeros_like(student.input if needs[0] else student.input[:0])
    d_weight = torch.zeros_like(weight if needs[1] else weight[:0])
    d_bias = student.input.new_zeros(len(weight) if needs[2] else 0)
    for columns in pair.student.vocab_blocks():
        block = pair.student.weight(columns)
        d_block = torch.zeros_like(block)
        for rows in pair.student.row_blocks():
            a, b = pair.log_probs(rows, columns)
            p = a.exp()
            if kind == "forward_kl":
                gradient = (p - b.exp()) * upstream[rows]
            else:
                other = b if kind == "reverse_kl" else torch.logaddexp(b + _log(mixture), a + _log(1 - mixture))
                share = 1.0 if kind == "reverse_kl" else 1 - mixture
                gradient = (share * product(p, a - other) - p * inner_sum[rows]) * upstream[rows]
            if pair.masked:
                gradient = torch.where((a == -torch.inf) & (b == -torch.inf), 0.0, gradient)
            if options.softcap:
                z = a + pair.norms[:2, rows].sum(0).unsqueeze(1)
                gradient *= 1 - (z * (options.temperature / options.softcap)).square()
            if needs[0]:
                d_input[rows].addmm_(gradient, block)
            if needs[1]:
                d_block.addmm_(gradient.t(), student.input[rows])
            if needs[2]:
                d_bias[columns] += gradient.sum(0)
        if needs[1]:
            d_weight[columns] = d_block.to(weight.dtype)
    d_rows = student.put_back(d_input, 0).to(input.dtype) if needs[0] else input.new_empty(0)
    return d_rows, d_weight if needs[1] else weight.new_empty(0), d_bias.to((weight if bias is None else bias).dtype)


_HEADS = "Tensor input, Tensor linear_weight, Tensor? linear_bias, Tensor teacher_input, Tensor teacher_weight, Tensor? teacher_bias, Tensor? keep"  # noqa: E501
_values_op = ops.define(
    f"head_divergence({_HEADS}, str kind, float mixture, float[] caps, {SCHEMA}) -> (Tensor, Tensor, Tensor)",
    _values,
    lambda input, *rest: tuple(
        input.new_empty(*shape, input.shape[0], dtype=cpu.wide_dtype(input)) for shape in ((), (), (4,))
    ),
)
_gradients_op = ops.define(
    f"head_divergence_gradients({_HEADS}, Tensor inner_sum, Tensor norms, Tensor upstream, str kind, float mixture, "
    f"float[] caps, bool[] needs, {SCHEMA}) -> (Tensor, Tensor, Tensor)",
    _gradients,
    lambda *arguments: (
        arguments[0].new_empty(arguments[0].shape if arguments[13][0] else (0,)),
        arguments[1].new_empty(arguments[1].shape if arguments[13][1] else (0,)),
        (arguments[1] if arguments[2] is None else arguments[2]).new_empty(
            arguments[1].shape[0] if arguments[13][2] else 0
        ),
    ),
)


class _Divergence(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        input: Tensor,
        linear_weight: Tensor,
        linear_bias: Tensor | None,
        teacher_input: Tensor,
        teacher_weight: Tensor,
        teacher_bias: Tensor | None,
        keep: Tensor | None,
        kind: str,
        mixture: float,
        caps: Sequence[float],
        options: Options,
    ) -> tuple[Tensor, Tensor, Tensor]:
        heads = (input, linear_weight, linear_bias, teacher_input, teacher_weight, teacher_bias, keep)
        result: tuple[Tensor, Tensor, Tensor] = _values_op(*heads, kind, mixture, list(caps), *options)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[:7], *output[1:])
        ctx.arguments = inputs[7:]

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, *_: Any) -> Any:
        if upstream is None:
            return (None,) * 11
        needs = ctx.needs_input_grad[:3]
        function: Any = _Gradients
        gradients = function.apply(*ctx.saved_tensors, upstream, *ctx.arguments, needs)
        return *ops.where_needed(needs, *gradients), *[None] * 8


class _DivergenceEagerly(_Divergence):
    """Dynamo cannot trace a Function that defines ``jvp``, even one that only refuses."""

    generate_vmap_rule = True

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise NotImplementedError(ops.refusal("forward-mode derivative"))


class _Gradients(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        input: Tensor,
        linear_weight: Tensor,
        linear_bias: Tensor | None,
        teacher_input: Tensor,
        teacher_weight: Tensor,
        teacher_bias: Tensor | None,
        keep: Tensor | None,
        inner_sum: Tensor,
        norms: Tensor,
        upstream: Tensor,
        kind: str,
        mixture: float,
        caps: Sequence[float],
        options: Options,
        needs: Sequence[bool],
    ) -> tuple[Tensor, Tensor, Tensor]:
        heads = (input, linear_weight, linear_bias, teacher_input, teacher_weight, teacher_bias, keep)
        result: tuple[Tensor, Tensor, Tensor] = _gradients_op(
            *heads, inner_sum, norms, upstream, kind, mixture, list(caps), list(needs), *options
        )
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise RuntimeError(ops.refusal("second derivative"))
