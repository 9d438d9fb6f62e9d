"""Time and memory of every registered objective, relative to PyTorch's own loss on the same data.

    python benchmarks/objectives.py [--families classification ...] [--names focal_loss ...] [--shapes 4096x1000 ...]

For each objective four contenders and its peers take turns on the same tensors, forward and backward: PyTorch's loss
(cross-entropy for classes and bins, binary cross-entropy for yes/no labels, the squared error for real values) and the
objective, each as it is and through `torch.compile`. What is printed are medians, over the turns, of the ratio to
PyTorch's loss in the same turn. Memory is the peak of what a call allocates, gradient included, from PyTorch's record
of every allocation. Data follow from an objective's registration: its kind, its example and its arguments. Where an
objective is not defined for a shape, the table says so.

Peers are the objective in `torch.nn.functional` or torchmetrics, or the formula of the original written in plain
PyTorch; the table shows how far a peer's value lies from ours, since some are less exact.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rich.table
import torch
import torch.nn.functional as F
import torchmetrics.functional
from rich.console import Console
from torch import Tensor

import lossary
from lossary.core.objective import Kind, Registered
from lossary.papers._memory import memory_of

FAMILIES = ("classification", "calibration", "regression", "information", "distillation")
SHAPES = ((4096, 1000), (64, 21, 256, 256))
RASTERS = (64, 101)
"""Every row of the contract's rasters is a trial with a motif of its own, so that work grows with the square."""
AIM = 1.5
"""What an objective with a loss per row may take of cross-entropy's time, both compiled."""

Loss = Callable[..., Tensor]


# --- data and contenders --------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Data:
    """What the contenders of one objective are called with."""

    leaves: list[Tensor]
    given: dict[str, Any]
    baseline: str
    baseline_given: tuple[Tensor, Tensor]
    note: str = ""


def data_of(spec: Registered, shape: tuple[int, ...]) -> Data | None:
    """Inputs, targets and PyTorch's loss on them; None where the kind has no data of that shape."""
    generator = torch.Generator().manual_seed(0)
    note = ""
    if spec.kind is Kind.RASTERS:
        shape, note = RASTERS[: len(shape)], f"at {_text(RASTERS)}"
    if spec.kind in (Kind.POINTS, Kind.RASTERS) and len(shape) != 2:
        return None
    input = torch.randn(shape, generator=generator)
    labels = torch.randint(shape[1], shape[:1] + shape[2:], generator=generator)
    target, baseline = labels, "CE"
    if spec.kind is Kind.VALUES:  # bins are the last axis
        input = input.movedim(1, -1).contiguous()
        target = torch.randn(input.shape[:-1], generator=generator)
    elif spec.kind in (Kind.LABELS, Kind.RASTERS):
        target, baseline = torch.randint(2, shape, generator=generator).float(), "BCE"
    elif spec.kind is Kind.PAIRS:
        target, baseline = torch.randn(shape, generator=generator), "SE"
    elif spec.kind is Kind.POINTS:
        input = input / (1 + input.norm(dim=1, keepdim=True))
        target, baseline = torch.zeros(shape), "SE"
    input.requires_grad_()
    given = spec.arguments(input, target) | spec.example(shape[1])
    if spec.kind is Kind.TEACHER:
        given["teacher_logits"] = torch.randn(shape, generator=generator)
    elif spec.kind is Kind.POINTS:
        del given["target"]
    given = {name: _own(value) for name, value in given.items()}
    by_class = (input.movedim(-1, 1), labels) if spec.kind is Kind.VALUES else (input, target)
    leaves = [input, *(v for v in given.values() if isinstance(v, Tensor) and v.requires_grad)]
    return Data(leaves, given, baseline, by_class, note)


def contenders(spec: Registered, data: Data) -> dict[str, tuple[Loss, dict[str, Any]]]:
    """PyTorch's loss, ours and the peers, each with its arguments."""
    found = {
        data.baseline: (BASELINES[data.baseline], dict(zip(("input", "target"), data.baseline_given, strict=True)))
    }
    found["ours"] = (spec.function, data.given)
    return found | {name: (peer, data.given) for name, peer in PEERS.get(spec.name, {}).items()}


def _own(value: Any) -> Any:
    """In float32, and what was made of the input (perturbed or mixed logits) without its graph, for many backwards."""
    if not isinstance(value, Tensor):
        return value
    value = value.float() if value.dtype == torch.float64 else value
    return value if value.is_leaf else value.detach().requires_grad_()


# --- measuring ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Result:
    """Of one contender: medians of ratios to PyTorch's loss in the same mode and turn, seconds, bytes and the value."""

    eager: float
    compiled: float
    compiled_to_eager: float
    memory: float
    compiled_memory: float
    seconds: float
    compiled_seconds: float
    bytes: int
    compiled_bytes: int
    value: float


def measure(spec: Registered, data: Data, repeats: int, clock: Callable[[], float]) -> dict[str, Result]:
    """All contenders of one objective, in turns."""
    calls: dict[tuple[str, bool], Callable[[], Tensor]] = {}
    for name, (function, given) in contenders(spec, data).items():
        calls[name, False] = functools.partial(_value, function, given)
        calls[name, True] = functools.partial(_value, compiled(function), given)
    values = {key: float(_step(call, data)) for key, call in calls.items()}  # compiles, too
    seconds: dict[tuple[str, bool], list[float]] = {key: [] for key in calls}
    for _ in range(repeats):
        for key, call in calls.items():
            _clear(data)
            start = clock()
            _step(call, data)
            seconds[key].append(clock() - start)
    memory = {}
    for key, call in calls.items():
        _clear(data)  # before, so that its release is no part of the record
        memory[key] = memory_of(functools.partial(_step, call, data)).peak

    def ratio(key: tuple[str, bool], base: tuple[str, bool]) -> float:
        return statistics.median(a / b for a, b in zip(seconds[key], seconds[base], strict=True))

    eager, fast = (data.baseline, False), (data.baseline, True)
    return {
        name: Result(
            eager=ratio((name, False), eager),
            compiled=ratio((name, True), fast),
            compiled_to_eager=ratio((name, True), eager),
            memory=memory[name, False] / memory[eager],
            compiled_memory=memory[name, True] / memory[fast],
            seconds=statistics.median(seconds[name, False]),
            compiled_seconds=statistics.median(seconds[name, True]),
            bytes=memory[name, False],
            compiled_bytes=memory[name, True],
            value=values[name, False],
        )
        for name, is_compiled in calls
        if not is_compiled
    }


@functools.cache
def compiled(function: Loss) -> Loss:
    """Compiled once for each shape, since every contender is a function of its own."""
    return torch.compile(function, fullgraph=True, dynamic=False)


def _value(function: Loss, given: dict[str, Any]) -> Tensor:
    value = function(**given)
    return value[0] if isinstance(value, tuple) else value  # with its state


def _step(call: Callable[[], Tensor], data: Data) -> Tensor:
    _clear(data)
    loss = call()
    loss.backward()
    return loss.detach()


def _clear(data: Data) -> None:
    for leaf in data.leaves:
        leaf.grad = None


# --- the table ------------------------------------------------------------------------------------------------------


def table_of(shape: tuple[int, ...]) -> rich.table.Table:
    """An empty table."""
    table = rich.table.Table(
        title=f"{_text(shape)}: forward and backward, times PyTorch's CE, BCE or squared error (SE)"
    )
    table.add_column("objective", no_wrap=True)
    table.add_column("beside")
    heads = ("eager", "compiled", "compiled / eager", "memory", "compiled", "eager, compiled, ms", "value - ours")
    for head in heads:
        table.add_column(head, justify="right")
    return table


def add_rows(table: rich.table.Table, spec: Registered, data: Data, results: dict[str, Result]) -> None:
    """Our row, and one for each peer; a star marks one value for a whole batch, for which the aim does not hold."""
    base, ours = results[data.baseline], results["ours"]
    for name, result in results.items():
        if name == data.baseline:
            continue
        mine = name == "ours"
        table.add_row(
            spec.name if mine else f"  {name}",
            " ".join(filter(None, [data.baseline + "*" * spec.batch_level, data.note])) if mine else "",
            f"{result.eager:.2f}",
            f"{result.compiled:.2f}",
            f"{result.compiled_to_eager:.2f}",
            f"{result.memory:.2f}",
            f"{result.compiled_memory:.2f}",
            f"{1e3 * base.seconds:.1f}, {1e3 * base.compiled_seconds:.1f}" if mine else "",
            "" if mine else f"{result.value - ours.value:+.1e}",
            style="bold" if mine else "dim",
        )


def findings(shape: tuple[int, ...], specs: dict[str, Registered], found: dict[str, dict[str, Result]]) -> list[str]:
    """Which objectives miss the aims: at most 1.5 of PyTorch's loss compiled, and never slower than a peer."""
    slow, behind = [], []
    for name, results in found.items():
        ours = results["ours"]
        if ours.compiled > AIM and not specs[name].batch_level:
            slow.append(f"{name} {ours.compiled:.2f}")
        for peer, result in list(results.items())[2:]:
            for mode in ("eager", "compiled"):
                if getattr(ours, mode) > 1.05 * getattr(result, mode):
                    behind.append(f"{name}, {mode}: {getattr(ours, mode):.2f}, {peer} {getattr(result, mode):.2f}")
    return [
        f"{_text(shape)}: above {AIM} compiled: {'; '.join(slow) or 'none'}.",
        f"{_text(shape)}: slower than a peer (by more than 5%): {'; '.join(behind) or 'none'}.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", default=FAMILIES, choices=lossary.FAMILIES)
    parser.add_argument("--names", nargs="+", help="only these objectives")
    parser.add_argument("--shapes", nargs="+", type=_shape, default=SHAPES, help="such as 4096x1000")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cpu-time", action="store_true", help="CPU time over threads, on a machine that is not quiet")
    parser.add_argument("--out", type=Path, help="where to keep the numbers as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = (lambda: time.process_time() / options.threads) if options.cpu_time else time.perf_counter
    console = Console(width=150)
    known = lossary.objectives()
    if unknown := set(options.names or ()) - set(known):
        parser.error(f"no objectives of these names: {', '.join(sorted(unknown))}")
    specs = {
        name: spec
        for name, spec in known.items()
        if (name in options.names if options.names else spec.family in options.families)
    }
    if empty := set(options.families) - {spec.family for spec in known.values()}:
        console.print(f"No registered objective in {', '.join(sorted(empty))}.")
    everything: dict[str, Any] = {}
    for shape in options.shapes:
        table, found, left_out = table_of(shape), {}, {}
        for name, spec in specs.items():
            console.print(f"  {_text(shape)}: {name}", style="dim")
            try:
                data = data_of(spec, shape)
                if data is None:
                    left_out[name] = f"the kind has no such data: {spec.kind.value}"
                    continue
                spec.function(**data.given)
            except (ValueError, IndexError) as error:  # the objective is for rows (N, C) alone, and says so
                left_out[name] = str(error)
                continue
            found[name] = measure(spec, data, options.repeats, clock)
            add_rows(table, spec, data, found[name])
            if options.out:  # after each, so that a run that is cut short leaves its numbers
                everything[_text(shape)] = {
                    "objectives": {n: {c: dataclasses.asdict(r) for c, r in rs.items()} for n, rs in found.items()},
                    "left_out": left_out,
                }
                run = {"torch": torch.__version__, "threads": options.threads, "repeats": options.repeats}
                options.out.write_text(json.dumps({"run": run, "shapes": everything}, indent=1) + "\n")
        console.print(table)
        for name, reason in left_out.items():
            console.print(f"{name} is left out: {reason}", style="dim", markup=False)
        for line in findings(shape, specs, found):
            console.print(line)


def _shape(text: str) -> tuple[int, ...]:
    return tuple(int(size) for size in text.split("x"))


def _text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


# --- peers: called with the same arguments by name; formulas as the originals have them ------------------------------


def cross_entropy(input: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(input, target)


def binary_cross_entropy(input: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(input, target)


def squared_error(input: Tensor, target: Tensor) -> Tensor:
    return F.mse_loss(input, target)


def plain_focal(input: Tensor, target: Tensor) -> Tensor:
    cross_entropy = F.cross_entropy(input, target, reduction="none")
    return ((1 - torch.exp(-cross_entropy)) ** 2 * cross_entropy).mean()


def plain_sigmoid_focal(input: Tensor, target: Tensor) -> Tensor:
    p = torch.sigmoid(input)
    cross_entropy = F.binary_cross_entropy_with_logits(input, target, reduction="none")
    p_t = p * target + (1 - p) * (1 - target)
    return ((0.25 * target + 0.75 * (1 - target)) * cross_entropy * (1 - p_t) ** 2).mean()


def plain_poly1(input: Tensor, target: Tensor) -> Tensor:
    p_t = input.softmax(1).gather(1, target.unsqueeze(1)).squeeze(1)
    return (F.cross_entropy(input, target, reduction="none") + 1 - p_t).mean()


def plain_poly1_sigmoid_focal(input: Tensor, target: Tensor) -> Tensor:
    p = torch.sigmoid(input)
    cross_entropy = F.binary_cross_entropy_with_logits(input, target, reduction="none")
    miss = 1 - (p * target + (1 - p) * (1 - target))
    return ((0.25 * target + 0.75 * (1 - target)) * cross_entropy * miss**2 + miss**3).mean()


def plain_asymmetric(input: Tensor, target: Tensor) -> Tensor:
    p = torch.sigmoid(input)
    not_p = (1 - p + 0.05).clamp(max=1)
    loss = target * p.clamp(min=1e-8).log() + (1 - target) * not_p.clamp(min=1e-8).log()
    p_t = p * target + not_p * (1 - target)
    return -(loss * (1 - p_t) ** (4 * (1 - target))).mean()


def plain_asymmetric_softmax(input: Tensor, target: Tensor) -> Tensor:
    log_p = input.log_softmax(1)
    p = log_p.exp()
    one_hot = torch.zeros_like(input).scatter_(1, target.unsqueeze(1), 1)
    focusing = (1 - p * one_hot - (1 - p) * (1 - one_hot)) ** (4 * (1 - one_hot))
    return -((0.9 * one_hot + 0.1 / input.shape[1]) * log_p * focusing).sum(1).mean()


def plain_squentropy(input: Tensor, target: Tensor) -> Tensor:
    one_hot = torch.zeros_like(input).scatter_(1, target.unsqueeze(1), 1)
    squares = ((1 - one_hot) * input).square().sum(1).mean()
    return F.cross_entropy(input, target) + squares / (input.shape[1] - 1)


def plain_ldam(input: Tensor, target: Tensor, margins: Tensor) -> Tensor:
    is_label = torch.zeros_like(input, dtype=torch.bool).scatter_(1, target.unsqueeze(1), True)
    margin = margins[target].unsqueeze(1)
    return F.cross_entropy(30 * torch.where(is_label, input - margin, input), target)


def plain_logit_clip(input: Tensor, target: Tensor, max_norm: float) -> Tensor:
    norms = input.norm(dim=1, keepdim=True) + 1e-7
    return F.cross_entropy(torch.where(norms > max_norm, input / norms * max_norm, input), target)


def plain_encouraging(input: Tensor, target: Tensor) -> Tensor:
    p = input.softmax(1).gather(1, target.unsqueeze(1)).squeeze(1)
    bonus = torch.where(p > 0.75, math.log(0.25) - (p - 0.75) / 0.25, (1 - p).clamp(min=1e-5).log())
    return (F.cross_entropy(input, target, reduction="none") + bonus).mean()


def plain_normalized_cross_entropy(input: Tensor, target: Tensor) -> Tensor:
    log_p = input.log_softmax(1)
    return (log_p.gather(1, target.unsqueeze(1)).squeeze(1) / log_p.sum(1)).mean()


def plain_generalized_cross_entropy(input: Tensor, target: Tensor) -> Tensor:
    p = input.softmax(1).clamp(1e-7, 1).gather(1, target.unsqueeze(1)).squeeze(1)
    return ((1 - p**0.7) / 0.7).mean()


def plain_active_passive(input: Tensor, target: Tensor) -> Tensor:
    p = input.softmax(1).gather(1, target.unsqueeze(1)).squeeze(1)
    return plain_normalized_cross_entropy(input, target) - math.log(1e-4) * (1 - p).mean()


def plain_symmetric_cross_entropy(input: Tensor, target: Tensor) -> Tensor:
    p = input.softmax(1).gather(1, target.unsqueeze(1)).squeeze(1)
    return 0.1 * F.cross_entropy(input, target) - math.log(1e-4) * (1 - p).mean()


def plain_mean_absolute_error(input: Tensor, target: Tensor) -> Tensor:
    return (1 - input.softmax(1).gather(1, target.unsqueeze(1)).squeeze(1)).mean()


def plain_one_vs_rest(input: Tensor, target: Tensor) -> Tensor:
    one_hot = torch.zeros_like(input).scatter_(1, target.unsqueeze(1), 1)
    return F.binary_cross_entropy_with_logits(input, one_hot, reduction="none").sum(1).mean()


def plain_any_f1(input: Tensor, target: Tensor) -> Tensor:
    p = torch.sigmoid(73 * (torch.sigmoid(input) - 0.5))
    return (1 - 2 * (target * p).sum(0) / (target.sum(0) + p.sum(0))).mean()


def plain_ldr_kl(input: Tensor, target: Tensor) -> Tensor:
    label = input.gather(1, target.unsqueeze(1))
    return (torch.logsumexp(input - label, 1) - math.log(input.shape[1])).mean()


def plain_regmixup(input: Tensor, mixed_input: Tensor, target: Tensor, permuted_target: Tensor, lam: float) -> Tensor:
    mixed = lam * F.cross_entropy(mixed_input, target) + (1 - lam) * F.cross_entropy(mixed_input, permuted_target)
    return F.cross_entropy(input, target) + mixed


def plain_distillation(input: Tensor, teacher_logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(input, teacher_logits.softmax(1))


def plain_hl_gauss(input: Tensor, target: Tensor, min_value: float, max_value: float) -> Tensor:
    edges = torch.linspace(min_value, max_value, input.shape[-1] + 1)
    sigma = 0.75 * (max_value - min_value) / input.shape[-1]
    below = torch.special.erf((edges - target.unsqueeze(-1)) / (math.sqrt(2) * sigma))
    p = (below[..., 1:] - below[..., :-1]) / (below[..., -1:] - below[..., :1])
    return -(p * input.log_softmax(-1)).sum(-1).mean()


def plain_wasserstein(input: Tensor, target: Tensor) -> Tensor:
    centers = torch.arange(input.shape[1], dtype=input.dtype).reshape([-1] + [1] * (input.ndim - 2))
    return (input.softmax(1) * (centers - target.unsqueeze(1)).abs()).sum(1).mean()


def plain_quantile(input: Tensor, target: Tensor, quantile: float) -> Tensor:
    error = target - input
    return torch.maximum(quantile * error, (quantile - 1) * error).mean()


def log_cosh_error(input: Tensor, target: Tensor) -> Tensor:
    return torchmetrics.functional.log_cosh_error(input.flatten(), target.flatten())


BASELINES: dict[str, Loss] = {
    "CE": cross_entropy,
    "BCE": binary_cross_entropy,
    "SE": squared_error,
}
PEERS: dict[str, dict[str, Loss]] = {
    "active_passive_loss": {"plain": plain_active_passive},
    "any_loss": {"plain": plain_any_f1},
    "asymmetric_loss": {"plain": plain_asymmetric},
    "asymmetric_softmax_loss": {"plain": plain_asymmetric_softmax},
    "comp_sum_loss": {"F.cross_entropy": cross_entropy},
    "encouraging_loss": {"plain": plain_encouraging},
    "focal_loss": {"plain": plain_focal},
    "generalized_cross_entropy_loss": {"plain": plain_generalized_cross_entropy},
    "hl_gauss_loss": {"plain": plain_hl_gauss},
    "ldam_loss": {"plain": plain_ldam},
    "ldr_kl_loss": {"plain": plain_ldr_kl},
    "log_cosh_loss": {"torchmetrics": log_cosh_error},
    "logit_clip_cross_entropy_loss": {"plain": plain_logit_clip},
    "mean_absolute_error_loss": {"plain": plain_mean_absolute_error},
    "normalized_cross_entropy_loss": {"plain": plain_normalized_cross_entropy},
    "one_vs_rest_loss": {"plain": plain_one_vs_rest},
    "poly1_cross_entropy_loss": {"plain": plain_poly1},
    "poly1_sigmoid_focal_loss": {"plain": plain_poly1_sigmoid_focal},
    "quantile_loss": {"plain": plain_quantile},
    "regmixup_loss": {"plain": plain_regmixup},
    "self_distillation_loss": {"plain": plain_distillation},
    "sigmoid_focal_loss": {"plain": plain_sigmoid_focal},
    "squentropy_loss": {"plain": plain_squentropy},
    "symmetric_cross_entropy_loss": {"plain": plain_symmetric_cross_entropy},
    "wasserstein_bin_loss": {"plain": plain_wasserstein},
}


if __name__ == "__main__":
    main()
