"""A tiny language model, made on the spot, really trained on pairs: the loss falls, and a stopped run goes on."""

from pathlib import Path
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")

from lossary.integrations import PairwiseCringeTrainer, PreferenceCollator  # noqa: E402
from lossary.preference import PairwiseCringeLoss  # noqa: E402
from tests.processes import run_clean  # noqa: E402

WORDS = [
    "the",
    "cat",
    "dog",
    "bird",
    "sat",
    "ran",
    "flew",
    "on",
    "over",
    "under",
    "mat",
    "hill",
    "tree",
    "what",
    "did",
    "do",
]
ROWS = [
    {
        "prompt": f"what did the {animal} do",
        "chosen": f"the {animal} {verb} {place}",
        "rejected": f"the {animal} the {animal} the {animal}",
    }
    for animal, verb in (("cat", "sat"), ("dog", "ran"), ("bird", "flew"))
    for place in ("on the mat", "over the hill", "under the tree", "on the tree")
]


def tokenizer() -> Any:
    vocabulary = {word: number for number, word in enumerate(["<pad>", "<end>", "<unk>", *WORDS])}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token="<pad>", eos_token="<end>", unk_token="<unk>"
    )


def trainer(folder: Path, steps: int, **options: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(WORDS) + 3,
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=3,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        logging_steps=1,
        save_steps=8,
        report_to=[],
        use_cpu=True,
        seed=0,
        disable_tqdm=True,
    )
    return PairwiseCringeTrainer(
        transformers.LlamaForCausalLM(config),
        arguments,
        train_dataset=ROWS,
        eval_dataset=ROWS[:4],
        processing_class=tokenizer(),
        loss=PairwiseCringeLoss(tau=5.0),
        **options,
    )


def logged(run: Any, name: str) -> list[float]:
    return [entry[name] for entry in run.state.log_history if name in entry]


def test_a_real_run_and_one_that_was_stopped(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole", steps=16)
    before = whole.evaluate()
    transformers.set_seed(0)  # evaluation draws too
    whole.train()
    losses = logged(whole, "loss")
    assert len(losses) == 16
    assert losses[-1] < losses[0] / 2
    assert logged(whole, "gate")[-1] < logged(whole, "gate")[0]
    after = whole.evaluate()
    assert after["eval_loss"] < before["eval_loss"]
    assert whole.state.log_history[-1]["eval_ranked"] == 1.0

    stopped = trainer(tmp_path / "stopped", steps=8)
    transformers.set_seed(0)
    stopped.train()
    assert (tmp_path / "stopped" / "checkpoint-8" / "model.safetensors").is_file()
    resumed = trainer(tmp_path / "stopped", steps=16)
    resumed.train(resume_from_checkpoint=True)
    assert logged(resumed, "loss") == pytest.approx(losses)
    for one, other in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    fresh = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "stopped" / "checkpoint-16")
    for one, other in zip(fresh.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_a_batch_without_accumulation_is_the_loss_itself(tmp_path: Path) -> None:
    run = trainer(tmp_path, steps=1)
    run.loss.k = 1
    batch = run.data_collator(ROWS[:3])
    logits, labels = run.model(batch["input_ids"], batch["attention_mask"]).logits[:, :-1], batch["pair_labels"][:, 1:]
    wanted = run.loss(logits[:3], labels[:3], logits[3:], labels[3:])
    torch.testing.assert_close(run.compute_loss(run.model, batch), wanted)


def test_collator() -> None:
    batch = PreferenceCollator(tokenizer())(ROWS[:1])
    assert batch["input_ids"].shape == (2, 12)
    assert (batch["pair_labels"][:, -1] == 1).all()  # the end of text is learnt
    assert (batch["pair_labels"][:, :5] == -100).all()
    collate = PreferenceCollator(tokenizer(), max_length=7)
    short = collate(ROWS[:1])["pair_labels"]
    assert short.shape == (2, 7)
    assert torch.equal(short[:, 1:], batch["pair_labels"][:, 5:11])
    with pytest.raises(ValueError, match="wanted prompt, chosen and rejected"):
        collate([{"prompt": "the", "chosen": "cat"}])
    with pytest.raises(ValueError, match="prompt is text; wanted processing_class"):
        PreferenceCollator(None)(ROWS[:1])
    with pytest.raises(ValueError, match="prompt has no tokens"):
        PreferenceCollator(None)([{"prompt": [], "chosen": [1], "rejected": [2]}])


def test_errors_and_a_cheap_import(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="reduction 'sum'; wanted 'mean'"):
        PairwiseCringeTrainer(args=None, loss=PairwiseCringeLoss(reduction="sum"))
    assert run_clean("import lossary.integrations, sys; print('transformers' in sys.modules)") == "False\n"
