"""Time and memory of cross-entropy on a linear head: ours, plain PyTorch, and every peer that is installed.

    python benchmarks/linear_head.py [--rounds 5] [--large] [--largest] [--plot docs/images/linear_head.png]

All contenders take turns on the same tensors, round after round; the best round counts, since what else the machine
does only ever adds time. Seconds are of the clock, or with `--cpu-time` of the process's CPU time over its threads (for
a machine that is not quiet). Memory is the peak of what a call allocated, from PyTorch's record of every allocation,
less the gradients that stay: what a method needs beyond its result. `--large` adds (1024, 2304, 256k), the largest that
plain code takes in 16 GB, `--largest` (8192, 2304, 256k), which only the chunked and tiled ones do.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import time
from collections.abc import Callable
from pathlib import Path

import rich.table
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor

from lossary.kernels import linear_head
from lossary.language import linear_cross_entropy, linear_focal_loss
from lossary.papers._memory import memory_of

SIZES = [(512, 256, 8_192), (1024, 256, 32_768), (1024, 768, 50_257), (4096, 256, 32_768), (1024, 256, 262_144)]
LARGE, LARGEST = (1024, 2304, 262_144), (8192, 2304, 262_144)
CHUNKS = (64, 256, 1024)
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclasses.dataclass(frozen=True)
class Contender:
    """A way to compute the loss; ``dense`` ones store the logits."""

    name: str
    loss: Loss
    dense: bool = False
    ours: bool = False


def naive(input: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(input, weight), target)


def naive_focal(input: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    cross_entropy = F.cross_entropy(F.linear(input, weight), target, reduction="none")
    return ((1 - torch.exp(-cross_entropy)) ** 2 * cross_entropy).mean()


def chunked(rows: int | None) -> Loss:
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=rows)
    return lambda input, weight, target: F.linear_cross_entropy(input, weight, target, options=options)


def contenders() -> list[Contender]:
    found = [
        Contender("plain", naive, dense=True),
        Contender("torch.compile", torch.compile(naive), dense=True),
        Contender("torch, chunks by default", chunked(None)),
        *(Contender(f"torch, chunks of {rows}", chunked(rows)) for rows in CHUNKS),
    ]
    if importlib.util.find_spec("trl"):
        found.append(Contender("TRL, fused head", trl_head()))
    if importlib.util.find_spec("cut_cross_entropy"):
        from cut_cross_entropy import linear_cross_entropy as cut

        on_gpu = torch.cuda.is_available()
        found.append(
            Contender(
                "cut-cross-entropy", lambda i, w, t: cut(i, w, t, impl="cce" if on_gpu else "torch_compile"), not on_gpu
            )
        )
    if importlib.util.find_spec("liger_kernel") and torch.cuda.is_available():
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        found.append(Contender("Liger", lambda i, w, t: LigerFusedLinearCrossEntropyLoss()(w, i, t)))
    return [
        *found,
        Contender("ours, cross-entropy", linear_cross_entropy, ours=True),
        Contender("ours, any statistic", lambda i, w, t: -linear_head(i, w, t)["log_prob"].mean(), ours=True),
        Contender("plain focal", naive_focal, dense=True),
        Contender("ours, focal", linear_focal_loss, ours=True),
    ]


def trl_head() -> Loss:
    from trl.trainer import utils

    function = utils._ChunkedLogProbFunction

    def loss(input: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        tokens = utils._CHUNKED_LOGPROB_CHUNK_SIZE
        return -function.apply(input, weight, None, target, 1.0, tokens, None, 1.0, ("log_probs",))[0].mean()

    return loss


@dataclasses.dataclass
class Result:
    forward: float = float("inf")
    both: float = float("inf")
    memory: int = 0


def measure(
    size: tuple[int, int, int], rounds: int, clock: Callable[[], float], console: Console, only: str
) -> dict[str, Result]:
    rows, width, vocab = size
    generator = torch.Generator().manual_seed(0)
    input = torch.randn(rows, width, generator=generator).requires_grad_()
    weight = (torch.randn(vocab, width, generator=generator) / width**0.5).requires_grad_()
    target = torch.randint(vocab, (rows,), generator=generator)
    results: dict[str, Result] = {}
    field = [c for c in contenders() if only in c.name and not (c.dense and size == LARGEST)]
    for turn in range(rounds + 1):  # the first turn warms up and compiles
        for contender in field:
            result = results.setdefault(contender.name, Result())

            def forward(contender: Contender = contender) -> None:
                with torch.no_grad():
                    contender.loss(input, weight, target)

            def both(contender: Contender = contender) -> None:
                contender.loss(input, weight, target).backward()

            for name, call in (("forward", forward), ("both", both)):
                start = clock()
                call()
                seconds = clock() - start
                input.grad = weight.grad = None
                if turn or rounds == 0:
                    setattr(result, name, min(getattr(result, name), seconds))
        console.print(f"  {size}: turn {turn} of {rounds}", style="dim")
    for contender in field:
        memory = memory_of(lambda contender=contender: contender.loss(input, weight, target).backward())
        results[contender.name].memory = memory.peak - memory.kept
        input.grad = weight.grad = None
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--sizes", type=int, default=len(SIZES), help="how many of the usual sizes")
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--largest", action="store_true")
    parser.add_argument("--cpu-time", action="store_true", help="CPU time over threads, on a machine that is not quiet")
    parser.add_argument("--only", default="", help="contenders whose name contains this")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--json", type=Path, help="where to keep the numbers")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = (lambda: time.process_time() / options.threads) if options.cpu_time else time.perf_counter
    console = Console(width=150)
    sizes = SIZES[: options.sizes] + [LARGE] * options.large + [LARGEST] * options.largest
    everything = {}
    for size in sizes:
        results = measure(size, options.rounds, clock, console, options.only)
        everything[size] = results
        console.print(table(size, results))
    if options.json:
        options.json.write_text(
            json.dumps(
                {
                    "x".join(map(str, size)): {n: dataclasses.asdict(r) for n, r in found.items()}
                    for size, found in everything.items()
                },
                indent=1,
            )
        )
    if options.plot:
        draw(everything, options.plot)


def table(size: tuple[int, int, int], results: dict[str, Result]) -> rich.table.Table:
    rows, width, vocab = size
    base = results.get("plain") or results.get("ours, cross-entropy") or next(iter(results.values()))
    grid = rich.table.Table(title=f"{rows} tokens, width {width}, vocabulary {vocab}")
    for head in ("", "forward", "forward + backward", "x plain", "memory", "x plain"):
        grid.add_column(head, justify="left" if not head else "right")
    for name, result in results.items():
        grid.add_row(
            name,
            f"{result.forward:.3f} s",
            f"{result.both:.3f} s",
            f"{result.both / base.both:.2f}",
            f"{result.memory / 2**20:.0f} MiB",
            f"1/{base.memory / max(result.memory, 1):.1f}",
            style="bold" if name.startswith("ours") else None,
        )
    return grid


def draw(everything: dict[tuple[int, int, int], dict[str, Result]], path: Path) -> None:
    """Time and memory relative to plain code, by size."""
    import matplotlib.pyplot as plt

    sizes = [size for size, results in everything.items() if "plain" in results]
    names = [name for name in everything[sizes[0]] if "focal" not in name]
    figure, axes = plt.subplots(1, 2, figsize=(13, 4.5), layout="constrained")
    labels = [f"{rows} x {width}\nx {vocab:,}" for rows, width, vocab in sizes]
    for name in names:
        style = {"linewidth": 3} if name.startswith("ours") else {"linewidth": 1, "alpha": 0.8}
        for axis, attribute in zip(axes, ("both", "memory"), strict=True):
            ratios = [
                getattr(everything[size][name], attribute) / max(getattr(everything[size]["plain"], attribute), 1e-9)
                for size in sizes
            ]
            axis.plot(labels, ratios, marker="o", label=name, **style)
    axes[0].set(ylabel="time, forward and backward, over plain", ylim=(0, 3))  # chunks by default are beyond
    axes[1].set(ylabel="memory beyond the gradients, over plain", yscale="log")
    figure.legend(*axes[1].get_legend_handles_labels(), fontsize=9, loc="outside right center")
    for axis in axes:
        axis.axhline(1, color="gray", linewidth=0.8)
        axis.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
