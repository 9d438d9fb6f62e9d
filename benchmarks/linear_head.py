"""Time and memory of cross-entropy on a linear head: ours, plain PyTorch, and every peer that is installed.

    python benchmarks/linear_head.py [--rounds 5] [--large] [--largest] [--plot docs/images/linear_head.png]
    python benchmarks/linear_head.py --device cuda --dtype bfloat16 --large --largest [--scale 3]

All contenders take turns on the same tensors, round after round; the best round counts, since what else the machine
does only ever adds time. Seconds are of the clock, or with `--cpu-time` of the process's CPU time over its threads (for
a machine that is not quiet). Memory is the peak of what a call allocated, from PyTorch's record of every allocation,
less the gradients that stay: what a method needs beyond its result. `--large` adds (1024, 2304, 256k), the largest that
plain code takes in 16 GB, `--largest` (8192, 2304, 256k), which on a CPU only the chunked and tiled ones do.

On a GPU the seconds are those between two events on its stream, and the share of the matrix product's peak is that of
the two products that a forward and the six that forward and backward of plain code multiply and add, over the rate of
one large product measured in the same run. `--scale` spreads the logits: at 1 the softmax is flat and filters leave
nearly all out, at 3 they leave nothing out.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
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


def contenders(on_gpu: bool) -> list[Contender]:
    found = [
        Contender("plain", naive, dense=True),
        Contender("torch.compile", torch.compile(naive), dense=True),
    ]
    if hasattr(torch.nn, "LinearCrossEntropyOptions"):  # since torch 2.13
        found.append(Contender("torch, chunks by default", chunked(None)))
        found.extend(Contender(f"torch, chunks of {rows}", chunked(rows)) for rows in CHUNKS)
    if importlib.util.find_spec("trl"):
        found.append(Contender("TRL, fused head", trl_head()))
    if importlib.util.find_spec("cut_cross_entropy"):
        from cut_cross_entropy import linear_cross_entropy as cut

        if on_gpu:
            found.append(Contender("cut-cross-entropy", lambda i, w, t: cut(i, w, t, filter_eps="auto")))
            found.append(Contender("cut-cross-entropy, no filter", lambda i, w, t: cut(i, w, t, filter_eps=None)))
        else:
            found.append(Contender("cut-cross-entropy", lambda i, w, t: cut(i, w, t, impl="torch_compile"), dense=True))
    if importlib.util.find_spec("liger_kernel") and on_gpu:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        found.append(Contender("Liger", lambda i, w, t: LigerFusedLinearCrossEntropyLoss()(w, i, t)))
    if on_gpu:

        def every_entry(input: Tensor, weight: Tensor, target: Tensor) -> Tensor:
            return linear_cross_entropy(input, weight, target, filter_eps=None)

        def fused(input: Tensor, weight: Tensor, target: Tensor) -> Tensor:
            return linear_cross_entropy(input, weight, target, backend="triton")

        found.append(Contender("ours, no filter", every_entry, ours=True))
        found.append(Contender("ours, products fused too", fused, ours=True))
    return [
        *found,
        Contender("ours, cross-entropy", linear_cross_entropy, ours=True),
        Contender("ours, 256 rows at once", lambda i, w, t: linear_cross_entropy(i, w, t, block_rows=256), ours=True),
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
    size: tuple[int, int, int], options: argparse.Namespace, clock: Callable[[], float], console: Console
) -> dict[str, Result]:
    rows, width, vocab = size
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    on_gpu = device.type == "cuda"
    generator = torch.Generator(device).manual_seed(0)
    draw = functools.partial(torch.randn, generator=generator, device=device)
    input = (options.scale * draw(rows, width)).to(dtype).requires_grad_()
    weight = (draw(vocab, width) / width**0.5).to(dtype).requires_grad_()
    target = torch.randint(vocab, (rows,), generator=generator, device=device)
    results: dict[str, Result] = {}
    field = [
        c
        for c in contenders(on_gpu)
        if any(name in c.name for name in options.only) and not (c.dense and size == LARGEST and not on_gpu)
    ]
    for turn in range(options.rounds + 1):  # the first turn warms up and compiles
        for contender in list(field):
            result = results.setdefault(contender.name, Result())

            def forward(contender: Contender = contender) -> None:
                with torch.no_grad():
                    contender.loss(input, weight, target)

            def both(contender: Contender = contender) -> None:
                contender.loss(input, weight, target).backward()

            for name, call in (("forward", forward), ("both", both)):
                try:
                    seconds = seconds_on_gpu(call) if on_gpu else seconds_of(call, clock)
                except Exception as error:
                    console.print(f"  {contender.name} at {size}: {type(error).__name__}: {str(error)[:200]}")
                    field.remove(contender)
                    del results[contender.name]
                    break
                finally:
                    input.grad = weight.grad = None
                if turn or options.rounds == 0:
                    setattr(result, name, min(getattr(result, name), seconds))
        console.print(f"  {size}: turn {turn} of {options.rounds}", style="dim")
    for contender in field:
        memory = memory_of(lambda contender=contender: contender.loss(input, weight, target).backward(), device)
        results[contender.name].memory = memory.peak - memory.kept
        input.grad = weight.grad = None
    return results


def seconds_of(call: Callable[[], None], clock: Callable[[], float]) -> float:
    start = clock()
    call()
    return clock() - start


def seconds_on_gpu(call: Callable[[], None]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000


def product_rate(dtype: torch.dtype, size: int = 8192) -> float:
    """Operations a second of one large matrix product on the GPU."""
    x, y = (torch.randn(size, size, device="cuda", dtype=dtype) for _ in range(2))
    return 2 * size**3 / min(seconds_on_gpu(lambda: torch.mm(x, y)) for _ in range(10))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--sizes", type=int, default=len(SIZES), help="how many of the usual sizes")
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--largest", action="store_true")
    parser.add_argument("--cpu-time", action="store_true", help="CPU time over threads, on a machine that is not quiet")
    parser.add_argument("--only", nargs="+", default=[""], help="contenders whose name contains one of these")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--scale", type=float, default=1.0, help="standard deviation of the logits")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--json", type=Path, help="where to keep the numbers")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = (lambda: time.process_time() / options.threads) if options.cpu_time else time.perf_counter
    console = Console(width=150)
    rate = product_rate(getattr(torch, options.dtype)) if options.device == "cuda" else 0.0
    if rate:
        console.print(
            f"{torch.cuda.get_device_name()}, one large product: {rate / 1e12:.0f} Top/s; torch {torch.__version__}"
        )
    sizes = SIZES[: options.sizes] + [LARGE] * options.large + [LARGEST] * options.largest
    everything = {}
    for size in sizes:
        results = measure(size, options, clock, console)
        everything[size] = results
        console.print(table(size, results, rate))
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


def table(size: tuple[int, int, int], results: dict[str, Result], rate: float = 0.0) -> rich.table.Table:
    rows, width, vocab = size
    base = results.get("plain") or results.get("ours, cross-entropy") or next(iter(results.values()))
    grid = rich.table.Table(title=f"{rows} tokens, width {width}, vocabulary {vocab}")
    heads = ("", "forward", "forward + backward", "x plain", "memory", "x plain")
    for head in (*heads, "of the peak: forward", "both") if rate else heads:
        grid.add_column(head, justify="left" if not head else "right")
    for name, result in results.items():
        grid.add_row(
            name,
            _time(result.forward),
            _time(result.both),
            f"{result.both / base.both:.2f}",
            f"{result.memory / 2**20:.0f} MiB",
            f"1/{base.memory / max(result.memory, 1):.1f}",
            *(f"{ops * rows * width * vocab / seconds / rate:.0%}" for ops, seconds in shares(result) if rate),
            style="bold" if name.startswith("ours") else None,
        )
    return grid


def shares(result: Result) -> list[tuple[int, float]]:
    """Operations that plain code needs, over tokens x width x vocabulary, and the seconds taken."""
    return [(2, result.forward), (6, result.both)]


def _time(seconds: float) -> str:
    return f"{seconds:.3f} s" if seconds >= 0.1 else f"{1000 * seconds:.2f} ms"


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
