"""Limits of self-attention (Chiang and Cholak 2022): does scaling by log n carry attention over to long strings?"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossary.core import seeding
from lossary.language import (
    ExactFirstTransformer,
    ExactParityTransformer,
    LogLengthTransformerEncoderLayer,
    first_data,
    length_profile,
)
from lossary.papers._evidence import Evidence, Series
from lossary.papers._paper import Paper
from lossary.papers._run import Run

CARD = Paper(
    slug="parity_attention",
    title="Overcoming a Theoretical Limitation of Self-Attention",
    authors="David Chiang, Peter Cholak",
    arxiv="2202.12172",
    year=2022,
    family="language",
    provides=(
        "log_length_attention",
        "LogLengthAttention",
        "LogLengthTransformerEncoderLayer",
        "ExactParityTransformer",
        "ExactFirstTransformer",
        "parity_data",
        "first_data",
        "length_profile",
    ),
    formula="attention = softmax(log n * q k' / sqrt(d)) v",
    call=(
        "from lossary.language import ExactParityTransformer, LogLengthTransformerEncoderLayer, length_profile\n"
        "layer = LogLengthTransformerEncoderLayer(d_model=32, nhead=4, dim_feedforward=64)\n"
        "hidden_states = layer(torch.randn(8, 100, 32))\n"
        "exact = ExactParityTransformer(layer_norm=True, eps=0.0)\n"
        "profile = length_profile(exact, [10, 100])  # accuracy and cross-entropy at each length"
    ),
    claim="Trained on short strings to tell the first symbol, a transformer stays sure of it on long ones if attention "
    "is scaled by log n, and does not if it is plain.",
    use_when="a model is trained on short texts and used on longer ones, and looks for single positions in them",
    avoid_when="lengths do not change, or what attention should do is average over all positions",
    golden=4,
    metric="bits at length 1000",
    direction="lower",
    margin=0.1,
    baseline="plain",
    method="log n",
    seeds=5,
    limits="FIRST alone is learned: PARITY has an exact transformer, but gradient descent is not known to find it. "
    "Translation, where the paper sees a small gain on longer sentences, is left out.",
)

LENGTHS = (10, 30, 100, 300, 1000)


def reproduce(run: Run) -> Evidence:
    """Learn FIRST: 2 layers of 16, one head, 1,500 Adam steps (1e-3) of 32 strings of one length from 10 to 30.

    Beside it the transformers built by hand for PARITY and FIRST, with layer normalisation and without.
    """
    steps, lengths, strings = run.pick((1_500, LENGTHS, 200), (20, (10, 1000), 16))
    exact = {
        "PARITY": ExactParityTransformer(),
        "PARITY, normed": ExactParityTransformer(layer_norm=True, eps=0.0),
        "FIRST": ExactFirstTransformer(),
        "FIRST, normed": ExactFirstTransformer(layer_norm=True, eps=0.0),
    }
    for seed, arm in run.trials(["plain", "log n", "exact"]):
        generator = seeding.generator(seed, "test")
        if arm == "exact":
            for name, model in exact.items():
                profile = length_profile(model, lengths, n=strings // 10, generator=generator)
                _record(run, arm, profile, f"{name}, ")
        else:
            learned = _learn(seed, steps, log_length_scale=arm == "log n")
            _record(run, arm, length_profile(learned, lengths, data=first_data, n=strings, generator=generator))
    if run.quick:
        return run.conclude()
    curves = {arm: [run.mean(arm, f"bits at length {n}") for n in LENGTHS] for arm in ("plain", "log n")}
    exact_curves = {name: [run.mean("exact", f"{name}, bits at length {n}") for n in LENGTHS] for name in exact}
    right = min(run.mean("exact", f"{name}, accuracy at length {n}") for name in exact for n in LENGTHS)
    x = [math.log10(n) for n in LENGTHS]
    return run.conclude(
        series=[
            Series("FIRST, learned on 10 to 30 symbols", "log10 of the length", "bits", x, curves),
            Series("Built by hand", "log10 of the length", "bits", x, exact_curves),
        ],
        notes=[
            *(
                f"FIRST, {arm}: "
                + "; ".join(
                    f"{run.mean(arm, f'bits at length {n}'):.3f} bits, "
                    f"{run.mean(arm, f'accuracy at length {n}'):.1%} right at {n}"
                    for n in LENGTHS
                )
                + "."
                for arm in ("plain", "log n")
            ),
            f"The transformers built by hand are right on {right:.0%} of strings at every length. Their bits at length "
            + f"{LENGTHS[-1]}: "
            + ", ".join(f"{name} {curve[-1]:.4f}" for name, curve in exact_curves.items())
            + ".",
        ],
    )


def _record(run: Run, arm: str, profile: dict[int, dict[str, float]], prefix: str = "") -> None:
    for n, at in profile.items():
        run.record(arm, **{f"{prefix}bits at length {n}": at["cross_entropy"]})
        run.record(arm, **{f"{prefix}accuracy at length {n}": at["accuracy"]})


def _learn(seed: int, steps: int, *, log_length_scale: bool) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeding.derive(seed, "init"))
        model = _Model(log_length_scale)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
    generator = seeding.generator(seed, "strings")
    for _ in range(steps):
        length = int(torch.randint(10, 31, (), generator=generator))
        bits, labels = first_data(32, length, generator)
        loss = F.binary_cross_entropy_with_logits(model(bits), labels.float())
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    return model


class _Model(nn.Module):
    """Symbols and positions (0, 1, later) as the paper has them, two layers, and what CLS says at the end."""

    def __init__(self, log_length_scale: bool, width: int = 16) -> None:
        super().__init__()
        self.symbols = nn.Embedding(3, width)
        self.places = nn.Embedding(3, width)
        self.layers = nn.ModuleList(
            LogLengthTransformerEncoderLayer(width, 1, 4 * width, 0.0, log_length_scale=log_length_scale)
            for _ in range(2)
        )
        self.output = nn.Linear(width, 1)

    def forward(self, bits: Tensor) -> Tensor:
        tokens = F.pad(bits, (1, 0), value=2)
        x: Tensor = self.symbols(tokens) + self.places(torch.arange(tokens.shape[1]).clamp(max=2))
        for layer in self.layers:
            x = layer(x)
        answer: Tensor = self.output(x[:, 0]).flatten()
        return answer
