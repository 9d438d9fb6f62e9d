"""The adaptive rate: its formula, schedules of every make, checkpoints, accumulation (ranks: tests/core)."""

import copy
import math
import warnings

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler

from lossary.language import AdaptiveLRScheduler, adaptive_learning_rate


def optimizer(kind: type[torch.optim.Optimizer] = torch.optim.SGD) -> torch.optim.Optimizer:
    torch.manual_seed(0)
    first, second = nn.Linear(3, 2), nn.Linear(3, 2)
    return kind([{"params": first.parameters(), "lr": 0.1}, {"params": second.parameters(), "lr": 0.2}])  # type: ignore[call-arg]


def rates(of: torch.optim.Optimizer) -> list[float]:
    return [float(group["lr"]) for group in of.param_groups]


def test_the_formula() -> None:
    assert adaptive_learning_rate(0.3, 100, 100) == 0.3
    assert adaptive_learning_rate(0.3, 400, 100) == pytest.approx(0.6)
    assert adaptive_learning_rate(0.3, 0, 100) == 0
    for message, given in {
        "baseline_tokens is 0; wanted a number in": (0.3, 1, 0),
        "tokens is -1; wanted a number in": (0.3, -1, 10),
        "lr is -0.3; wanted a number in": (-0.3, 1, 10),
    }.items():
        with pytest.raises(ValueError, match=message):
            adaptive_learning_rate(*given)


def test_rates_of_groups_and_schedules() -> None:
    one = optimizer()
    scheduler = AdaptiveLRScheduler(one, 100)
    assert isinstance(scheduler, LRScheduler)
    assert rates(one) == scheduler.get_last_lr() == [0.1, 0.2]
    assert scheduler.step(25)
    assert rates(one) == pytest.approx([0.05, 0.1])
    assert not scheduler.step(0)
    assert rates(one) == [0.0, 0.0]
    assert scheduler.step(torch.tensor(400))
    assert rates(one) == pytest.approx([0.2, 0.4])
    assert scheduler.get_last_lr() == rates(one)
    assert scheduler.get_lr() == [0.1, 0.2]
    by_step = AdaptiveLRScheduler(two := optimizer(), 100, lambda step: 0.5 * (step + 1))
    assert [by_step.step(25) and rates(two) for _ in range(3)] == [[0.25] * 2, [0.5] * 2, [0.75] * 2]
    by_group = AdaptiveLRScheduler(two := optimizer(), 100, lambda step: [1.0, 2.0])
    by_group.step(25)
    assert rates(two) == [0.5, 1.0]
    with pytest.raises(ValueError, match="schedule gives 3 rates; wanted one, or 2"):
        AdaptiveLRScheduler(optimizer(), 100, lambda step: [1.0, 2.0, 3.0]).step(1)
    tensor = torch.optim.SGD([torch.zeros(1)], lr=torch.tensor(0.4))
    AdaptiveLRScheduler(tensor, 100).step(25)
    assert float(tensor.param_groups[0]["lr"]) == pytest.approx(0.2)


@pytest.mark.parametrize(
    "make", [lambda o: CosineAnnealingLR(o, 8), lambda o: LambdaLR(o, lambda step: min(1.0, (step + 1) / 4))]
)
def test_on_top_of_a_scheduler_of_torch(make) -> None:
    """Also one that goes on from the rate that it finds, and with no warning about the order of calls."""
    plain, ours = optimizer(), optimizer()
    reference = make(plain)
    scheduler = AdaptiveLRScheduler(ours, 100, make(ours))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for tokens in (25, 400, 0, 100, 1, 50):
            scheduler.step(tokens)
            assert rates(ours) == pytest.approx([rate * math.sqrt(tokens / 100) for rate in rates(plain)])
            ours.step()
            plain.step()
            reference.step()


def test_accumulation() -> None:
    scheduler = AdaptiveLRScheduler(one := optimizer(), 100)
    for tokens in (4, torch.tensor(12), torch.tensor([True] * 9).sum()):
        scheduler.add(tokens)
    assert scheduler.step()
    assert rates(one) == pytest.approx([0.05, 0.1])
    with pytest.raises(ValueError, match=r"tokens is None; wanted the tokens of this step, here or by add\(\)"):
        scheduler.step()


def test_an_interrupted_run_goes_on() -> None:
    def run(steps: range, state: dict | None = None) -> tuple[list[list[float]], dict]:
        model = nn.Linear(4, 1, bias=False)
        with torch.no_grad():
            model.weight.fill_(0.5)
        adam = torch.optim.Adam(model.parameters(), lr=0.1)
        scheduler = AdaptiveLRScheduler(adam, 64, CosineAnnealingLR(adam, 10))
        if state:
            model.load_state_dict(state["model"])
            adam.load_state_dict(state["optimizer"])
            scheduler.load_state_dict(state["scheduler"])
        seen = []
        for step in steps:
            adam.zero_grad()
            model(torch.full((2, 4), float(step))).square().mean().backward()
            scheduler.step(10 * step + 1)
            adam.step()
            seen.append([*rates(adam), *model.weight.detach().flatten().tolist()])
        state = {"model": model.state_dict(), "optimizer": adam.state_dict(), "scheduler": scheduler.state_dict()}
        return seen, copy.deepcopy(state)

    whole, _ = run(range(8))
    first, state = run(range(3))
    second, _ = run(range(3, 8), state)
    assert first + second == whole
    other = optimizer()
    wrapping, plain = AdaptiveLRScheduler(other, 1, CosineAnnealingLR(other, 3)), AdaptiveLRScheduler(other, 1)
    with pytest.raises(ValueError, match="state_dict has no state of a schedule"):
        wrapping.load_state_dict(plain.state_dict())
