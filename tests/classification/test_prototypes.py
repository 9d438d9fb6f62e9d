"""Inverse distance attention: interpolation, invariances, limits and corners; prototypes and their repair."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lossary.classification import IDWAttention, PrototypeClassifier, add_prototype, inverse_distance_attention

Points = tuple[Tensor, Tensor, Tensor]
POWER = st.floats(0.3, 8.0)


@st.composite
def points(draw: st.DrawFn) -> Points:
    """Queries (N, D), keys (P, D) and values (P, C)."""
    queries, keys, features, classes = (draw(st.integers(low, 6)) for low in (1, 1, 1, 2))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    sizes = ((queries, features), (keys, features), (keys, classes))
    query, key, value = (torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes)
    return query, key, value


@given(points(), POWER, st.floats(1e-6, 1.0))
def test_it_is_a_mean_by_inverse_distances(batch: Points, power: float, eps: float) -> None:
    query, key, value = batch
    inverse = 1 / (eps + (query[:, None] - key).norm(dim=-1) ** power)
    expected = inverse / inverse.sum(1, keepdim=True)
    output, weights = inverse_distance_attention(query, key, value, power=power, eps=eps, return_weights=True)
    torch.testing.assert_close(weights, expected)
    torch.testing.assert_close(output, expected @ value)
    assert (weights > 0).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(len(query)).double())
    assert (output <= value.amax(0) + 1e-9).all()
    assert (output >= value.amin(0) - 1e-9).all()


@given(points(), POWER)
def test_moving_turning_and_stretching_space(batch: Points, power: float) -> None:
    query, key, value = batch
    features = query.shape[1]
    rotation = torch.linalg.qr(torch.randn(features, features, generator=torch.Generator().manual_seed(0)).double()).Q
    expected = inverse_distance_attention(query, key, value, power=power)
    moved = inverse_distance_attention(query @ rotation + 3, key @ rotation + 3, value, power=power)
    torch.testing.assert_close(moved, expected)
    torch.testing.assert_close(
        inverse_distance_attention(7 * query, 7 * key, value, power=power, eps=0.0),
        inverse_distance_attention(query, key, value, power=power, eps=0.0),
    )


@given(points())
def test_limits(batch: Points) -> None:
    query, key, value = batch
    on_keys = inverse_distance_attention(key, key, value, eps=1e-12)
    torch.testing.assert_close(on_keys, value, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(inverse_distance_attention(key, key, value, eps=0.0), value)
    nearest = value[torch.cdist(query, key).argmin(1)]
    distance = torch.cdist(query, key).sort(1).values
    clear = (distance[:, 1] > 1.3 * distance[:, 0]) if len(key) > 1 else torch.ones(len(query), dtype=torch.bool)
    sharp = inverse_distance_attention(query, key, value, power=200.0, eps=0.0)
    torch.testing.assert_close(sharp[clear], nearest[clear])
    flat = inverse_distance_attention(query, key, value, power=1e-9, eps=0.0)
    torch.testing.assert_close(flat, value.mean(0).expand_as(flat), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(inverse_distance_attention(query, key[:1], value[:1]), value[:1].expand(len(query), -1))


@given(points(), POWER)
def test_gradient_on_values_is_the_weights(batch: Points, power: float) -> None:
    query, key, value = batch
    _, weights = inverse_distance_attention(query, key, value, power=power, return_weights=True)
    gradient = torch.func.grad(lambda v: inverse_distance_attention(query, key, v, power=power).sum())(value)
    torch.testing.assert_close(gradient, weights.sum(0)[:, None].expand_as(value))


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0, 10.0])
@pytest.mark.parametrize("eps", [0.0, 1e-3])
def test_gradients_are_finite_on_a_key_and_far_away(power: float, eps: float) -> None:
    key = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1e4, 0.0]])
    query = torch.tensor([[0.0, 0.0], [1e-6, 0.0], [-1e4, 1e4]], requires_grad=True)
    key.requires_grad_()
    output = inverse_distance_attention(query, key, torch.eye(3), power=power, eps=eps)
    output[:, 0].sum().backward()
    assert output.isfinite().all()
    assert query.grad.isfinite().all()
    assert key.grad.isfinite().all()


@pytest.mark.parametrize("power", [1.5, 2.0, 10.0])
def test_float32_and_halves(power: float) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(size, generator=generator).bfloat16() for size in ((40, 3), (30, 3), (30, 4)))
    key[:5] = query[:5] + 0.01
    exact = inverse_distance_attention(query.double(), key.double(), value.double(), power=power, eps=1e-6)
    half = inverse_distance_attention(query, key, value, power=power, eps=1e-6)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.double(), exact, rtol=1e-4, atol=1e-5)


def test_transformations() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(size, generator=generator, dtype=torch.float64, requires_grad=True)
        for size in ((2, 4, 3), (2, 5, 3), (2, 5, 2))
    )
    assert torch.autograd.gradcheck(inverse_distance_attention, (query, key, value))
    together = inverse_distance_attention(query, key, value)
    torch.testing.assert_close(torch.func.vmap(inverse_distance_attention)(query, key, value), together)
    gradient = torch.func.grad(lambda q, k, v: inverse_distance_attention(q, k, v).sum())
    torch.testing.assert_close(
        torch.func.vmap(gradient)(query, key, value), torch.autograd.grad(together.sum(), query)[0]
    )
    powers = torch.tensor([1.0, 2.0, 3.0]).double()
    by_power = torch.func.vmap(lambda p: inverse_distance_attention(query, key, value, power=p))(powers)
    torch.testing.assert_close(by_power[2], inverse_distance_attention(query, key, value, power=3.0))
    compiled = torch.compile(inverse_distance_attention, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(query, key, value), together)


def test_masks() -> None:
    query, key, value = torch.randn(4, 3), torch.randn(5, 3), torch.randn(5, 2)
    mask = torch.tensor([True, True, False, True, False]).expand(4, 5)
    torch.testing.assert_close(
        inverse_distance_attention(query, key, value, attn_mask=mask),
        inverse_distance_attention(query, key[[0, 1, 3]], value[[0, 1, 3]]),
    )


def test_the_layer() -> None:
    torch.manual_seed(0)
    layer, x, memory = IDWAttention(6, num_heads=2), torch.randn(3, 4, 6), torch.randn(3, 5, 6)
    heads = [
        inverse_distance_attention(
            layer.query(x)[..., part], layer.key(memory)[..., part], layer.value(memory)[..., part]
        )
        for part in (slice(0, 3), slice(3, 6))
    ]
    torch.testing.assert_close(layer(x, memory), layer.output(torch.cat(heads, -1)))
    torch.testing.assert_close(layer(x), layer(x, x, x))
    causal = torch.ones(4, 4, dtype=torch.bool).tril()
    shortened = layer(x[:, :2], attn_mask=causal[:2, :2])
    torch.testing.assert_close(layer(x, attn_mask=causal)[:, :2], shortened)
    assert "num_heads=2" in repr(layer)


# --- prototypes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_scores(power: float) -> None:
    torch.manual_seed(0)
    x, eps = torch.randn(7, 2, 3), 0.01
    flat = x.flatten(1)
    for score in ("neglog", "inverse", "exp_neg", "neg", "dot", "relu"):
        model = PrototypeClassifier(6, 4, 5, power=power, eps=eps, score=score)
        nn.init.normal_(model.values)
        distance = (flat[:, None] - model.keys).norm(dim=-1) ** power
        product = flat @ model.keys.T
        weights = {
            "neglog": (1 / (eps + distance)) / (1 / (eps + distance)).sum(1, keepdim=True),
            "inverse": (1 / (eps + distance)).softmax(1),
            "exp_neg": (-distance / 2).exp().softmax(1),
            "neg": (-distance).softmax(1),
            "dot": (product / 5**0.5).softmax(1),
            "relu": product.relu(),
        }[score]
        torch.testing.assert_close(model(x), weights @ model.values, rtol=1e-4, atol=1e-5)
        F.cross_entropy(model(x), torch.arange(7) % 4).backward()
        assert model.keys.grad.isfinite().all()


def test_initialisation_from_data() -> None:
    x = torch.randn(500, 3) * torch.tensor([1.0, 10.0, 0.1]) + torch.tensor([0.0, 5.0, -5.0])
    model = PrototypeClassifier(3, 2, 4000)
    model.init_from_data(x, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model.keys.mean(0), x.mean(0), atol=0.05, rtol=0.01)
    torch.testing.assert_close(model.keys.std(0), 0.1 * x.std(0), atol=0, rtol=0.1)
    assert (model.values == 0).all()
    twin = PrototypeClassifier(3, 2, 4000)
    twin.init_from_data(x, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(twin.state_dict(), model.state_dict())
    relu = PrototypeClassifier(3, 2, 10, score="relu")
    relu.init_from_data(x, generator=torch.Generator().manual_seed(0))
    assert (relu.keys.abs() <= (6 / 3) ** 0.5).all()
    assert relu.values.abs().sum() > 0


@given(points(), st.data())
def test_a_repaired_example_gets_its_label_and_far_ones_stay(batch: Points, data: st.DataObject) -> None:
    query, key, value = batch
    label = data.draw(st.integers(0, value.shape[1] - 1))
    before = inverse_distance_attention(query[:1], key, value)
    repaired = add_prototype(key, value, query[:1], label=label)
    if before.argmax() == label:
        assert torch.equal(repaired["key"], key)
        assert torch.equal(repaired["logits_after"], before)
        return
    assert len(repaired["key"]) == len(key) + 1
    after = repaired["logits_after"]
    assert after.argmax() == label
    torch.testing.assert_close(inverse_distance_attention(query[:1], repaired["key"], repaired["value"]), after)
    eta = repaired["value"][-1, label]
    s = (1 / (1e-3 + (query[0] - key).square().sum(1))).sum()
    torch.testing.assert_close(eta, (1 + 1e-3 * s) * (before.max() - before[0, label]))
    for distance in (10.0, 100.0):
        far = query[:1] + distance
        old = inverse_distance_attention(far, key, value)
        new, weights = inverse_distance_attention(far, repaired["key"], repaired["value"], return_weights=True)
        share = weights[0, -1]
        torch.testing.assert_close(new, (1 - share) * old + share * repaired["value"][-1])


def test_break_even_is_exact() -> None:
    """With eta = eps s gap the logit would only tie: the gap itself comes on top."""
    key, value = torch.tensor([[0.0], [3.0]]).double(), torch.tensor([[1.0, 0.0], [0.0, 1.0]]).double()
    query = torch.tensor([[1.0]]).double()
    before = inverse_distance_attention(query, key, value)
    s = (1 / (1e-3 + (query - key).square().sum(1))).sum()
    eta = 1e-3 * s * (before[0, 0] - before[0, 1])
    tie = inverse_distance_attention(
        query, torch.cat([key, query]), torch.cat([value, torch.tensor([[0.0, 1.0]]).double() * eta])
    )
    torch.testing.assert_close(tie[0, 0], tie[0, 1])


def test_the_classifier_is_repaired() -> None:
    torch.manual_seed(0)
    model = PrototypeClassifier(4, 3, 6)
    nn.init.normal_(model.values)
    x = torch.randn(2, 2)
    guess = int(model(x[None]).argmax())
    wanted = (guess + 1) % 3
    before = copy.deepcopy(model.state_dict())
    assert not model.add_prototype(x, guess)
    torch.testing.assert_close(model.state_dict(), before)
    assert model.add_prototype(x[None], wanted)
    assert model.keys.shape == (7, 4)
    assert torch.equal(model.keys[:6], before["keys"])
    assert int(model(x[None]).argmax()) == wanted
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert "num_prototypes=7" in repr(model)
    assert model.add_prototype(x, guess, index=2)
    assert model.keys.shape == (7, 4)
    torch.testing.assert_close(model.keys[2], x.flatten())


def test_small_distances_stay_apart() -> None:
    """With eps = 0 weights know no scale, however small the powered distance: 1e-50 is no float32."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(shape, generator=generator) for shape in ((4, 3), (5, 3), (5, 2)))
    torch.testing.assert_close(
        inverse_distance_attention(1e-5 * query, 1e-5 * key, value, power=10.0, eps=0.0),
        inverse_distance_attention(query, key, value, power=10.0, eps=0.0),
        rtol=1e-3,
        atol=1e-3,
    )
    nearest = value[torch.cdist(query, key).argmin(1)]
    leaf = (0.1 * query).requires_grad_()
    output = inverse_distance_attention(leaf, 0.1 * key, value, power=1e4, eps=0.0)
    torch.testing.assert_close(output, nearest)
    output.sum().backward()
    assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("score", ["neglog", "inverse", "exp_neg", "neg"])
def test_far_inputs_give_numbers(score: str) -> None:
    """At power 10 a distance of 1e4 becomes 1e40, which is no float32; with eps = 0 one of 0 has no inverse."""
    model = PrototypeClassifier(3, 2, 5, score=score, power=10.0, eps=0.0)
    nn.init.normal_(model.values)
    x = torch.cat([torch.tensor([[1e4, 0.0, -1e4]]), model.keys.detach()[:1]]).requires_grad_()
    output = model(x)
    output.sum().backward()
    assert output.isfinite().all()
    assert x.grad.isfinite().all()
    assert model.keys.grad.isfinite().all()


def test_one_feature_without_its_axis() -> None:
    model, x = PrototypeClassifier(1, 2, 5), torch.randn(4)
    torch.testing.assert_close(model(x), model(x[:, None]))


def test_what_is_refused() -> None:
    q, k, v = torch.zeros(2, 3), torch.zeros(4, 3), torch.zeros(4, 5)
    with pytest.raises(ValueError, match=r"wanted \(\.\.\., N, D\), \(\.\.\., P, D\) and"):
        inverse_distance_attention(q, k, v[:3])
    with pytest.raises(ValueError, match=r"query has shape \(3,\)"):
        inverse_distance_attention(q[0], k, v)
    with pytest.raises(TypeError, match=r"key has dtype torch\.int64"):
        inverse_distance_attention(q, k.long(), v)
    with pytest.raises(ValueError, match="power is 0"):
        inverse_distance_attention(q, k, v, power=0.0)
    with pytest.raises(ValueError, match="power is inf"):
        inverse_distance_attention(q, k, v, power=math.inf)
    with pytest.raises(ValueError, match="power is -1"):
        IDWAttention(6, power=-1.0)
    with pytest.raises(TypeError, match=r"have dtypes torch\.float64, torch\.float32 and torch\.float32; wanted one"):
        inverse_distance_attention(q.double(), k, v)
    with pytest.raises(TypeError, match=r"attn_mask has dtype torch\.float32; wanted bool"):
        inverse_distance_attention(q, k, v, attn_mask=torch.ones(2, 4))
    with pytest.raises(ValueError, match="num_prototypes is 0"):
        PrototypeClassifier(3, 2, 0)
    with pytest.raises(ValueError, match=r"x has shape \(1, 3\); wanted two inputs or more"):
        PrototypeClassifier(3, 2, 4).init_from_data(q[:1])
    PrototypeClassifier(3, 2, 4, score="dot").init_from_data(q[:1])
    with pytest.raises(ValueError, match="eps is -1"):
        inverse_distance_attention(q, k, v, eps=-1.0)
    with pytest.raises(ValueError, match=r"query has shape \(2, 3\); wanted \(1, 3\)"):
        add_prototype(k, v, q, label=0)
    with pytest.raises(ValueError, match="label is 5; wanted 0 to 4"):
        add_prototype(k, v, q[:1], label=5)
    with pytest.raises(ValueError, match="score is 'cosine'"):
        PrototypeClassifier(3, 2, 4, score="cosine")
    with pytest.raises(ValueError, match="only 'neglog' can be repaired"):
        PrototypeClassifier(3, 2, 4, score="dot").add_prototype(q[:1], 0)
    with pytest.raises(ValueError, match="wanted 3 features"):
        PrototypeClassifier(3, 2, 4)(torch.zeros(2, 4))
    with pytest.raises(ValueError, match="num_heads is 4; wanted a divisor of embed_dim=6"):
        IDWAttention(6, num_heads=4)
    assert math.isnan(inverse_distance_attention(q, k, v, attn_mask=torch.zeros(2, 4, dtype=torch.bool))[0, 0])
