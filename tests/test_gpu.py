"""Every objective on a GPU gives what it gives on the CPU. Skipped without one."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

import lossary
from lossary.core.objective import Kind, Registered
from tests.kinds import CLASSES
from tests.test_contract import arguments, sample

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU found: the objectives did not run on one")


@pytest.mark.parametrize("name", lossary.objectives())
def test_as_on_the_cpu(name: str) -> None:
    spec = lossary.objectives()[name]
    on_cpu, on_gpu = (value_and_gradient(spec, torch.device(device)) for device in ("cpu", "cuda"))
    for one, other in zip(on_cpu, on_gpu, strict=True):
        assert other.device.type == "cuda"
        torch.testing.assert_close(other.cpu(), one, rtol=1e-4, atol=1e-5)


def value_and_gradient(spec: Registered, device: torch.device) -> tuple[Tensor, Tensor]:
    input, target = sample(spec)
    input = input.float().to(device).requires_grad_()
    target = (target.float() if target.is_floating_point() else target).to(device)
    required = spec.example(CLASSES)
    given: dict[str, Any] = tree_map(
        lambda leaf: (
            leaf.to(device, input.dtype if leaf.is_floating_point() else leaf.dtype)
            if isinstance(leaf, Tensor)
            else leaf
        ),
        {**arguments(spec, input, target), **required},
    )
    if spec.kind is Kind.HEAD:
        given["backend"] = "auto"
    result = spec.function(**given)
    value = result[0] if spec.stateful else result
    return value.detach(), torch.autograd.grad(value.sum(), input)[0]
