"""Cramming: only the vectors move, what is found is what was judged, texts side by side, and gains in closed form."""

import math
import os
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lossary.core.errors import UserError
from lossary.language import (
    CrammingOptimizer,
    CrammingResult,
    MemoryTokens,
    cramming_metrics,
    decode_from_memory,
    decoding_capacity,
    information_gain,
    theoretical_capacity,
    token_gain,
)

SEEDS = st.integers(0, 10_000)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Model(nn.Module):
    """A causal model: the last vector and a state of those before, mixed."""

    def __init__(self, seed: int = 0, vocab: int = 9, dim: int = 12, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.words = nn.Embedding(vocab, dim)
        self.body = nn.GRU(dim, 24, batch_first=True)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(24, vocab)
        for parameter in self.parameters():  # so that what goes in makes a difference
            nn.init.normal_(parameter, std=0.7)
        self.to(dtype)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.words

    def forward(self, inputs_embeds: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.head(self.dropout(self.body(inputs_embeds)[0])))


class Copier:
    """Reads place i + num_memory off memory i: a memory as long as the text holds all of it."""

    def __init__(self, num_memory: int, vocab: int = 9) -> None:
        self.words = nn.Embedding.from_pretrained(4 * torch.eye(vocab))
        self.num_memory = num_memory

    def get_input_embeddings(self) -> nn.Embedding:
        return self.words

    def __call__(self, inputs_embeds: Tensor) -> Tensor:
        return inputs_embeds.roll(self.num_memory - 1, 1)


@given(SEEDS, st.integers(1, 3), st.booleans())
def test_metrics_score_each_token_from_the_place_before(seed: int, num_memory: int, first_token: bool) -> None:
    ids = torch.randint(7, (2, 5), generator=generator(seed))
    logits = torch.randn(2, num_memory + 5, 7, generator=generator(seed), dtype=torch.float64)
    log_p = logits.log_softmax(-1)
    places = range(0 if first_token else 1, 5)
    scored = [-log_p[b, num_memory + i - 1, ids[b, i]] for b in range(2) for i in places]
    right = [logits[b, num_memory + i - 1].argmax() == ids[b, i] for b in range(2) for i in places]
    metrics = cramming_metrics(logits, ids, num_memory=num_memory, first_token=first_token)
    torch.testing.assert_close(metrics["loss"], torch.stack(scored).mean())
    assert metrics["accuracy"].item() == pytest.approx(torch.stack(right).double().mean().item())
    plain = cramming_metrics(logits[:, num_memory:], ids, num_memory=0, first_token=first_token)
    torch.testing.assert_close(
        plain["loss"], cramming_metrics(logits, ids, num_memory=num_memory, first_token=False)["loss"]
    )


def test_extreme_logits_and_halves() -> None:
    logits = torch.tensor([[[1e4, -1e4], [-torch.inf, 0.0], [0.0, 1.0]]])
    metrics = cramming_metrics(logits, torch.tensor([[0, 1]]), num_memory=1)
    assert metrics["loss"] == 0
    assert metrics["accuracy"] == 1
    assert cramming_metrics(logits.bfloat16(), torch.tensor([[0, 1]]), num_memory=1)["loss"].dtype == torch.float32


def test_only_the_vectors_move_and_the_model_is_left_as_it_was() -> None:
    model = Model().train()
    model.head.bias.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    learning = [parameter.requires_grad for parameter in model.parameters()]
    optimizer = CrammingOptimizer(model, max_steps=5, generator=generator(0))
    optimizer.fit(torch.tensor([[1, 2, 3, 4, 5, 6]]))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [parameter.requires_grad for parameter in model.parameters()] == learning
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(module.training for module in model.modules())


def test_a_step_is_one_of_adamw() -> None:
    model, ids = Model().eval(), torch.tensor([[1, 2, 3, 4]])
    optimizer = CrammingOptimizer(
        model, num_memory=2, lr=0.03, betas=(0.8, 0.7), weight_decay=0.2, generator=generator(3)
    )
    optimizer.start(ids)
    memory = MemoryTokens(2, 12, model.words.weight.std().item(), generator=generator(3))
    plain = torch.optim.AdamW(memory.parameters(), 0.03, betas=(0.8, 0.7), weight_decay=0.2)
    for _ in range(3):
        metrics = optimizer.step()
        loss = cramming_metrics(model(memory(model.words(ids))).logits, ids, num_memory=2)["loss"]
        torch.testing.assert_close(metrics["loss"][0], loss.detach())
        plain.zero_grad()
        loss.backward(inputs=list(memory.parameters()))
        plain.step()
    torch.testing.assert_close(optimizer._memories[0], memory.memory)


@pytest.mark.parametrize("first_token", [True, False])
def test_what_is_kept_is_what_was_judged(first_token: bool) -> None:
    model, ids = Model().eval(), torch.tensor([[1, 2, 3, 4, 0, 5, 6, 2]])
    result = CrammingOptimizer(model, max_steps=40, lr=0.1, first_token=first_token, generator=generator(0)).fit(ids)
    logits = model(torch.cat([result.memory.unsqueeze(0), model.words(ids)], 1)).logits
    metrics = cramming_metrics(logits, ids, num_memory=1, first_token=first_token)
    assert metrics["accuracy"].item() == pytest.approx(result.best_accuracy)
    assert metrics["loss"].item() == pytest.approx(result.best_loss, rel=1e-5)
    assert 0 < result.steps <= 40
    assert result.memory.shape == (1, 12)
    assert not result.memory.requires_grad


def test_texts_side_by_side_are_as_if_alone() -> None:
    model = Model(dtype=torch.float64)
    texts = torch.tensor([[6, 2, 7], [1, 2, 3], [3, 3, 1]])
    together = CrammingOptimizer(model, max_steps=60, lr=0.1, generator=generator(0)).fit_many(texts)
    shared = generator(0)
    alone = [CrammingOptimizer(model, max_steps=60, lr=0.1, generator=shared).fit(text) for text in texts]
    assert len({result.steps for result in together}) > 1  # they did not all stop at the same step
    for one, other in zip(together, alone, strict=True):
        assert (one.steps, one.best_accuracy) == (other.steps, other.best_accuracy)
        torch.testing.assert_close(one.memory, other.memory, rtol=1e-4, atol=1e-5)


def test_a_memory_as_long_as_the_text_holds_it() -> None:
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    optimizer = CrammingOptimizer(Copier(5), num_memory=5, lr=0.2, generator=generator(0))
    result = optimizer.fit(ids)
    assert result.best_accuracy == 1
    assert result.steps < 200


def test_accuracy_1_reads_the_text_back() -> None:
    model, ids = Model().train(), torch.tensor([[6, 2, 7]])
    result = CrammingOptimizer(model, lr=0.1, max_steps=200, generator=generator(0)).fit(ids)
    assert result.best_accuracy == 1
    assert decode_from_memory(model, result.memory, 3).tolist() == [6, 2, 7]
    assert decode_from_memory(model, result.memory, 3, first_token=6).tolist() == [6, 2, 7]


def test_it_stops_without_improvement() -> None:
    model = Model()
    nn.init.zeros_(model.head.weight)  # what goes in makes no difference
    result = CrammingOptimizer(model, patience=7, generator=generator(0)).fit(torch.tensor([[1, 2, 3]]))
    assert result.steps == 8
    assert result.best_accuracy < 1


def test_memory_stays_in_float32_before_a_half_precision_model() -> None:
    result = CrammingOptimizer(Model(dtype=torch.bfloat16), max_steps=2).fit(torch.tensor([[1, 2, 3]]))
    assert result.memory.dtype == torch.float32
    drawn = MemoryTokens(500, 40, 0.02, generator=generator(0)).memory
    assert drawn.std().item() == pytest.approx(0.02, rel=0.02)


def test_gains_in_closed_form() -> None:
    assert token_gain(0.4, 0.4, 100) == information_gain(2.0, 2.0, 100) == 0
    assert theoretical_capacity(768, 16, 50304) == pytest.approx(786.8, abs=0.05)  # Pythia-160M
    assert theoretical_capacity(4096, 16, 128256) == pytest.approx(3862, abs=1)  # Llama-3.1-8B
    assert theoretical_capacity(1, 8, 256) == 1
    results = [(8, 1.0), (16, CrammingResult(torch.zeros(1, 1), 0.0, 0.99, 1)), (32, 0.98)]
    assert decoding_capacity(results) == decoding_capacity(dict(results)) == 16
    assert decoding_capacity(results, threshold=0.9) == 32
    assert decoding_capacity({8: 0.5}) == 0
    assert math.isclose(information_gain(0.0, math.log(2), 3), 3 * math.log(2))


def test_it_says_what_was_wrong() -> None:
    optimizer = CrammingOptimizer(Model())
    with pytest.raises(ValueError, match="For several: fit_many"):
        optimizer.fit(torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(TypeError, match="input_ids is no tensor of integers"):
        optimizer.fit(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="with L >= 2"):
        CrammingOptimizer(Model(), first_token=False).fit(torch.tensor([[1]]))
    with pytest.raises(ValueError, match="logits has shape"):
        cramming_metrics(torch.zeros(1, 5, 3), torch.zeros(1, 3, dtype=torch.int64), num_memory=1)
    with pytest.raises(ValueError, match="num_memory is 0"):
        CrammingOptimizer(Model(), num_memory=0)
    with pytest.raises(ValueError, match="memory has shape"):
        decode_from_memory(Model(), torch.zeros(3), 2)


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("LOSSARY_DATA"), reason="LOSSARY_DATA names no folder with SmolLM2")
def test_smollm2_reads_four_tokens_back() -> None:
    from lossary.papers import _smollm2

    pytest.importorskip("gguf", reason="gguf is not installed: SmolLM2 was not loaded")
    try:
        model, tokenizer = _smollm2.load()
    except UserError as missing:
        pytest.skip(f"SmolLM2 is not there: {missing}")
    greeting = tokenizer("The capital of France is", return_tensors="pt")
    assert tokenizer.decode(model(**greeting).logits[0, -1].argmax()) == " Paris"  # loaded as it should be
    ids = tokenizer("measured by seventeen quiet foxes", return_tensors="pt")["input_ids"][:, :4]
    result = CrammingOptimizer(model, max_steps=150, generator=generator(0)).fit(ids)
    assert result.best_accuracy == 1
    assert torch.equal(decode_from_memory(model, result.memory, 4), ids[0])
