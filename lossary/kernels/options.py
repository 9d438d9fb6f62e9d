"""What a backend is told beside its tensors."""

from __future__ import annotations

from typing import NamedTuple


class Options(NamedTuple):
    """Numbers and switches of a sweep; the custom ops take them one by one, in this order.

    Attributes:
        backend: ``cpu`` (tiles in plain PyTorch, on any device), ``cuda`` (tiles, products by cuBLAS) or ``triton``.
        softcap: Bound k of ``k tanh(z / k)``; 0 for none.
        temperature: Divisor of the logits.
        filter_eps: Softmax entries below it may be left out of gradients; 0 keeps all.
        filter_input: Whether that holds for the gradient of ``input``.
        filter_weight: Whether that holds for the gradients of ``linear_weight`` and ``linear_bias``.
        kahan: Sum gradients in the storage dtype with a compensation, not in float32.
        deterministic: Refuse sums whose order may vary.
        block_rows: Rows of a tile; 0 leaves it to the backend.
        block_vocab: Vocabulary entries of a tile; 0 leaves it to the backend.
        all_count: It is known that no row is ignored, so that none need be looked for.
    """

    backend: str
    softcap: float
    temperature: float
    filter_eps: float
    filter_input: bool
    filter_weight: bool
    kahan: bool
    deterministic: bool
    block_rows: int
    block_vocab: int
    all_count: bool


SCHEMA = (
    "str backend, float softcap, float temperature, float filter_eps, bool filter_input, bool filter_weight, "
    "bool kahan, bool deterministic, int block_rows, int block_vocab, bool all_count"
)
