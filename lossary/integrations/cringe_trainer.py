"""Pairwise Cringe as a trainer: pairs of responses in, a causal language model out, no reference model."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, Trainer, TrainingArguments

from lossary.preference import PairwiseCringeLoss

IGNORED = -100


class PreferenceCollator:
    """Rows of a prompt and two responses as one padded batch: the better responses first, then the worse.

    Args:
        tokenizer: Of the model; its end-of-text token closes each response.
        max_length: Longest row in tokens. The prompt loses its beginning, then the response its end.

    Example:
        >>> collate = PreferenceCollator(None)
        >>> batch = collate([{"prompt": [5, 6], "chosen": [7], "rejected": [8, 9]}])
        >>> batch["input_ids"]
        tensor([[5, 6, 7, 0],
                [5, 6, 8, 9]])
        >>> batch["pair_labels"]
        tensor([[-100, -100,    7, -100],
                [-100, -100,    8,    9]])
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None, max_length: int | None = None) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length

    def __call__(self, rows: Sequence[Mapping[str, str | Sequence[int]]]) -> dict[str, Tensor]:
        """Make the batch.

        Args:
            rows: Each with ``prompt``, ``chosen`` and ``rejected``, as text or as token numbers.
        """
        sides = [self._joined(row, side) for side in ("chosen", "rejected") for row in rows]
        width = max(len(prompt) + len(response) for prompt, response in sides)
        pad = getattr(self.tokenizer, "pad_token_id", None) or 0
        input_ids, mask, labels = [], [], []
        for prompt, response in sides:
            missing = width - len(prompt) - len(response)
            input_ids.append([*prompt, *response, *[pad] * missing])
            mask.append([1] * (width - missing) + [0] * missing)
            labels.append([IGNORED] * len(prompt) + [*response, *[IGNORED] * missing])
        return {
            "input_ids": torch.tensor(input_ids),
            "attention_mask": torch.tensor(mask),
            "pair_labels": torch.tensor(labels),
        }

    def _joined(self, row: Mapping[str, str | Sequence[int]], side: str) -> tuple[list[int], list[int]]:
        prompt, response = (self._tokens(row, name, ends=name != "prompt") for name in ("prompt", side))
        if self.max_length is not None:
            prompt = prompt[max(0, len(prompt) + len(response) - self.max_length) :] or prompt[-1:]
            response = response[: max(1, self.max_length - len(prompt))]
        return prompt, response

    def _tokens(self, row: Mapping[str, str | Sequence[int]], name: str, *, ends: bool) -> list[int]:
        if name not in row:
            raise ValueError(f"A row has {', '.join(row)}; wanted prompt, chosen and rejected.")
        content = row[name]
        if not isinstance(content, str):
            tokens = list(content)
        elif self.tokenizer is None:
            raise ValueError(f"{name} is text; wanted processing_class=tokenizer, or token numbers.")
        else:
            tokens = list(self.tokenizer(content, add_special_tokens=not ends)["input_ids"])
            end = self.tokenizer.eos_token_id
            if not ends and tokens and tokens[-1] == end:
                tokens = tokens[:-1]
            if ends and end is not None:
                tokens.append(end)
        if not tokens:
            raise ValueError(f"{name} has no tokens; wanted at least one in prompt, chosen and rejected.")
        return tokens


class PairwiseCringeTrainer(Trainer):
    """``transformers.Trainer`` on pairs of a better and a worse response, by the Pairwise Cringe loss.

    Reach for it to train a causal language model on preferences without a reference model. All of ``Trainer`` works as
    ever: accumulation, checkpoints and resuming, evaluation, schedules. The draws of the loss come from PyTorch's
    generator, which checkpoints hold. Logged beside the loss are ``gate``, the mean gate of the pairs, and ``ranked``,
    the share of pairs whose better response is more likely than the worse.

    Args:
        model: A causal language model that returns ``logits``.
        args: As for ``Trainer``; columns are kept whatever it says.
        train_dataset: Rows with ``prompt``, ``chosen`` and ``rejected``, as text or as token numbers.
        processing_class: The tokenizer; not needed for token numbers.
        loss: Options of the loss; None is ``PairwiseCringeLoss()``. Its ``tau`` should suit the responses' length.
        max_length: Longest row in tokens.
        options: Further words of ``Trainer``.

    Attributes:
        loss: The loss.

    Example:
        >>> import tempfile
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        ...     num_attention_heads=2)
        >>> rows = [{"prompt": [1, 2], "chosen": [3, 4], "rejected": [5, 5]}] * 4
        >>> arguments = TrainingArguments(tempfile.mkdtemp(), max_steps=1, report_to=[], use_cpu=True,
        ...     disable_tqdm=True)
        >>> trainer = PairwiseCringeTrainer(LlamaForCausalLM(config), arguments, train_dataset=rows)
        >>> trainer.train().global_step
        {...}
        1

    Source:
        Xu, Lee, Sukhbaatar, Weston: Some things are more CRINGE than others: Preference Optimization with the Pairwise
        Cringe Loss (arXiv 2312.16682).
    """

    loss_is_scaled_for_ga = False  # a mean over the pairs of one batch

    def __init__(
        self,
        model: Any = None,
        args: TrainingArguments | None = None,
        *,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        loss: PairwiseCringeLoss | None = None,
        max_length: int | None = None,
        data_collator: Any = None,
        **options: Any,
    ) -> None:
        args = TrainingArguments() if args is None else copy.copy(args)
        args.remove_unused_columns = False
        self.loss = PairwiseCringeLoss() if loss is None else loss
        if self.loss.reduction != "mean":
            raise ValueError(
                f"The loss has reduction {self.loss.reduction!r}; wanted 'mean', over the pairs of a batch."
            )
        self._seen: dict[str, list[Tensor]] = {}
        super().__init__(
            model,
            args,
            data_collator=data_collator or PreferenceCollator(processing_class, max_length),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **options,
        )
        self.model_accepts_loss_kwargs = False

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The loss of a batch of :class:`PreferenceCollator`.

        Args:
            model: The model.
            inputs: The batch.
            return_outputs: Whether to return the model's outputs too.
            num_items_in_batch: Not used: the loss is a mean over pairs.
        """
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        chosen, rejected = outputs.logits[:, :-1].chunk(2)
        chosen_target, rejected_target = inputs["pair_labels"][:, 1:].chunk(2)
        loss = self.loss(chosen, chosen_target, rejected, rejected_target)
        with torch.no_grad():
            gate, gap = self.loss.gate(chosen, chosen_target, rejected, rejected_target)
        for name, values in (("gate", gate), ("ranked", (gap > 0).float())):
            self._seen.setdefault(name if model.training else f"eval_{name}", []).append(values.cpu())
        return (loss, outputs) if return_outputs else loss

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The loss of a batch without gradient; logits are not kept."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, inputs)
        return loss.detach(), None, None

    def log(self, logs: dict[str, float], *rest: Any, **more: Any) -> None:
        """Log with the mean gate and the share of pairs ranked well since the last time.

        Args:
            logs: What ``Trainer`` logs.
            rest: Its further arguments.
            more: Its further words.
        """
        evaluated = any(name.startswith("eval_") for name in logs)
        for name in [name for name in self._seen if name.startswith("eval_") == evaluated]:
            logs[name] = torch.cat(self._seen.pop(name)).mean().item()
        super().log(logs, *rest, **more)
