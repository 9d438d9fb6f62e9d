"""Cramming: a text in one input vector of a frozen language model, found for each text by gradient descent."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossary.core.checks import check_floating, check_in_range, check_shape


class MemoryTokens(nn.Module):
    """Trainable input vectors that go before a text's.

    Reach for it to train them in a loop of your own; :class:`CrammingOptimizer` holds one for each text.

    Args:
        num_memory: Number of vectors M.
        dim: Width D of the model's input embeddings.
        std: Standard deviation of the normal law that they are drawn from; that of the model's input embeddings.
        generator: Source of randomness.

    Attributes:
        memory: The vectors ``(M, D)``, learnable. They stay in float32 and are cast to what they are put before.

    Shape:
        - input: embeddings of a text ``(B, L, D)``; output: ``(B, M + L, D)``.

    Raises:
        ValueError: A number is out of range.

    Example:
        >>> MemoryTokens(num_memory=2, dim=8, std=0.1)(torch.zeros(3, 5, 8)).shape
        torch.Size([3, 7, 8])

    Source:
        Kuratov, Arkhipov, Bulatov, Burtsev: Cramming 1568 Tokens into a Single Vector and Back Again (ACL 2025, arXiv
        2502.13063).
    """

    def __init__(self, num_memory: int, dim: int, std: float, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        check_in_range("num_memory", num_memory, 1)
        check_in_range("dim", dim, 1)
        check_in_range("std", std, 0.0)
        self.memory = nn.Parameter(std * torch.randn(num_memory, dim, generator=generator))

    def forward(self, embeddings: Tensor) -> Tensor:
        """The memory, then the text."""
        return _with_memory(self.memory.expand(len(embeddings), -1, -1), embeddings)


@dataclasses.dataclass(frozen=True)
class CrammingResult:
    """The best that was found for a text.

    Attributes:
        memory: The vectors ``(M, D)`` of the best accuracy.
        best_loss: Their cross-entropy per token, in nats.
        best_accuracy: Share of tokens that are the model's first choice.
        steps: How often the memory was judged.
    """

    memory: Tensor
    best_loss: float
    best_accuracy: float
    steps: int


class CrammingOptimizer:
    r"""Finds the input vectors given which a frozen language model reproduces a text.

    Reach for it to ask how much a model's input vectors can carry: that is one to two orders of magnitude more than
    trained encoders put there. It optimises for every text anew, thousands of steps through the model, so that it is no
    way to compress texts in use.

    Formula:
        .. math:: m^* = \arg\min_m \frac{1}{L} \sum_i -\log p(t_i \mid m, t_1, \dots, t_{i-1})

    Args:
        model: Called as ``model(inputs_embeds=...)``, it gives logits or an object that has them; its
            ``get_input_embeddings()`` gives the layer from ids to vectors. It is left as it was.
        num_memory: Number of vectors M.
        lr: Learning rate of AdamW.
        betas: Its decay rates.
        weight_decay: Its weight decay, which pulls the vectors to 0.
        max_steps: Most steps.
        patience: Steps without a better accuracy after which to stop.
        first_token: Whether the first token is predicted, by the last vector; the original code gives it.
        generator: Source of the initial vectors.

    Raises:
        ValueError: A number is out of range.

    Example:
        >>> class Model:  # of seven words, which says again what comes in
        ...     words = torch.nn.Embedding.from_pretrained(4 * torch.eye(7))
        ...     def get_input_embeddings(self):
        ...         return self.words
        ...     def __call__(self, inputs_embeds):
        ...         return inputs_embeds
        >>> result = CrammingOptimizer(Model(), lr=0.1).fit(torch.tensor([5]))
        >>> result.best_accuracy
        1.0

    Source:
        Kuratov, Arkhipov, Bulatov, Burtsev: Cramming 1568 Tokens into a Single Vector and Back Again (ACL 2025, arXiv
        2502.13063). The original code never scores the first token (``first_token=False``), and keeps the vectors after
        the step that follows the best accuracy; here those that had it are kept.
    """

    def __init__(
        self,
        model: Any,
        *,
        num_memory: int = 1,
        lr: float = 1e-2,
        betas: tuple[float, float] = (0.9, 0.9),
        weight_decay: float = 0.01,
        max_steps: int = 5000,
        patience: int = 2000,
        first_token: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        check_in_range("num_memory", num_memory, 1)
        check_in_range("max_steps", max_steps, 1)
        check_in_range("patience", patience, 1)
        self.model = model
        self.num_memory, self.first_token, self.generator = num_memory, first_token, generator
        self.lr, self.betas, self.weight_decay = lr, betas, weight_decay
        self.max_steps, self.patience = max_steps, patience

    def fit(self, input_ids: Tensor) -> CrammingResult:
        """Cram one text.

        Args:
            input_ids: Its tokens ``(L,)`` or ``(1, L)``.

        Returns:
            The best vectors, with their loss and accuracy.

        Raises:
            ValueError: There are several texts, or too few tokens.
        """
        if input_ids.ndim > 1 and len(input_ids) != 1:
            raise ValueError(f"input_ids has shape {tuple(input_ids.shape)}; wanted one text. For several: fit_many.")
        return self.fit_many(input_ids.reshape(1, -1))[0]

    def fit_many(self, input_ids: Tensor) -> list[CrammingResult]:
        """Cram several texts of one length, each into vectors of its own, as :meth:`fit` does but side by side.

        Args:
            input_ids: Their tokens ``(B, L)``.

        Returns:
            A result for each text.

        Raises:
            ValueError: The shape is wrong, or there are too few tokens.
        """
        self.start(input_ids)
        while self._running:
            self.step()
        return self.results

    def start(self, input_ids: Tensor) -> None:
        """Begin with texts ``(B, L)``: draw their vectors, ready for :meth:`step`."""
        _check_text(input_ids, self.num_memory, self.first_token)
        layer = self.model.get_input_embeddings()
        with torch.no_grad():
            self._embeddings = layer(input_ids)
            std = layer.weight.float().std().item()
        self._ids = input_ids
        dim, device = self._embeddings.shape[-1], input_ids.device
        drawn = [MemoryTokens(self.num_memory, dim, std, generator=self.generator) for _ in input_ids]
        # One parameter for each text: a text that is done must not be moved by AdamW's momentum and decay.
        self._memories = [each.memory.detach().to(device).requires_grad_() for each in drawn]
        self._optimizers = [
            torch.optim.AdamW([memory], self.lr, betas=self.betas, weight_decay=self.weight_decay)
            for memory in self._memories
        ]
        self._running = list(range(len(input_ids)))
        self._waited = [0] * len(input_ids)
        self.results = [CrammingResult(memory.detach().clone(), math.inf, -1.0, 0) for memory in self._memories]

    def step(self) -> dict[str, Tensor]:
        """Judge the vectors of the texts that are not done, keep the best, and move them by one step of AdamW.

        Returns:
            ``loss`` and ``accuracy`` of those texts before the step.
        """
        running = self._running
        with _frozen(self.model):
            memory = torch.stack([self._memories[row] for row in running])
            logits = _logits(self.model, _with_memory(memory, self._embeddings[running]))
            metrics = _scores(logits, self._ids[running], self.num_memory, self.first_token)
            for row in running:
                self._optimizers[row].zero_grad()
            torch.autograd.backward(metrics["loss"].sum())  # each text's gradient is its own
        self._running = [
            row
            for row, loss, accuracy in zip(running, metrics["loss"].tolist(), metrics["accuracy"].tolist(), strict=True)
            if self._note(row, loss, accuracy)
        ]
        for row in self._running:
            self._optimizers[row].step()
        return {name: value.detach() for name, value in metrics.items()}

    def _note(self, row: int, loss: float, accuracy: float) -> bool:
        """Keep what is better; whether the text goes on."""
        best = self.results[row]
        if accuracy > best.best_accuracy:
            best = CrammingResult(self._memories[row].detach().clone(), loss, accuracy, best.steps)
            self._waited[row] = 0
        else:
            self._waited[row] += 1
        self.results[row] = best = dataclasses.replace(best, steps=best.steps + 1)
        return best.best_accuracy < 1 and self._waited[row] < self.patience and best.steps < self.max_steps


def cramming_metrics(
    logits: Tensor, input_ids: Tensor, *, num_memory: int, first_token: bool = True
) -> dict[str, Tensor]:
    r"""Cross-entropy and accuracy of a text given the vectors before it.

    Reach for it to train :class:`MemoryTokens` in a loop of your own, and with ``num_memory=0`` for the same model
    without them.

    Formula:
        .. math:: \mathrm{CE} = \frac{1}{L} \sum_{i=1}^{L} -\log \mathrm{softmax}(z_{M + i - 1})_{t_i}

        and from i = 2 on where the first token is not scored.

    Args:
        logits: The model's output over vectors and text, the vocabulary last.
        input_ids: Tokens of the text.
        num_memory: Number of vectors M.
        first_token: Whether the first token is predicted, by the last vector. Without vectors nothing predicts it.

    Shape:
        - logits: ``(B, M + L, V)``; input_ids: ``(B, L)``.

    Returns:
        ``loss`` and ``accuracy``, both ``()``: means over all scored tokens.

    Raises:
        TypeError: ``logits`` is not floating point.
        ValueError: A shape is wrong, or no token is scored.

    Example:
        >>> logits = 9 * torch.nn.functional.one_hot(torch.tensor([[1, 2, 0]]), 3).float()
        >>> cramming_metrics(logits, torch.tensor([[1, 2]]), num_memory=1)["accuracy"]
        tensor(1.)

    Source:
        Kuratov, Arkhipov, Bulatov, Burtsev: Cramming 1568 Tokens into a Single Vector and Back Again (ACL 2025, arXiv
        2502.13063); ``first_token=False`` is what its public code computes.
    """
    return {name: value.mean() for name, value in _scores(logits, input_ids, num_memory, first_token).items()}


def decode_from_memory(model: Any, memory: Tensor, length: int, *, first_token: int | None = None) -> Tensor:
    """What a model says given vectors alone, by its first choice token by token.

    Reach for it to read a text back: it is exact where :class:`CrammingOptimizer` reached accuracy 1.

    Args:
        model: As for :class:`CrammingOptimizer`.
        memory: The vectors.
        length: Number of tokens L, the first one included.
        first_token: The first token, where it was not crammed.

    Shape:
        - memory: ``(M, D)``.

    Returns:
        Tokens ``(L,)``.

    Raises:
        TypeError: ``memory`` is not floating point.
        ValueError: ``memory`` is no matrix, or ``length`` is not positive.

    Example:
        >>> class Model:  # of four words, which says again what comes in
        ...     words = torch.nn.Embedding.from_pretrained(torch.eye(4))
        ...     def get_input_embeddings(self):
        ...         return self.words
        ...     def __call__(self, inputs_embeds):
        ...         return inputs_embeds
        >>> decode_from_memory(Model(), torch.tensor([[0.0, 0.0, 1.0, 0.0]]), 3)
        tensor([2, 2, 2])

    Source:
        Kuratov, Arkhipov, Bulatov, Burtsev: Cramming 1568 Tokens into a Single Vector and Back Again (ACL 2025, arXiv
        2502.13063).
    """
    check_floating("memory", memory)
    if memory.ndim != 2:
        raise ValueError(f"memory has shape {tuple(memory.shape)}; wanted (M, D).")
    check_in_range("length", length, 1)
    layer = model.get_input_embeddings()
    ids = torch.tensor([[]] if first_token is None else [[first_token]], dtype=torch.int64, device=memory.device)
    with torch.no_grad(), _frozen(model):
        while ids.shape[1] < length:
            logits = _logits(model, _with_memory(memory.unsqueeze(0), layer(ids)))
            ids = torch.cat([ids, logits[:, -1:].argmax(-1)], 1)
    return ids[0]


def token_gain(acc_mem: float, acc_plain: float, length: int) -> float:
    r"""How many tokens of a text are right thanks to its vectors.

    Reach for it to compare models: one that predicts a text well by itself needs to be told less.

    Formula:
        .. math:: G = L \, (a_m - a_0)

    Args:
        acc_mem: Accuracy with the vectors.
        acc_plain: Accuracy of the same model without.
        length: Tokens of the text L.

    Returns:
        The gain; divided by :func:`theoretical_capacity` it is the share of the vectors that is used.

    Example:
        >>> token_gain(1.0, 0.25, 80)
        60.0

    Source:
        Kuratov, Arkhipov, Bulatov, Burtsev: Cramming 1568 Tokens into a Single Vector and Back Again (ACL 2025, arXiv
        2502.13063).
    """
    return length * (acc_mem - acc_plain)


def information_gain(loss_mem: float, loss_plain: float, length: int) -> float:
    r"""How many nats about a text its vectors hold.

    Reach for it rather than :func:`token_gain` where texts differ: what bounds cramming is a text's cross-entropy, not
    its length.

    Formula:
        .. math:: I = L \, (\mathrm{CE}_0 - \mathrm{CE}_m)

    Args:
        loss_mem: Cross-entropy per token with the vectors.
        loss_plain: Cross-entropy per token of the same model without.
        length: Tokens of the text L.

    Returns:
        The gain in nats; divided by log 2, in bits.

    Example:
        >>> information_gain(0.5, 3.0, 80)
        200.0

    Source:
        Kuratov, Arkhipov, Bulatov, Burtsev: Cramming 1568 Tokens into a Single Vector and Back Again (ACL 2025, arXiv
        2502.13063).
    """
    return length * (loss_plain - loss_mem)


def theoretical_capacity(dim: int, bits: float, vocab_size: int) -> float:
    r"""How many tokens the bits of one vector could name.

    Reach for it as the ceiling that :func:`token_gain` is held against.

    Formula:
        .. math:: C = \frac{D b}{\log_2 V}

    Args:
        dim: Numbers of the vector D.
        bits: Bits of each number b, such as 16.
        vocab_size: Words of the vocabulary V.

    Returns:
        The number of tokens.

    Raises:
        ValueError: A number is out of range.

    Example:
        >>> round(theoretical_capacity(768, 16, 50304), 1)
        786.8

    Source:
        Kuratov, Arkhipov, Bulatov, Burtsev: Cramming 1568 Tokens into a Single Vector and Back Again (ACL 2025, arXiv
        2502.13063).
    """
    check_in_range("dim", dim, 1)
    check_in_range("bits", bits, 0.0, low_open=True)
    check_in_range("vocab_size", vocab_size, 2)
    return dim * bits / math.log2(vocab_size)


def decoding_capacity(
    results: Mapping[int, float | CrammingResult] | Iterable[tuple[int, float | CrammingResult]],
    threshold: float = 0.99,
) -> int:
    """The longest text that is still reproduced.

    Reach for it with accuracies on a grid of lengths, in the paper 8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768,
    1024 and 1568.

    Args:
        results: Accuracies by length, as numbers or as :class:`CrammingResult`; a dictionary or pairs.
        threshold: Least accuracy that counts as reproduced.

    Returns:
        The length; 0 where no text was reproduced.

    Raises:
        ValueError: ``threshold`` is no share.

    Example:
        >>> decoding_capacity({8: 1.0, 16: 1.0, 32: 0.995, 64: 0.71})
        32

    Source:
        Kuratov, Arkhipov, Bulatov, Burtsev: Cramming 1568 Tokens into a Single Vector and Back Again (ACL 2025, arXiv
        2502.13063).
    """
    check_in_range("threshold", threshold, 0.0, 1.0)
    pairs = results.items() if isinstance(results, Mapping) else results
    reached = [
        length
        for length, result in pairs
        if (result.best_accuracy if isinstance(result, CrammingResult) else result) >= threshold
    ]
    return max(reached, default=0)


def _scores(logits: Tensor, input_ids: Tensor, num_memory: int, first_token: bool) -> dict[str, Tensor]:
    """Loss and accuracy of each text ``(B,)``."""
    check_floating("logits", logits)
    _check_text(input_ids, num_memory, first_token)
    if logits.ndim != 3:
        raise ValueError(f"logits has shape {tuple(logits.shape)}; wanted (B, M + L, V).")
    batch, length = input_ids.shape
    wanted = (batch, num_memory + length, logits.shape[-1])
    check_shape("logits", logits, wanted, "a row for each vector and token")
    skipped = 0 if first_token and num_memory else 1
    # What stands one place before a token predicts it.
    predicting = logits[:, num_memory + skipped - 1 : -1].transpose(1, 2)
    predicting = predicting.float() if predicting.dtype in (torch.float16, torch.bfloat16) else predicting
    target = input_ids[:, skipped:]
    return {
        "loss": F.cross_entropy(predicting, target, reduction="none").mean(1),
        "accuracy": (predicting.argmax(1) == target).to(predicting.dtype).mean(1),
    }


def _check_text(input_ids: Tensor, num_memory: int, first_token: bool) -> None:
    least = 1 if first_token and num_memory else 2
    if not isinstance(input_ids, Tensor) or input_ids.is_floating_point():
        raise TypeError("input_ids is no tensor of integers; wanted tokens (B, L).")
    if input_ids.ndim != 2 or input_ids.shape[1] < least:
        raise ValueError(f"input_ids has shape {tuple(input_ids.shape)}; wanted (B, L) with L >= {least}.")


def _with_memory(memory: Tensor, embeddings: Tensor) -> Tensor:
    return torch.cat([memory.to(embeddings.dtype), embeddings], 1)


def _logits(model: Any, embeddings: Tensor) -> Tensor:
    output = model(inputs_embeds=embeddings)
    logits: Tensor = output if isinstance(output, Tensor) else output.logits
    return logits


@contextlib.contextmanager
def _frozen(model: Any) -> Iterator[None]:
    """The model without gradients and in eval mode, afterwards as it was."""
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    parameters = list(model.parameters()) if isinstance(model, nn.Module) else []
    training = [module.training for module in modules]
    learning = [parameter.requires_grad for parameter in parameters]
    try:
        for module in modules:
            module.training = False
        for parameter in parameters:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, was in zip(modules, training, strict=True):
            module.training = was
        for parameter, was in zip(parameters, learning, strict=True):
            parameter.requires_grad_(was)
