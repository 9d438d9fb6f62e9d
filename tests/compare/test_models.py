from __future__ import annotations

import textwrap

import numpy as np
import pytest
import torch
from torch import nn

from lossary.classification import NormalizedLinear
from lossary.compare.models import BUILT_IN, StackedModel, build_model, predict_output, runs
from lossary.core.errors import UserError

HEADS = ("linear", "cosine")


@pytest.fixture
def user_models(tmp_path, monkeypatch):
    """A module of user's models, importable as ``more_models``."""
    (tmp_path / "more_models.py").write_text(
        textwrap.dedent(
            """
            import torch
            from torch import nn

            def nested(in_features, out_features):
                return nn.Sequential(nn.Linear(in_features, 4), nn.Sequential(nn.ReLU(), nn.Linear(4, out_features)))

            def bare(in_features, out_features):
                return nn.Linear(in_features, out_features)

            def no_module(in_features, out_features):
                return lambda x: x

            def no_head(in_features, out_features):
                return nn.Sequential(nn.Linear(in_features, out_features), nn.Linear(out_features, 9))

            class Frozen(nn.Module):
                def __init__(self, in_features, out_features):
                    super().__init__()
                    self.fixed = nn.Parameter(torch.ones(in_features), requires_grad=False)
                    self.register_buffer("count", torch.tensor(3))
                    self.head = nn.Linear(in_features, out_features)

                def forward(self, x):
                    return self.head(x * self.fixed)
            """
        )
    )
    monkeypatch.syspath_prepend(tmp_path)


def stacked_model(name: str, head: str, widths: list[int], **kwargs) -> StackedModel:
    options = {"seeds": range(len(widths)), "device": torch.device("cpu"), "dtype": torch.float64, "loop": False}
    return StackedModel(name, head, widths, 3, **(options | kwargs))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", BUILT_IN)
def test_stacked_equals_plain_with_padding_and_masks(name, head):
    widths = [5, 8, 6]
    stack = stacked_model(name, head, widths)
    rows = torch.stack([stack.initial_row(fold) for fold in range(3)])
    x = torch.randn(3, 7, 8, dtype=torch.float64)
    for fold, width in enumerate(widths):
        x[fold, :, width:] = 0
    for seeds in (None, [11, 12, 11]):
        output = stack.forward(stack.views(rows, 0), x, 0, seeds)
        for fold, width in enumerate(widths):
            torch.manual_seed(fold)
            plain = build_model(name, width, 3, head).double()
            masks = None
            if seeds is not None and plain.dropout_width:
                masks = plain.draw_masks(7, torch.Generator().manual_seed(seeds[fold])).double()
                assert (masks == 0).any()
            torch.testing.assert_close(output[fold], plain(x[fold, :, :width], masks), rtol=0, atol=1e-12)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", BUILT_IN)
def test_padded_inputs_keep_weights_of_zero(name, head):
    stack = stacked_model(name, head, [5, 8])
    row = stack.initial_row(0)[None]
    first = next(view for view in stack.views(row, 0).values() if 8 in view.shape)
    real = first.narrow(first.shape.index(8), 0, 5)
    assert real.count_nonzero() == real.numel()
    assert first.count_nonzero() == real.numel()


@pytest.mark.parametrize("name", [*BUILT_IN, "more_models:nested", "more_models:Frozen"])
def test_rows_turn_into_state_dictionaries_that_predict(name, user_models):
    stack = stacked_model(name, "linear", [5, 8], dtype=torch.float32)
    for fold, width in enumerate([5, 8]):
        torch.manual_seed(fold)
        plain = build_model(name, width, 3).eval()
        weights = stack.weights_of(stack.initial_row(fold), fold)
        assert {key: value.shape for key, value in weights.items()} == {
            key: tuple(value.shape) for key, value in plain.state_dict().items()
        }
        x = np.random.default_rng(0).standard_normal((9, width), dtype=np.float32)
        expected = plain(torch.tensor(x)).detach().numpy()
        np.testing.assert_array_equal(predict_output(name, "linear", weights, x, out_features=3), expected)


@pytest.mark.parametrize("name", [*BUILT_IN, "more_models:nested"])
def test_a_link_follows_the_head_of_each_member(name, user_models):
    stack = stacked_model(name, "linear", [5, 8], link="legendre")
    x = torch.randn(2, 9, 8, dtype=torch.float64)
    x[0, :, 5:] = 0
    stack.start_links(list(x))
    rows = torch.stack([stack.initial_row(fold) for fold in range(2)])
    rows[1, :8] += 0.1  # members' weights are their own
    outputs = []
    for group in stack.groups([0, 1]):
        part = slice(group.start, group.stop)
        width = stack.widths[group.start]
        outputs.append(stack.forward(stack.views(rows[part], group.start), x[part, :, :width], group.start))
    for fold, width in enumerate([5, 8]):
        plain = build_model(name, width, 3, link="legendre").double()
        weights = stack.weights_of(rows[fold], fold)
        plain.load_state_dict({key: torch.tensor(value) for key, value in weights.items()})
        expected = plain.link(plain.model(x[fold, :, :width]))
        torch.testing.assert_close(torch.cat(outputs)[fold], expected, rtol=0, atol=1e-12)
        assert plain.model(x[fold, :, :width]).shape == (9, 2)


def test_a_stack_without_a_link_has_the_same_numbers_as_before(user_models):
    for name in ("mlp", "more_models:nested"):
        stack = stacked_model(name, "linear", [5])
        row = stack.initial_row(0)
        stack.start_links([torch.randn(4, 5, dtype=torch.float64)])
        torch.manual_seed(0)
        plain = build_model(name, 5, 3).double()
        assert list(plain.state_dict()) == list(stack.weights_of(row, 0))
        for key, value in stack.weights_of(row, 0).items():
            np.testing.assert_array_equal(value, plain.state_dict()[key])


def test_many_rows_are_predicted_in_blocks(monkeypatch):
    model = build_model("mlp", 4, 2)
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    x = np.random.default_rng(0).standard_normal((10, 4), dtype=np.float32)
    whole = predict_output("mlp", "linear", weights, x, out_features=2)
    monkeypatch.setattr("lossary.compare.models.ROWS_PER_FORWARD", 3)
    np.testing.assert_allclose(predict_output("mlp", "linear", weights, x, out_features=2), whole, atol=1e-6)


def test_frozen_parameters_and_counters_are_not_trained(user_models):
    stack = stacked_model("more_models:Frozen", "linear", [5])
    assert stack.parameter_names(0) == ["head.weight", "head.bias"]
    assert set(stack.views(stack.initial_row(0)[None], 0)) == {"head.weight", "head.bias", "fixed"}


@pytest.mark.parametrize("name", ["more_models:nested", "more_models:bare"])
def test_a_cosine_head_replaces_the_last_layer_of_a_users_model(name, user_models):
    model = build_model(name, 5, 3, "cosine")
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear | NormalizedLinear)]
    assert isinstance(layers[-1], NormalizedLinear)
    assert model(torch.randn(2, 5)).shape == (2, 3)


@pytest.mark.parametrize(
    ("name", "head", "message"),
    [
        ("perceptron", "linear", "no model 'perceptron'. Known: linear, mlp, resnet"),
        ("more_models:no_module", "linear", "returned function; wanted a torch.nn.Module"),
        ("more_models:absent", "linear", "cannot be imported"),
        ("more_models:no_head", "cosine", "last nn.Linear of 'more_models:no_head' to have 3 outputs"),
    ],
)
def test_mistakes_in_the_model_are_explained(name, head, message, user_models):
    with pytest.raises(UserError, match=message):
        build_model(name, 5, 3, head)


def test_runs():
    assert runs([5, 5, 7]) == [range(2), range(2, 3)]
    assert runs([]) == []
