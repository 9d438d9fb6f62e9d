"""The linear head on a GPU: both backends against float64, their filter, their memory. Skipped without a GPU."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lossary.kernels import STATISTICS, linear_head
from lossary.language import linear_cross_entropy
from lossary.papers._memory import memory_of

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU found: the kernels did not run on one")

# Fixed tiles keep the tuner out, whose every trial is a compilation.
BACKENDS: dict[str, dict[str, Any]] = {
    "cuda": {"backend": "cuda", "block_rows": 128, "block_vocab": 192},
    "triton": {"backend": "triton", "block_rows": 64, "block_vocab": 128},
    "deterministic": {"backend": "triton", "block_rows": 64, "block_vocab": 128, "deterministic": True},
}
NAMES = ("log_prob", "log_miss", "entropy", "squared_logsumexp")


@pytest.fixture(params=BACKENDS)
def options(request: pytest.FixtureRequest) -> dict[str, Any]:
    return BACKENDS[request.param]


def problem(rows: int, vocab: int, width: int, *, bias: bool = True, scale: float = 1.0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(rows + vocab)
    draw = lambda *shape: torch.randn(*shape, generator=generator).cuda()  # noqa: E731
    target = torch.randint(vocab, (rows,), generator=generator).cuda()
    target[::7] = -100
    tensors = {"input": scale * draw(rows, width), "linear_weight": draw(vocab, width) / width**0.5, "target": target}
    if bias:
        tensors["linear_bias"] = draw(vocab)
        tensors["linear_bias"][:3] = -torch.inf
        target[(target >= 0) & (target < 3)] = 3
    return tensors


def run(tensors: dict[str, Tensor], names: tuple[str, ...], **options: Any) -> list[Tensor]:
    """Statistics, then gradients."""
    leaves = [name for name in ("input", "linear_weight", "linear_bias") if name in tensors]
    given = {**tensors, **{name: tensors[name].clone().requires_grad_() for name in leaves}}
    values = linear_head(**given, statistics=names, **options)
    wave = torch.linspace(-1.0, 2.0, len(tensors["target"]), device="cuda")
    total = sum((wave * torch.where(value.isfinite(), value, 0.0)).sum() for value in values.values())
    return [*values.values(), *torch.autograd.grad(total, [given[name] for name in leaves])]


def exact(tensors: dict[str, Tensor], names: tuple[str, ...], **options: Any) -> list[Tensor]:
    wide = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    return run(wide, names, backend="reference", **options)


def distance(one: Tensor, wanted: Tensor) -> float:
    finite = wanted.isfinite()
    assert torch.equal(one.isfinite(), finite)
    return float(((one.double() - wanted)[finite].norm() / wanted[finite].norm()).detach())


@pytest.mark.parametrize("size", [(300, 1000, 96), (257, 777, 100), (1, 1000, 64), (130, 2, 64)], ids=str)
def test_float32_is_exact(options: dict[str, Any], size: tuple[int, int, int]) -> None:
    tensors = problem(*size, bias=size[1] > 2)
    names = STATISTICS if "linear_bias" not in tensors else NAMES
    names = tuple(name for name in names if name != "weighted_mean_log_prob")
    for mine, wanted in zip(run(tensors, names, filter_eps=None, **options), exact(tensors, names), strict=True):
        assert distance(mine, wanted) < 1e-5 or wanted.norm() < 1e-6


def test_softcap_temperature_and_class_weights(options: dict[str, Any]) -> None:
    tensors = problem(300, 1000, 96, bias=False, scale=3.0)
    tensors["weight"] = torch.linspace(0, 2, 1000).cuda()
    names, shape = (*NAMES, "weighted_mean_log_prob"), {"softcap": 2.0, "temperature": 0.7}
    mine = run(tensors, names, filter_eps=None, **shape, **options)
    for one, wanted in zip(mine, exact(tensors, names, **shape), strict=True):
        assert distance(one, wanted) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_halves_are_no_worse_than_plain_code(options: dict[str, Any], dtype: torch.dtype) -> None:
    tensors = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in problem(512, 3000, 256, bias=False).items()
    }
    wanted = exact(tensors, ("log_prob",))
    leaves = [tensors[name].clone().requires_grad_() for name in ("input", "linear_weight")]
    wave = torch.linspace(-1.0, 2.0, 512, device="cuda")
    value = -F.cross_entropy(F.linear(*leaves), tensors["target"], reduction="none")
    plain = [value, *torch.autograd.grad((wave * value).sum(), leaves)]
    for chosen in ({"filter_eps": None}, {}):
        mine = run(tensors, ("log_prob",), **chosen, **options)
        for one, other, right in zip(mine, plain, wanted, strict=True):
            assert distance(one, right) <= 1.05 * distance(other, right)


def test_what_the_filter_leaves_out_is_small(options: dict[str, Any]) -> None:
    tensors = problem(512, 3000, 256, bias=False)
    tensors["input"] = tensors["linear_weight"][tensors["target"].clamp(min=0)] * 256**0.5
    whole, some = (run(tensors, ("log_prob",), filter_eps=eps, **options)[1:] for eps in (None, 1e-3))
    assert any(not torch.equal(one, other) for one, other in zip(whole, some, strict=True)), "nothing was filtered"
    for one, other in zip(whole, some, strict=True):
        assert (one - other).abs().max() < 1e-2


@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_confident_rows_at_extreme_logits(backend: str) -> None:
    tensors = problem(300, 1000, 96, bias=False, scale=1e4)
    for one in run(tensors, ("log_prob", "entropy"), **BACKENDS[backend]):
        assert one.isfinite().all()


def test_deterministic_is_the_same_bit_by_bit() -> None:
    tensors = problem(1024, 5000, 128)
    tensors["target"][:] = tensors["target"].clamp(max=9)  # many rows add to few rows of the head
    first, second = (run(tensors, ("log_prob",), **BACKENDS["deterministic"]) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    assert linear_head(**tensors, deterministic=True, block_rows=64, block_vocab=128)["log_prob"].shape == (1024,)
    with pytest.raises(ValueError, match="wanted backend='triton'"):
        linear_head(**tensors, backend="cuda", deterministic=True)


def test_kahan_sums_halves() -> None:
    tensors = {
        name: tensor.bfloat16() if tensor.is_floating_point() else tensor
        for name, tensor in problem(2048, 1000, 128, bias=False).items()
    }
    wanted = exact(tensors, ("log_prob",))
    mine = run(tensors, ("log_prob",), kahan=True, filter_eps=None, block_rows=64, block_vocab=128)
    for one, right in zip(mine, wanted, strict=True):
        assert distance(one, right) < 1e-2


@pytest.mark.parametrize("given", [{}, {"label_smoothing": 0.1, "z_loss_weight": 0.01}], ids=str)
@pytest.mark.parametrize("rows", [300, 5000])  # one block of rows, and two
def test_the_mean(given: dict[str, Any], rows: int) -> None:
    tensors = problem(rows, 1000, 96, bias=not given)  # smoothing over an entry of probability 0 is infinite
    wide = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    found = []
    for head, backend in ((tensors, "cuda"), (wide, "reference")):
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in head.items() if tensor.is_floating_point()}
        loss = linear_cross_entropy(**{**head, **leaves}, **given, backend=backend)
        with torch.no_grad():
            torch.testing.assert_close(linear_cross_entropy(**{**head, **leaves}, **given, backend=backend), loss)
        found.append([loss.detach(), *torch.autograd.grad(loss, list(leaves.values()))])
    for mine, wanted in zip(*found, strict=True):
        assert distance(mine, wanted) < 1e-5


def test_no_logits_are_stored() -> None:
    rows, vocab, width = 4096, 65_536, 128
    tensors = {name: t.bfloat16() if t.is_floating_point() else t for name, t in problem(rows, vocab, width).items()}
    given = {name: t.requires_grad_() if t.is_floating_point() else t for name, t in tensors.items()}

    def call(loss: Callable[..., Tensor]) -> Callable[[], None]:
        return lambda: torch.autograd.backward(loss(**given), inputs=[given["input"], given["linear_weight"]])

    memory = memory_of(call(linear_cross_entropy), torch.device("cuda"))
    assert memory.peak - memory.kept < rows * vocab * 4 / 2, "half of the logits in float32"


def test_under_compile_and_autocast() -> None:
    tensors = problem(300, 1000, 96)
    arguments = [tensors[name] for name in ("input", "linear_weight", "target", "linear_bias")]
    compiled = torch.compile(lambda *head: linear_head(*head, backend="cuda")["log_prob"], fullgraph=True)
    torch.testing.assert_close(compiled(*arguments), linear_head(*arguments)["log_prob"])
    with torch.autocast("cuda", torch.bfloat16):
        low = linear_cross_entropy(*arguments)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, linear_cross_entropy(*arguments), rtol=1e-2, atol=1e-2)
