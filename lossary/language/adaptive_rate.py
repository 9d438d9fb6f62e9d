"""A learning rate that follows the number of tokens in a step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lossary.core.checks import check_in_range
from lossary.core.ranks import sum_over_ranks

Schedule = Callable[[int], float | Sequence[float]]


def adaptive_learning_rate(lr: float, tokens: float, baseline_tokens: float) -> float:
    r"""Learning rate of a step on ``tokens`` tokens, given the one for ``baseline_tokens``.

    Reach for it in fine-tuning on answers alone, where the number of scored tokens varies from step to step: a nearly
    empty batch, whose gradient is noisy, moves the model less.

    Formula:
        .. math:: \eta' = \eta \sqrt{T / B}

    Args:
        lr: The rate :math:`\eta`, as scheduled.
        tokens: Scored tokens T in the step, over all micro-batches and ranks.
        baseline_tokens: The number B for which ``lr`` is meant. In the authors' trainer all positions of the step,
            those of prompts and padding included, so that the rate is never above ``lr``.

    Returns:
        The rate; 0 without tokens.

    Raises:
        TypeError: An argument is no number.
        ValueError: One is out of range.

    Example:
        >>> adaptive_learning_rate(1e-5, tokens=2048, baseline_tokens=8192)
        5e-06

    Source:
        Ociepa, Flis, Wróbel, Gwoździej, Kinas: Bielik 7B v0.1 (arXiv 2410.18565).
    """
    check_in_range("lr", lr, 0.0)
    check_in_range("tokens", tokens, 0.0)
    check_in_range("baseline_tokens", baseline_tokens, 0.0, low_open=True)
    return lr * math.sqrt(tokens / baseline_tokens)


class AdaptiveLRScheduler(LRScheduler):
    """Sets the learning rate of each step by its number of tokens, on top of any schedule.

    Reach for it as for :func:`adaptive_learning_rate`. Call :meth:`step` with the tokens of the step *before* the
    optimizer's, which are known then; it returns False where there are none, and the optimizer's step is better left
    out (Adam's moments would move by an empty gradient)::

        for micro_batch in batches:
            loss(model, micro_batch).backward()
            scheduler.add((micro_batch["labels"] != -100).sum())
        if scheduler.step():
            optimizer.step()
        optimizer.zero_grad()

    Args:
        optimizer: The optimizer.
        baseline_tokens: Tokens of a step for which the scheduled rate is meant.
        schedule: From the number of the step, beginning with 0, to the learning rate (one for all groups of parameters,
            or one for each); or another scheduler of the optimizer, which this one steps then. None keeps the rates
            that the groups have.
        gather: Sum tokens over the ranks of ``torch.distributed``; False where callers hand in what was summed, as
            Hugging Face's ``num_items_in_batch``.

    Raises:
        TypeError: ``baseline_tokens`` is no number.
        ValueError: It is not above 0.

    Example:
        >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
        >>> scheduler = AdaptiveLRScheduler(optimizer, baseline_tokens=400)
        >>> scheduler.step(100), scheduler.get_last_lr()
        (True, [0.05])

    Source:
        Ociepa, Flis, Wróbel, Gwoździej, Kinas: Bielik 7B v0.1 (arXiv 2410.18565).
    """

    def __init__(
        self,
        optimizer: Optimizer,
        baseline_tokens: float,
        schedule: Schedule | LRScheduler | None = None,
        *,
        gather: bool = True,
    ) -> None:
        check_in_range("baseline_tokens", baseline_tokens, 0.0, low_open=True)
        self.baseline_tokens = baseline_tokens
        self.schedule = schedule
        self.gather = gather
        self.tokens: Tensor | float | None = None
        super().__init__(optimizer)

    def _initial_step(self) -> None:
        # Other schedulers set the rate of the first step here; this one needs its tokens first.
        self._step_count = 0
        self.last_epoch = -1
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]
        if isinstance(self.schedule, LRScheduler):
            self._scheduled = list(self.schedule.get_last_lr())
        else:
            self._scheduled = list(self.base_lrs)

    def add(self, tokens: Tensor | float) -> None:
        """Count the tokens of a micro-batch towards the next step; a tensor is not waited for.

        Args:
            tokens: Scored tokens.
        """
        self.tokens = tokens if self.tokens is None else self.tokens + tokens

    def step(self, tokens: Tensor | float | None = None) -> bool:  # type: ignore[override]
        """Set the learning rate of the step that comes.

        Args:
            tokens: Scored tokens of the step, over its micro-batches; None are those that were added.

        Returns:
            Whether there are any.

        Raises:
            ValueError: There is no number of tokens, or it is negative.
        """
        if tokens is None and self.tokens is None:
            raise ValueError("tokens is None; wanted the tokens of this step, here or by add().")
        counted = self.tokens if tokens is None else tokens
        if self.gather:
            counted = sum_over_ranks(torch.as_tensor(counted, dtype=torch.float64))
        count, self.tokens = float(counted), None  # type: ignore[arg-type]
        self.last_epoch += 1
        self._step_count += 1
        self._scheduled = self._next_scheduled()
        rates = [adaptive_learning_rate(float(rate), count, self.baseline_tokens) for rate in self._scheduled]
        self._set(rates)
        self._last_lr = list(rates)
        return count > 0

    def get_lr(self) -> list[float | Tensor]:
        """The scheduled rates of the groups, before tokens scale them."""
        return list(self._scheduled)

    def state_dict(self) -> dict[str, Any]:
        """All that :meth:`load_state_dict` needs to go on, the state of a wrapped scheduler included.

        A ``schedule`` that is a function is not in it.
        """
        state = {name: value for name, value in self.__dict__.items() if name not in ("optimizer", "schedule")}
        if isinstance(self.schedule, LRScheduler):
            state["schedule"] = self.schedule.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where another was.

        Args:
            state_dict: What its :meth:`state_dict` gave.
        """
        state = dict(state_dict)
        inner = state.pop("schedule", None)
        if isinstance(self.schedule, LRScheduler):
            if inner is None:
                raise ValueError(
                    "state_dict has no state of a schedule; wanted that of the scheduler that this one wraps."
                )
            self.schedule.load_state_dict(inner)
        self.__dict__.update(state)

    def _next_scheduled(self) -> list[Any]:
        if self.schedule is None:
            return list(self.base_lrs)
        if isinstance(self.schedule, LRScheduler):
            if self.last_epoch > 0:
                self._set(self._scheduled)  # many schedulers go on from the rate that they find
                self.schedule.step()
            return list(self.schedule.get_last_lr())
        rates = self.schedule(self.last_epoch)
        groups = len(self.optimizer.param_groups)
        rates = list(rates) if isinstance(rates, Sequence) else [rates] * groups
        if len(rates) != groups:
            raise ValueError(
                f"schedule gives {len(rates)} rates; wanted one, or {groups} for the groups of parameters."
            )
        return rates

    def _set(self, rates: Sequence[Any]) -> None:
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
