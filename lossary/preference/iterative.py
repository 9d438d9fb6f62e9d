"""Preferences that are made while training: rounds of sampling, scoring and training, around any preference loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

Prompt = TypeVar("Prompt")
Response = TypeVar("Response")


@dataclasses.dataclass(frozen=True)
class PreferencePair(Generic[Prompt, Response]):
    """Two responses to a prompt, the better first, with what the reward model gave them."""

    prompt: Prompt
    chosen: Response
    rejected: Response
    chosen_reward: float
    rejected_reward: float


class IterativePreferenceTrainer(Generic[Prompt, Response]):
    """Rounds of sampling, scoring and training: the best and the worst of some responses become a new pair.

    Reach for it around any preference loss (iterative Pairwise Cringe, iterative DPO) when a reward can be asked about
    fresh responses. Train on the first pairs before the first round. Nothing here stops a policy from exploiting its
    reward: look at samples.

    Args:
        policy_sampler: From prompts and a number to that many responses of the policy for each prompt.
        reward: From a prompt and a response to a number, higher for better.
        update: Trains the policy on all pairs so far, given as a list, from where the last round left it.
        pairs: The pairs to begin with.

    Attributes:
        pairs: All pairs so far, the newest last.
        history: For each round the mean reward of all responses, of the best and of the worst ones, and how many new
            pairs there were.

    Example:
        >>> policy = {"best": 1}
        >>> def update(pairs):
        ...     policy["best"] = max(pair.chosen for pair in pairs)
        >>> trainer = IterativePreferenceTrainer(
        ...     lambda prompts, count: [[policy["best"] + step for step in range(count)] for _ in prompts],
        ...     lambda prompt, response: float(response),
        ...     update)
        >>> for _ in range(2):
        ...     _ = trainer.round(["How many?"], 3)
        >>> policy["best"], [record["mean_reward"] for record in trainer.history]
        (5, [2.0, 4.0])

    Source:
        Xu, Lee, Sukhbaatar, Weston: Some things are more CRINGE than others (arXiv 2312.16682), iterative training.
    """

    def __init__(
        self,
        policy_sampler: Callable[[Sequence[Prompt], int], Sequence[Sequence[Response]]],
        reward: Callable[[Prompt, Response], float],
        update: Callable[[list[PreferencePair[Prompt, Response]]], Any],
        *,
        pairs: Sequence[PreferencePair[Prompt, Response]] = (),
    ) -> None:
        self.policy_sampler = policy_sampler
        self.reward = reward
        self.update = update
        self.pairs = list(pairs)
        self.history: list[dict[str, float]] = []

    def round(self, prompts: Sequence[Prompt], num_samples: int) -> Any:
        """Sample, score, add the best and the worst of each prompt as a pair, and train on all pairs.

        A prompt whose responses all have the same reward gives no pair.

        Args:
            prompts: What to respond to.
            num_samples: Responses for each prompt, at least 2.

        Returns:
            What ``update`` returns.

        Raises:
            ValueError: ``num_samples`` is below 2, there are no prompts, or the sampler returned another number of
                responses.
        """
        if isinstance(num_samples, bool) or not isinstance(num_samples, int) or num_samples < 2:
            raise ValueError(f"num_samples is {num_samples!r}; wanted 2 or more, since a pair is made of them.")
        if not prompts:
            raise ValueError("prompts is empty; wanted at least one.")
        sampled = self.policy_sampler(prompts, num_samples)
        counts = [len(responses) for responses in sampled]
        if counts != [num_samples] * len(prompts):
            raise ValueError(
                f"policy_sampler gave {counts} responses; wanted {num_samples} for each of {len(prompts)} prompts."
            )
        rewards: list[float] = []
        new = []
        for prompt, responses in zip(prompts, sampled, strict=True):
            scores = [float(self.reward(prompt, response)) for response in responses]
            rewards += scores
            best = max(range(num_samples), key=scores.__getitem__)
            worst = min(range(num_samples), key=scores.__getitem__)
            if scores[best] > scores[worst]:
                new.append(PreferencePair(prompt, responses[best], responses[worst], scores[best], scores[worst]))
        self.pairs += new
        self.history.append(
            {
                "mean_reward": sum(rewards) / len(rewards),
                "chosen_reward": sum(pair.chosen_reward for pair in new) / max(1, len(new)),
                "rejected_reward": sum(pair.rejected_reward for pair in new) / max(1, len(new)),
                "new_pairs": len(new),
            }
        )
        return self.update(self.pairs)
