"""Bielik 11B v2 (Ociepa et al. 2025): is a network grown from a smaller one ahead of one from scratch?"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from lossary.core import seeding
from lossary.language import depth_upscale, sequence_logps
from lossary.papers._evidence import Evidence, Series
from lossary.papers._paper import Paper
from lossary.papers._run import Run
from lossary.papers._training import accuracy, digits, fit
from lossary.preference import dpo_positive_loss

CARD = Paper(
    slug="bielik_11b",
    title="Bielik 11B v2 Technical Report",
    authors="Krzysztof Ociepa, Łukasz Flis, Remigiusz Kinas, Krzysztof Wróbel, Adrian Gwoździej",
    arxiv="2505.02410",
    year=2025,
    family="language",
    provides=(
        "depth_upscale_indices",
        "depth_upscale",
        "merge_state_dicts",
        "lossary.preference.dpo_positive_loss",
        "lossary.preference.DPOPositiveLoss",
        "weighted_instruction_loss",
        "adaptive_learning_rate",
        "AdaptiveLRScheduler",
    ),
    formula=(
        "L = -log sigmoid(beta_w log(pi(y_w) / pi_0(y_w)) - beta_l log(pi(y_l) / pi_0(y_l)) "
        "- lambda max(0, log(pi_0(y_w) / pi(y_w))))"
    ),
    call=(
        "from lossary.preference import DPOPositiveLoss\n"
        "loss = DPOPositiveLoss(chosen_beta=0.5, rejected_beta=0.1, penalty_lambda=50.0)(\n"
        "    policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps\n"
        ")"
    ),
    claim="Grown from a smaller trained network, a deeper one is ahead of one from scratch after a short training.",
    use_when="a language model shall grow without starting over; chosen and rejected responses differ in a few tokens",
    avoid_when="there is the time to train the large model fully, or pairs differ throughout (plain DPO will do)",
    golden=3,
    metric="accuracy after 2 epochs",
    direction="higher",
    margin=0.0,
    baseline="from scratch",
    method="up-scaled",
    seeds=5,
    limits=(
        "The paper's claim is an 11B model that beats models 2 to 6 times its size on Polish benchmarks; nothing of "
        "that can be seen here. The grown network inherits the training of the smaller one: the comparison is at equal "
        "training after growing, not at equal training in all."
    ),
)

EPOCHS = (0, 1, 2, 4, 8)
BLOCKS, WIDTH = 6, 64
STRENGTHS = {"DPO": 0.0, "DPO-Positive": 5.0}


def reproduce(run: Run) -> Evidence:
    """Digits, 600 for training: 6 residual blocks trained for 20 epochs, grown to 9, against 9 from scratch.

    Beside it pairs of sequences that share all but one token, under a small bigram model: what DPO and DPO-Positive
    do to the log-probability of the chosen ones.
    """
    epochs = run.pick(EPOCHS, EPOCHS[:3])
    for seed, arm in run.trials(["from scratch", "up-scaled", *STRENGTHS]):
        if arm in STRENGTHS:
            run.record(
                arm, **{"chosen over reference": _chosen_over_reference(seed, STRENGTHS[arm], steps=run.pick(200, 10))}
            )
            continue
        for number in epochs:
            network = Residual(9, seed) if arm == "from scratch" else _grown(seed, run.pick(20, 4))
            run.record(arm, **{f"accuracy after {number} epochs": _trained(network, number, seed)})
    curves = {
        arm: [run.mean(arm, f"accuracy after {number} epochs") for number in epochs]
        for arm in ("from scratch", "up-scaled")
    }
    before = [_smaller(seed, run.pick(20, 4))[1] for seed in run.seeds]
    moved = ", ".join(f"{run.mean(arm, 'chosen over reference'):+.2f} with {arm}" for arm in STRENGTHS)
    return run.conclude(
        series=[Series("Growing or starting over", "epochs", "accuracy", epochs, curves)],
        notes=[
            f"The smaller network has accuracy {sum(before) / len(before):.3f}; "
            f"grown and not yet trained on {curves['up-scaled'][0]:.3f}.",
            f"Mean log-probability of chosen sequences over the reference's, pairs differing in one token: {moved}.",
        ],
    )


class Residual(nn.Module):
    """Blocks with a skip connection between a linear layer before and one after."""

    def __init__(self, blocks: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeding.derive(seed, "init"))
            self.before, self.after = nn.Linear(64, WIDTH), nn.Linear(WIDTH, 10)
            self.blocks = nn.ModuleList(
                nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))
                for _ in range(blocks)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the digits."""
        x = self.before(x)
        for block in self.blocks:
            x = x + block(x)
        logits: Tensor = self.after(x)
        return logits


def _trained(network: nn.Module, epochs: int, seed: int) -> float:
    data = digits(600, seed)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3, fused=True)
    constant = lambda done: 1.0  # noqa: E731  # so that fewer epochs are the beginning of more
    loss = nn.functional.cross_entropy
    fit(
        network,
        data.x,
        data.y,
        loss,
        optimizer=optimizer,
        epochs=epochs,
        batch_size=64,
        seed=seed,
        learning_rate=constant,
    )
    with torch.no_grad():
        return accuracy(network(data.x_test), data.y_test)


@functools.cache
def _smaller(seed: int, epochs: int) -> tuple[Residual, float]:
    network = Residual(BLOCKS, seed)
    return network, _trained(network, epochs, seed)


def _grown(seed: int, epochs: int) -> nn.Module:
    smaller = _smaller(seed, epochs)[0]
    grown = Residual(9, seed)
    grown.load_state_dict(
        {name: value for name, value in smaller.state_dict().items() if "blocks" not in name}, strict=False
    )
    grown.blocks = depth_upscale(smaller.blocks, drop_last=2, drop_first=1)
    return grown


def _chosen_over_reference(seed: int, strength: float, *, steps: int) -> float:
    """Mean change in log-probability of 64 chosen sequences of 10 tokens, under a bigram model of rank 4."""
    generator = seeding.generator(seed, "pairs")
    embedding, head = (torch.randn(16, 4, generator=generator) for _ in range(2))
    chosen = torch.randint(16, (64, 10), generator=generator)
    places = torch.arange(10).expand(64, -1)
    changed = places == torch.randint(1, 9, (64, 1), generator=generator)
    other = (chosen + torch.randint(1, 16, (64, 1), generator=generator)) % 16
    tokens = torch.cat([chosen, torch.where(changed, other, chosen)])

    def logps() -> Tensor:
        return sequence_logps(embedding[tokens] @ head.T, tokens, shift=1)

    reference = logps()
    optimizer = torch.optim.Adam([embedding.requires_grad_(), head.requires_grad_()], 1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = dpo_positive_loss(*logps().chunk(2), *reference.chunk(2), penalty_lambda=strength)
        torch.autograd.backward(loss)
        optimizer.step()
    with torch.no_grad():
        return (logps() - reference).chunk(2)[0].mean().item()
