"""What the property tests of this family draw: small batches in float64."""

import torch
from hypothesis import strategies as st
from torch import Tensor


@st.composite
def class_batches(draw: st.DrawFn, bound: float = 20.0, classes: int | None = None) -> tuple[Tensor, Tensor]:
    """Logits (N, C) and labels (N,)."""
    rows = draw(st.integers(1, 4))
    classes = classes or draw(st.integers(2, 6))
    input = draw(tensors((rows, classes), -bound, bound))
    return input, torch.tensor(draw(st.lists(st.integers(0, classes - 1), min_size=rows, max_size=rows)))


@st.composite
def label_batches(draw: st.DrawFn, bound: float = 20.0, soft: bool = False) -> tuple[Tensor, Tensor]:
    """Logits (N,) and targets (N,): 0 or 1, or anything in between too."""
    rows = draw(st.integers(1, 6))
    target = draw(tensors((rows,), 0.0, 1.0))
    return draw(tensors((rows,), -bound, bound)), target if soft else target.round()


@st.composite
def tensors(draw: st.DrawFn, shape: tuple[int, ...], low: float, high: float) -> Tensor:
    """A tensor with values in [low, high]."""
    size = torch.Size(shape).numel()
    values = draw(st.lists(st.floats(low, high, allow_subnormal=False), min_size=size, max_size=size))
    return torch.tensor(values, dtype=torch.float64).reshape(shape)


@st.composite
def seeded_batches(draw: st.DrawFn) -> tuple[torch.Generator, Tensor, Tensor]:
    """A generator to draw more from, logits (N, C) and labels (N,); cheaper than drawing single floats."""
    rows, classes = draw(st.integers(1, 5)), draw(st.integers(2, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    input = draw(st.floats(0.0, 20.0)) * torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    return generator, input, torch.randint(classes, (rows,), generator=generator)
