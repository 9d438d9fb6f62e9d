"""Every objective that has a form on the linear head beside its own form on logits: time and memory.

    python benchmarks/linear_forms.py [--tokens 1024 --width 256 --vocab 32768] [--rounds 5] [--names dco mixce]
    python benchmarks/linear_forms.py --device cuda --dtype bfloat16 --tokens 8192 --width 2304

The form on logits is given ``F.linear``'s, so that both start from hidden states and a head. Both take turns, forward
and backward, with TRL's functions where it has the same (log-probabilities of sequences) and Liger's on a GPU; the best
round counts. Memory is the peak of what a call allocated, less the gradients that stay.
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

from lossary import classification, language, preference
from lossary.papers._memory import memory_of

SEQUENCES = 8
Call = Callable[[Tensor, Tensor], Tensor]


@dataclasses.dataclass(frozen=True)
class Data:
    """What the forms are called with beside hidden states ``(8, T, D)`` and the head ``(V, D)``.

    Attributes:
        target: Next tokens ``(8, T)``.
        number_values: A number for 110 tokens, NaN for the others ``(V,)``.
        frequency: Counts of tokens, as of a text ``(V,)``.
        quality: Weight of each sequence ``(8,)``.
        good: Which sequences are good ``(8,)``.
    """

    target: Tensor
    number_values: Tensor
    frequency: Tensor
    quality: Tensor
    good: Tensor


def make_data(tokens: int, vocab: int, generator: torch.Generator) -> Data:
    device = generator.device
    target = torch.randint(vocab, (SEQUENCES, tokens // SEQUENCES), generator=generator, device=device)
    values = torch.full((vocab,), torch.nan, device=device)
    values[:110] = torch.arange(110.0)
    target[:, ::4] %= 110  # every fourth token is a number
    return Data(
        target,
        values,
        1 / torch.arange(1.0, vocab + 1, device=device),
        torch.rand(SEQUENCES, generator=generator, device=device),
        torch.arange(SEQUENCES, device=device) % 2 == 0,
    )


def forms(data: Data) -> dict[str, dict[str, Call]]:
    """By objective, its forms by name: ``logits``, ``linear`` and peers."""
    y, numbers, counts = data.target, data.number_values, data.frequency
    flat = y.flatten()

    def on_logits(objective: Callable[[Tensor], Tensor]) -> Call:
        return lambda input, head: objective(F.linear(input, head))

    def halves(objective: Callable[[Tensor, Tensor], Tensor]) -> Call:
        return on_logits(lambda z: objective(*z.chunk(2)))

    chosen, rejected = y.chunk(2)
    found: dict[str, dict[str, Call]] = {
        "cross_entropy": {
            "logits": on_logits(lambda z: F.cross_entropy(z.flatten(0, 1), flat)),
            "linear": lambda input, head: language.linear_cross_entropy(input, head, y),
        },
        "focal": {
            "logits": on_logits(lambda z: classification.focal_loss(z.flatten(0, 1), flat)),
            "linear": lambda input, head: language.linear_focal_loss(input, head, y),
        },
        "poly1_cross_entropy": {
            "logits": on_logits(lambda z: classification.poly1_cross_entropy_loss(z.flatten(0, 1), flat)),
            "linear": lambda input, head: language.linear_poly1_cross_entropy_loss(input, head, y),
        },
        "dco": {
            "logits": on_logits(lambda z: language.dco_loss(z, y, N=8, normalize="tokens")),
            "linear": lambda input, head: language.linear_dco_loss(input, head, y, N=8, normalize="tokens"),
        },
        "mixce": {
            "logits": on_logits(lambda z: language.mixce_loss(z, y)),
            "linear": lambda input, head: language.linear_mixce_loss(input, head, y),
        },
        "eisl": {
            "logits": on_logits(lambda z: language.eisl_loss(z, y, ngrams=(2,))),
            "linear": lambda input, head: language.linear_eisl_loss(input, head, y, ngrams=(2,)),
        },
        "number_token": {
            "logits": on_logits(lambda z: language.number_token_loss(z, y, numbers)),
            "linear": lambda input, head: language.linear_number_token_loss(input, head, y, numbers),
        },
        "cross_entropy_with_number_token": {
            "logits": on_logits(lambda z: language.cross_entropy_with_number_token_loss(z, y, numbers)),
            "linear": lambda input, head: language.linear_cross_entropy_with_number_token_loss(input, head, y, numbers),
        },
        "power_law_decay": {
            "logits": on_logits(lambda z: language.power_law_decay_loss(z, y, counts)),
            "linear": lambda input, head: language.linear_power_law_decay_loss(input, head, y, counts),
        },
        "weighted_instruction": {
            "logits": on_logits(lambda z: language.weighted_instruction_loss(z, y, data.quality)),
            "linear": lambda input, head: language.linear_weighted_instruction_loss(input, head, y, data.quality),
        },
        "cringe": {
            "logits": on_logits(lambda z: preference.cringe_loss(z, y, data.good, k=1)),
            "linear": lambda input, head: preference.linear_cringe_loss(input, head, y, data.good, k=1),
        },
        "pairwise_cringe": {
            "logits": halves(lambda good, bad: preference.pairwise_cringe_loss(good, chosen, bad, rejected, k=1)),
            "linear": lambda input, head: preference.linear_pairwise_cringe_loss(
                input[: SEQUENCES // 2], head, chosen, input[SEQUENCES // 2 :], rejected, k=1
            ),
        },
        "sequence_logps": {
            "logits": on_logits(lambda z: language.sequence_logps(z, y).sum()),
            "linear": lambda input, head: language.linear_sequence_logps(input, head, y).sum(),
        },
    }
    if importlib.util.find_spec("trl"):
        from trl.trainer import utils

        found["sequence_logps"]["TRL, on logits"] = on_logits(lambda z: utils.selective_log_softmax(z, y).sum())
        chunk = utils._CHUNKED_LOGPROB_CHUNK_SIZE
        found["sequence_logps"]["TRL, fused head"] = lambda input, head: utils._ChunkedLogProbFunction.apply(
            input.flatten(0, 1), head, None, flat, 1.0, chunk, None, 1.0, ("log_probs",)
        )[0].sum()
    if importlib.util.find_spec("liger_kernel") and torch.cuda.is_available():
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        found["cross_entropy"]["Liger"] = lambda input, head: LigerFusedLinearCrossEntropyLoss()(
            head, input.flatten(0, 1), flat
        )
    return found


@dataclasses.dataclass
class Result:
    """Of one form: best seconds of forward and backward, bytes beyond the gradients, and the value."""

    seconds: float = float("inf")
    memory: int = 0
    value: float = 0.0


def measure(
    calls: dict[str, Call], input: Tensor, head: Tensor, rounds: int, clock: Callable[[], float]
) -> dict[str, Result]:
    results = {name: Result() for name in calls}
    for turn in range(rounds + 1):  # the first turn warms up
        for name, call in calls.items():
            start = clock()
            loss = call(input, head)
            loss.backward()
            seconds = clock() - start
            input.grad = head.grad = None
            results[name].value = float(loss)
            if turn or not rounds:
                results[name].seconds = min(results[name].seconds, seconds)
    for name, call in calls.items():
        memory = memory_of(lambda call=call: call(input, head).backward(), input.device)
        results[name].memory = memory.peak - memory.kept
        input.grad = head.grad = None
    return results


def synchronized() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1024, help="in 8 sequences")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--vocab", type=int, default=32_768)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--names", nargs="+", help="only these objectives")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cpu-time", action="store_true", help="CPU time over threads, on a machine that is not quiet")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--out", type=Path, help="where to keep the numbers as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = (lambda: time.process_time() / options.threads) if options.cpu_time else time.perf_counter
    if options.device == "cuda":
        clock = synchronized
    generator = torch.Generator(options.device).manual_seed(0)
    draw = functools.partial(torch.randn, generator=generator, device=options.device)
    dtype = getattr(torch, options.dtype)
    input = draw(SEQUENCES, options.tokens // SEQUENCES, options.width).to(dtype).requires_grad_()
    head = (draw(options.vocab, options.width) / options.width**0.5).to(dtype).requires_grad_()
    table = rich.table.Table(title=f"{options.tokens} tokens, width {options.width}, vocabulary {options.vocab:,}")
    for column in ("", "seconds", "x logits", "memory", "x logits", "value"):
        table.add_column(column, justify="left" if not column else "right")
    console, everything = Console(width=110), {}
    for name, calls in forms(make_data(options.tokens, options.vocab, generator)).items():
        if options.names and name not in options.names:
            continue
        console.print(f"  {name}", style="dim")
        everything[name] = results = measure(calls, input, head, options.rounds, clock)
        base = results["logits"]
        for form, result in results.items():
            table.add_row(
                f"{name}, {form}",
                f"{result.seconds:.4f}",
                f"{result.seconds / base.seconds:.2f}",
                f"{result.memory / 2**20:.0f} MiB",
                f"1/{base.memory / max(result.memory, 1):.1f}",
                f"{result.value:.5g}",
                style="bold" if form == "linear" else None,
            )
    console.print(table)
    if options.out:
        record = {
            name: {form: dataclasses.asdict(r) for form, r in found.items()} for name, found in everything.items()
        }
        options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
