"""Every objective on a GPU gives what it gives on the CPU. Skipped without one."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

import lossary
from lossary.core.objective import Registered
from tests.kinds import CLASSES
from tests.test_contract import arguments, sample

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU found: the objectives did not run on one")


@pytest.mark.parametrize("name", lossary.objectives())
def test_as_on_the_cpu(name: str) -> None:
    spec = lossary.objectives()[name]
    on_cpu, on_gpu = (value_and_gradient(spec, torch.device(device)) for device in ("cpu", "cuda"))
    for one, other in zip(on_cpu, on_gpu, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)


def value_and_gradient(spec: Registered, device: torch.device) -> tuple[Tensor, Tensor]:
    input, target = sample(spec)
    input = input.float().requires_grad_()
    target = target.float() if target.is_floating_point() else target

    def moved(leaf: Any) -> Any:  # differentiably: the gradient comes back to the CPU
        if not isinstance(leaf, Tensor):
            return leaf
        return leaf.to(device, torch.float32 if leaf.is_floating_point() else leaf.dtype)

    given = tree_map(moved, {**arguments(spec, input, target), **spec.example(CLASSES)})
    result = spec.function(**given)
    value = result[0] if spec.stateful else result
    assert value.device.type == device.type
    return value.detach().cpu(), torch.autograd.grad(value.sum(), input)[0]
