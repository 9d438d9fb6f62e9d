"""Seconds per fit of the stacked trainer beside what one would write or install otherwise.

    python benchmarks/compare_speed.py [--members 64] [--rounds 3]

Every contender trains the same model (two hidden layers of 64) on the same rows, batches and epochs, and looks at its
log-loss on the validation rows after every epoch. They take turns, round after round; the best round counts, since
what else the machine does only ever adds time. `bd_adult.csv` is taken from the folder LOSSARY_DATA.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import os
import resource
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import rich.table
import torch
import torch.nn.functional as F
from rich.console import Console
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import log_loss
from sklearn.neural_network import MLPClassifier
from skorch import NeuralNetClassifier
from skorch.callbacks import EpochScoring
from torch.utils.data import DataLoader, TensorDataset

from lossary.compare.candidates import get_candidate
from lossary.compare.load import Table, load_table
from lossary.compare.models import MLP, build_model
from lossary.compare.pool import keep_freed_memory
from lossary.compare.preprocess import make_preprocessor
from lossary.compare.train import Fold, Member, Training, train_stack

RATE, DECAY = 1e-3, 1e-2
CORES = os.cpu_count() or 1


@dataclasses.dataclass(frozen=True)
class Workload:
    """Rows, batches and epochs of one fit; ``members`` is how many of ours train in one stack."""

    name: str
    fold: Fold
    batch_size: int
    epochs: int
    members: int

    @property
    def steps(self) -> int:
        return len(self.fold.y_train) // self.batch_size * self.epochs

    @property
    def flops(self) -> float:
        """Of the matrix products of one fit's steps: forward, gradients of weights, gradients of inputs."""
        inputs, hidden = self.fold.x_train.shape[1], MLP.WIDTH
        products = 2 * inputs * hidden + 3 * hidden * hidden + 3 * hidden * 2
        return 2 * self.batch_size * products * self.steps


@dataclasses.dataclass(frozen=True)
class Contender:
    """A way to fit; ``fit`` returns the number of fits it made and their mean best log-loss."""

    name: str
    fit: Callable[[Workload, int], tuple[int, float]]
    processes: int
    threads: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=64, help="members of a stack on breast cancer")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    contenders = [
        Contender("ours, a process a core", fit_stack, CORES, 1),
        *(Contender(f"DataLoader, {_threads(n)}", fit_with_loader, 1, n) for n in sorted({1, CORES})),
        *(Contender(f"sliced tensors, {_threads(n)}", fit_sliced, 1, n) for n in sorted({1, CORES})),
        Contender("DataLoader, a process a core", fit_with_loader, CORES, 1),
        Contender("sliced tensors, a process a core", fit_sliced, CORES, 1),
        Contender("skorch", fit_skorch, 1, 1),
        Contender("MLPClassifier", fit_sklearn, 1, 1),
    ]
    for workload in workloads(options.members):
        measure(workload, contenders, options.rounds)


def workloads(members: int) -> list[Workload]:
    """Breast cancer with small and with large batches, and the adult table if it is there."""
    small = _fold(load_table("breast_cancer"), train=455)
    found = [
        Workload("breast cancer, batches of 32", small, 32, 20, members),
        Workload("breast cancer, batches of 256", small, 256, 100, members),
    ]
    path = Path(os.environ.get("LOSSARY_DATA", "."), "bd_adult.csv")
    if not path.exists():
        print(f"bd_adult.csv is not in {path.parent} (set LOSSARY_DATA): left out.")
        return found
    table = load_table(path, "label")
    large = _fold(table, train=len(table.target) * 4 // 5)
    return [
        *found,
        Workload("adult, batches of 256", large, 256, 3, 8),
        Workload("adult, batches of 32", large, 32, 1, 8),
    ]


def measure(workload: Workload, contenders: list[Contender], rounds: int) -> None:
    """Let the contenders take turns and print their table."""
    peak = Contender("matmul", multiply, CORES, 1)
    pools = {contender: _Pool(contender, workload) for contender in (*contenders, peak)}
    runs: dict[Contender, list[tuple[float, float, float]]] = {contender: [] for contender in pools}
    for seed in range(rounds):
        for contender, pool in pools.items():
            runs[contender].append(pool.run(seed))
    for pool in pools.values():
        pool.close()

    best = {contender: min(done) for contender, done in runs.items()}
    ours = best[contenders[0]][0]
    rate = workload.flops / ours
    columns, rows = workload.fold.x_train.shape[1], len(workload.fold.y_train)
    table = rich.table.Table(
        title=f"{workload.name}: {rows} x {columns}, {workload.epochs} epochs, {workload.steps} steps a fit"
    )
    for column in ("", "s per fit", "ms per step", "ours is faster", "log-loss", "peak memory"):
        table.add_column(column, justify="left" if not column else "right")
    for contender in contenders:
        seconds, score, memory = best[contender]
        table.add_row(
            contender.name,
            f"{seconds:.4f}",
            f"{1e3 * seconds / workload.steps:.4f}",
            f"{seconds / ours:.1f}x",
            f"{score:.4f}",
            f"{memory / 2**20:.0f} MiB",
        )
    console = Console(width=110)
    console.print(table)
    console.print(
        f"Ours reaches {rate / 1e9:.0f} of {1e-9 / best[peak][0]:.0f} float32 GFLOP/s "
        f"({100 * rate * best[peak][0]:.0f}% of what 1024 x 1024 products reach on {CORES} cores)."
    )


def fit_stack(workload: Workload, seed: int) -> tuple[int, float]:
    """A stack of ours, as a worker process trains it."""
    keep_freed_memory()
    training = Training(
        task="binary",
        num_outputs=2,
        model="mlp",
        metric="log_loss",
        calibrate="none",
        batch_size=workload.batch_size,
        max_epochs=workload.epochs,
        patience=workload.epochs,
        seed=seed,
    )
    member = Member(fold=0, settings={"learning_rate": RATE, "weight_decay": DECAY})
    candidate = get_candidate("cross_entropy", "binary")
    fits = train_stack(candidate, [workload.fold], [member] * workload.members, training)
    return len(fits), float(np.mean([fit.score for fit in fits]))


def fit_with_loader(workload: Workload, seed: int) -> tuple[int, float]:
    """The loop of every tutorial."""
    torch.manual_seed(seed)
    x, y = torch.tensor(workload.fold.x_train), torch.tensor(workload.fold.y_train)
    loader = DataLoader(TensorDataset(x, y), batch_size=workload.batch_size, shuffle=True, drop_last=True)
    return 1, _fit_plain(workload, lambda: loader)


def fit_sliced(workload: Workload, seed: int) -> tuple[int, float]:
    """The same loop without a DataLoader."""
    torch.manual_seed(seed)
    x, y = torch.tensor(workload.fold.x_train), torch.tensor(workload.fold.y_train)

    def batches():
        order = torch.randperm(len(x))
        for start in range(0, len(x) - workload.batch_size + 1, workload.batch_size):
            rows = order[start : start + workload.batch_size]
            yield x[rows], y[rows]

    return 1, _fit_plain(workload, batches)


def fit_skorch(workload: Workload, seed: int) -> tuple[int, float]:
    """skorch, scoring the validation rows by a callback."""
    torch.manual_seed(seed)
    fold = workload.fold
    net = NeuralNetClassifier(
        build_model("mlp", fold.x_train.shape[1], 2),
        criterion=torch.nn.CrossEntropyLoss,
        optimizer=torch.optim.AdamW,
        lr=RATE,
        optimizer__weight_decay=DECAY,
        max_epochs=workload.epochs,
        batch_size=workload.batch_size,
        iterator_train__shuffle=True,
        iterator_train__drop_last=True,
        train_split=None,
        callbacks=[("score", EpochScoring(_score_skorch(fold), name="score", on_train=True, use_caching=False))],
        verbose=0,
    )
    net.fit(fold.x_train, fold.y_train)
    return 1, min(net.history[:, "score"])


def fit_sklearn(workload: Workload, seed: int) -> tuple[int, float]:
    """scikit-learn; its Adam has an L2 penalty instead of decoupled weight decay, and keeps the last short batch."""
    fold = workload.fold
    model = MLPClassifier(
        (MLP.WIDTH, MLP.WIDTH), alpha=DECAY, learning_rate_init=RATE, batch_size=workload.batch_size, random_state=seed
    )
    scores = []
    for _ in range(workload.epochs):
        model.partial_fit(fold.x_train, fold.y_train, classes=[0, 1])
        scores.append(log_loss(fold.y_val, model.predict_proba(fold.x_val)))
    return 1, min(scores)


def multiply(workload: Workload, seed: int) -> tuple[int, float]:
    """Matrix products: a "fit" is one floating-point operation."""
    size, times = 1024, 20
    factor = torch.rand(size, size)
    for _ in range(times):
        factor @ factor
    return 2 * size**3 * times, 0.0


def _fit_plain(workload: Workload, batches: Callable[[], object]) -> float:
    fold = workload.fold
    x_val, y_val = torch.tensor(fold.x_val), torch.tensor(fold.y_val)
    model = build_model("mlp", fold.x_train.shape[1], 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY)
    best = float("inf")
    for _ in range(workload.epochs):
        for x, y in batches():
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        with torch.no_grad():
            best = min(best, F.cross_entropy(model(x_val), y_val).item())
    return best


def _score_skorch(fold: Fold) -> Callable[..., float]:
    def score(net: NeuralNetClassifier, x: object, y: object) -> float:
        with torch.no_grad():
            output = net.forward(fold.x_val)
        return F.cross_entropy(output, torch.tensor(fold.y_val)).item()

    return score


class _Pool:
    """The processes of one contender, each with its data loaded and its code warmed up."""

    def __init__(self, contender: Contender, workload: Workload) -> None:
        self._contender = contender
        context = multiprocessing.get_context("spawn")
        self._processes = [
            ProcessPoolExecutor(1, context, _prepare, (contender, workload)) for _ in range(contender.processes)
        ]
        self.run(0)

    def run(self, seed: int) -> tuple[float, float, float]:
        """(wall seconds per fit, log-loss, bytes of all processes) of one fit or stack in every process."""
        start = time.perf_counter()
        futures = [process.submit(_fit, seed) for process in self._processes]
        fits, scores, memory = zip(*(future.result() for future in futures), strict=True)
        return (time.perf_counter() - start) / sum(fits), float(np.mean(scores)), sum(memory)

    def close(self) -> None:
        for process in self._processes:
            process.shutdown()


def _prepare(contender: Contender, workload: Workload) -> None:
    global _TASK
    _TASK = (contender, workload)
    torch.set_num_threads(contender.threads)
    warnings.simplefilter("ignore", ConvergenceWarning)


def _fit(seed: int) -> tuple[int, float, int]:
    contender, workload = _TASK
    fits, score = contender.fit(workload, seed)
    unit = 1 if sys.platform == "darwin" else 1024
    return fits, score, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _fold(table: Table, train: int) -> Fold:
    order = np.random.default_rng(0).permutation(len(table.target))
    rows, rest = order[:train], order[train:]
    features = table.features.iloc[rows]
    preprocessor = make_preprocessor(features).fit(features)
    x, x_rest = (np.ascontiguousarray(preprocessor.transform(table.features.iloc[part])) for part in (rows, rest))
    return Fold((0, 0), x, table.target[rows], x_rest, table.target[rest], x_rest[:0])


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


if __name__ == "__main__":
    main()
