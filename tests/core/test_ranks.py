"""Two real ranks with the global normalizer train as one process does."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lossary.classification import LDAMLoss, Poly1CrossEntropyLoss
from lossary.language import AdaptiveLRScheduler
from tests.processes import run_ranks

LOSSES = {
    "poly1": Poly1CrossEntropyLoss(weight=torch.tensor([0.5, 1.0, 2.0])),
    "ldam": LDAMLoss([50, 20, 5], scale=3.0, weight=torch.tensor([0.5, 1.0, 2.0])),
}


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    target = torch.tensor([0, 1, -100, 2, 2, -100, 1, 0, 0, 2])
    return torch.randn(10, 4, generator=generator), target


def model() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(4, 3)


def gradients_of_a_rank(rank: int, results: str) -> None:
    x, y = batch()
    rows = slice(0, 3) if rank == 0 else slice(3, 10)  # unequal shards, ignored rows in both
    gradients = {}
    for name, loss in LOSSES.items():
        parallel = DistributedDataParallel(model())
        weight = loss.weight[y[rows][y[rows] != -100]].sum()
        dist.all_reduce(weight)
        # DDP averages gradients over ranks: the divisor is the global count over the number of ranks.
        loss(parallel(x[rows]), y[rows], normalizer=weight / 2).backward()
        gradients[name] = parallel.module.weight.grad
    scheduler = AdaptiveLRScheduler(torch.optim.SGD([torch.zeros(1)], lr=0.1), 100)
    scheduler.step(5 if rank == 0 else torch.tensor(20))
    summed = AdaptiveLRScheduler(torch.optim.SGD([torch.zeros(1)], lr=0.1), 100, gather=False)
    summed.step(25)
    if rank == 0:
        torch.save((gradients, [scheduler.get_last_lr(), summed.get_last_lr()]), results)


def test_two_ranks_equal_one(tmp_path) -> None:
    results = tmp_path / "gradients.pt"
    run_ranks(gradients_of_a_rank, 2, tmp_path, str(results))
    together, rates = torch.load(results)
    assert rates == [pytest.approx([0.05])] * 2  # by the tokens of both ranks
    x, y = batch()
    for name, loss in LOSSES.items():
        alone = copy.deepcopy(model())
        loss(alone(x), y).backward()
        torch.testing.assert_close(together[name], alone.weight.grad)
