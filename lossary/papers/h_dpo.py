"""H-DPO (Omura et al. 2024): does an entropy coefficient below 1 raise pass@k over DPO?"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossary.core import seeding
from lossary.language import sequence_logps
from lossary.papers._evidence import Evidence, Series
from lossary.papers._paper import Paper
from lossary.papers._run import Run
from lossary.papers._training import mlp
from lossary.preference import h_dpo_divergence, h_dpo_loss

CARD = Paper(
    slug="h_dpo",
    title="Entropy Controllable Direct Preference Optimization",
    authors="Motoki Omura, Yasuhiro Fujita, Toshiki Kataoka",
    arxiv="2411.07595",
    year=2024,
    family="preference",
    provides=(
        "h_dpo_loss",
        "HDPOLoss",
        "h_dpo_rewards",
        "h_dpo_divergence",
        "lossary.language.sequence_logps",
        "lossary.language.linear_sequence_logps",
    ),
    formula="L = -log sigmoid(alpha beta log(pi(y_w) / pi(y_l)) - beta log(pi_0(y_w) / pi_0(y_l)))",
    call=(
        "from lossary.preference import HDPOLoss\n"
        "loss = HDPOLoss(beta=0.1, alpha=0.95)(\n"
        "    policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps\n"
        ")"
    ),
    claim="With an entropy coefficient slightly below 1, preference training solves more problems than DPO (pass@k).",
    use_when="a language model aligned on pairs comes out too flat or too sharp, and one number may be tuned",
    avoid_when="pairs differ much in length and alpha would be far from 1: the longer response is favoured or punished",
    golden=3,
    metric="pass@4",
    direction="higher",
    margin=0.0,
    baseline="alpha=1",
    method="alpha=0.9",
    seeds=8,
    limits=(
        "The paper's gains on GSM8K, HumanEval, MMLU-Pro and IFEval with a 7B model. The model here is a small network "
        "that writes the three digits of a product; the pairs are its own right and wrong answers."
    ),
)

ALPHAS = (0.8, 0.9, 1.0, 1.1)
BETA = 0.1
K = (1, 4, 16)
SIZE = 16  # factors 0 to 15
PROMPTS = torch.cartesian_prod(torch.arange(SIZE), torch.arange(SIZE))
TRUTH = PROMPTS.prod(1)
SLIP = 0.4  # share of wrong digits, so that a fifth of the answers are right
PAIRS = 4  # for each prompt
GAUSSIAN_ALPHAS = (0.6, 0.8, 0.9, 1.0, 1.1)
ENTROPY_ALPHAS = (0.8, 0.9, 1.0, 1.1)


def reproduce(run: Run) -> Evidence:
    """A model that writes a product digit by digit, trained on answers of which a fifth are right, then on pairs.

    Prompts are the 256 pairs of factors below 16, 40% of them kept for the test. The pairs are sampled from the
    model before: a right and a wrong answer to a training prompt. pass@k is exact: from the probability of the right
    answer. Beside it what alpha does where the optimum is known: 12 responses in a table, and one Gaussian for two.
    """
    for seed, arm in run.trials([_arm(alpha) for alpha in run.pick(ALPHAS, (1.0, 0.9))]):
        run.record(
            arm,
            **_products(seed, float(arm.rpartition("=")[2]), steps=run.pick(400, 20), steps_before=run.pick(600, 60)),
        )
    arms = run.pick(ALPHAS, (0.9, 1.0))
    entropy = [run.mean(_arm(alpha), "entropy") for alpha in arms]
    likeliest, of_pairs = (
        [run.mean(_arm(alpha), metric) for alpha in arms]
        for metric in ("right answer likeliest", "pass@4 where pairs were")
    )
    passed = {f"pass@{k}": [run.mean(_arm(alpha), f"pass@{k}") for alpha in arms] for k in K}
    tables = [_table_entropies(seed) for seed in range(run.pick(5, 1))]
    ordered = sum(table == sorted(table) for table in tables)
    gaussians = run.pick(GAUSSIAN_ALPHAS, (0.6, 1.0))
    fitted = [fit_gaussian(alpha) for alpha in gaussians]
    of_tables = [sum(column) / len(tables) for column in zip(*tables, strict=True)]
    rises = "rises" if entropy == sorted(entropy) else "does not rise"
    return run.conclude(
        series=[
            Series("Solved by alpha", "alpha", "pass@k on test prompts", arms, passed),
            Series("Entropy by alpha", "alpha", "nats for an answer", arms, {"policy": entropy}),
        ],
        notes=[
            f"Entropy of an answer to a test prompt: {_by_alpha(arms, entropy)}; it {rises} with alpha throughout.",
            f"On the test prompts the right answer is the likeliest one in a share of {_by_alpha(arms, likeliest)}; "
            f"on the prompts that pairs were made of pass@4 is {_by_alpha(arms, of_pairs)}.",
            f"In a table of 12 responses the entropy of the optimum rises with alpha in {ordered} of {len(tables)} "
            f"draws; means: {_by_alpha(ENTROPY_ALPHAS, of_tables)}.",
            "One Gaussian fitted to a mixture of two has mean and deviation "
            + ", ".join(f"{m:.2f}, {s:.2f} at {alpha:g}" for alpha, (m, s) in zip(gaussians, fitted, strict=True))
            + ".",
        ],
    )


def tabular_optimum(reward: Tensor, reference: Tensor, *, alpha: float, beta: float) -> Tensor:
    """The policy that the objective has as its only optimum, for given rewards and reference logits."""
    return torch.softmax(reference.log_softmax(0) / alpha + reward / (alpha * beta), 0)


def fit_table(reward: Tensor, reference: Tensor, *, alpha: float, beta: float) -> Tensor:
    """The policy that minimises the loss over all pairs of responses, labelled by Bradley-Terry on the reward."""
    one, other = torch.combinations(torch.arange(len(reward))).T
    chosen, rejected = torch.cat([one, other]), torch.cat([other, one])
    weight = torch.sigmoid(reward[chosen] - reward[rejected])
    known = reference.log_softmax(0)

    def loss(logits: Tensor) -> Tensor:
        log_p = logits.log_softmax(0)
        logps = log_p[chosen], log_p[rejected], known[chosen], known[rejected]
        return h_dpo_loss(*logps, alpha=alpha, beta=beta, sample_weight=weight)

    return _minimise(loss, torch.zeros_like(reward)).softmax(0)


def fit_gaussian(alpha: float) -> tuple[float, float]:
    """Mean and deviation of the Gaussian nearest, by the divergence, to 0.5 N(-2, 1) + 0.5 N(2, 0.7); on a grid."""
    grid = torch.linspace(-8, 8, 801, dtype=torch.float64)
    parts = [-(((grid - mean) / scale) ** 2) / 2 - math.log(scale) for mean, scale in ((-2.0, 1.0), (2.0, 0.7))]
    reference = torch.logsumexp(torch.stack(parts), 0)

    def divergence(parameters: Tensor) -> Tensor:
        mean, log_deviation = parameters
        policy = -((grid - mean) ** 2) / (2 * torch.exp(2 * log_deviation))
        return h_dpo_divergence(policy, reference, alpha=alpha)

    starts = torch.tensor([[0.0, 0.5], [-2.0, 0.0], [2.0, -0.5]], dtype=torch.float64)  # each near a local optimum
    mean, log_deviation = min((_minimise(divergence, start) for start in starts), key=divergence)
    return mean.item(), log_deviation.exp().item()


def _minimise(loss: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    parameters = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [parameters], max_iter=200, tolerance_grad=1e-11, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(parameters)
        torch.autograd.backward(value)
        return value

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return parameters.detach()


def _table_entropies(seed: int) -> list[float]:
    generator = seeding.generator(seed, "table")
    reward, reference = (torch.randn(12, generator=generator, dtype=torch.float64) for _ in range(2))
    policies = [fit_table(reward, reference, alpha=alpha, beta=0.3) for alpha in ENTROPY_ALPHAS]
    return [-(policy * policy.log()).sum().item() for policy in policies]


def _products(seed: int, alpha: float, *, steps: int, steps_before: int) -> dict[str, float]:
    """Preference training from the model that all arms of the seed share; measured on prompts without pairs."""
    reference, table, train = _before(seed, steps_before)
    chosen, rejected = _sampled_pairs(table[train], TRUTH[train], seeding.generator(seed, "pairs"))
    prompts = train.nonzero()[:, 0]
    usable = (chosen >= 0) & (rejected >= 0)
    prompts, chosen, rejected = prompts.repeat_interleave(PAIRS)[usable], chosen[usable], rejected[usable]
    model = copy.deepcopy(reference)
    optimizer = torch.optim.Adam(model.parameters(), 3e-4, fused=True)
    generator = seeding.generator(seed, "preference batches")
    for _ in range(steps):
        rows = torch.randint(len(prompts), (128,), generator=generator)
        x, won, lost = prompts[rows], chosen[rows], rejected[rows]
        of_won, of_lost = _logps(model, x.repeat(2), torch.cat([won, lost])).chunk(2)
        loss = h_dpo_loss(of_won, of_lost, table[x, won], table[x, lost], beta=BETA, alpha=alpha)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
    log_p = _all_logps(model)
    right = log_p.gather(1, TRUTH.unsqueeze(1)).squeeze(1).exp()
    test = ~train
    return {
        **{f"pass@{k}": (1 - (1 - right[test]) ** k).mean().item() for k in K},
        "entropy": -(log_p.exp() * log_p).sum(1)[test].mean().item(),
        "right answer likeliest": (log_p.argmax(1) == TRUTH)[test].double().mean().item(),
        "pass@4 where pairs were": (1 - (1 - right[train]) ** 4).mean().item(),
    }


@functools.cache
def _before(seed: int, steps: int) -> tuple[nn.Module, Tensor, Tensor]:
    """The model before, trained on answers a fifth of which are right; its log-probabilities; prompts with pairs."""
    model = mlp((2 * SIZE + 3 + 20, 128, 128, 10), seed)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3, fused=True)
    generator = seeding.generator(seed, "answers")
    for _ in range(steps):
        x = torch.randint(len(PROMPTS), (256,), generator=generator)
        digits = _digits(TRUTH[x])
        slip = torch.randint(1, 10, digits.shape, generator=generator)
        slips = torch.rand(digits.shape, generator=generator) < SLIP
        digits = torch.where(slips, (digits + slip) % 10, digits)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(-_logps(model, x, _number(digits)).mean())
        optimizer.step()
    train = torch.rand(len(PROMPTS), generator=seeding.generator(seed, "split")) < 0.6
    return model, _all_logps(model), train


def _sampled_pairs(log_p: Tensor, truth: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A right and a wrong answer among 8 samples, several times for each prompt; -1 where there is none."""
    answers = torch.multinomial(log_p.exp(), 8 * PAIRS, replacement=True, generator=generator).reshape(-1, 8)
    right = answers == truth.repeat_interleave(PAIRS).unsqueeze(1)
    first = [
        torch.where(kind.any(1), answers.gather(1, kind.long().argmax(1, keepdim=True))[:, 0], -1)
        for kind in (right, ~right)
    ]
    return first[0], first[1]


def _logps(model: nn.Module, prompt: Tensor, answer: Tensor) -> Tensor:
    """Log-probability of each answer."""
    digits = _digits(answer)
    return sequence_logps(model(_contexts(prompt, digits)), digits)


def _all_logps(model: nn.Module) -> Tensor:
    """Log-probabilities of all thousand answers to every prompt."""
    digits = _digits(torch.arange(1000))
    with torch.no_grad():
        levels = []
        for position, prefixes in enumerate((1, 10, 100)):  # answers with the same first digits share a context
            first = digits[:: 1000 // prefixes]
            prompt = torch.arange(len(PROMPTS)).repeat_interleave(prefixes)
            contexts = _contexts(prompt, first.repeat(len(PROMPTS), 1))[:, position]
            levels.append(model(contexts).log_softmax(1).reshape(len(PROMPTS), -1))
        table: Tensor = sum(level.repeat_interleave(1000 // level.shape[1], 1) for level in levels)
    return table


def _contexts(prompt: Tensor, digits: Tensor) -> Tensor:
    """What the network sees before each digit ``(B, 3, ...)``: both factors, the place, the digits so far."""
    factors = F.one_hot(PROMPTS[prompt], SIZE).flatten(1).unsqueeze(1).expand(-1, 3, -1)
    place = torch.eye(3).expand(len(digits), 3, 3)
    known = F.one_hot(digits[:, :2], 10).flatten(1).unsqueeze(1).expand(-1, 3, -1)
    seen = torch.tensor([[0, 0], [1, 0], [1, 1]]).repeat_interleave(10, 1)
    return torch.cat([factors, place, known * seen], 2).float()


def _digits(number: Tensor) -> Tensor:
    return torch.stack([number // 100, number // 10 % 10, number % 10], -1)


def _number(digits: Tensor) -> Tensor:
    return 100 * digits[..., 0] + 10 * digits[..., 1] + digits[..., 2]


def _by_alpha(alphas: Sequence[float], values: Sequence[float]) -> str:
    return ", ".join(f"{value:.3f} at {alpha:g}" for alpha, value in zip(alphas, values, strict=True))


def _arm(alpha: float) -> str:
    return f"alpha={alpha:g}"
