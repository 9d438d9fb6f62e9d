"""Which candidates ever help on a table?

    python benchmarks/candidates_on_tables.py [--repeats 1] [--trials 4] [--out evidence/compare_candidates.json]

Every candidate competes on small real tables under the defaults of ``lossary compare``, log-loss as the metric. A
candidate *helps* on a table where its whole simultaneous 95% interval lies above cross-entropy's and its mean gain is
at least 1%; one that helps on none is kept out of ``auto``. The tables are those of the project's data folder
(``LOSSARY_DATA``, else downloaded) and scikit-learn's, all of at most 2,500 rows.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from lossary.compare.candidates import names
from lossary.compare.identity import versions
from lossary.compare.load import load_table
from lossary.compare.options import Options
from lossary.compare.run import compare_table

TABLES = (
    "breast_cancer",
    "digits_8",
    "german",
    "ionosphere",
    "pima",
    "sonar",
    "wine",
    "banknote",
    "digits_labels",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="*", default=list(TABLES))
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--trials", type=int, default=4)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    console, start = Console(), time.monotonic()
    found: dict[str, dict[str, Any]] = {}
    for name in options.tables:
        found[name] = compare_all(name, repeats=options.repeats, trials=options.trials)
        console.print(f"{name}: {', '.join(found[name]['helps']) or 'none'} ({time.monotonic() - start:.0f} s so far)")
        if options.out:  # after each, so that a run that is stopped has its record too
            record = summary(found, options.repeats, options.trials, time.monotonic() - start)
            options.out.write_text(json.dumps(record, indent=1) + "\n")
    for name, tables in summary(found, options.repeats, options.trials, 0.0)["helps_on"].items():
        console.print(f"{name:32} {', '.join(tables) or '-'}")


def compare_all(name: str, *, repeats: int, trials: int) -> dict[str, Any]:
    """Every candidate on one table."""
    table = load_table(name)
    options = Options(
        target=table.target_names, objectives=tuple(names(table.task)), repeats=repeats, trials=trials, min_effect=0.01
    )
    comparison = compare_table(table, options)
    verdicts = comparison.judgement.verdicts
    return {
        "rows": len(table.target),
        "task": table.task,
        "helps": [v.name for v in verdicts.values() if v.verdict == "better" and v.gain >= options.min_effect],
        "candidates": {
            v.name: {"log_loss": v.mean, "gain": v.gain, "low": v.low, "high": v.high, "verdict": v.verdict}
            for v in verdicts.values()
        },
    }


def summary(found: dict[str, dict[str, Any]], repeats: int, trials: int, seconds: float) -> dict[str, Any]:
    """What the tables so far say."""
    candidates: Sequence[str] = list(dict.fromkeys(name for table in found.values() for name in table["candidates"]))
    return {
        "question": "On which tables does each candidate beat cross-entropy by more than chance and by at least 1%?",
        "helps_on": {
            name: [table for table, seen in found.items() if name in seen["helps"]]
            for name in candidates
            if name != "cross_entropy"
        },
        "command": f"python benchmarks/candidates_on_tables.py --repeats {repeats} --trials {trials}",
        "versions": versions(),
        "seconds": round(seconds),
        "tables": found,
    }


if __name__ == "__main__":
    main()
