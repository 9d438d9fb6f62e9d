"""Direct coverage optimisation (Chen et al. 2025): is cross-entropy the wrong target when N answers may be drawn?"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lossary.core import seeding
from lossary.language import dco_loss, pass_at_n, sequence_logps
from lossary.papers._evidence import Evidence, Series
from lossary.papers._paper import Paper
from lossary.papers._run import Run
from lossary.papers._training import mlp

CARD = Paper(
    slug="dco",
    title="Rethinking Fine-Tuning when Scaling Test-Time Compute: Limiting Confidence Improves Mathematical Reasoning",
    authors="Feng Chen, Allan Raventos, Nan Cheng, Surya Ganguli, Shaul Druckmann",
    arxiv="2502.07154",
    year=2025,
    family="language",
    provides=(
        "dco_loss",
        "DCOLoss",
        "linear_dco_loss",
        "LinearDCOLoss",
        "dco_loss_from_logps",
        "dco_factor",
        "pass_at_n",
        "pass_at_n_unbiased",
    ),
    formula="L = -log(1 - (1 - p)^N)",
    call="from lossary.language import DCOLoss\nloss = DCOLoss(N=16)(logits, labels)  # p is of the whole sequence",
    claim="Longer training with cross-entropy lowers pass@N for large N; training for pass@N does not, and is best at "
    "its own N.",
    use_when="N answers are drawn at test time and one right one is enough: a verifier, a proof checker, unit tests",
    avoid_when="one answer counts (it is cross-entropy at N = 1), or nobody can tell the right one of N",
    golden=3,
    metric="pass@64",
    direction="higher",
    margin=0.02,
    baseline="N=1",
    method="N=64",
    seeds=4,
    limits=(
        "Sums of two numbers below 100 and a network of one hidden layer that has seen 500 of them; the probability of "
        "the right answer, and with it pass@N, is computed, not sampled. The schedule is one that "
        "trains cross-entropy past its peak (at a tenth of the learning rate its pass@64 still rose after 200 epochs). "
        "Nothing is fine-tuned and there is no proof search: MATH and MiniF2F are not run."
    ),
)

TRAINED_FOR = (1, 8, 64)
DRAWN = (1, 2, 4, 8, 16, 32, 64, 128, 256)
ROWS, TEST_ROWS = 500, 1000


def reproduce(run: Run) -> Evidence:
    """Three digits of a + b, the most significant first, from 500 sums of numbers below 100; tested on 1,000 others.

    N = 1 is cross-entropy. Adam at 1e-2, batches of 250, 100 epochs; pass@1 to pass@256 on the test sums at the end,
    and pass@64 on the way.
    """
    trained_for = run.pick(TRAINED_FOR, (1, 64))
    epochs = run.pick((4, 10, 20, 40, 70, 100), (2, 4))
    for seed, arm in run.trials([f"N={n}" for n in trained_for]):
        run.record(arm, **_train(seed, int(arm[2:]), epochs, rows=run.pick(ROWS, 200)))
    arms = {f"trained with {n}": f"N={n}" for n in trained_for}
    by_drawn = {name: [run.mean(arm, f"pass@{k}") for k in DRAWN] for name, arm in arms.items()}
    by_epoch = {name: [run.mean(arm, f"pass@64 after {e} epochs") for e in epochs] for name, arm in arms.items()}
    best = [max((run.mean(f"N={n}", f"pass@{k}"), n) for n in trained_for)[1] for k in DRAWN]
    peaks = [f"{name}: {max(curve):.3f} at best, {curve[-1]:.3f} at the end" for name, curve in by_epoch.items()]
    return run.conclude(
        series=[
            Series("What is drawn at test time", "samples drawn", "pass@N", DRAWN, by_drawn),
            Series("Longer training", "epoch", "pass@64", epochs, by_epoch),
        ],
        notes=[
            f"Best N in training for {', '.join(map(str, DRAWN))} samples drawn: {', '.join(map(str, best))}.",
            f"pass@64 over training, {'; '.join(peaks)}.",
        ],
    )


def _train(seed: int, n: int, epochs: tuple[int, ...], *, rows: int) -> dict[str, float]:
    generator = seeding.generator(seed, "sums")
    numbers = torch.randperm(10_000, generator=generator)[: rows + TEST_ROWS]
    x, y = _sums(numbers // 100, numbers % 100)
    model = mlp((x.shape[-1], 128, 10), seed)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2, fused=True)
    results: dict[str, float] = {}
    for epoch in range(1, max(epochs) + 1):
        for batch in torch.split(torch.randperm(rows, generator=generator), 250):
            optimizer.zero_grad()
            torch.autograd.backward(dco_loss(model(x[batch]), y[batch], N=n))
            optimizer.step()
        if epoch in epochs:
            results[f"pass@64 after {epoch} epochs"] = _passes(model, x[rows:], y[rows:], 64)
    return results | {f"pass@{k}": _passes(model, x[rows:], y[rows:], k) for k in DRAWN}


def _passes(model: nn.Module, x: Tensor, y: Tensor, k: int) -> float:
    with torch.no_grad():
        return pass_at_n(sequence_logps(model(x), y).double().exp(), k).mean().item()


def _sums(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """What the network sees at each digit of the answer, and the digit: both numbers, the digits before it, its place.

    ``(rows, 3, features)`` and ``(rows, 3)``.
    """
    given = torch.cat([_digits(a, 2), _digits(b, 2)], 1)
    answer = _digits(a + b, 3)
    place = torch.arange(3)
    before = torch.where(place[:, None] > place[:2], answer[:, None, :2], 10)  # 10 is unknown yet
    one_hot = nn.functional.one_hot
    seen = [
        one_hot(given, 10).flatten(1).unsqueeze(1).expand(-1, 3, -1),
        one_hot(before, 11).flatten(2),
        one_hot(place, 3).expand(len(a), -1, -1),
    ]
    return torch.cat(seen, 2).float(), answer


def _digits(number: Tensor, count: int) -> Tensor:
    return number[:, None] // 10 ** torch.arange(count - 1, -1, -1) % 10
