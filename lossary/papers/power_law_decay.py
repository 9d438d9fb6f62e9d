"""Power-Law Decay Loss (Shao et al. 2025): do rare words get learnt when they count for more?"""

from __future__ import annotations

import functools
import importlib.resources
import re
from collections import Counter

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossary.core import seeding
from lossary.language import PowerLawDecayLoss, token_frequencies
from lossary.papers._evidence import Evidence, Series
from lossary.papers._paper import Paper
from lossary.papers._run import Run
from lossary.papers._training import fit

CARD = Paper(
    slug="power_law_decay",
    title="Power-Law Decay Loss for Large Language Model Finetuning: A Theory Perspective",
    authors="Jintian Shao, Yiming Cheng, Hongyi Huang, Jiayi Wu, Beiwen Zhang, Zhiyu Wu, You Shan, Mingkai Zheng",
    arxiv="2505.16900",
    year=2025,
    family="language",
    provides=(
        "power_law_decay_weights",
        "power_law_decay_loss",
        "PowerLawDecayLoss",
        "linear_power_law_decay_loss",
        "LinearPowerLawDecayLoss",
        "token_frequencies",
    ),
    formula="L = -sum_k w(y_k) log p(y_k) / sum_k w(y_k), w(v) = (frequency(v) + epsilon)^-alpha",
    call=(
        "from lossary.language import PowerLawDecayLoss\n"
        "loss = PowerLawDecayLoss.from_token_ids(labels, vocab_size=10, alpha=0.5)(logits, labels)"
    ),
    claim="Weighting tokens by an inverse power of their frequency makes a model attend to rare, specific words.",
    use_when="a fine-tuned model falls back on frequent words, and rare ones carry what matters",
    avoid_when="frequent words must stay as likely as they are: they are learnt worse for it, and perplexity suffers",
    golden=3,
    metric="rare_loss",
    direction="lower",
    margin=0.0,
    baseline="alpha=0",
    method="alpha=1",
    seeds=5,
    limits=(
        "The paper has no experiments. Here a small network predicts the next word of scikit-learn's descriptions of "
        "data sets from the four before; the loss on rare words (at most 5 in the training text) is in nats, without "
        "weights."
    ),
)

ALPHAS = (0.0, 0.25, 0.5, 1.0)
VOCAB, CONTEXT = 800, 4


def reproduce(run: Run) -> Evidence:
    """Words of scikit-learn's descriptions, the 800 most frequent; the last 15% are the test, alpha from 0 to 1.

    Beside the loss on rare words: that on frequent ones (50 or more), on all, and how many words are ever predicted.
    """
    alphas = run.pick(ALPHAS, (0.0, 1.0))
    for seed, arm in run.trials([_arm(alpha) for alpha in alphas]):
        run.record(arm, **_trained(run, seed, float(arm.rpartition("=")[2])))
    means = {
        what: [run.mean(_arm(alpha), f"{what}_loss") for alpha in alphas] for what in ("rare", "frequent", "overall")
    }
    words = ", ".join(f"{run.mean(_arm(alpha), 'words'):.0f} at {alpha:g}" for alpha in alphas)
    falls = means["rare"] == sorted(means["rare"], reverse=True)
    rises = means["frequent"] == sorted(means["frequent"])
    return run.conclude(
        series=[Series("Test loss by alpha", "alpha", "nats", alphas, means)],
        notes=[
            f"The loss on rare words {'falls' if falls else 'does not always fall'} and that on frequent ones "
            f"{'rises' if rises else 'does not always rise'} with alpha.",
            f"Different words predicted for the test text: {words}.",
        ],
    )


def _arm(alpha: float) -> str:
    return f"alpha={alpha:g}"


def _trained(run: Run, seed: int, alpha: float) -> dict[str, float]:
    text = _text()
    cut = int(0.85 * len(text))
    frequency = token_frequencies(text[:cut], VOCAB)
    (given, wanted), (given_test, wanted_test) = (_examples(part) for part in (text[:cut], text[cut:]))
    if run.quick:
        given, wanted = given[:2000], wanted[:2000]
    model = _Model(seed)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    loss = PowerLawDecayLoss(frequency, alpha)
    fit(model, given, wanted, loss, optimizer=optimizer, epochs=run.pick(12, 1), batch_size=128, seed=seed)
    with torch.no_grad():
        logits = model(given_test)
    seen = frequency[wanted_test]
    losses = F.cross_entropy(logits, wanted_test, reduction="none")
    return {
        "rare_loss": losses[(seen > 0) & (seen <= 5)].mean().item(),
        "frequent_loss": losses[seen >= 50].mean().item(),
        "overall_loss": losses[seen > 0].mean().item(),
        "words": len(logits.argmax(1).unique()),
    }


@functools.cache
def _text() -> Tensor:
    """The words of all descriptions in order, by rank of frequency; those beyond the vocabulary are left out."""
    folder = importlib.resources.files("sklearn.datasets.descr")
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".rst")), key=lambda file: file.name)
    words = re.findall(r"[a-z]+", " ".join(file.read_text(encoding="utf-8").lower() for file in files))
    rank = {word: place for place, (word, _) in enumerate(Counter(words).most_common(VOCAB))}
    return torch.tensor([rank[word] for word in words if word in rank])


def _examples(text: Tensor) -> tuple[Tensor, Tensor]:
    windows = text.unfold(0, CONTEXT + 1, 1)
    return windows[:, :CONTEXT], windows[:, CONTEXT]


class _Model(nn.Sequential):
    """Four words of width 48, then a network 192-128-800."""

    def __init__(self, seed: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeding.derive(seed, "init"))
            super().__init__(
                nn.Embedding(VOCAB, 48),
                nn.Flatten(),
                nn.Linear(48 * CONTEXT, 128),
                nn.ReLU(),
                nn.Linear(128, VOCAB),
            )
