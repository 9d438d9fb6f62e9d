"""Run by test_triton.py with TRITON_INTERPRET=1: both Triton backends against the dense computation in float64."""

from typing import Any

import torch
from torch import Tensor

from lossary.kernels import STATISTICS, linear_head
from lossary.language import linear_cross_entropy

ROWS, VOCAB, WIDTH = 37, 41, 35  # three blocks of 16 along each axis, none of them even


def problem(seed: int, dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator).to(dtype)  # noqa: E731
    target = torch.randint(VOCAB, (ROWS,), generator=generator)
    return {
        "input": draw(ROWS, WIDTH) / 2,
        "linear_weight": draw(VOCAB, WIDTH) / 2,
        "target": target,
        "linear_bias": draw(VOCAB),
        "weight": torch.linspace(0.0, 2.0, VOCAB).to(dtype),
    }


def run(tensors: dict[str, Tensor], names: tuple[str, ...], **options: Any) -> tuple[dict[str, Tensor], list[Tensor]]:
    leaves = [name for name in ("input", "linear_weight", "linear_bias") if name in tensors]
    given = {**tensors, **{name: tensors[name].clone().requires_grad_() for name in leaves}}
    values = linear_head(**given, statistics=names, **options)
    wave = torch.linspace(-1.0, 2.0, ROWS, dtype=next(iter(values.values())).dtype)
    total = sum((wave * torch.where(value.isfinite(), value, 0.0)).sum() for value in values.values())
    return values, list(torch.autograd.grad(total, [given[name] for name in leaves]))


def compare(tensors: dict[str, Tensor], names: tuple[str, ...], rtol: float, atol: float, **options: Any) -> None:
    exact = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    shared = {name: options[name] for name in ("softcap", "temperature") if name in options}
    dense = run(exact, names, backend="reference", **shared)
    ours = run(tensors, names, **{"backend": "triton", "filter_eps": None, **options})
    for name in names:
        torch.testing.assert_close(
            ours[0][name].double(), dense[0][name], rtol=1e-4, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )
    for place, (mine, wanted) in enumerate(zip(ours[1], dense[1], strict=True)):
        torch.testing.assert_close(
            mine.double(), wanted, rtol=rtol, atol=atol, msg=lambda text, place=place: f"gradient {place}: {text}"
        )
    print("compared", names, options)


TILES: dict[str, Any] = {"backend": "cuda", "block_rows": 16, "block_vocab": 13}


def statistics() -> None:
    tensors = problem(0, torch.float32)
    tensors["target"][[0, 5, 36]] = -100
    for options in ({}, {"deterministic": True}, TILES, {"backend": "cuda"}):
        compare(tensors, STATISTICS, 1e-4, 1e-4, **options)
    without_target = {name: tensor for name, tensor in tensors.items() if name != "target"}
    for options in ({}, TILES):
        compare(tensors, ("log_prob",), 1e-4, 1e-4, **options)
        compare(without_target, ("logsumexp", "entropy", "mean_log_prob"), 1e-4, 1e-4, **options)


def options() -> None:
    tensors = problem(1, torch.float32)
    masked = {**tensors, "linear_bias": tensors["linear_bias"].clone()}
    out = [place for place in range(VOCAB) if place not in tensors["target"].tolist()]
    masked["linear_bias"][out] = -torch.inf
    names = ("log_prob", "log_miss", "entropy", "squared_logsumexp")
    for backend in ({}, TILES):
        compare(masked, names, 1e-4, 1e-4, **backend)
        compare({**tensors, "linear_bias": torch.tensor(0.5).expand(VOCAB)}, names, 1e-4, 1e-4, **backend)
        plain = {name: tensor for name, tensor in tensors.items() if name != "linear_bias"}
        compare(plain, names, 1e-4, 1e-4, temperature=0.7, **backend)
        capped = (*names, "weighted_mean_log_prob")
        compare(tensors, capped, 1e-4, 1e-4, softcap=2.0, temperature=0.7, **backend)
    compare(tensors, names, 1e-4, 1e-4, block_rows=32, block_vocab=16)
    confident = {**tensors, "input": 3 * tensors["linear_weight"][tensors["target"]]}
    exact = run(confident, ("log_prob",), backend="triton", filter_eps=None)[1]
    fused = ({"backend": "triton"}, {"backend": "triton", "deterministic": True})
    for backend in (*fused, TILES, {**TILES, "block_rows": 64}):
        some = run(confident, ("log_prob",), filter_eps=1e-3, **backend)[1]
        assert any(not torch.equal(one, other) for one, other in zip(exact, some, strict=True)), "nothing was filtered"
        for one, other in zip(exact, some, strict=True):
            assert (one - other).abs().max() <= 2e-3 * 2 * ROWS
        kept = run(confident, ("log_prob",), filter_eps=1e-3, filter_weight=False, **backend)[1]
        torch.testing.assert_close(kept[1], exact[1], rtol=1e-4, atol=1e-5)
        kept = run(confident, ("log_prob",), filter_eps=1e-3, filter_input=False, **backend)[1]
        torch.testing.assert_close(kept[0], exact[0], rtol=1e-4, atol=1e-5)
    print("compared filtering")
    empty = {name: tensor[:0] if name in ("input", "target") else tensor for name, tensor in tensors.items()}
    nobody = {**tensors, "target": torch.full((ROWS,), -100)}
    for backend in ({"backend": "triton"}, TILES):
        assert linear_head(**empty, **backend)["log_prob"].shape == (0,)
        values, gradients = run(nobody, ("log_prob", "entropy"), **backend)
        assert all((value == 0).all() for value in [*values.values(), *gradients])


def half() -> None:
    for dtype, rtol in ((torch.bfloat16, 2e-2), (torch.float16, 4e-3)):
        tensors = problem(2, dtype)
        tensors["target"][3] = -100
        compare(tensors, ("log_prob", "entropy"), rtol, 2 * rtol)
        compare(tensors, ("log_prob", "entropy"), rtol, 2 * rtol, **TILES)
        compare(tensors, ("log_prob", "entropy"), 2 * rtol, 4 * rtol, kahan=True)


def reduced() -> None:
    """The mean, whose gradients are formed together with it."""
    tensors = problem(3, torch.float32)
    del tensors["weight"]
    tensors["input"] = torch.linspace(0.1, 20.0, ROWS).unsqueeze(1) * tensors["input"]  # from flat to certain
    some_ignored = {**tensors, "target": tensors["target"].where(torch.arange(ROWS) % 5 > 0, -100)}
    for given in (tensors, some_ignored):
        for options in ({}, {"label_smoothing": 0.1, "z_loss_weight": 0.01}, {"softcap": 3.0, "temperature": 0.7}):
            exact = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in given.items()}
            found = []
            tiles = {**TILES, "filter_eps": None}
            for head, backend in ((given, tiles), (given, {"backend": "cuda"}), (exact, {"backend": "reference"})):
                leaves = [name for name, tensor in head.items() if tensor.is_floating_point()]
                head = {**head, **{name: head[name].clone().requires_grad_() for name in leaves}}
                loss = linear_cross_entropy(**head, **options, **backend)
                found.append([loss, *torch.autograd.grad(3 * loss, [head[name] for name in leaves])])
            for mine in found[:2]:
                for one, wanted in zip(mine, found[2], strict=True):
                    torch.testing.assert_close(one.double(), wanted, rtol=1e-4, atol=1e-4)
            print("compared the mean", options)


if __name__ == "__main__":
    statistics()
    reduced()
    options()
    half()
