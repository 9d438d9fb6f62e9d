"""The custom operators behind the linear head, and the autograd around them.

An operator has a fake kernel and a rule for ``vmap``, but no derivative: operators with registered derivatives fail
under ``torch.func.grad`` (torch 2.13). Derivatives live in the ``torch.autograd.Function`` around them. Where a
transform bypasses that (forward mode, ``torch.compile`` of ``torch.func.grad``), the operator refuses, since the
alternative would be a gradient of 0.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

from lossary.kernels import cpu, state
from lossary.kernels.options import SCHEMA, Options


def _untyped(function: Any) -> Any:
    """What PyTorch does not annotate."""
    return function


_LIBRARY: Any = _untyped(torch.library.Library)("lossary", "FRAGMENT")


def refusal(what: str) -> str:
    """The message where there is no derivative."""
    return f"The linear head has no {what}: backend='reference' has (and stores its logits)."


def define(schema: str, kernel: Callable[..., Any], fake: Callable[..., Any]) -> Callable[..., Any]:
    """Register an operator of the library ``lossary`` from its schema, kernel and fake kernel."""
    name = schema[: schema.index("(")]
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, without_autocast(kernel), "CompositeExplicitAutograd")
    torch.library.register_fake(f"lossary::{name}", fake, lib=_LIBRARY)
    operator: Callable[..., Any] = getattr(torch.ops.lossary, name).default

    def refuse_derivatives(*arguments: Any) -> Any:
        tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
            raise RuntimeError(refusal("derivative under torch.compile of torch.func.grad"))
        _refuse_tangents(tensors)
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*arguments)

    def one_by_one(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> Any:
        results = [
            operator(
                *(
                    argument.select(dim, member) if isinstance(dim, int) else argument
                    for argument, dim in zip(arguments, in_dims, strict=True)
                )
            )
            for member in range(info.batch_size)
        ]
        if isinstance(results[0], Tensor):
            return torch.stack(results), 0
        return tuple(map(torch.stack, zip(*results, strict=True))), (0,) * len(results[0])

    _LIBRARY.impl(name, refuse_derivatives, "Autograd")
    torch.library.register_vmap(f"lossary::{name}", one_by_one, lib=_LIBRARY)
    return operator


def without_autocast(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """A kernel whose float32 arithmetic stays so: what autocast wants was done to its inputs."""

    @functools.wraps(kernel)
    def run(*arguments: Any) -> Any:
        device = next(argument for argument in arguments if isinstance(argument, Tensor)).device.type
        with torch.autocast(device, enabled=False):
            return kernel(*arguments)

    return run


def _refuse_tangents(tensors: Sequence[Tensor]) -> None:
    if forward_ad._current_level >= 0 and any(
        _untyped(forward_ad.unpack_dual)(tensor).tangent is not None for tensor in tensors if tensor.is_floating_point()
    ):
        raise NotImplementedError(refusal("forward-mode derivative"))


# --- the operators --------------------------------------------------------------------------------------------------

_HEAD = "Tensor input, Tensor linear_weight, Tensor? linear_bias, Tensor? target, Tensor? weight"


def _device_of(tensor: Tensor) -> Any:
    """Triton launches on the current device."""
    return _untyped(torch.cuda.device_of)(tensor)


def _backend(options: Options) -> Any:
    if options.backend == "triton":
        from lossary.kernels import triton

        return triton
    if options.backend == "cuda":
        from lossary.kernels import cuda

        return cuda
    return cpu


def _partials(names: list[str], *rest: Any) -> Tensor:
    options = Options(*rest[5:])
    with _device_of(rest[0]):
        result: Tensor = _backend(options).partials(names, *rest[:5], options)
    return result


def _fake_partials(names: list[str], input: Tensor, *rest: Any) -> Tensor:
    return input.new_empty(len(state.Partial._fields), input.shape[0], dtype=cpu.wide_dtype(input))


def _gradients(names: list[str], *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    options = Options(*rest[7:])
    with _device_of(rest[0]):
        result: tuple[Tensor, Tensor, Tensor] = _backend(options).gradients(names, *rest[:7], options)
    return result


def _fake_gradients(
    names: list[str],
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    target: Tensor | None,
    weight: Tensor | None,
    coefficients: Tensor,
    needs: list[bool],
    *options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    bias = linear_weight if linear_bias is None else linear_bias
    return (
        input.new_empty(input.shape if needs[0] else (0,)),
        linear_weight.new_empty(linear_weight.shape if needs[1] else (0,)),
        bias.new_empty(linear_weight.shape[:1] if needs[2] else (0,)),
    )


def _value_and_gradients(names: list[str], *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    options = Options(*rest[7:])
    result: tuple[Tensor, Tensor, Tensor, Tensor]
    with _device_of(rest[0]):
        result = _backend(options).value_and_gradients(names, *rest[:7], options)
    return result


def _fake_value_and_gradients(names: list[str], *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return torch.empty_like(rest[5]), *_fake_gradients(names, *rest)


_partials_op = define(f"head_partials(str[] names, {_HEAD}, {SCHEMA}) -> Tensor", _partials, _fake_partials)
_gradients_op = define(
    f"head_gradients(str[] names, {_HEAD}, Tensor coefficients, bool[] needs, {SCHEMA}) -> (Tensor, Tensor, Tensor)",
    _gradients,
    _fake_gradients,
)
_value_and_gradients_op = define(
    f"head_value_and_gradients(str[] names, {_HEAD}, Tensor upstream, bool[] needs, {SCHEMA})"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _value_and_gradients,
    _fake_value_and_gradients,
)
_logits_at_op = define(
    "logits_at(Tensor input, Tensor linear_weight, Tensor? linear_bias, Tensor index, float softcap, float temperature)"
    " -> Tensor",
    cpu.logits_at,
    lambda input, linear_weight, linear_bias, index, softcap, temperature: input.new_empty(
        index.shape, dtype=cpu.wide_dtype(input)
    ),
)
_logits_at_gradients_op = define(
    "logits_at_gradients(Tensor input, Tensor linear_weight, Tensor index, Tensor gradient, bool[] needs)"
    " -> (Tensor, Tensor, Tensor)",
    cpu.logits_at_gradients,
    lambda input, linear_weight, index, gradient, needs: (
        torch.empty_like(input if needs[0] else input[:0]),
        torch.empty_like(linear_weight if needs[1] else linear_weight[:0]),
        gradient.new_empty(linear_weight.shape[0] if needs[2] else 0),
    ),
)
top = define(
    f"head_top(Tensor input, Tensor linear_weight, Tensor? linear_bias, int k, {SCHEMA}) -> (Tensor, Tensor)",
    lambda input, linear_weight, linear_bias, k, *options: cpu.top(
        input, linear_weight, linear_bias, k, Options(*options)
    ),
    lambda input, linear_weight, linear_bias, k, *options: (
        input.new_empty(input.shape[0], k, dtype=cpu.wide_dtype(input)),
        input.new_empty(input.shape[0], k, dtype=torch.int64),
    ),
)
sample = define(
    f"head_sample(Tensor input, Tensor linear_weight, Tensor? linear_bias, Tensor noise, {SCHEMA}) -> Tensor",
    lambda input, linear_weight, linear_bias, noise, *options: cpu.sample(
        input, linear_weight, linear_bias, noise, Options(*options)
    ),
    lambda input, linear_weight, linear_bias, noise, *options: torch.empty_like(noise, dtype=torch.int64),
)


# --- their derivatives ----------------------------------------------------------------------------------------------


class _Statistics(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        input: Tensor,
        linear_weight: Tensor,
        linear_bias: Tensor | None,
        target: Tensor | None,
        weight: Tensor | None,
        target_weight: Tensor | None,
        names: Sequence[str],
        options: Options,
        ranks: Any,
    ) -> tuple[Tensor, Tensor]:
        partial = _partials_op(list(names), input, linear_weight, linear_bias, target, weight, *options)
        if ranks is not None:
            partial = ranks.merge(partial)
        return state.statistics(names, partial, target_weight, target is not None), partial

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[:6], output[1])
        ctx.names, ctx.options, ctx.ranks = inputs[6:]

    @staticmethod
    def backward(ctx: Any, gradients: Tensor | None, _: Any) -> Any:
        if gradients is None:
            return (None,) * 9
        *head, target_weight, partial = ctx.saved_tensors
        has_target, temperature = head[3] is not None, ctx.options.temperature
        coefficients = state.coefficients(ctx.names, gradients, partial, target_weight, has_target, temperature)
        needs = ctx.needs_input_grad[:3]
        d_input, d_weight, d_bias = _untyped(_Gradients).apply(*head, coefficients, ctx.names, needs, ctx.options)
        if ctx.ranks is not None and needs[0] and ctx.ranks.reduce_input_grad:
            d_input = ctx.ranks.sum(d_input)
        return *where_needed(needs, d_input, d_weight, d_bias), *[None] * 6


class _StatisticsEagerly(_Statistics):
    """Dynamo cannot trace a Function that defines ``jvp``, even one that only refuses."""

    generate_vmap_rule = True

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise NotImplementedError(refusal("forward-mode derivative"))


class _Gradients(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        input: Tensor,
        linear_weight: Tensor,
        linear_bias: Tensor | None,
        target: Tensor | None,
        weight: Tensor | None,
        coefficients: Tensor,
        names: Sequence[str],
        needs: Sequence[bool],
        options: Options,
    ) -> tuple[Tensor, Tensor, Tensor]:
        head = (input, linear_weight, linear_bias, target, weight)
        result: tuple[Tensor, Tensor, Tensor] = _gradients_op(list(names), *head, coefficients, list(needs), *options)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise RuntimeError(refusal("second derivative"))


class _WeightedSum(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        input: Tensor,
        linear_weight: Tensor,
        linear_bias: Tensor | None,
        target: Tensor,
        weight: Tensor | None,
        upstream: Tensor,
        names: Sequence[str],
        needs: Sequence[bool],
        options: Options,
    ) -> tuple[Tensor, ...]:
        head = (input, linear_weight, linear_bias, target, weight)
        values, *gradients = _value_and_gradients_op(list(names), *head, upstream, list(needs), *options)
        return (upstream * values).masked_fill(upstream == 0, 0.0).sum(), values, *gradients

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)  # else zeros of the size of the head would be made for what has no gradient
        ctx.names, ctx.needs, ctx.options = inputs[6:]
        ctx.held = None
        if _in_plain_eager_mode() and inputs[0].dtype != torch.float64:  # float64 is for gradcheck: twice the same
            # Held outside the saved tensors, so that backward may scale them in place and let go of them.
            ctx.held = output[2:]
            ctx.save_for_backward(*inputs[:6], output[1])
        else:
            ctx.save_for_backward(*inputs[:6], *output[1:])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None, *_: Any) -> Any:
        if gradient is None:
            return (None,) * 9
        *head, upstream, values = ctx.saved_tensors[:7]
        d_upstream = gradient * values if ctx.needs_input_grad[5] else None
        if ctx.held is not None and not torch.is_grad_enabled() and not _is_batched(gradient):
            gradients, ctx.held = ctx.held, None
            if gradient != 1:  # on a GPU too looking costs less than a pass over the head's gradient
                gradients = tuple(tensor.mul_(gradient.to(tensor.dtype)) for tensor in gradients)
        elif ctx.held is not None or len(ctx.saved_tensors) > 7:
            gradients = _untyped(_Scaled).apply(gradient, *head[:3], *(ctx.held or ctx.saved_tensors[7:]))
        else:  # a second backward through the same graph: what was held is gone
            partial = _partials_op(list(ctx.names), *head, *ctx.options)
            target_weight = None if head[4] is None else head[4][head[3].clamp(min=0)]
            coefficients = state.coefficients(
                ctx.names, gradient * upstream, partial, target_weight, True, ctx.options.temperature
            )
            gradients = _untyped(_Gradients).apply(*head, coefficients, ctx.names, ctx.needs, ctx.options)
        return *where_needed(ctx.needs_input_grad[:3], *gradients), None, None, d_upstream, None, None, None


class _WeightedSumEagerly(_WeightedSum):
    """As :class:`_StatisticsEagerly`."""

    generate_vmap_rule = True

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise NotImplementedError(refusal("forward-mode derivative"))


class _Scaled(torch.autograd.Function):
    """Gradients times a number, with a graph that refuses to go on."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        gradient: Tensor,
        input: Tensor,
        linear_weight: Tensor,
        linear_bias: Tensor | None,
        d_input: Tensor,
        d_weight: Tensor,
        d_bias: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        return d_input * gradient, d_weight * gradient, d_bias * gradient

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise RuntimeError(refusal("second derivative"))


class _LogitsAt(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        input: Tensor,
        linear_weight: Tensor,
        linear_bias: Tensor | None,
        index: Tensor,
        softcap: float,
        temperature: float,
    ) -> Tensor:
        result: Tensor = _logits_at_op(input, linear_weight, linear_bias, index, softcap, temperature)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:4], output)
        ctx.softcap, ctx.temperature = inputs[4:]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        input, linear_weight, linear_bias, index, logits = ctx.saved_tensors
        gradient = gradient / ctx.temperature
        if ctx.softcap:
            gradient = gradient * (1 - (logits * (ctx.temperature / ctx.softcap)).square())
        needs = ctx.needs_input_grad[:3]
        gradients = _untyped(_LogitsAtGradients).apply(input, linear_weight, index, gradient, needs)
        d_input, d_weight, d_bias = where_needed(needs, *gradients)
        return d_input, d_weight, None if d_bias is None else d_bias.to(linear_bias.dtype), None, None, None


class _LogitsAtEagerly(_LogitsAt):
    """As :class:`_StatisticsEagerly`."""

    generate_vmap_rule = True

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise NotImplementedError(refusal("forward-mode derivative"))


class _LogitsAtGradients(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        input: Tensor, linear_weight: Tensor, index: Tensor, gradient: Tensor, needs: Sequence[bool]
    ) -> tuple[Tensor, Tensor, Tensor]:
        result: tuple[Tensor, Tensor, Tensor] = _logits_at_gradients_op(
            input, linear_weight, index, gradient, list(needs)
        )
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise RuntimeError(refusal("second derivative"))


def where_needed(needs: Sequence[bool], *gradients: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients that autograd asked for, None in place of the others."""
    return tuple(gradient if needed else None for gradient, needed in zip(gradients, needs, strict=True))


def _in_plain_eager_mode() -> bool:
    return not torch.compiler.is_compiling() and torch._C._functorch.peek_interpreter_stack() is None


def _is_batched(gradient: Tensor) -> bool:
    """Whether there are several gradients in one: of ``vmap``, or of ``autograd.grad(is_grads_batched=True)``."""
    return not _in_plain_eager_mode() or bool(torch._C._functorch.is_legacy_batchedtensor(gradient))


def _traced(function: type[torch.autograd.Function], eagerly: type[torch.autograd.Function]) -> Any:
    return function if torch.compiler.is_compiling() else eagerly


# --- what the front door calls --------------------------------------------------------------------------------------


def statistics(
    names: Sequence[str],
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    target: Tensor | None,
    weight: Tensor | None,
    target_weight: Tensor | None,
    options: Options,
    ranks: Any = None,
) -> Tensor:
    """The statistics named ``(S, N)`` of flat rows, differentiable."""
    head = (input, linear_weight, linear_bias, target, weight, target_weight)
    values: Tensor = _traced(_Statistics, _StatisticsEagerly).apply(*head, tuple(names), options, ranks)[0]
    return values


def weighted_sum(
    names: Sequence[str],
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    target: Tensor,
    weight: Tensor | None,
    upstream: Tensor,
    needs: Sequence[bool],
    options: Options,
) -> Tensor:
    """Sum over rows of ``upstream (S, N)`` x statistics, whose gradients are formed together with it."""
    head = (input, linear_weight, linear_bias, target, weight, upstream)
    function = _traced(_WeightedSum, _WeightedSumEagerly)
    total: Tensor = function.apply(*head, tuple(names), tuple(needs), options)[0]
    return total


def logits_at(
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    index: Tensor,
    softcap: float,
    temperature: float,
) -> Tensor:
    """Logits ``(N, K)`` at ``index (N, K)``, differentiable."""
    function = _traced(_LogitsAt, _LogitsAtEagerly)
    result: Tensor = function.apply(input, linear_weight, linear_bias, index, softcap, temperature)
    return result
