"""TRL's trainer for preferences with the objectives of :mod:`lossary.preference`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from lossary.core.checks import check_in_range
from lossary.core.optional import optional
from lossary.preference import PreferenceDegreeHead, SPOLoss, degrade_response
from lossary.preference.degrees import Strategy

DPOTrainer: Any = optional("trl", needed_by="lossary.integrations.trl").DPOTrainer

_VERSIONS = ("version_input_ids", "version_attention_mask", "version_degrees")
_SIDES = ("chosen", "rejected")
_HEAD_FILE = "preference_degree_head.safetensors"


class HDPOTrainer(DPOTrainer):  # type: ignore[misc]  # a class of a library that need not be there
    """``trl.DPOTrainer`` with the loss of H-DPO.

    Reach for it as for TRL's own trainer, where its policy comes out too flat (alpha < 1 sharpens it) or too sharp.
    Everything else is TRL's: data, reference model, adapters (PEFT), logging, checkpoints. The rewards that it logs are
    those of :func:`lossary.preference.h_dpo_rewards`.

    Args:
        arguments: As ``trl.DPOTrainer``; ``beta`` comes from ``args``.
        alpha: Coefficient of the entropy, above 0; 1 is DPO.
        options: As ``trl.DPOTrainer``.

    Raises:
        ValueError: ``alpha`` is out of range, or ``args`` asks for something other than DPO's own loss.

    Example:
        >>> from trl import DPOConfig
        >>> trainer = HDPOTrainer(  # doctest: +SKIP
        ...     "Qwen/Qwen3-0.6B", alpha=0.95, args=DPOConfig("aligned", beta=0.1), train_dataset=pairs
        ... )
        >>> trainer.train()  # doctest: +SKIP

    Source:
        Omura, Fujita, Kataoka: Entropy Controllable Direct Preference Optimization (arXiv 2411.07595).
    """

    def __init__(self, *arguments: Any, alpha: float = 1.0, **options: Any) -> None:
        check_in_range("alpha", alpha, 0.0, low_open=True)
        self.alpha = alpha
        super().__init__(*arguments, **options)
        wanted = {
            "loss_type": ["sigmoid"],
            "f_divergence_type": "reverse_kl",
            "label_smoothing": 0.0,
            "use_weighting": False,
        }
        for name, value in wanted.items():
            if getattr(self.args, name) != value:
                raise ValueError(f"args.{name} is {getattr(self.args, name)!r}; wanted {value!r}, DPO's own, in H-DPO.")

    def _compute_loss(self, model: Callable[..., Any], inputs: dict[str, Any], return_outputs: bool) -> Any:
        # H-DPO is DPO on the policy's log-probabilities times alpha, the reference's left as they are.
        def scaled(**given: Any) -> Any:
            outputs = model(**given)
            if getattr(outputs, "log_probs", None) is not None:
                outputs.log_probs = self.alpha * outputs.log_probs
            return outputs

        loss = super()._compute_loss(scaled, inputs, return_outputs)
        for side in _SIDES:
            logged = self._metrics["train" if self.model.training else "eval"][f"logps/{side}"]
            logged[-1] /= self.alpha
        return loss


class SPOTrainer(DPOTrainer):  # type: ignore[misc]  # a class of a library that need not be there
    """``trl.DPOTrainer`` with the degree losses of SPO beside its own loss, whichever that is.

    Reach for it as for TRL's own trainer, with any ``loss_type``, where rewards shall also follow how good a response
    is. It makes ``num_degrees`` versions of every response and adds a forward pass over them. The head that tells
    degrees is trained with the model and kept in a file of its own in checkpoints; saved models are without it.

    Args:
        arguments: As ``trl.DPOTrainer``, for data sets of text.
        gamma: Weight of the degree losses, at least 0.
        num_degrees: Number of versions of each response, the unmodified one included.
        stopwords: Words that no key phrase contains; scikit-learn's English ones where it is None.
        strategy: ``rake`` or ``random``, as in :func:`lossary.preference.degrade_response`.
        options: As ``trl.DPOTrainer``.

    Raises:
        ValueError: ``gamma``, ``num_degrees`` or ``strategy`` is wrong, or the data have images.

    Example:
        >>> from trl import DPOConfig
        >>> trainer = SPOTrainer(  # doctest: +SKIP
        ...     "Qwen/Qwen3-0.6B", gamma=1.0, args=DPOConfig("aligned", beta=0.1), train_dataset=pairs
        ... )
        >>> trainer.train()  # doctest: +SKIP

    Source:
        Li et al.: Self-supervised Preference Optimization (Findings of EMNLP 2024, arXiv 2409.17791).
    """

    def __init__(
        self,
        *arguments: Any,
        gamma: float = 1.0,
        num_degrees: int = 4,
        stopwords: Collection[str] | None = None,
        strategy: Strategy = "rake",
        **options: Any,
    ) -> None:
        check_in_range("gamma", gamma, 0.0)
        if stopwords is None:
            text = optional("sklearn.feature_extraction.text", needed_by="SPOTrainer without stopwords")
            stopwords = text.ENGLISH_STOP_WORDS
        self.gamma = gamma
        self.num_degrees = num_degrees
        self._degrade: dict[str, Any] = {"num_degrees": num_degrees, "stopwords": stopwords, "strategy": strategy}
        degrade_response("", **self._degrade)  # so that a wrong option is told before the data are prepared
        super().__init__(*arguments, **options)
        if self._is_vision_dataset:
            raise ValueError("The data have images; wanted text alone.")
        self.data_collator = _WithVersions(self)
        width = self.model.config.get_text_config().hidden_size
        head = PreferenceDegreeHead(width, num_degrees).to(self.model.device, self.model.dtype)
        self.model.preference_degree_head = head  # a part of the model, so that optimizer and ranks know it

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        dataset = super()._prepare_dataset(dataset, processing_class, args, dataset_name)
        generator = torch.Generator().manual_seed(args.seed)

        def add_versions(example: dict[str, Any]) -> dict[str, Any]:
            return {
                f"{side}_versions": _versions(example[f"{side}_ids"], self._tokenizer, generator, self._degrade)
                for side in _SIDES
            }

        return dataset.map(add_versions)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns = [f"{side}_versions" for side in _SIDES]
        self._signature_columns += [name for name in columns if name not in self._signature_columns]

    def compute_ref_log_probs(self, model: Any, inputs: dict[str, Any]) -> Any:
        """Log-probabilities under the reference, which sees the unmodified responses alone.

        Args:
            model: The reference.
            inputs: A batch.

        Returns:
            Those of the chosen and those of the rejected responses.
        """
        return super().compute_ref_log_probs(model, _without_versions(inputs))

    def _compute_loss(self, model: Callable[..., Any], inputs: dict[str, Any], return_outputs: bool) -> Any:
        result = super()._compute_loss(model, _without_versions(inputs), return_outputs)
        alignment = result[0] if return_outputs else result
        tokens, mask, degrees = (inputs[name] for name in _VERSIONS)
        outputs = model(
            input_ids=tokens, attention_mask=mask, output_hidden_states=True, logits_to_keep=1, use_cache=False
        )
        head = self.accelerator.unwrap_model(model).preference_degree_head
        logits = head(outputs.hidden_states[-1], mask).unflatten(0, degrees.shape)
        loss = SPOLoss(lambda: alignment, self.gamma)(logits[0], degrees[0], logits[1], degrees[1])
        right = (logits.argmax(-1) == degrees)[degrees >= 0]
        metrics = self._metrics["train" if self.model.training else "eval"]
        if right.numel():
            metrics["degree_accuracy"].append(right.float().mean().item())
        return (loss, result[1]) if return_outputs else loss

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        from safetensors.torch import save_file

        state = dict(self.model.state_dict() if state_dict is None else state_dict)
        inner = [name for name in state if ".preference_degree_head." in f".{name}"]
        head = {name.rpartition(".")[2]: state.pop(name).detach().cpu().contiguous() for name in inner}
        super()._save(output_dir, state_dict=state)
        save_file(head, Path(output_dir or self.args.output_dir) / _HEAD_FILE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        from safetensors.torch import load_file

        super()._load_from_checkpoint(resume_from_checkpoint, model)
        known = load_file(Path(resume_from_checkpoint) / _HEAD_FILE)
        self.accelerator.unwrap_model(model or self.model).preference_degree_head.load_state_dict(known)


class _WithVersions:
    """Collates as another collator does, and the versions of chosen, then of rejected responses.

    Versions that do not exist are the prompt alone, with degree -100.
    """

    def __init__(self, trainer: Any) -> None:
        self.collator = trainer.data_collator
        self.padding: int = trainer._tokenizer.pad_token_id

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = self.collator(examples)
        length = getattr(self.collator, "max_length", None)
        end = getattr(self.collator, "truncation_mode", "keep_start") == "keep_end"
        kept = slice(None) if length is None else slice(-length, None) if end else slice(length)
        count = max(len(example[f"{side}_versions"]) for example in examples for side in _SIDES) or 1
        tokens, degrees = [], []
        for side in _SIDES:
            for example in examples:
                versions = example[f"{side}_versions"]
                degrees += [*range(len(versions)), *[-100] * (count - len(versions))]
                rows = [example["prompt_ids"] + version for version in versions]
                rows += [example["prompt_ids"] or [self.padding]] * (count - len(versions))
                tokens += [torch.tensor(row[kept]) for row in rows]
        batch["version_input_ids"] = pad_sequence(tokens, batch_first=True, padding_value=self.padding)
        batch["version_attention_mask"] = pad_sequence([torch.ones_like(row) for row in tokens], batch_first=True)
        batch["version_degrees"] = torch.tensor(degrees).reshape(2, len(examples), count)
        return batch


def _versions(
    tokens: list[int], tokenizer: Any, generator: torch.Generator, options: dict[str, Any]
) -> list[list[int]]:
    """Tokens of each version of a response, none if it has no key phrase; special tokens around it stay."""
    special = set(tokenizer.all_special_ids)
    plain = [place for place, token in enumerate(tokens) if token not in special]
    if not plain:
        return []
    before, body, after = tokens[: plain[0]], tokens[plain[0] : plain[-1] + 1], tokens[plain[-1] + 1 :]
    text, *versions = degrade_response(tokenizer.decode(body), generator=generator, **options)
    if all(version == text for version in versions):
        return []
    shorter = [tokenizer(version, add_special_tokens=False)["input_ids"] for version in versions]
    return [tokens, *(before + version + after for version in shorter)]


def _without_versions(inputs: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in inputs.items() if name not in _VERSIONS}
