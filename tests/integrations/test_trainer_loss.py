"""Trainer with objectives of Lossary: a real run on generated sums, accumulation, and a checkpoint that goes on."""

from pathlib import Path
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from lossary.classification import FocalLoss, Poly1CrossEntropyLoss, focal_loss  # noqa: E402
from lossary.integrations import trainer_loss  # noqa: E402
from lossary.language import (  # noqa: E402
    CrossEntropyWithNumberTokenLoss,
    LinearFocalLoss,
    PowerLawDecayLoss,
    WeightedInstructionLoss,
    instruction_mask,
    number_token_loss,
    number_values_from_tokenizer,
)


def tokenizer() -> Any:
    """Characters are tokens."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    vocab = {token: entry for entry, token in enumerate(["<pad>", "<end>", "+", "=", *"0123456789"])}
    made = Tokenizer(models.WordLevel(vocab, unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex("<end>|."), "isolated")
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="<end>")


TOKENIZER = tokenizer()


def model() -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=16,  # two more than the tokenizer has, as heads that are padded
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=1,
        eos_token_id=1,
    )
    return transformers.LlamaForCausalLM(config)


def sums(count: int) -> list[dict[str, list[int]]]:
    """Sums of different lengths, of which answers alone are scored."""
    generator = torch.Generator().manual_seed(1)
    rows = []
    for a, b in torch.randint(60, (count, 2), generator=generator).tolist():
        tokens = torch.tensor(TOKENIZER(f"{a}+{b}={a + b}<end>")["input_ids"])
        labels = instruction_mask(tokens, TOKENIZER("=")["input_ids"], TOKENIZER("<end>")["input_ids"])
        rows.append({"input_ids": tokens.tolist(), "labels": labels.tolist()})
    return rows


def train(loss: Any, folder: Path, *, resume: bool | None = None, **options: Any) -> Any:
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        **{
            "per_device_train_batch_size": 8,
            "learning_rate": 1e-2,
            "max_grad_norm": 0.0,
            "lr_scheduler_type": "constant",
            "optim": "sgd",
            "logging_steps": 1,
            "report_to": [],
            "save_strategy": "no",
            "use_cpu": True,
            "seed": 0,
            "disable_tqdm": True,
            "max_steps": 4,
        }
        | options,
    )
    trainer = transformers.Trainer(
        model=model(),
        args=arguments,
        train_dataset=sums(32),
        data_collator=transformers.DataCollatorForTokenClassification(TOKENIZER),
        compute_loss_func=loss,
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def losses(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def numbers() -> CrossEntropyWithNumberTokenLoss:
    return CrossEntropyWithNumberTokenLoss.from_tokenizer(TOKENIZER, vocab_size=16)


def test_cross_entropy_by_another_name_trains_as_the_stock_loss(tmp_path: Path) -> None:
    options = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4, "max_steps": 2}
    stock = train(None, tmp_path, **options)
    for loss in (
        trainer_loss(focal_loss, gamma=0.0),
        trainer_loss(WeightedInstructionLoss(ignore_index=-7)),
    ):
        ours = train(loss, tmp_path, **options)
        assert losses(ours) == pytest.approx(losses(stock), rel=1e-4)
        torch.testing.assert_close(dict(ours.model.state_dict()), dict(stock.model.state_dict()))


@pytest.mark.parametrize(
    "make", [numbers, lambda: PowerLawDecayLoss.from_token_ids([row["labels"] for row in sums(32)], 16, epsilon=1.0)]
)
def test_accumulation_equals_one_batch(make: Any, tmp_path: Path) -> None:
    """Micro-batches of unequal numbers of scored tokens add up: same losses, same weights."""
    whole = train(trainer_loss(make()), tmp_path, max_steps=2)
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "max_steps": 2}
    parts = train(trainer_loss(make()), tmp_path, **options)
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-4)
    torch.testing.assert_close(dict(parts.model.state_dict()), dict(whole.model.state_dict()))


def test_a_real_run_and_its_checkpoint(tmp_path: Path) -> None:
    """The loss falls; a run that is cut off and resumed ends in the state of one that was not."""
    options = {"optim": "adamw_torch", "learning_rate": 3e-2, "lr_scheduler_type": "linear"}
    options |= {"save_strategy": "steps", "save_steps": 12}
    whole = train(trainer_loss(numbers()), tmp_path / "whole", max_steps=24, **options)
    curve = losses(whole)
    assert sum(curve[-4:]) < 0.75 * sum(curve[:4])
    for later in (tmp_path / "whole").glob("checkpoint-24"):
        later.rename(tmp_path / "later")
    resumed = train(trainer_loss(numbers()), tmp_path / "whole", max_steps=24, resume=True, **options)
    assert resumed.state.global_step == 24
    assert losses(resumed)[-12:] == pytest.approx(curve[-12:], rel=1e-5)
    torch.testing.assert_close(dict(resumed.model.state_dict()), dict(whole.model.state_dict()))
    one, other = (
        torch.load(next(folder.glob("optimizer.pt")), weights_only=True)
        for folder in (tmp_path / "later", tmp_path / "whole" / "checkpoint-24")
    )
    torch.testing.assert_close(one["state"], other["state"])
    assert resumed.evaluate(sums(8))["eval_loss"] > 0


def test_labels_are_shifted_and_ignored() -> None:
    logits = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[-100, 4, 6, 1, -100], [5, 6, 7, -100, 9]])
    outputs = {"logits": logits}
    values = number_values_from_tokenizer(TOKENIZER, 16)
    loss = trainer_loss(number_token_loss, number_values=values)
    aligned = torch.cat([labels[:, 1:], torch.full((2, 1), -100)], 1)
    rows = number_token_loss(logits, aligned, values, reduction="none")
    torch.testing.assert_close(loss(outputs, labels), number_token_loss(logits, aligned, values))
    torch.testing.assert_close(loss(outputs, labels, num_items_in_batch=torch.tensor(6)), rows.sum() / 6)
    torch.testing.assert_close(loss((logits,), labels, num_items_in_batch=6), rows.sum() / 6)
    unshifted = trainer_loss(number_token_loss, shift=False, number_values=values)
    torch.testing.assert_close(unshifted(outputs, labels), number_token_loss(logits, labels, values))
    nothing = loss(outputs, torch.full((2, 5), -100), num_items_in_batch=torch.tensor(0))
    assert nothing == 0


def test_other_objectives_are_refused() -> None:
    with pytest.raises(TypeError, match="objective is linear_focal_loss, on hidden states"):
        trainer_loss(LinearFocalLoss())
    with pytest.raises(TypeError, match="with parameters, which Trainer would not train"):
        trainer_loss(Poly1CrossEntropyLoss(epsilon=torch.nn.Parameter(torch.tensor(1.0))))
    with pytest.raises(ValueError, match="labels is None"):
        trainer_loss(FocalLoss())({"logits": torch.zeros(1, 2, 3)}, None)
