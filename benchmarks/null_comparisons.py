"""Does the whole of compare crown a loss where there is nothing to find?

    python benchmarks/null_comparisons.py [--comparisons 30] [--trials 2] [--out evidence/compare_null.json]

Cross-entropy competes against five other names of itself, each trained with seeds of its own (initial weights, batches
and proposals), on samples of real tables. Whatever is recommended but cross-entropy is wrong. A recommendation in more
than 5% of comparisons, by an exact binomial test at 1%, would show that the rule does not hold what it promises.
A record that is there already, of the same versions and trials, is gone on with.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from rich.console import Console
from scipy.stats import binomtest
from torch import Tensor

from lossary.compare import run
from lossary.compare.identity import versions
from lossary.compare.load import Table, load_table
from lossary.compare.options import Options
from lossary.compare.scheduler import Chain, Scheduler
from lossary.compare.work import StackJob
from lossary.core.seeding import derive

NAMES = ("anna", "bert", "carl", "dora", "emil")
TABLES = ("breast_cancer", "digits", "digits_8", "wine", "iris")
ROWS = 300


def renamed(input: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy."""
    return F.cross_entropy(input, target)


anna = bert = carl = dora = emil = renamed


class Reseeded(Scheduler):
    """Gives every candidate seeds of its own, where they share them in a comparison."""

    def job(self, chain: Chain, round: int, *, keep_weights: bool = False) -> StackJob:
        seed = derive(self.training.seed, chain.candidate.name)
        own = dataclasses.replace(self, training=dataclasses.replace(self.training, seed=seed))
        return super(Reseeded, own).job(chain, round, keep_weights=keep_weights)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comparisons", type=int, default=30)
    parser.add_argument("--trials", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    run.Scheduler = Reseeded  # type: ignore[misc]
    # Workers import the objectives from this file by its name.
    sys.path.insert(0, str(Path(__file__).parent))
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)

    console, start = Console(), time.monotonic()
    found, before = recorded(options.out, options.trials)
    if found:
        console.print(f"{len(found)} comparisons are on record: going on after them.")
    for number in range(len(found), options.comparisons):
        found.append(compare_null(TABLES[number % len(TABLES)], seed=number, trials=options.trials))
        line = found[-1]
        console.print(f"{number + 1:3} {line['table']:15} recommended: {line['recommended']:20} {line['verdicts']}")
        record = summary(found, options.trials, before + time.monotonic() - start)
        if options.out:  # after each, so that a run that is stopped has its record too
            options.out.write_text(json.dumps(record, indent=1) + "\n")
    record = summary(found, options.trials, before + time.monotonic() - start)
    console.print(
        f"{record['wrongly_recommended']} of {len(found)} comparisons recommended another name of cross-entropy "
        f"(binomial p = {record['p_value_against_5_percent']:.2g} against 5%); {record['told_apart']} of "
        f"{record['verdicts']} verdicts told one from the other."
    )


def recorded(path: Path | None, trials: int) -> tuple[list[dict[str, Any]], float]:
    """The comparisons that a record holds already, and the seconds they took; none if it is of another kind."""
    if path is None or not path.exists():
        return [], 0.0
    record = json.loads(path.read_text())
    if record["versions"] != versions() or not record["command"].endswith(f"--trials {trials}"):
        return [], 0.0
    return record["runs"], record["seconds"]


def summary(found: list[dict[str, Any]], trials: int, seconds: float) -> dict[str, Any]:
    """What the comparisons so far say."""
    wrong = sum(line["recommended"] != "cross_entropy" for line in found)
    return {
        "question": "How often does compare recommend cross-entropy under another name, with other seeds?",
        "comparisons": len(found),
        "wrongly_recommended": wrong,
        "told_apart": sum(verdict in ("better", "worse") for line in found for verdict in line["verdicts"].values()),
        "verdicts": len(found) * len(NAMES),
        "p_value_against_5_percent": binomtest(wrong, len(found), 0.05, alternative="greater").pvalue,
        "command": f"python benchmarks/null_comparisons.py --comparisons {len(found)} --trials {trials}",
        "versions": versions(),
        "seconds": round(seconds),
        "runs": found,
    }


def compare_null(name: str, *, seed: int, trials: int) -> dict[str, Any]:
    """One comparison on a sample of a table."""
    table = sample(load_table(name), seed)
    objectives = tuple(f"null_comparisons:{name}" for name in NAMES)
    options = Options(target=table.target_names, objectives=objectives, trials=trials, seed=seed)
    judged = run.compare_table(table, options).judgement
    verdicts = {key.partition(":")[2]: verdict.verdict for key, verdict in judged.verdicts.items() if ":" in key}
    return {"table": name, "seed": seed, "recommended": judged.recommended, "verdicts": verdicts}


def sample(table: Table, seed: int) -> Table:
    """At most ``ROWS`` rows of a table, each class by its share."""
    rows = np.sort(np.random.default_rng(seed).permutation(len(table.target))[:ROWS])
    features = table.features.iloc[rows].reset_index(drop=True)
    return dataclasses.replace(table, features=features, target=table.target[rows], fingerprint=f"{seed}")


if __name__ == "__main__":
    main()
