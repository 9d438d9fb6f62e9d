"""Small real models with random weights: the stock loss and gradients at less memory, and one run of Trainer."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from lossary.integrations import use_linear_head  # noqa: E402
from lossary.language import linear_focal_loss  # noqa: E402
from lossary.papers._memory import memory_of  # noqa: E402

VOCAB = 3000
SMALL = {"vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2}
LLAMA_LIKE = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2} | SMALL
MODELS = {
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA_LIKE)),
    "qwen2": lambda: transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(**LLAMA_LIKE, num_key_value_heads=1, tie_word_embeddings=True)
    ),
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            n_embd=16, n_layer=2, n_head=2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **SMALL
        )
    ),
    "gemma2": lambda: transformers.Gemma2ForCausalLM(
        transformers.Gemma2Config(**LLAMA_LIKE, num_key_value_heads=1, head_dim=8, final_logit_softcapping=2.0)
    ),
    "granite": lambda: transformers.GraniteForCausalLM(transformers.GraniteConfig(**LLAMA_LIKE, logits_scaling=3.0)),
}


def build(name: str) -> Any:
    torch.manual_seed(0)
    return MODELS[name]().train()


def batch(rows: int = 3, length: int = 24) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(VOCAB, (rows, length), generator=generator)
    labels = tokens.clone()
    labels[0, :5] = -100
    mask = torch.ones_like(tokens)
    mask[-1, -6:] = 0
    labels[-1, -6:] = -100
    return {"input_ids": tokens, "attention_mask": mask, "labels": labels}


@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize("count", [None, 50])
def test_same_loss_and_gradients_as_the_stock_model(name: str, count: int | None) -> None:
    stock, ours = build(name), use_linear_head(build(name))
    given = batch() | ({} if count is None else {"num_items_in_batch": torch.tensor(count)})
    losses = [model(**given).loss for model in (stock, ours)]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-5)
    for loss in losses:
        loss.backward()
    for (name, wanted), got in zip(stock.named_parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(got.grad, wanted.grad, rtol=1e-3, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2"])
def test_less_memory(name: str) -> None:
    given = batch(rows=8, length=64)
    peaks = [
        memory_of(lambda m=model: m(**given).loss.backward()).peak
        for model in (build(name), use_linear_head(build(name)))
    ]
    assert peaks[1] < peaks[0] / 2


def test_without_labels_it_is_the_stock_model() -> None:
    stock, ours = build("llama").eval(), use_linear_head(build("llama")).eval()
    tokens = batch()["input_ids"]
    torch.testing.assert_close(ours(tokens).logits, stock(tokens).logits)
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(ours.generate(tokens[:, :6], **options), stock.generate(tokens[:, :6], **options))
    twin = copy.deepcopy(ours)
    assert twin.forward.__self__ is twin
    torch.testing.assert_close(pickle.loads(pickle.dumps(ours))(**batch()).loss, ours(**batch()).loss)
    del ours.forward
    assert ours(**batch()).logits is not None


def test_calls_by_position_as_tuples_and_without_items() -> None:
    ours = use_linear_head(build("llama"))
    given = batch()
    wanted = ours(**given).loss
    tokens, mask, labels = given["input_ids"], given["attention_mask"], given["labels"]
    torch.testing.assert_close(ours(tokens, mask, None, None, None, labels).loss, wanted)
    torch.testing.assert_close(ours(**given, return_dict=False)[0], wanted)
    nobody = given | {"labels": torch.full_like(labels, -100), "num_items_in_batch": torch.tensor(0)}
    assert ours(**nobody).loss == 0
    torch.testing.assert_close(
        ours(**given, num_items_in_batch=torch.tensor([[50]])).loss, ours(**given, num_items_in_batch=50).loss
    )


def test_another_objective() -> None:
    ours = use_linear_head(build("gpt2"), linear_focal_loss, gamma=0.0)
    torch.testing.assert_close(ours(**batch()).loss, build("gpt2")(**batch()).loss, rtol=1e-5, atol=1e-5)
    sharper = use_linear_head(build("gpt2"), linear_focal_loss, gamma=2.0)
    assert sharper(**batch()).loss < ours(**batch()).loss


def test_a_real_run_of_trainer(tmp_path: Path) -> None:
    """Trained with accumulation, where ``num_items_in_batch`` matters, the curve is that of the stock model."""

    def run(model: Any, folder: Path) -> list[float]:
        generator = torch.Generator().manual_seed(1)
        start = torch.randint(VOCAB - 40, (32,), generator=generator)
        lengths = torch.randint(4, 17, (32,), generator=generator).tolist()
        rows = [
            {"input_ids": (first + torch.arange(length)).tolist()} for first, length in zip(start, lengths, strict=True)
        ]

        def collate(items: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
            width = max(len(item["input_ids"]) for item in items)
            pad = lambda values, fill: values + [fill] * (width - len(values))  # noqa: E731
            return {
                "input_ids": torch.tensor([pad(item["input_ids"], 0) for item in items]),
                "attention_mask": torch.tensor([pad([1] * len(item["input_ids"]), 0) for item in items]),
                "labels": torch.tensor([pad(item["input_ids"], -100) for item in items]),
            }

        arguments = transformers.TrainingArguments(
            output_dir=str(folder),
            num_train_epochs=4,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
            learning_rate=1e-2,
            logging_steps=1,
            report_to=[],
            save_strategy="no",
            use_cpu=True,
            seed=0,
            disable_tqdm=True,
        )
        trainer = transformers.Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collate)
        trainer.train()
        assert trainer.evaluate(rows[:8])["eval_loss"] > 0
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    stock, ours = run(build("llama"), tmp_path / "a"), run(use_linear_head(build("llama")), tmp_path / "b")
    assert len(ours) == 16
    assert ours[-1] < ours[0] - 0.5
    assert ours == pytest.approx(stock, rel=2e-3)


def test_models_without_a_head_are_refused() -> None:
    with pytest.raises(TypeError, match="model is a Linear; wanted a causal language model with a linear head"):
        use_linear_head(torch.nn.Linear(2, 3))
    with pytest.raises(TypeError, match="model is a LlamaModel; wanted"):
        use_linear_head(build("llama").model)
    config = transformers.MixtralConfig(**LLAMA_LIKE, num_key_value_heads=1, output_router_logits=True)
    with pytest.raises(TypeError, match="its loss has a balancing part"):
        use_linear_head(transformers.MixtralForCausalLM(config))
