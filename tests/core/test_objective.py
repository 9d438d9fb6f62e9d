"""The module base, sums of objectives, checks that stand aside, and what importing costs."""

import pytest
import torch
from torch import nn

import lossary
from lossary import WeightedSum
from lossary.classification import LDAMLoss, Poly1CrossEntropyLoss, PolyCrossEntropyLoss, poly1_cross_entropy_loss
from lossary.core import seeding
from lossary.core.checks import may_read_values
from lossary.core.objective import Kind, Objective, objective
from tests.processes import run_clean


def test_hyperparameters_become_buffers_parameters_or_attributes() -> None:
    weight = torch.ones(3)
    epsilon = nn.Parameter(torch.tensor(1.0))
    module = Poly1CrossEntropyLoss(epsilon, weight=weight)
    assert dict(module.named_parameters()) == {"epsilon": epsilon}
    assert dict(module.named_buffers()) == {"weight": weight}
    module(torch.randn(2, 3), torch.tensor([0, 1])).backward()
    assert epsilon.grad is not None
    assert PolyCrossEntropyLoss([1.0, 2.0]).double().epsilons.dtype == torch.float64
    assert "reduction='mean'" in repr(module)


def test_weight_set_later_is_a_buffer() -> None:
    loss = LDAMLoss([10, 5])
    loss.set_weight(torch.tensor([0.5, 1.5], dtype=torch.float64))
    assert "weight" in loss.state_dict()
    assert loss.weight.dtype == loss.margins.dtype
    loss.set_weight(None)
    assert "weight" not in loss.state_dict()


def test_registering_twice_is_refused() -> None:
    def poly1_cross_entropy_loss() -> None: ...

    with pytest.raises(ValueError, match="registered twice"):
        objective(Kind.CLASSES)(poly1_cross_entropy_loss)


def test_functions_of_subclasses_do_not_bind() -> None:
    class Mine(Objective):
        function = poly1_cross_entropy_loss

    lossary.objectives()["poly1_cross_entropy_loss"]
    assert Mine(epsilon=0.0)(torch.zeros(1, 2), torch.tensor([0])).item() == pytest.approx(0.6931, abs=1e-4)


def test_weighted_sum() -> None:
    loss = WeightedSum({"poly": (Poly1CrossEntropyLoss(), 2.0), "ce": (nn.functional.cross_entropy, torch.tensor(0.5))})
    input, target = torch.randn(4, 3, requires_grad=True), torch.tensor([0, 1, 2, 0])
    value = loss(input, target)
    assert set(loss.terms) == {"poly", "ce"}
    torch.testing.assert_close(value, 2 * loss.terms["poly"] + 0.5 * loss.terms["ce"])
    assert value.requires_grad
    assert not loss.terms["poly"].requires_grad
    with pytest.raises(ValueError, match="terms is empty"):
        WeightedSum({})


def test_checks_stand_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = torch.zeros(2)
    assert may_read_values(tensor, None)
    assert not may_read_values(tensor.to("meta"))
    seen = []
    torch.func.vmap(lambda x: (seen.append(may_read_values(x)), x)[1])(tensor)
    assert seen == [False]
    monkeypatch.setenv("LOSSARY_CHECKS", "never")
    assert not may_read_values(tensor)
    assert poly1_cross_entropy_loss(torch.zeros(1, 2), torch.tensor([7])).isnan()


def test_seeds_depend_on_their_parts_alone() -> None:
    assert seeding.derive(0, "init", 3) == seeding.derive(0, "init", 3)
    assert seeding.derive(0, "init", 3) != seeding.derive(0, "init", 4)
    assert seeding.derive(1, 23) != seeding.derive(12, 3)


def test_import_costs_nothing_beyond_torch() -> None:
    """Families load lazily, and no tool of compare is imported."""
    program = (
        "import sys, torch; before = set(sys.modules); import lossary;"
        "new = {name for name in set(sys.modules) - before};"
        "print(sorted(name for name in new if not name.startswith('lossary') or name.count('.')))"
    )
    assert run_clean(program) == "[]\n"
    tools = ("pandas", "sklearn", "optuna", "plotly", "scipy", "rich", "typer")
    program = f"import sys, lossary.classification; print([tool for tool in {tools} if tool in sys.modules])"
    assert run_clean(program) == "[]\n"


def test_unknown_attribute() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        lossary.nothing  # noqa: B018
