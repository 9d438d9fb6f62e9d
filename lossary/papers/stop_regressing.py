"""Stop Regressing (Farebrother et al. 2024): do value functions learn better as classifiers over bins?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lossary.core import seeding
from lossary.papers._evidence import Evidence, Series
from lossary.papers._paper import Paper
from lossary.papers._run import Run
from lossary.papers._training import digits, fit, mlp
from lossary.regression import (
    HLGaussLoss,
    atom_mean,
    categorical_td_loss,
    histogram_mean,
    hl_gauss_loss,
    two_hot_loss,
)

CARD = Paper(
    slug="stop_regressing",
    title="Stop Regressing: Training Value Functions via Classification for Scalable Deep RL",
    authors=(
        "Jesse Farebrother, Jordi Orbay, Quan Vuong, Adrien Ali Taïga, Yevgen Chebotar, Ted Xiao, Alex Irpan, Sergey "
        "Levine, Pablo Samuel Castro, Aleksandra Faust, Aviral Kumar, Rishabh Agarwal"
    ),
    arxiv="2403.03950",
    year=2024,
    family="regression",
    provides=(
        "hl_gauss_loss",
        "HLGaussLoss",
        "hl_gauss_target",
        "two_hot_loss",
        "TwoHotLoss",
        "two_hot_target",
        "categorical_td_loss",
        "CategoricalTDLoss",
        "categorical_projection",
        "histogram_mean",
        "atom_mean",
        "CategoricalValueHead",
    ),
    formula="L = -sum_i p_i log softmax(z)_i,  p_i the mass of N(y, sigma^2) in bin i",
    call=(
        "from lossary.regression import HLGaussLoss\n"
        "loss = HLGaussLoss(min_value=-10.0, max_value=10.0, num_bins=51)\n"
        "loss(logits, values)  # train\n"
        "loss.decode(logits)  # predict"
    ),
    claim="Value functions trained by HL-Gauss cross-entropy beat those trained by mean squared error.",
    use_when="a value function, or another regression with noisy or drifting targets, has a known range",
    avoid_when="the range is unknown, or a squared error on normalised targets already trains well",
    golden=5,
    metric="error of Q",
    direction="lower",
    margin=0.0,
    baseline="MSE, normalised",
    method="HL-Gauss",
    seeds=5,
    limits=(
        "Large networks, where the paper's gains grow, and Atari. The squared error is held against it on targets "
        "scaled by the known optimum, which a user would have to guess."
    ),
)

BINS = 51
ARMS = ("MSE", "MSE, normalised", "two-hot", "C51", "HL-Gauss")
DRIFT = ("MSE, normalised", "HL-Gauss")


def reproduce(run: Run) -> Evidence:
    """Fitted Q iteration on a random decision process of 50 states, and regression on a target that drifts.

    16 random features of a state, a 16-64-64 network, 60 updates of the target network with 30 steps between them, and
    an interval of values from 3 below the least to 3 above the largest optimal value. The verdict is on noisy rewards.
    """
    updates, phases, epochs = run.pick((60, 10, 10), (2, 2, 1))
    for seed, arm in run.trials(ARMS):
        results: dict[str, float] = {}
        for noise in run.pick((0.0, 1.0), (1.0,)):
            error, regret = _fitted_q_iteration(seed, arm, noise, updates)
            suffix = "" if noise else ", exact rewards"
            results |= {f"error of Q{suffix}": error, f"regret{suffix}": regret}
        if arm in DRIFT:
            warm, fresh = _drifting_regression(seed, arm, phases, epochs)
            results |= {"warm error / fresh error": warm / fresh}
        run.record(arm, **results)
    if run.quick:
        return run.conclude()
    metrics = ("error of Q", "error of Q, exact rewards")
    notes = [
        f"{arm}: error of Q {run.mean(arm, 'error of Q'):.2f} and regret {run.mean(arm, 'regret'):.2f}; "
        f"with exact rewards {run.mean(arm, 'error of Q, exact rewards'):.2f} and "
        f"{run.mean(arm, 'regret, exact rewards'):.2f}."
        for arm in ARMS
    ]
    ratios = ", ".join(f"{run.mean(arm, 'warm error / fresh error'):.2f} with {arm}" for arm in DRIFT)
    notes.append(f"After ten drifting targets a warm network's error is this many times a fresh one's: {ratios}.")
    y = {metric: [run.mean(arm, metric) for arm in ARMS] for metric in metrics}
    series = Series("Learning values", " | ".join(ARMS), "mean |Q - Q*|", list(range(len(ARMS))), y)
    return run.conclude(series=[series], notes=notes)


@dataclasses.dataclass(frozen=True)
class _Process:
    """A random decision process: 3 successors for each state and action, and its optimal values."""

    features: Tensor  # (50, 16)
    successors: Tensor  # (50, 4, 3)
    probability: Tensor  # (50, 4, 3)
    reward: Tensor  # (50, 4)
    optimum: Tensor  # (50, 4)
    discount: float = 0.95

    @classmethod
    def draw(cls, generator: torch.Generator) -> _Process:
        features = torch.randn(50, 16, generator=generator)
        successors = torch.randint(50, (50, 4, 3), generator=generator)
        probability = torch.rand(50, 4, 3, generator=generator)
        probability /= probability.sum(-1, keepdim=True)
        process = cls(features, successors, probability, torch.randn(50, 4, generator=generator), torch.zeros(50, 4))
        for _ in range(600):
            process.optimum.copy_(process.backup(process.optimum.amax(1)))
        return process

    def backup(self, value: Tensor) -> Tensor:
        """One exact Bellman step from the values of states (50,)."""
        return self.reward + self.discount * (self.probability * value[self.successors]).sum(-1)

    def regret(self, q: Tensor) -> float:
        """How much the greedy policy of q loses against the best one, mean over states."""
        policy = q.argmax(1, keepdim=True)
        value = torch.zeros(50)
        for _ in range(600):
            value = self.backup(value).gather(1, policy)[:, 0]
        return (self.optimum.amax(1) - value).mean().item()


def _fitted_q_iteration(seed: int, arm: str, noise: float, updates: int) -> tuple[float, float]:
    generator = seeding.generator(seed, "process")
    process = _Process.draw(generator)
    low, high = process.optimum.min().item() - 3, process.optimum.max().item() + 3
    center, scale = process.optimum.mean(), process.optimum.std()
    if arm != "MSE, normalised":
        center, scale = torch.tensor(0.0), torch.tensor(1.0)
    squared = arm.startswith("MSE")
    model = mlp((16, 64, 64, 4 * (1 if squared else BINS)), seed)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)

    def decode(output: Tensor) -> Tensor:
        """Values of the 4 actions (N, 4)."""
        if squared:
            return center + scale * output
        logits = output.reshape(-1, 4, BINS)
        mean = histogram_mean if arm == "HL-Gauss" else atom_mean
        return mean(logits, min_value=low, max_value=high)

    for _ in range(updates):
        with torch.no_grad():
            old = model(process.features)
            values = decode(old)
            best = values.argmax(1)
        for _ in range(30):
            state = torch.randint(50, (64,), generator=generator)
            action = torch.randint(4, (64,), generator=generator)
            branch = torch.multinomial(process.probability[state, action], 1, generator=generator)[:, 0]
            after = process.successors[state, action, branch]
            reward = process.reward[state, action] + noise * torch.randn(64, generator=generator)
            target = reward + process.discount * values.amax(1)[after]
            output = model(process.features[state])
            rows = torch.arange(64)
            if squared:
                loss = (output[rows, action] - (target - center) / scale).square().mean()
            else:
                logits = output.reshape(-1, 4, BINS)[rows, action]
                if arm == "C51":
                    next_probs = old.reshape(-1, 4, BINS)[after, best[after]].softmax(-1)
                    discount = torch.full((64,), process.discount)
                    loss = categorical_td_loss(logits, next_probs, reward, discount, min_value=low, max_value=high)
                else:
                    encoded = hl_gauss_loss if arm == "HL-Gauss" else two_hot_loss
                    loss = encoded(logits, target, min_value=low, max_value=high)
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimizer.step()
    with torch.no_grad():
        q = decode(model(process.features))
    return (q - process.optimum).abs().mean().item(), process.regret(q)


def _drifting_regression(seed: int, arm: str, phases: int, epochs: int) -> tuple[float, float]:
    """Test error on the last of several random functions of the digits, of a warm and of a fresh network."""
    data = digits(900, seed)
    functions = [mlp((64, 32, 1), seeding.derive(seed, "function", phase)) for phase in range(phases)]

    def targets(phase: int) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            train, test = functions[phase](data.x)[:, 0], functions[phase](data.x_test)[:, 0]
        return (train - train.mean()) / train.std(), (test - train.mean()) / train.std()

    def error(first: int) -> float:
        """Train on the functions from ``first`` on; error on the last."""
        bins = HLGaussLoss(-5.0, 5.0, BINS)
        model = mlp((64, 64, 64, BINS if arm == "HL-Gauss" else 1), seed)
        loss: Callable[[Tensor, Tensor], Tensor] = bins if arm == "HL-Gauss" else _squared
        optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
        for phase in range(first, phases):
            train, test = targets(phase)
            constant: Callable[[float], float] = lambda done: 1.0  # noqa: E731
            fit(
                model,
                data.x,
                train,
                loss,
                optimizer=optimizer,
                epochs=epochs,
                batch_size=64,
                seed=seed,
                learning_rate=constant,
            )
        with torch.no_grad():
            output = model(data.x_test)
        guess = bins.decode(output) if arm == "HL-Gauss" else output[:, 0]
        return (guess - test).square().mean().item()

    return error(0), error(phases - 1)


def _squared(output: Tensor, target: Tensor) -> Tensor:
    return nn.functional.mse_loss(output[:, 0], target)
