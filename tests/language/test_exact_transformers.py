"""Exact transformers on every string, their closed forms, padding, and log-length attention against PyTorch's."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lossary.language import (
    ExactFirstTransformer,
    ExactParityTransformer,
    LogLengthAttention,
    LogLengthTransformerEncoderLayer,
    first_data,
    length_profile,
    log_length_attention,
    parity_data,
)

SEEDS = st.integers(0, 10_000)
EXACT = [ExactParityTransformer, ExactFirstTransformer]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def every_string(n: int) -> Tensor:
    return torch.tensor(list(itertools.product((0, 1), repeat=n)))


def is_odd(bits: Tensor) -> Tensor:
    return bits.sum(1) % 2 == 1


def starts_with_one(bits: Tensor) -> Tensor:
    return bits[:, 0] == 1


# Exact transformers


@pytest.mark.parametrize(("model", "truth"), list(zip(EXACT, (is_odd, starts_with_one), strict=True)))
@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("n", [*range(1, 8), 12])
def test_every_string_is_told_right(model: type, truth: object, layer_norm: bool, n: int) -> None:
    bits = every_string(n)
    logits = model(layer_norm=layer_norm, eps=0.0)(bits)
    assert ((logits > 0) == truth(bits)).all()  # type: ignore[operator]
    if layer_norm:
        size = math.sqrt(10 if model is ExactParityTransformer else 6)
        torch.testing.assert_close(logits.abs(), torch.full_like(logits, size), rtol=1e-6, atol=0)


@given(SEEDS, st.integers(1, 40), st.floats(0.1, 5.0))
def test_parity_in_closed_form(seed: int, n: int, scale: float) -> None:
    bits = torch.randint(2, (3, n), generator=generator(seed))
    sign = torch.where(torch.arange(n + 1) % 2 == 0, 1.0, -1.0).double() * scale / math.sqrt(5)
    k = bits.sum(1)
    expected = (torch.softmax(-sign, 0)[k] - torch.softmax(sign, 0)[k]) / (n + 1)
    torch.testing.assert_close(ExactParityTransformer(scale=scale)(bits), expected, rtol=1e-9, atol=1e-12)


@given(SEEDS, st.integers(1, 40), st.floats(0.1, 9.0))
def test_first_in_closed_form(seed: int, n: int, scale: float) -> None:
    bits = torch.randint(2, (3, n), generator=generator(seed))
    weight = math.exp(scale / math.sqrt(6)) / (math.exp(scale / math.sqrt(6)) + n)
    torch.testing.assert_close(ExactFirstTransformer(scale=scale)(bits), (bits[:, 0].double() - 0.5) * weight)


@pytest.mark.parametrize("model", EXACT)
@pytest.mark.parametrize("layer_norm", [False, True])
def test_padding_changes_nothing(model: type, layer_norm: bool) -> None:
    exact = model(layer_norm=layer_norm, output_scale=2.0)
    bits, _ = model.data(20, (1, 15), generator(0))
    alone = torch.cat([exact(row[row >= 0].unsqueeze(0)) for row in bits])
    torch.testing.assert_close(exact(bits), alone)
    torch.testing.assert_close(exact(bits), 2 * model(layer_norm=layer_norm)(bits))


@pytest.mark.parametrize("model", EXACT)
def test_gradients_are_finite_where_norms_divide_by_nothing(model: type) -> None:
    exact = model(layer_norm=True, eps=0.0)
    exact(every_string(3)).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in exact.parameters())


def test_long_strings() -> None:
    parity = length_profile(ExactParityTransformer(), [10, 100, 400], n=20, generator=generator(0))
    assert all(at["accuracy"] == 1 for at in parity.values())
    bits = [at["cross_entropy"] for at in parity.values()]
    assert 0.98 < bits[0] < bits[1] < bits[2] < 1  # without norms the margin goes to 0
    normed = ExactParityTransformer(layer_norm=True, eps=0.0)
    profile = length_profile(normed, [10, 400], n=20, generator=generator(0))
    expected = math.log2(1 + math.exp(-math.sqrt(10)))
    assert all(at["cross_entropy"] == pytest.approx(expected, rel=1e-4) for at in profile.values())
    sharp = length_profile(ExactFirstTransformer(layer_norm=True, eps=0.0, output_scale=10.0), [300], n=20)
    assert sharp[300]["cross_entropy"] < 1e-9
    drowned = ExactParityTransformer(layer_norm=True, eps=1e-5)(torch.ones(1, 400, dtype=torch.int64))
    assert drowned.abs().item() < 0.1  # eps is larger than the signal


def test_data() -> None:
    bits, odd = parity_data(50, (2, 9), generator(0))
    lengths = (bits >= 0).sum(1)
    assert bits.shape == (50, 9)
    assert set(lengths.tolist()) == set(range(2, 10))
    assert all(sum(row[:n].tolist()) % 2 == label for row, n, label in zip(bits, lengths, odd, strict=True))
    bits, labels = first_data(50, 9, generator(0))
    assert set(bits.flatten().tolist()) == {0, 1}
    assert (labels == bits[:, 0]).all()


def test_strings_that_are_none() -> None:
    model = ExactParityTransformer()
    for wrong, error in (([[0, 2]], ValueError), ([[-1, 0]], ValueError), ([0, 1], ValueError), ([[0.0]], TypeError)):
        with pytest.raises(error, match="bits"):
            model(torch.tensor(wrong))
    with pytest.raises(ValueError, match="model has no data"):
        length_profile(lambda bits: bits[:, 0], [3])
    with pytest.raises(ValueError, match="length is 0"):
        parity_data(1, 0)


# Log-length attention


def weights(width: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    shapes = ((3 * width, width), (3 * width,), (width, width), (width,))
    return tuple(torch.randn(s, generator=generator(seed + i), dtype=torch.float64) for i, s in enumerate(shapes))  # type: ignore[return-value]


@given(SEEDS, st.integers(1, 9), st.integers(1, 9))
def test_it_is_pytorchs_attention_with_the_query_times_log_n(seed: int, n: int, m: int) -> None:
    w, b, w_out, b_out = weights(6, seed)
    plain = nn.MultiheadAttention(6, 3, batch_first=True, dtype=torch.float64)
    plain.load_state_dict({"in_proj_weight": w, "in_proj_bias": b, "out_proj.weight": w_out, "out_proj.bias": b_out})
    query, key, value = (torch.randn(2, s, 6, generator=generator(seed), dtype=torch.float64) for s in (n, m, m))
    ours = {
        scaled: log_length_attention(
            query, w, b, w_out, b_out, key=key, value=value, num_heads=3, log_length_scale=scaled
        )
        for scaled in (False, True)
    }
    torch.testing.assert_close(ours[False], plain(query, key, value, need_weights=False)[0])
    with torch.no_grad():
        plain.in_proj_weight[:6] *= math.log(m)
        plain.in_proj_bias[:6] *= math.log(m)
    torch.testing.assert_close(ours[True], plain(query, key, value, need_weights=False)[0])


@given(SEEDS)
def test_padded_and_masked_positions_do_not_count(seed: int) -> None:
    layer = LogLengthAttention(6, 3).double()
    x = torch.randn(2, 7, 6, generator=generator(seed), dtype=torch.float64)
    padding = torch.arange(7) >= torch.tensor([[7], [4]])
    padded = layer(x, key_padding_mask=padding)
    torch.testing.assert_close(padded[1, :4], layer(x[1, :4]))
    torch.testing.assert_close(padded[0], layer(x[0]))
    causal = torch.ones(7, 7, dtype=torch.bool).triu(1)
    as_numbers = torch.zeros(7, 7, dtype=torch.float64).masked_fill(causal, -torch.inf)
    for mask in (causal, as_numbers):
        masked = layer(x, attn_mask=mask)
        for i in range(7):  # position i looks at i + 1 positions, and so scales by their logarithm
            torch.testing.assert_close(masked[:, i], layer(x[:, i : i + 1], x[:, : i + 1])[:, 0])


def test_one_position_keeps_its_weight() -> None:
    """A logit gap of 1 keeps at least half of the weight at any n; without the scale it fades."""
    eye = torch.eye(2, dtype=torch.float64)
    zero = torch.zeros(2, 2, dtype=torch.float64)
    project = torch.cat([eye, math.sqrt(2) * eye, torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)])
    for n in (10, 1000, 10_000):
        key = torch.zeros(n, 2, dtype=torch.float64)
        key[3, 0] = 1
        query = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
        scaled, plain = (
            log_length_attention(query, project, None, eye + zero, None, key=key, num_heads=1, log_length_scale=s)
            for s in (True, False)
        )
        assert scaled[0, 0].item() == pytest.approx(n / (2 * n - 1))
        assert plain[0, 0].item() == pytest.approx(math.e / (math.e + n - 1))


@pytest.mark.parametrize("training", [True, False])
def test_without_the_scale_it_is_pytorchs_layer(training: bool) -> None:
    plain = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, dtype=torch.float64).train(training)
    ours = LogLengthTransformerEncoderLayer(8, 2, 16, 0.0, log_length_scale=False).double().train(training)
    ours.load_state_dict(plain.state_dict())
    x = torch.randn(3, 5, 8, generator=generator(0), dtype=torch.float64)
    padding = torch.arange(5) >= torch.tensor([[5], [3], [4]])
    kept = ~padding
    torch.testing.assert_close(
        ours(x, src_key_padding_mask=padding)[kept], plain(x, src_key_padding_mask=padding)[kept]
    )
    stack = nn.TransformerEncoder(plain, 2, enable_nested_tensor=False)
    torch.testing.assert_close(ours(ours(x)), stack(x))


def test_it_drops_and_compiles_and_takes_halves() -> None:
    layer = LogLengthTransformerEncoderLayer(8, 2, 16)
    x = torch.randn(3, 5, 8, generator=generator(0))
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))
    assert layer.bfloat16()(x.bfloat16()).dtype == torch.bfloat16
    attention = LogLengthAttention(8, 2)
    one_by_one = torch.stack([attention(row) for row in x])
    torch.testing.assert_close(torch.func.vmap(attention)(x), one_by_one)


def test_attention_says_what_was_wrong() -> None:
    w, b, w_out, b_out = weights(6, 0)
    query = torch.zeros(2, 6, dtype=torch.float64)
    with pytest.raises(ValueError, match="num_heads is 4"):
        log_length_attention(query, w, b, w_out, b_out, num_heads=4)
    with pytest.raises(ValueError, match="in_proj_weight has shape"):
        log_length_attention(query, w[:6], b, w_out, b_out, num_heads=3)
    with pytest.raises(ValueError, match="value has shape"):
        log_length_attention(query, w, b, w_out, b_out, value=query[:1], num_heads=3)
    with pytest.raises(TypeError, match="query has dtype"):
        log_length_attention(query.long(), w, b, w_out, b_out, num_heads=3)
    with pytest.raises(ValueError, match="num_heads is 3"):
        LogLengthAttention(8, 3)
