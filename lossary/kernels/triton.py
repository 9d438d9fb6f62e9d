"""The sweeps of :mod:`lossary.kernels.cpu` by Triton kernels that form the products, too.

They are slower than the tiles of :mod:`lossary.kernels.cuda` and sum the head's whole gradient in float32, but know
Kahan's compensation and sums of a fixed order. ``TRITON_INTERPRET=1``, set before the first import, runs the kernels of
both backends on the CPU.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from lossary.kernels import state
from lossary.kernels.cpu import IGNORED, wide_dtype
from lossary.kernels.options import Options
from lossary.kernels.state import OF_MOMENT, SPREAD
from lossary.kernels.triton_kernels import gradients_kernel, partials_kernel

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def _configurations(*blocks: tuple[int, int, int, int, int]) -> list[Any]:
    return [
        triton.Config(
            {"BLOCK_ROWS": rows, "BLOCK_VOCAB": vocab, "BLOCK_WIDTH": width}, num_warps=warps, num_stages=stages
        )
        for rows, vocab, width, warps, stages in blocks
    ]


_KEY = ["vocab", "width", "WIDEN", "PRECISION", "HAS_CAP"]
_tuned_partials_kernel = triton.autotune(
    _configurations((128, 256, 64, 8, 3), (128, 128, 64, 8, 3), (128, 128, 32, 4, 4), (64, 128, 64, 4, 4)), key=_KEY
)(partials_kernel)
# What is added up must start from 0 in every trial of the tuner.
_tuned_gradients_kernel = triton.autotune(
    _configurations((128, 128, 32, 8, 3), (128, 128, 64, 8, 2), (64, 128, 32, 4, 3)),
    key=[*_KEY, "OWNER", "NEEDS_INPUT", "NEEDS_WEIGHT"],
    reset_to_zero=["d_input_ptr", "d_weight_ptr", "d_bias_ptr", "lost_ptr"],
)(gradients_kernel)


def partials(
    names: Sequence[str],
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    target: Tensor | None,
    weight: Tensor | None,
    options: Options,
) -> Tensor:
    """What is kept of each row over the whole vocabulary: :class:`state.Partial` ``(8, M)``."""
    check_device("triton", input)
    kept = kept_rows(target, options)
    num_rows, vocab = len(input) if kept is None else len(kept), len(linear_weight)
    blocks = _blocks(options, vocab)
    parts = _parts(num_rows, vocab, input)
    share = -(-vocab // parts) if parts else 0
    partial = torch.empty(parts, 8, num_rows, dtype=torch.float32, device=input.device)
    if num_rows and vocab:
        kernel = partials_kernel if blocks else _tuned_partials_kernel
        kernel[lambda meta: (triton.cdiv(num_rows, meta["BLOCK_ROWS"]), parts)](
            input.contiguous(),
            linear_weight.contiguous(),
            _in_order(linear_bias),
            target,
            _in_order(weight),
            kept,
            partial,
            num_rows,
            vocab,
            input.shape[1],
            share,
            options.softcap or 1.0,
            1 / options.temperature,
            **_switches(names, input, linear_weight, linear_bias, target, weight, kept, options),
            **blocks,
        )
        merged = state.merge(partial)
    else:
        merged = torch.zeros(8, num_rows, dtype=torch.float32, device=input.device)
        merged[[0, 7]] = -torch.inf
    if kept is None:
        return merged
    return merged.new_zeros(8, len(input)).index_copy_(1, kept, merged)


def gradients(
    names: Sequence[str],
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    target: Tensor | None,
    weight: Tensor | None,
    coefficients: Tensor,
    needs: Sequence[bool],
    options: Options,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ``input``, ``linear_weight`` and ``linear_bias``, empty where not needed."""
    check_device("triton", input)
    kept = kept_rows(target, options)
    num_rows, vocab, width = len(input) if kept is None else len(kept), len(linear_weight), input.shape[1]
    input, linear_weight = input.contiguous(), linear_weight.contiguous()
    needs_input, needs_weight, needs_bias = needs
    summed = input.dtype if options.kahan else torch.float32
    d_input = torch.zeros(input.shape if needs_input else (0,), dtype=summed, device=input.device)
    d_weight = torch.zeros(linear_weight.shape if needs_weight else (0,), dtype=summed, device=input.device)
    d_bias = torch.zeros(vocab if needs_bias else 0, dtype=torch.float32, device=input.device)
    blocks = _blocks(options, vocab)
    kernel = gradients_kernel if blocks else _tuned_gradients_kernel
    # What label smoothing adds is not small where the softmax is: nothing can be skipped.
    filtering = options.filter_eps > 0 and not SPREAD.intersection(names)
    order = _by_mean_logit(input, linear_weight, linear_bias, kept) if filtering and num_rows else None
    owners = (1, 2) if options.deterministic or options.kahan else (0,)
    for owner in owners if num_rows and vocab else ():
        of_input, of_head = owner in (0, 1), owner in (0, 2)
        if not ((needs_input and of_input) or ((needs_weight or needs_bias) and of_head)):
            continue

        def grid(meta: dict[str, int], owner: int = owner) -> tuple[int]:
            rows, columns = triton.cdiv(num_rows, meta["BLOCK_ROWS"]), triton.cdiv(vocab, meta["BLOCK_VOCAB"])
            return ((rows * columns, rows, columns)[owner],)

        lost = torch.zeros_like(d_input if owner == 1 else d_weight) if options.kahan else d_bias
        kernel[grid](
            input,
            linear_weight,
            _in_order(linear_bias),
            target,
            _in_order(weight),
            kept,
            order,
            coefficients.contiguous(),
            d_input,
            d_weight,
            d_bias,
            lost,
            num_rows,
            len(input),
            vocab,
            width,
            options.softcap or 1.0,
            1 / options.temperature,
            options.filter_eps if filtering else 0.0,
            **_switches(names, input, linear_weight, linear_bias, target, weight, kept, options),
            HAS_ORDER=order is not None,
            NEEDS_INPUT=bool(needs_input and of_input),
            NEEDS_WEIGHT=bool(needs_weight and of_head),
            NEEDS_BIAS=bool(needs_bias and of_head),
            FILTER_INPUT=filtering and options.filter_input,
            FILTER_WEIGHT=filtering and options.filter_weight,
            OWNER=owner,
            KAHAN=options.kahan,
            **blocks,
        )
    bias_dtype = linear_weight.dtype if linear_bias is None else linear_bias.dtype
    return d_input.to(input.dtype), d_weight.to(linear_weight.dtype), d_bias.to(bias_dtype)


def _in_order(vector: Tensor | None) -> Tensor | None:
    return None if vector is None else vector.contiguous()


def check_device(backend: str, input: Tensor) -> None:
    """Refuse what the kernels cannot run on."""
    if not input.is_cuda and not INTERPRETED:
        raise ValueError(
            f"backend is {backend!r} and input is on {input.device}; wanted a GPU (or TRITON_INTERPRET=1 before the "
            "import, to try the kernels on the CPU)."
        )
    if wide_dtype(input) == torch.float64:
        raise TypeError(
            f"backend is {backend!r} and input has dtype torch.float64; wanted float32, bfloat16 or float16."
        )


def kept_rows(target: Tensor | None, options: Options) -> Tensor | None:
    """Places of the rows that count, None where all do."""
    if target is None or options.all_count or not bool((target == IGNORED).any()):
        return None
    return (target != IGNORED).nonzero()[:, 0]


def _by_mean_logit(input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, kept: Tensor | None) -> Tensor:
    """The vocabulary by falling mean logit, which is the head of the mean input: no sweep is needed for it."""
    rows = input if kept is None else input.index_select(0, kept)
    mean = linear_weight @ rows.mean(0, dtype=torch.float32).to(linear_weight.dtype)
    return (mean if linear_bias is None else mean + linear_bias).argsort(descending=True, stable=True)


def _blocks(options: Options, vocab: int) -> dict[str, int]:
    """Sizes of blocks where they are not left to the tuner, which needs a GPU."""
    if not (options.block_rows or options.block_vocab or INTERPRETED):
        return {}
    rows = triton.next_power_of_2(options.block_rows or (16 if INTERPRETED else 128))
    columns = triton.next_power_of_2(options.block_vocab or (16 if INTERPRETED else 128))
    return {"BLOCK_ROWS": max(16, rows), "BLOCK_VOCAB": max(16, columns), "BLOCK_WIDTH": 16 if INTERPRETED else 32}


def _parts(num_rows: int, vocab: int, input: Tensor) -> int:
    """How many programs share the vocabulary of a block of rows: enough to fill the device."""
    if not input.is_cuda:
        return max(1, min(3, -(-vocab // 16)))
    wanted = 4 * torch.cuda.get_device_properties(input.device).multi_processor_count
    return max(1, min(-(-vocab // 1024), -(-wanted // max(1, -(-num_rows // 128)))))


def _switches(
    names: Sequence[str],
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    target: Tensor | None,
    weight: Tensor | None,
    kept: Tensor | None,
    options: Options,
) -> dict[str, Any]:
    precise = torch.get_float32_matmul_precision() == "highest"
    halves = torch.float32 not in (input.dtype, linear_weight.dtype) or input.dtype != linear_weight.dtype
    return {
        "HAS_BIAS": linear_bias is not None,
        "HAS_TARGET": target is not None,
        "HAS_CLASS_WEIGHT": weight is not None and "weighted_mean_log_prob" in names,
        "HAS_KEPT": kept is not None,
        "HAS_CAP": options.softcap > 0,
        "MOMENT": bool(OF_MOMENT.intersection(names)),
        "SPREAD": bool(SPREAD.intersection(names)),
        "EVEN_WIDTH": input.shape[1] % 64 == 0,  # of which every BLOCK_WIDTH is a divisor
        "WIDEN": INTERPRETED and halves,  # the interpreter's products know no halves
        "PRECISION": "ieee" if precise else "tf32",
    }
