"""TRL's trainer really trains a tiny model offline: the loss falls, checkpoints resume, numbers are those of ours."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

trl = pytest.importorskip("trl", reason="trl is not installed")

from datasets import Dataset  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: E402

from lossary.integrations import HDPOTrainer, SPOTrainer  # noqa: E402
from lossary.preference import h_dpo_loss, h_dpo_rewards, preference_degree_loss  # noqa: E402
from tests.processes import run_clean  # noqa: E402

WORDS = ["how", "is", "it", "?", "the", "a", "screen", "battery", "good", "bad", "bright", "weak", "and", "thing"]
PAIRS = [
    {"prompt": "how is it ?", "chosen": " the screen is bright and the battery good", "rejected": " a thing is weak"},
    {"prompt": "how is the screen ?", "chosen": " bright and good", "rejected": " the screen is bad and a thing weak"},
    {"prompt": "how is the battery ?", "chosen": " the battery is good", "rejected": " it is weak"},
    {"prompt": "is it good ?", "chosen": " it is", "rejected": " the thing is bad"},  # nothing but stop words
] * 2


def tokenizer() -> Any:
    specials = {"unk_token": "<unk>", "pad_token": "<pad>", "eos_token": "</s>"}
    vocabulary = {word: number for number, word in enumerate([*specials.values(), *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, **specials)


def build(trainer: type, folder: Path, *, seed: int = 0, **options: Any) -> Any:
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            **{"vocab_size": 17, "hidden_size": 16, "intermediate_size": 24, "pad_token_id": 1, "eos_token_id": 2},
            **{"num_hidden_layers": 1, "num_attention_heads": 2, "bos_token_id": None},
        )
    )
    settings = {"beta": 0.3, "learning_rate": 1e-2, "lr_scheduler_type": "constant", "max_steps": 6, "save_steps": 3}
    settings |= {"per_device_train_batch_size": 4, "logging_steps": 1, "report_to": [], "use_cpu": True, "bf16": False}
    settings |= {"gradient_checkpointing": False, "disable_tqdm": True} | options.pop("settings", {})
    return trainer(
        model,
        ref_model=copy.deepcopy(model),
        args=trl.DPOConfig(str(folder), **settings),
        train_dataset=Dataset.from_list(PAIRS),
        processing_class=tokenizer(),
        **options,
    )


def train(trainer: Any, resume: str | None = None) -> list[float]:
    trainer.train(resume_from_checkpoint=resume)
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize(
    ("trainer", "options"), [(HDPOTrainer, {"alpha": 0.9}), (SPOTrainer, {"gamma": 0.5, "num_degrees": 3})]
)
def test_trains_and_resumes(trainer: type, options: dict[str, Any], tmp_path: Path) -> None:
    whole = build(trainer, tmp_path / "whole", **options)
    losses = train(whole)
    assert len(losses) == 6
    assert losses[-1] < losses[0] - 0.05
    again = build(trainer, tmp_path / "again", seed=1, **options)  # other weights, so that resuming must load them
    again.ref_model.load_state_dict(build(trainer, tmp_path / "reference", **options).ref_model.state_dict())
    resumed = train(again, resume=str(tmp_path / "whole" / "checkpoint-3"))
    assert resumed == pytest.approx(losses, rel=1e-4)
    torch.testing.assert_close(again.model.state_dict(), whole.model.state_dict())


def batch_of(trainer: Any) -> tuple[dict[str, Any], list[torch.Tensor]]:
    """A batch, and its four log-probabilities computed from plain logits."""
    batch = trainer.data_collator([trainer.train_dataset[place] for place in range(4)])
    found = []
    for model in (trainer.model, trainer.ref_model):
        with torch.no_grad():
            log_p = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1].log_softmax(-1)
        tokens, mask = batch["input_ids"][:, 1:], batch["completion_mask"][:, 1:]
        found += (log_p.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) * mask).sum(1).chunk(2)
    return batch, found


def test_h_dpo_gives_our_loss_and_rewards(tmp_path: Path) -> None:
    trainer = build(HDPOTrainer, tmp_path, alpha=0.8)
    with torch.no_grad():
        trainer.model.lm_head.weight.add_(0.1 * torch.randn_like(trainer.model.lm_head.weight))
    batch, logps = batch_of(trainer)
    loss = trainer.compute_loss(trainer.model, batch)
    torch.testing.assert_close(loss.detach(), h_dpo_loss(*logps, beta=0.3, alpha=0.8))
    chosen, rejected = h_dpo_rewards(*logps, beta=0.3, alpha=0.8)
    logged = trainer._metrics["train" if trainer.model.training else "eval"]
    assert logged["rewards/chosen"][-1] == pytest.approx(chosen.mean().item(), rel=1e-4)
    assert logged["rewards/margins"][-1] == pytest.approx((chosen - rejected).mean().item(), rel=1e-4)
    assert logged["logps/chosen"][-1] == pytest.approx(logps[0].mean().item(), rel=1e-4)


def test_spo_adds_degree_losses_to_trl_own(tmp_path: Path) -> None:
    trainer = build(SPOTrainer, tmp_path, gamma=0.5, num_degrees=3, settings={"loss_type": ["ipo"]})
    batch, _ = batch_of(trainer)
    degrees = batch["version_degrees"]
    assert degrees[:, :3].tolist()[0] == [[0, 1, 2], [0, 1, 2], [0, 1, 2]]
    assert degrees[0, 3].tolist() == [-100] * 3
    words = [trainer._tokenizer.decode(row) for row in batch["version_input_ids"][:3]]
    assert words[0].startswith("how is it ? the screen is bright and the battery good </s>")
    assert words[2].count("</s>") == 1
    assert len(words[2].replace("<pad>", "").split()) < len(words[0].split())
    plain = {name: value for name, value in batch.items() if not name.startswith("version_")}
    loss = trainer.compute_loss(trainer.model, batch)
    alignment = trl.DPOTrainer._compute_loss(trainer, trainer.model, plain, False)
    hidden = trainer.model.model(batch["version_input_ids"], attention_mask=batch["version_attention_mask"])[0]
    last = batch["version_attention_mask"].sum(1) - 1
    logits = trainer.model.preference_degree_head(hidden[torch.arange(len(hidden)), last])
    none = preference_degree_loss(logits, degrees.flatten(), reduction="none").reshape(degrees.shape)
    by_response = none.sum(-1) / 3  # the fourth chosen response has no version and counts as 0
    torch.testing.assert_close(loss, alignment + 0.5 * by_response.mean(1).sum())
    gradient = torch.autograd.grad(loss - alignment, trainer.model.model.embed_tokens.weight)[0]
    assert gradient.any(), "degree losses do not reach the model"


def test_spo_saves_models_without_the_head(tmp_path: Path) -> None:
    trainer = build(SPOTrainer, tmp_path, settings={"precompute_ref_log_probs": True})
    trainer.save_model(str(tmp_path / "model"))
    saved = load_file(tmp_path / "model" / "model.safetensors")
    assert not [name for name in saved if "degree" in name]
    assert set(load_file(tmp_path / "model" / "preference_degree_head.safetensors")) == {"weight", "bias"}
    LlamaForCausalLM.from_pretrained(tmp_path / "model")


def test_what_does_not_go_together(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"args.loss_type is \['ipo'\]; wanted \['sigmoid'\]"):
        build(HDPOTrainer, tmp_path, settings={"loss_type": ["ipo"]})
    with pytest.raises(ValueError, match="alpha is 0"):
        build(HDPOTrainer, tmp_path, alpha=0)
    with pytest.raises(ValueError, match="num_degrees is 1"):
        build(SPOTrainer, tmp_path, num_degrees=1)


def test_integrations_import_without_trl_and_say_what_is_missing() -> None:
    code = (
        "import sys; import lossary.integrations; assert not {'trl', 'transformers'} & set(sys.modules)\n"
        "sys.modules['trl'] = None\n"
        "try: lossary.integrations.HDPOTrainer\n"
        "except ImportError as error: print(error)"
    )
    assert "lossary.integrations.trl needs trl, which is not installed: pip install trl." in run_clean(code)
